"""What a training has to say while it runs: one record a line on stdout, in metrics.jsonl and for TensorBoard.

The file is whole at any moment: it is written again, atomically, as records are added, on any store. A training that
goes on from a snapshot first forgets the records that came after it.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import weakref
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from pipeline import storage

FILE = "metrics.jsonl"
BOARD_FOLDER = "tensorboard"


class Journal:
    """The records of one training below `output` (only said on stdout if that is empty)."""

    def __init__(self, output: str, from_step: int, quiet: bool = False) -> None:
        self._output, self._quiet = output, quiet
        self._records = [record for record in read_journal(output) if record["step"] <= from_step] if output else []
        self._board_folder = Path(tempfile.mkdtemp(prefix="graticule-board-")) if output else None
        if self._board_folder is not None:  # also where a training fails: nobody closes it then
            self._remove_folder = weakref.finalize(self, shutil.rmtree, self._board_folder, ignore_errors=True)
        self._board = SummaryWriter(str(self._board_folder), purge_step=from_step + 1) if output else None

    def add(self, record: dict[str, Any]) -> None:
        """Add a record: its `kind`, its `step`, and numbers or groups of numbers."""
        self._records.append(record)
        if not self._quiet:
            sys.stdout.write(json.dumps(record) + "\n")
            sys.stdout.flush()
        if self._board is not None:
            for name, value in _flat(record):
                self._board.add_scalar(name, value, record["step"])

    def flush(self) -> None:
        """Put what was added where others can see it (for TensorBoard the last few may follow later)."""
        if self._board is None:
            return
        self._board.flush()
        self._put()

    def close(self) -> None:
        """Put everything where others can see it, and stop."""
        if self._board is not None:
            self._board.close()  # only this waits for the writer's thread; its flush() does not
            self._put()
            self._remove_folder()

    def _put(self) -> None:
        assert self._board_folder is not None
        lines = "".join(json.dumps(record) + "\n" for record in self._records)
        storage.write_bytes(storage.join(self._output, FILE), lines.encode())
        for path in self._board_folder.iterdir():
            storage.write_bytes(storage.join(self._output, BOARD_FOLDER, path.name), path.read_bytes())


def read_journal(output: str) -> list[dict[str, Any]]:
    """Return the records below `output`; none if there are none yet."""
    try:
        data = storage.read_bytes(storage.join(output, FILE))
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in data.splitlines()]


def _flat(record: dict[str, Any]) -> list[tuple[str, float]]:
    """Return (name, number) of each number in a record, those in groups as group/name, after the record's kind."""
    flat = []
    for name, value in record.items():
        group = value if isinstance(value, dict) else {"": value}
        for inner, number in group.items():
            if isinstance(number, int | float) and name != "step":
                flat.append((f"{record['kind']}/{name}/{inner}".rstrip("/"), float(number)))
    return flat
