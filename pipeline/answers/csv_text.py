"""Text in CSV files: a spreadsheet computes a cell that begins with one of `= + - @`, so none that we write does."""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.compute as pc

_FORMULA = r"\A([=+\-@\t\r])"
_TEXT = r"'\1"


def harmless(text: str) -> str:
    """Return `text`, with a `'` in front where a spreadsheet would compute it."""
    return re.sub(_FORMULA, _TEXT, text)


def harmless_column(column: pa.Array) -> pa.Array:
    """Return a column with `harmless` texts; one of another type as it is."""
    return pc.replace_substring_regex(column, _FORMULA, _TEXT) if pa.types.is_string(column.type) else column
