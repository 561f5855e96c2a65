"""Plain lists: a photo's name on each line, as `find`, `ls` and PowerShell write them."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pyarrow as pa

from pipeline import schema, storage
from pipeline.sources.lists import columns
from pipeline.sources.lists.delimited import has_table_header, read_delimited
from pipeline.sources.lists.rows import Lose, Rows
from pipeline.sources.lists.text import open_text, split_lines

log = logging.getLogger(__name__)


def read_lines(entry: storage.Entry, lose: Lose) -> Iterator[Rows]:
    """Yield the names; lines that are empty or begin with `#` are none, and are counted in the log.

    A first line that is a column's name, such as `uri`, is a header; with several columns it is a table.
    """
    opened = open_text(entry)
    if has_table_header(opened.head):
        yield from read_delimited(entry, lose, "tsv")
        return
    number, comments, is_first = 1, 0, True
    for lines in split_lines(entry, opened):
        names: list[bytes] = []
        left_out: list[int] = []
        for index, line in enumerate(lines):
            if not line or line.startswith(b"#") or line.isspace():
                comments += line.startswith(b"#")
                left_out.append(number + index)
                continue
            if is_first and columns.is_uri_name(line.decode("utf-8", "replace").strip('"')):
                log.info("%s: its first line, %s, is taken for a header", entry.uri, line.decode("utf-8", "replace"))
                left_out.append(number + index)
            else:
                names.append(line)
            is_first = False
        if names:
            column = pa.array(names, pa.binary())
            yield Rows({schema.URI: column}, number, left_out, opened.is_from_windows)
        number += len(lines)
    if comments:
        log.info("%s: %d lines that begin with # are comments (write ./# for such a name)", entry.uri, comments)
