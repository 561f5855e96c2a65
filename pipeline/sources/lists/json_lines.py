"""JSON lists: an object on each line, as BigQuery, Spark and Snowflake write them, or an array of objects."""

from __future__ import annotations

import codecs
import itertools
import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from pyarrow.types import is_floating, is_integer

from pipeline import schema, storage
from pipeline.sources.lists import columns
from pipeline.sources.lists.columns import UnreadableListError
from pipeline.sources.lists.rows import Lose, Rows
from pipeline.sources.lists.text import Opened, open_text, split_lines
from pipeline.sources.lists.values import is_text

_ROWS_PER_BATCH = 10_000
_PART_BYTES = 1 << 20
_LONGEST_ITEM_CHARS = 16 << 20
_BLANKS = " \t\r\n"
_Item = tuple[int, Any]
"""An item with its number."""


def read_json(entry: storage.Entry, lose: Lose) -> Iterator[Rows]:
    """Yield the rows of JSON objects, or of bare texts; UnreadableListError where no object names photos."""
    opened = open_text(entry)
    is_array = opened.head.lstrip().startswith("[")
    items = _array_items(entry, opened) if is_array else _line_items(entry, opened, lose)
    names: dict[str, str] | None = None
    while chunk := list(itertools.islice(items, _ROWS_PER_BATCH)):
        objects = [item for _, item in chunk if isinstance(item, dict)]
        if names is None and objects:
            # Of every object, as one may leave out what it has no value for.
            names = columns.choose(list(dict.fromkeys(itertools.chain.from_iterable(objects))), entry.uri).names
        yield from _rows(chunk, names or {}, lose, opened.is_from_windows)


def _rows(chunk: list[_Item], names: dict[str, str], lose: Lose, is_from_windows: bool) -> Iterator[Rows]:
    """Yield what can be read of some items as rows; numbers that are missing among theirs are of lost ones."""
    cells = _alike(chunk, names)
    if cells is None:
        chunk, cells = _each(chunk, names, lose)
    if chunk:
        first, last = chunk[0][0], chunk[-1][0]
        missing: list[int] = []
        if len(chunk) != last - first + 1:
            missing = sorted(set(range(first, last + 1)) - {number for number, _ in chunk})
        yield Rows(cells, first, missing, is_from_windows)


def _alike(chunk: list[_Item], names: dict[str, str]) -> dict[str, pa.Array] | None:
    """Return the columns of objects of which each has texts, or numbers for sizes; None where one is otherwise."""
    try:
        cells = {meaning: pa.array([item.get(name) for _, item in chunk]) for meaning, name in names.items()}
    except (AttributeError, pa.ArrowException, UnicodeError, OverflowError):
        return None
    fits = [
        is_text(cell.type) or (meaning == schema.SIZE_BYTES and (is_integer(cell.type) or is_floating(cell.type)))
        for meaning, cell in cells.items()
    ]
    return cells if fits and all(fits) else None


def _each(chunk: list[_Item], names: dict[str, str], lose: Lose) -> tuple[list[_Item], dict[str, pa.Array]]:
    """Return the items that can be read, looking at each, and their columns."""
    kept: list[_Item] = []
    for number, item in chunk:
        row = {schema.URI: item} if isinstance(item, str) else item
        if not isinstance(row, dict):
            lose(number, f'is no object but {json.dumps(item)[:60]}: write {{"uri": …}}')
            continue
        own = names if row is item else {schema.URI: schema.URI}
        uri = row.get(own.get(schema.URI, ""))
        if uri is not None and not isinstance(uri, str):
            lose(number, f"has the {own[schema.URI]} {json.dumps(uri)[:60]}, which is no text: write it in quotes")
            continue
        kept.append((number, {meaning: _text(row.get(name)) for meaning, name in own.items()}))
    meanings = names or {schema.URI: schema.URI}
    return kept, {meaning: pa.array([row.get(meaning) for _, row in kept], pa.string()) for meaning in meanings}


def _text(value: object) -> str | None:
    """Return a value as a CSV would have it; a lone surrogate, which no text can hold, as its escape."""
    if value is None or isinstance(value, str):
        if isinstance(value, str) and not value.isascii():
            return value.encode("utf-8", "backslashreplace").decode()
        return value
    return json.dumps(value)


def _line_items(entry: storage.Entry, opened: Opened, lose: Lose) -> Iterator[_Item]:
    number = 1
    for lines in split_lines(entry, opened):
        for start in range(0, len(lines), _ROWS_PER_BATCH):
            part = lines[start : start + _ROWS_PER_BATCH]
            yield from _items_of(part, number, lose)
            number += len(part)


def _items_of(lines: list[bytes], number: int, lose: Lose) -> Iterator[_Item]:
    """Yield the items of lines, the first of which has this number: all at once where each is one object."""
    if all(line.startswith(b"{") and line.endswith(b"}") for line in lines):
        try:
            items = json.loads(b"[%s]" % b",".join(lines))
        except (ValueError, RecursionError):
            items = []
        if len(items) == len(lines):
            yield from enumerate(items, number)
            return
    for index, line in enumerate(lines, number):
        if not line or line.isspace():
            continue
        try:
            yield index, json.loads(line)
        except (ValueError, RecursionError) as error:
            lose(index, f"is no JSON ({str(error)[:80]}): write one object a line")


def _array_items(entry: storage.Entry, opened: Opened) -> Iterator[_Item]:
    """Yield the items of one array, however long, holding one part of it at a time."""
    decode, utf8 = json.JSONDecoder().raw_decode, codecs.getincrementaldecoder("utf-8")("replace")
    text, at, number, is_end = "", 0, 0, False
    while True:
        while at < len(text) and (text[at] in _BLANKS or text[at] == ("[" if not number else ",")):
            number = number or 1
            at += 1
        if text[at : at + 1] == "]":
            return
        try:
            item, at = decode(text, at)
            yield number, item
            number += 1
        except (json.JSONDecodeError, RecursionError) as error:
            if is_end or isinstance(error, RecursionError) or len(text) - at > _LONGEST_ITEM_CHARS:
                raise UnreadableListError(f"{entry.uri}, item {number}: its array can't be read: {error}") from error
            data = opened.text.read(_PART_BYTES)
            is_end = not data
            text, at = text[at:] + utf8.decode(data, final=is_end), 0
