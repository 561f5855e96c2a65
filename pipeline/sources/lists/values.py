"""Sizes and times as tools write them, turned into the manifest's types, with the values that can't be understood."""

from __future__ import annotations

import datetime as dt
import decimal
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema

_TIME = schema.MANIFEST.field(schema.MODIFIED_AT).type
_NULL_WORDS = frozenset(["", "null", "nil", "none", "nan", "na", "n/a", "#n/a", "<na>", "nat", "\\n", "-"])
_LONGEST_NULL_WORD = max(map(len, _NULL_WORDS))
_WHOLE = re.compile(r"\+?(-?\d{1,30})(?:\.0*|,0{1,2})?")
_SCIENTIFIC = re.compile(r"\+?\d{1,30}(?:[.,]\d{1,30})?[eE]\+?\d{1,2}")
_INSTANT = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:(?:[T ]\s*(?=\d)|\+(?=\d\d:\d\d:))(\d\d:\d\d(?::\d\d)?)(?:[.,](\d+))?"
    r"\s*(Z|UTC|GMT|[+-]\d\d(?::?\d\d)?)?(?:\[[\w/+-]+\])?)?",
    re.IGNORECASE,
)
_INSTANT_AS_DIGITS = re.compile(r"(\d{4})(\d\d)(\d\d)[Tt](\d\d)(\d\d)(\d\d)(Z|[+-]\d\d(?::?\d\d)?)?", re.IGNORECASE)
_HTTP_TIME = "%a, %d %b %Y %H:%M:%S GMT"

WANTED = {
    schema.SIZE_BYTES: "write a whole number of bytes, such as 10500, or nothing",
    schema.MODIFIED_AT: "write it as 2024-01-31T12:00:00Z (UTC where no zone is given), or nothing",
}
"""What to write instead of what can't be understood."""


@dataclass(frozen=True)
class Understood:
    """Values in the manifest's type, null where there are none, and the places of those that can't be understood."""

    values: pa.Array
    odd: tuple[int, ...] = ()


def is_size(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold sizes."""
    types = pa.types
    return is_text(kind) or any(is_kind(kind) for is_kind in (types.is_integer, types.is_floating, types.is_decimal))


def is_time(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold times: a bare number does not say since when it counts, nor in what."""
    return is_text(kind) or pa.types.is_timestamp(kind) or pa.types.is_date(kind)


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold texts."""
    types = pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    texts = (types.is_string, types.is_large_string, types.is_string_view)
    bytes_of_texts = (types.is_binary, types.is_large_binary, types.is_binary_view)
    return any(is_kind(kind) for is_kind in (*texts, *bytes_of_texts, types.is_null))


def sizes(values: pa.Array) -> Understood:
    """Return sizes in bytes, int64: 10500, "10500", 10500.0 and "1.05e4" are one."""
    kind = values.type
    if pa.types.is_integer(kind) or pa.types.is_null(kind):
        return _cast_or_each(values, pa.int64(), _size)
    if pa.types.is_floating(kind):
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, kind), values)
        return _cast_or_each(values, pa.int64(), _size)
    if pa.types.is_decimal(kind):
        return _cast_or_each(values, pa.int64(), _size)
    return _cast_or_each(_texts(values), pa.int64(), _size)


def times(values: pa.Array) -> Understood:
    """Return times as timestamp[us, UTC]: those that name no zone are UTC, and what is finer than that is cut."""
    kind = values.type
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        return Understood(values.cast(pa.timestamp("us", kind.tz), safe=False).cast(_TIME))
    if not is_text(kind) or pa.types.is_null(kind):
        return _cast_or_each(values.cast(pa.timestamp("s")) if pa.types.is_date(kind) else values, _TIME, _no_time)
    texts = _texts(values)
    try:
        return Understood(texts.cast(_TIME))
    except pa.ArrowInvalid:
        pass
    try:
        return Understood(texts.cast(pa.timestamp("us")).cast(_TIME))
    except pa.ArrowInvalid:
        return _each(texts, _TIME, _instant)


def etags(values: pa.Array) -> pa.Array:
    """Return versions as texts, null where there is none; some listings keep HTTP's quotes."""
    texts = pc.ascii_trim(_texts(values), ' "')
    if (pc.min(pc.binary_length(texts)).as_py() or 0) > _LONGEST_NULL_WORD:
        return texts
    is_none = pc.is_in(pc.ascii_lower(texts), value_set=pa.array(sorted(_NULL_WORDS)))
    return pc.if_else(is_none, pa.scalar(None, pa.string()), texts)


def shown(value: object) -> str:
    """Return a value as a message shows it."""
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
    return repr(schema.printable(text if len(text) <= 60 else f"{text[:60]}…"))


def _texts(values: pa.Array) -> pa.Array:
    return values if pa.types.is_string(values.type) else values.cast(pa.string())


def _cast_or_each(values: pa.Array, kind: pa.DataType, understand: Callable[[Any], object]) -> Understood:
    """Cast the whole column, as is right for nearly all; where that is refused, look at each value."""
    try:
        return Understood(values.cast(kind))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return _each(values, kind, understand)


def _each(values: pa.Array, kind: pa.DataType, understand: Callable[[Any], object]) -> Understood:
    found: list[object] = []
    odd: list[int] = []
    for index, scalar in enumerate(values):
        try:
            value = scalar.as_py()
            is_none = value is None or (isinstance(value, str) and value.strip().lower() in _NULL_WORDS)
            found.append(None if is_none else understand(value))
        except (ValueError, OverflowError):
            found.append(None)
            odd.append(index)
    return Understood(pa.array(found, kind), tuple(odd))


def _size(value: str | float | decimal.Decimal) -> int:
    """Return one size; ValueError where it is no whole number, or one that no file has."""
    if isinstance(value, str):
        text = value.strip()
        if match := _WHOLE.fullmatch(text):
            size = int(match[1])
        elif _SCIENTIFIC.fullmatch(text):
            size = _size(decimal.Decimal(text.replace(",", ".")))
        else:
            raise ValueError(value)
    else:
        size = int(value)
        if size != value:
            raise ValueError(value)
    if not -(2**63) <= size < 2**63:
        raise OverflowError(size)
    return size


def _instant(text: str) -> dt.datetime:
    """Return one time, in UTC where it names no zone; ValueError where it can't be understood."""
    text = text.strip()
    if match := _INSTANT.fullmatch(text):
        date, clock, fraction, zone = match.groups()
    elif match := _INSTANT_AS_DIGITS.fullmatch(text):
        year, month, day, hour, minute, second, zone = match.groups()
        date, clock, fraction = f"{year}-{month}-{day}", f"{hour}:{minute}:{second}", None
    else:
        return dt.datetime.strptime(text, _HTTP_TIME).replace(tzinfo=dt.UTC)
    zone = "+00:00" if zone is None or zone.upper() in ("Z", "UTC", "GMT") else zone
    written = f"{date}T{clock or '00:00'}" + (f".{fraction[:6]:0<6}" if fraction else "") + zone
    return dt.datetime.fromisoformat(written).astimezone(dt.UTC)


def _no_time(value: object) -> object:
    """Return a time of Python's that fits; OverflowError where it was none."""
    raise OverflowError(value)
