import gc
import json
import struct
from pathlib import Path

import pytest

from training.fit.journal import Journal, read_journal


def record(step: int) -> dict[str, object]:
    return {"kind": "step", "step": step, "learning_rate": 0.1 * step, "loss": {"levels": 1.0 / step}}


def test_records_are_lines_of_json_on_stdout_and_in_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = Journal(str(tmp_path), 0)
    for step in (1, 2):
        journal.add(record(step))
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [record(1), record(2)]
    assert read_journal(str(tmp_path)) == []  # not yet where others can see it
    journal.close()
    assert read_journal(str(tmp_path)) == [record(1), record(2)]


def test_going_on_forgets_what_came_after_the_snapshot(tmp_path: Path) -> None:
    first = Journal(str(tmp_path), 0, quiet=True)
    for step in (1, 2, 3):
        first.add(record(step))
    first.close()
    second = Journal(str(tmp_path), 2, quiet=True)
    second.add(record(3) | {"learning_rate": 9.0})
    second.close()
    assert read_journal(str(tmp_path)) == [record(1), record(2), record(3) | {"learning_rate": 9.0}]


def test_tensorboard_gets_every_number(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path), 0, quiet=True)
    journal.add({"kind": "epoch", "step": 7, "loss": {"levels": 2.5}, "failed": 3})
    journal.close()
    [events] = (tmp_path / "tensorboard").iterdir()
    data = events.read_bytes()
    # TFRecord: length (8 bytes), its checksum (4), the event, its checksum (4).
    names, at = b"", 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        names += data[at + 12 : at + 12 + length]
        at += 16 + length
    assert at == len(data)
    for name in (b"epoch/loss/levels", b"epoch/failed"):
        assert name in names
    assert struct.pack("<f", 2.5) in names


def test_nothing_stays_in_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    closed = Journal(str(tmp_path / "closed"), 0, quiet=True)
    assert list(temporary.iterdir())
    closed.close()
    assert not list(temporary.iterdir())
    failed = Journal(str(tmp_path / "failed"), 0, quiet=True)
    assert list(temporary.iterdir())
    del failed  # as when a training raises
    gc.collect()
    assert not list(temporary.iterdir())


def test_without_an_output_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = Journal("", 0)
    journal.add(record(1))
    journal.close()
    assert capsys.readouterr().out
    assert not list(tmp_path.iterdir())
