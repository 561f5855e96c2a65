"""The prompt of `python -m jobs.query OUTPUT` on a terminal: one query after another, with their history."""

from __future__ import annotations

import contextlib
import os
import readline
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from pipeline.published.catalog import Catalog
from pipeline.schema import printable

_ROWS_SHOWN = 100
_HISTORY_LINES = 2000
_HELP = """\
A query ends with ; and may take several lines.
.tables         views and macros
.schema NAME    columns of a view
.quit           leave, as Ctrl-D does; Ctrl-C drops what you typed or stops the query"""
_TABLES = """
SELECT view_name AS name, comment AS "what it has" FROM duckdb_views() WHERE comment IS NOT NULL
UNION ALL SELECT table_name, comment FROM duckdb_tables() WHERE comment IS NOT NULL
UNION ALL SELECT function_name || '(' || array_to_string(parameters, ', ') || ')', comment
FROM duckdb_functions() WHERE function_type IN ('macro', 'table_macro') AND comment IS NOT NULL
ORDER BY contains(name, '('), name
"""
_SCHEMA = """
SELECT column_name AS "column", data_type AS type, coalesce(comment, '') AS "what it is" FROM duckdb_columns()
WHERE lower(table_name) = lower('{name}') AND schema_name = 'main' ORDER BY column_index
"""


class Prompt:
    """Reads queries from the terminal and prints their answers until it is left."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def run(self) -> None:
        """Prompt until .quit or the end of the input; a wrong query is told and ends nothing."""
        with _history(history_file()):
            print("One SELECT; .tables names what there is, .help the commands, .quit leaves.")
            typed: list[str] = []
            while True:
                try:
                    typed.append(input("     ...> " if typed else "graticule> "))
                    text = "\n".join(typed).strip()
                    if text.startswith(".") or text in ("quit", "exit"):
                        typed = []
                        if not self._command(text):
                            return
                    elif not text:
                        typed = []
                    elif text.endswith(";"):
                        typed = []
                        self._print(text)
                except KeyboardInterrupt:
                    typed = []
                    print()
                except EOFError:
                    print()
                    return

    def _command(self, text: str) -> bool:
        """Carry out a command; return whether to go on."""
        name, _, argument = text.rstrip("; ").partition(" ")
        argument = argument.strip()
        if name.lstrip(".") in ("quit", "exit"):
            return False
        if name == ".help":
            print(_HELP)
        elif name == ".tables":
            self._print(_TABLES)
        elif name == ".schema" and argument:
            self._print(_SCHEMA.format(name=argument.replace("'", "''")))
        else:
            print(f"{printable(text)} is no command here.\n{_HELP}")
        return True

    def _print(self, query: str) -> None:
        """Print the answer, or what is wrong with the query; Ctrl-C stops it, which DuckDB alone may not notice."""
        width_chars = shutil.get_terminal_size((160, 0)).columns
        with ThreadPoolExecutor(1) as thread:
            answer = thread.submit(self._catalog.drawn, query, width_chars, _ROWS_SHOWN)
            try:
                print(answer.result(), end="")
            except ValueError as error:
                print(error)
            except KeyboardInterrupt:
                while not answer.done():
                    self._catalog.interrupt()
                    wait([answer], timeout=0.1)
                raise


def history_file() -> Path:
    """Return where the prompt's history is kept, in XDG's folder for what is neither settings nor data."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "graticule" / "query_history"


@contextlib.contextmanager
def _history(file: Path) -> Iterator[None]:
    with contextlib.suppress(OSError):  # the first time, or a folder that can't be read: there is no history then
        readline.read_history_file(file)
    readline.set_history_length(_HISTORY_LINES)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # a home that can't be written to is no reason to fail
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            readline.write_history_file(file)
