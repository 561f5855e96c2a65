"""`python -m jobs.query`, as people and scripts call it: with SQL, from a pipe, and at a prompt on a terminal."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline import schema
from tests.conftest import REPOSITORY
from tests.pipeline.published.test_catalog import two_runs
from tests.support.photo_rows import NOON


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("query"))
    two_runs(folder)
    return folder


def query(*arguments: str, typed: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "jobs.query", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, input=typed, capture_output=True, check=False)


def test_formats(output: str, tmp_path: Path) -> None:
    sql = "SELECT uri, photo_id, lat_deg, processed_at, levels, 'a,\"b\"' AS odd FROM photos ORDER BY uri"
    table = query(output, sql)
    assert table.returncode == 0, table.stderr
    assert "/a" in table.stdout.decode()

    rows = json.loads(query(output, sql, "--format", "json").stdout)
    assert [row["uri"] for row in rows] == ["/a", "/b", "/c", "/d"]
    assert rows[0]["photo_id"] == schema.photo_id("/a").hex()
    assert rows[0]["levels"][2]["s2_level"] == 11
    assert dt.datetime.fromisoformat(rows[0]["processed_at"]) == NOON + dt.timedelta(hours=2)
    assert rows[3]["lat_deg"] is None

    lines = list(csv.DictReader(io.StringIO(query(output, sql, "--format", "csv").stdout.decode())))
    assert [line["uri"] for line in lines] == ["/a", "/b", "/c", "/d"]
    assert (lines[0]["odd"], lines[0]["lat_deg"], lines[3]["lat_deg"]) == ('a,"b"', "50.0", "")
    assert json.loads(lines[0]["levels"]) == rows[0]["levels"]

    target = tmp_path / "answer.parquet"
    written = query(output, sql, "--format", "parquet", "--to", str(target))
    assert (written.returncode, written.stdout) == (0, b"")
    assert pq.read_table(target).column("uri").to_pylist() == ["/a", "/b", "/c", "/d"]


def test_sql_from_a_pipe(output: str) -> None:
    answer = query(output, "--format", "csv", typed=b"-- which\nSELECT uri\nFROM photos ORDER BY uri LIMIT 2;\n")
    assert (answer.returncode, answer.stdout) == (0, b"uri\r\n/a\r\n/b\r\n"), answer.stderr
    empty = query(output)
    assert (empty.returncode, empty.stdout) == (2, b"")
    assert b"give one SELECT" in empty.stderr


def test_mistakes_exit_with_2_and_one_sentence(output: str, tmp_path: Path) -> None:
    for arguments, message in (
        ((output, "SELECT 1", "--format", "parquet"), "--format parquet needs a file: add --to FILE.parquet"),
        ((output, "DROP VIEW photos"), "give one SELECT: queries here only read"),
        ((str(tmp_path), "SELECT 1"), f"nothing is published at {tmp_path}"),
        (
            (output, "SELECT 1", "--format", "csv", "--to", f"{tmp_path}/no/such/x.csv"),
            f"can't write --to {tmp_path}/no/such/x.csv",
        ),
    ):
        answer = query(*arguments)
        assert answer.returncode == 2, answer.stderr
        assert answer.stdout == b""
        assert message in answer.stderr.decode()
        assert b"Traceback" not in answer.stderr


class Terminal:
    """The prompt on a pseudo-terminal."""

    def __init__(self, output: str, state: Path) -> None:
        environment = os.environ | {"XDG_STATE_HOME": str(state), "TERM": "dumb", "COLUMNS": "120"}
        self.shown = b""
        mine, its = pty.openpty()
        command = [sys.executable, "-c", _ON_ITS_TERMINAL, output]
        self._process = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdin=its, stdout=its, stderr=its, start_new_session=True
        )
        os.close(its)
        self._file = mine

    def wait_for(self, text: str, timeout_s: float = 60) -> str:
        """Return what is shown since the last time up to `text`, which must come."""
        deadline_s = time.monotonic() + timeout_s
        while text.encode() not in self.shown:
            assert time.monotonic() < deadline_s, self.shown.decode()
            assert select.select([self._file], [], [], timeout_s)[0], self.shown.decode()
            self.shown += os.read(self._file, 65536)
        before, _, self.shown = self.shown.partition(text.encode())
        return before.decode()

    def type(self, text: str, prompt: str = "graticule> ") -> str:
        """Type, and return what is shown up to the next prompt."""
        os.write(self._file, text.encode())
        return self.wait_for(prompt)

    def exit_code(self) -> int:
        """Return how it ended, which it must by itself."""
        while select.select([self._file], [], [], 60)[0]:
            try:
                os.read(self._file, 65536)
            except OSError:  # Linux' word for a terminal that nobody has open
                break
        return self._process.wait(60)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        os.close(self._file)


_ON_ITS_TERMINAL = """
import fcntl, runpy, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C reaches it
sys.argv[0] = "jobs.query"
runpy.run_module("jobs.query", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def terminal(output: str, tmp_path: Path) -> Iterator[Terminal]:
    started = Terminal(output, tmp_path)
    try:
        started.wait_for("graticule> ")
        yield started
    finally:
        started.close()


def test_prompt(terminal: Terminal, tmp_path: Path) -> None:
    tables = terminal.type(".tables\n")
    assert "the newest row of every photo" in tables
    assert "within_km(lat, lon, km)" in tables
    assert "_wrapped" not in tables
    assert "predicted latitude" in terminal.type(".schema photos\n")

    for line in ("SELECT 'answer ' ||", "  uri"):
        terminal.type(f"{line}\n", prompt="...> ")
    assert "answer /d" in terminal.type("FROM photos;\n")
    assert "DuckDB can't run this query" in terminal.type("SELECT nonsense FROM photos;\n")
    assert "give one SELECT: queries here only read" in terminal.type("DROP VIEW photos;\n")
    assert "is no command here" in terminal.type(".tabels\n")

    terminal.type("SELECT nonsense,\n", prompt="...> ")
    time.sleep(1)  # readline shows its prompt before it waits for keys: a Ctrl-C in between is noticed at the next key
    terminal.type("\x03")  # Ctrl-C drops what was typed
    assert "answer 42" in terminal.type("SELECT 'answer ' || 6 * 7;\n")

    os.write(terminal._file, b"SELECT sum(hash(a.range + b.range) % 7) FROM range(10000000) a, range(100000) b;\n")
    time.sleep(1)
    terminal.type("\x03")  # and ends a query that would take hours
    assert "answer 43" in terminal.type("SELECT 'answer ' || 43;\n")
    os.write(terminal._file, b".quit\n")
    assert terminal.exit_code() == 0
    history = (tmp_path / "graticule" / "query_history").read_text().splitlines()
    assert history[:2] == [".tables", ".schema photos"]


def test_prompt_ends_with_the_input(terminal: Terminal) -> None:
    os.write(terminal._file, b"\x04")
    assert terminal.exit_code() == 0


def test_no_cell_of_csv_is_a_formula(output: str) -> None:
    texts = "(VALUES ('=1+1'), ('+1'), ('-1'), ('@x'), ('a=b')) texts(text)"
    sql = f'SELECT text AS "=1+1", -1.5 AS number, [text] AS list FROM {texts}'
    header, *rows = csv.reader(io.StringIO(query(output, sql, "--format", "csv").stdout.decode()))
    assert header == ["'=1+1", "number", "list"]
    assert [row[0] for row in rows] == ["'=1+1", "'+1", "'-1", "'@x", "a=b"]
    assert {row[1] for row in rows} == {"-1.5"}
    assert rows[0][2] == '["=1+1"]'
