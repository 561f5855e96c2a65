"""Query what is published with SQL.

    python -m jobs.query OUTPUT "SELECT status, count(*) FROM photos GROUP BY status"

Without SQL it is read from standard input, or asked for at a prompt where that is a terminal.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import tyro

from jobs import run_command
from jobs.query_prompt import Prompt
from pipeline import storage
from pipeline.answers.csv_text import harmless
from pipeline.published.catalog import Catalog
from pipeline.run.staging import parquet_bytes


@dataclass(frozen=True)
class QuerySettings:
    """Query what is published with SQL: views photos, history, failures, levels, accuracy and runs; macros within_km,
    bbox, in_cell and distance_km."""

    output: tyro.conf.Positional[str]
    """The --output of jobs.geotag_archive."""
    sql: tyro.conf.Positional[str | None] = None
    """One SELECT; read from standard input if not given, or asked for at a prompt on a terminal."""
    format: Literal["table", "csv", "json", "parquet"] = "table"
    """How the result is written; parquet needs --to."""
    to: Path | None = None
    """File to write instead of standard output."""


def run(settings: QuerySettings) -> int:
    """Run the query and write its result, or prompt for queries; return the exit code."""
    if settings.format == "parquet" and settings.to is None:
        raise ValueError("--format parquet needs a file: add --to FILE.parquet")
    output = storage.absolute(settings.output)
    if settings.sql is None and sys.stdin.isatty():
        if settings.to is not None or settings.format != "table":
            raise ValueError("--format and --to go with one query: give it as an argument or on standard input")
        Prompt(Catalog(output)).run()
        return 0
    sql = sys.stdin.read() if settings.sql is None else settings.sql
    catalog = Catalog(output)
    if settings.format == "table":
        content = catalog.drawn(sql, shutil.get_terminal_size((160, 0)).columns).encode()
    else:
        content = _written(catalog.rows(sql), settings.format)
    if settings.to is None:
        sys.stdout.buffer.write(content)
    else:
        try:
            settings.to.write_bytes(content)
        except OSError as error:
            raise ValueError(f"can't write --to {settings.to}: {error}") from error
    return 0


def _written(rows: pa.Table, form: str) -> bytes:
    """Return the result as a file's bytes: csv and json write binary values in hexadecimal, csv nested ones as JSON."""
    if form == "parquet":
        return parquet_bytes(rows)
    if form == "json":
        plain = [_plain(row) for row in rows.to_pylist()]
        return (json.dumps(plain, indent=1, ensure_ascii=False) + "\n").encode()
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(map(harmless, rows.column_names))  # PIVOT makes names of data
    for row in rows.to_pylist():
        writer.writerow(_cell(value) for value in row.values())
    return text.getvalue().encode()


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return harmless(value)
    return json.dumps(_plain(value)) if isinstance(value, list | tuple | dict) else _plain(value)


def _plain(value: Any) -> Any:
    """Return `value` as what JSON knows."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


if __name__ == "__main__":
    run_command(QuerySettings, run)
