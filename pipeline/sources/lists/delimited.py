"""CSV and its kin: whatever stands between the cells, with Excel's and PowerShell's lines before the header."""

from __future__ import annotations

import bisect
import csv
import io
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from pipeline import schema, storage
from pipeline.sources.lists import columns
from pipeline.sources.lists.columns import UnreadableListError
from pipeline.sources.lists.rows import Lose, Rows
from pipeline.sources.lists.text import ODD, Opened, Text, open_text, split_lines

_ROWS_PER_BATCH = 10_000
_MOST_LOST_AHEAD = 1_000_000
"""Rows of wrong lengths in one part of a text: with more of them it must be meant otherwise."""
_DELIMITERS = {"tsv": "\t,;|", "tab": "\t,;|", "psv": "|,;\t"}
"""Which are tried, in this order, until the header has a column that can name photos; of others `,;\\t|`."""
_BEFORE_HEADER = re.compile(
    r'(?:[ \t]*\r?\n)*(?:"?sep=(?P<delimiter>[^\r\n]|\\t)"?|#TYPE [^\r\n]*)(?:\r\n|\r|\n)', re.IGNORECASE
)
_HAS_PLACE = re.compile(r"/|[A-Za-z][A-Za-z0-9+.-]*:/")


@dataclass(frozen=True)
class _Layout:
    """How a text is laid out: what stands between cells, and how many lines before the header."""

    delimiter: str
    skipped_lines: int = 0
    has_header: bool = True


def has_table_header(head: str) -> bool:
    """Whether a text begins with the names of more than one column, of which one can name photos."""
    layout = _layout(head, "")
    cells = _cells(_BEFORE_HEADER.sub("", head, count=1), layout.delimiter)
    return len(cells) > 1 and columns.names_photos(cells)


def read_delimited(entry: storage.Entry, lose: Lose, kind: str = "csv") -> Iterator[Rows]:
    """Yield the rows; UnreadableListError where the columns are not what they should be or a quote never ends."""
    opened = open_text(entry)
    if not opened.head.strip():
        return
    layout = _layout(opened.head, kind)
    lost: list[int] = []

    def skip(row: pa.csv.InvalidRow) -> str:
        number = (row.number or 0) - layout.skipped_lines - layout.has_header
        lost.append(number)
        if len(lost) > _MOST_LOST_AHEAD:
            return "error"
        counted = f"has {row.actual_columns} cells where there are {row.expected_columns} columns"
        lose(number, f"{counted}: put text in quotation marks")
        return "skip"

    parsing = pa.csv.ParseOptions(delimiter=layout.delimiter, newlines_in_values=True, invalid_row_handler=skip)
    reading = pa.csv.ReadOptions(
        use_threads=False,  # only so the numbers of rows are known
        skip_rows=layout.skipped_lines,
        column_names=None if layout.has_header else [schema.URI],
    )
    chosen = _chosen(opened, reading, parsing, entry)
    converting = pa.csv.ConvertOptions(
        column_types={name: pa.string() for name in chosen.values()},  # not guessed: a photo named "007" keeps its name
        include_columns=list(chosen.values()),
        strings_can_be_null=True,
        null_values=["", "\\N"],  # and not "NA" or "null", which can be names
        check_utf8=False,
    )
    text, first = open_text(entry).text, 1
    text.marks_odd = True  # one of its rows would end the reading otherwise
    with pa.csv.open_csv(text, read_options=reading, parse_options=parsing, convert_options=converting) as reader:
        for batch in reader:
            for start in range(0, batch.num_rows, _ROWS_PER_BATCH):
                part = batch.slice(start, _ROWS_PER_BATCH)
                rows = Rows(
                    {meaning: _unmarked(part.column(name), text) for meaning, name in chosen.items()},
                    first,
                    tuple(lost),
                    opened.is_from_windows,
                )
                yield rows
                first = rows.number_of(part.num_rows - 1) + 1
                del lost[: bisect.bisect_left(lost, first)]
    if text.quotes % 2:
        _check_quotes(entry, layout)


def _unmarked(cells: pa.Array, text: Text) -> pa.Array:
    """Return cells whose odd bytes are odd bytes again."""
    return pc.replace_substring(cells.cast(pa.binary()), ODD.encode(), b"\xff") if text.has_odd else cells


def _layout(head: str, kind: str) -> _Layout:
    before = _BEFORE_HEADER.match(head)
    rest, lines, delimiter = head, 0, None
    if before is not None:
        rest, lines, delimiter = head[before.end() :], len(before[0].splitlines()), before["delimiter"]
    if delimiter is None:
        tried = _DELIMITERS.get(kind, ",;\t|")
        delimiter = next((each for each in tried if columns.names_photos(_cells(rest, each))), tried[0])
    delimiter = "\t" if delimiter == "\\t" else delimiter
    cells = _cells(rest, delimiter)
    is_bare = len(cells) == 1 and _HAS_PLACE.match(cells[0]) is not None
    return _Layout(delimiter, lines, has_header=not is_bare)


def _cells(text: str, delimiter: str) -> list[str]:
    """Return the cells of the first line that is not empty."""
    try:
        return next((cells for cells in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if cells), [])
    except csv.Error:
        return []


def _chosen(
    opened: Opened, reading: pa.csv.ReadOptions, parsing: pa.csv.ParseOptions, entry: storage.Entry
) -> dict[str, str]:
    """Return the columns to read by what they mean, as the reader itself names them."""
    parsing = pa.csv.ParseOptions(
        delimiter=parsing.delimiter, newlines_in_values=True, invalid_row_handler=lambda _: "skip"
    )
    # All of it only where the first 64 KB are not even the header.
    has_header = any(end in opened.head for end in "\r\n")
    opened.text.marks_odd = True
    source = io.BytesIO(opened.head.encode()) if has_header else opened.text
    with pa.csv.open_csv(source, read_options=reading, parse_options=parsing) as reader:
        return columns.choose(reader.schema.names, entry.uri).names


def _check_quotes(entry: storage.Entry, layout: _Layout) -> None:
    """Raise UnreadableListError where a quote is opened and never closed: all behind it would be one cell.

    Read a second time, by a slower reader that knows: only for texts with an odd number of quotes.
    """
    opened = open_text(entry)
    lines = (f"{line.decode('utf-8', 'replace')}\n" for part in split_lines(entry, opened) for line in part)
    rows = csv.reader(itertools.islice(lines, layout.skipped_lines, None), delimiter=layout.delimiter, strict=True)
    number = -layout.has_header
    try:
        for cells in rows:
            number += bool(cells)
    except csv.Error as error:
        if "unexpected end of data" in str(error):
            raise UnreadableListError(
                f"{entry.uri}, row {number + 1} opens a quotation mark that is never closed: close it, or double it"
                " if it is part of the text"
            ) from error
