"""Of several runs one has the output; a dead one is followed, a sleeping one can't commit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.published import records
from pipeline.published.records import RunLedger
from pipeline.storage import lease
from pipeline.storage.lease import CommitUnknownError, LeaseHeldError, LeaseLostError, LeaseSettings
from tests.conftest import REPOSITORY

BRIEF = LeaseSettings(seconds=1.0)
HOLDER = """
import sys, time
from pipeline.published import records
from pipeline.storage import lease
with records.held(sys.argv[1], "theirs", lease.LeaseSettings(float(sys.argv[2]))) as held:
    print("held", flush=True)
    sys.stdin.readline()
    held.commit({"run_id": "theirs", "photos": 1})
    print("committed", flush=True)
"""


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "out")
    bucket = request.getfixturevalue("s3_bucket")
    return f"s3://{bucket}/{request.node.name}"


@pytest.fixture
def other(output: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the output; a line on its stdin lets it commit and go."""
    with start_holder(output) as process:
        yield process
        process.kill()


def start_holder(output: str, seconds: float = 1.0) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, output, str(seconds)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def edit(output: str, **changes: object) -> None:
    """Change the lease as somebody else would."""
    uri = storage.join(output, lease.FILE)
    found = storage.read_version(uri)
    storage.replace_bytes(uri, json.dumps(json.loads(found.data) | changes).encode(), found.etag)


def far_away(output: str) -> None:
    """Let the holder's process look like one of another machine."""
    process = json.loads(storage.read_bytes(storage.join(output, lease.FILE)))["process"]
    edit(output, process=process.rsplit(" ", 1)[0] + " another-boot/pid:[1]")


def record_of(output: str, run_id: str) -> object:
    return json.loads(storage.read_bytes(storage.join(output, "runs", f"{run_id}.json")))


def test_one_after_the_other(output: str) -> None:
    for epoch in (1, 2):
        with records.held(output, "mine", BRIEF) as held:
            assert held.epoch == epoch
            held.commit({"run_id": f"r{epoch}"})
        assert record_of(output, f"r{epoch}") == {"run_id": f"r{epoch}"}


def test_a_second_run_is_refused_and_told_who_has_it(output: str, other: subprocess.Popen[str]) -> None:
    with pytest.raises(LeaseHeldError, match=rf"run theirs of process {other.pid} on .* has .* since 20\d\d-"):
        records.held(output, "mine", BRIEF).__enter__()
    assert other.communicate("\n")[0] == "committed\n"
    with records.held(output, "mine", BRIEF):  # now it is free
        pass


def test_a_live_holder_of_another_machine_is_refused_as_soon_as_it_renews(output: str) -> None:
    with records.held(output, "theirs", LeaseSettings(3.0)) as theirs:
        theirs._state = lease.replace(theirs._state, process="7 1 another-boot/pid:[1]")
        theirs.name_run("theirs")
        started_s = time.monotonic()
        with pytest.raises(LeaseHeldError, match="run theirs of process 7 "):
            records.held(output, "mine", BRIEF).__enter__()
        assert time.monotonic() - started_s < 3.0


def test_a_dead_holder_of_this_machine_is_followed_at_once(output: str) -> None:
    with start_holder(output, seconds=600.0) as other:
        other.kill()
    with records.held(output, "mine", BRIEF) as mine:
        assert mine.epoch == 2


@pytest.mark.parametrize(
    "what", ["storage.replace_bytes(uri, b'{}', version)", "records.RunLedger(output).enter({'run_id': 'r'})"]
)
def test_what_a_killed_put_left_is_gone_with_the_next_holder(what: str, tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    with records.held(output, "mine", BRIEF):
        pass
    script = f"""
import os, signal, sys
from pipeline import storage
from pipeline.published import records
from pipeline.storage import lease
output = sys.argv[1]
uri = storage.join(output, lease.FILE)
version = storage.read_version(uri).etag
os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
{what}
"""
    killed = subprocess.run([sys.executable, "-c", script, output], cwd=REPOSITORY, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(Path(output).rglob("*.tmp"))) == 1
    with records.held(output, "mine", BRIEF):
        pass
    assert [path.name for path in Path(output).rglob("*") if path.is_file()] == [lease.FILE]


def test_a_dead_holder_of_another_machine_is_followed_when_its_time_is_over(
    output: str, other: subprocess.Popen[str], caplog: pytest.LogCaptureFixture
) -> None:
    other.kill()
    other.wait()
    far_away(output)
    with records.held(output, "mine", BRIEF) as mine:
        assert mine.epoch == 2
    assert "has not been heard of for 1 s: taking over" in caplog.text


def test_a_holder_that_slept_past_its_time_can_not_commit(output: str, other: subprocess.Popen[str]) -> None:
    other.send_signal(signal.SIGSTOP)
    far_away_when_stopped(output, other)
    with records.held(output, "mine", BRIEF) as mine:
        mine.commit({"run_id": "mine"})
        other.send_signal(signal.SIGCONT)
        printed, error = other.communicate("\n")
        assert printed == ""
        assert "LeaseLostError: another run has taken" in error
        assert other.returncode == 1
        assert not storage.exists(f"{output}/runs/theirs.json")
        mine.check()
        mine.name_run("still mine")


def far_away_when_stopped(output: str, process: subprocess.Popen[str]) -> None:
    while "State:\tT" not in Path(f"/proc/{process.pid}/status").read_text():
        time.sleep(0.01)
    far_away(output)


def test_a_commit_that_was_begun_is_finished_by_the_next(output: str) -> None:
    """The holder died after its commit counted and before the record's file was there."""
    with records.held(output, "theirs", BRIEF) as theirs:
        theirs._change(commit={"run_id": "theirs", "photos": 7})
    assert not storage.exists(f"{output}/runs/theirs.json")
    with records.held(output, "mine", BRIEF):
        assert record_of(output, "theirs") == {"run_id": "theirs", "photos": 7}


@pytest.mark.parametrize("sigint", [signal.default_int_handler, signal.SIG_IGN], ids=["", "as behind a shell's &"])
def test_losing_the_lease_stops_the_main_thread(output: str, sigint: object) -> None:
    def run() -> None:
        with records.held(output, "mine", BRIEF):
            edit(output, nonce="somebody else's")
            time.sleep(30)

    started_s, before = time.monotonic(), signal.signal(signal.SIGINT, sigint)  # type: ignore[arg-type]
    try:
        with pytest.raises(LeaseLostError, match="Run the same command again"):
            run()
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - started_s < 25


def taken_over(output: str) -> int:
    """Let another process take the output, whoever has it, and complete what it finds; return its epoch."""
    uri = storage.join(output, lease.FILE)
    found = json.loads(storage.read_bytes(uri))
    if found["commit"] is not None:
        RunLedger(output).enter(found["commit"])
    edit(output, epoch=found["epoch"] + 1, nonce="theirs", commit=None)
    return int(found["epoch"]) + 1


def test_a_commit_whose_answer_came_after_another_had_taken_over_counts(
    output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A partition just then: the store has it, the other has completed it, and this one is told of a change."""
    with records.held(output, "mine", LeaseSettings(600.0)) as mine:
        replace_bytes = storage.replace_bytes

        def put_and_cut_off(uri: str, data: bytes, version: str) -> str:
            monkeypatch.setattr(storage, "replace_bytes", replace_bytes)
            replace_bytes(uri, data, version)
            taken_over(output)
            raise storage.ChangedError(f"changed meanwhile: {uri}")

        monkeypatch.setattr(storage, "replace_bytes", put_and_cut_off)
        record = {"run_id": "mine", "sequence": mine.epoch}
        mine.commit(record)  # no exception: it counts
        assert record_of(output, "mine") == record


def test_a_commit_that_was_refused_does_not_count(output: str) -> None:
    with records.held(output, "mine", LeaseSettings(600.0)) as mine:
        taken_over(output)
        RunLedger(output).enter({"run_id": "mine", "sequence": 99})  # one of the same name, by another
        with pytest.raises(LeaseLostError):
            mine.commit({"run_id": "mine", "sequence": mine.epoch})
        with pytest.raises(LeaseLostError):
            mine.prove()


@pytest.mark.parametrize("silent", ["replace_bytes", "create_bytes"])
def test_where_the_store_is_silent_at_the_commit_nobody_knows(
    output: str, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_answer(*_: object) -> str:
        raise OSError("no answer")

    with records.held(output, "mine", LeaseSettings(600.0)) as mine, monkeypatch.context() as patched:
        patched.setattr(storage, silent, no_answer)
        with pytest.raises(CommitUnknownError, match=r"no answer.*[rR]un the same command again"):
            mine.commit({"run_id": "mine", "sequence": mine.epoch})
    with records.held(output, "mine", LeaseSettings(600.0)):  # the next start finds out
        assert storage.exists(f"{output}/runs/mine.json") == (silent == "create_bytes")


def test_a_record_is_never_written_over(output: str) -> None:
    RunLedger(output).enter({"run_id": "r", "first": True})
    RunLedger(output).enter({"run_id": "r", "first": False})
    assert record_of(output, "r") == {"run_id": "r", "first": True}


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("runs/r7.json", b'{"run_id": "r7", "sequence": 7}'),
        ("removed/r7.json", b'{"run_id": "r7", "sequence": 7}'),
        ("photos/run=a/part-e7-00000.parquet", b""),
        ("staging/a/rows/e7-00ff-3.parquet", b""),
        ("staging/a/plan/e7/todo-00000.parquet", b""),
        ("staging/a/run-e7.json", b"{}"),
    ],
)
def test_numbers_go_on_where_somebody_removed_the_lease(tmp_path: Path, path: str, content: bytes) -> None:
    storage.write_bytes(f"{tmp_path}/out/{path}", content)
    with records.held(f"{tmp_path}/out", "mine", BRIEF) as mine:
        assert mine.epoch == 8


def test_it_is_renewed_while_it_is_held(output: str) -> None:
    with records.held(output, "mine", BRIEF) as mine:
        time.sleep(2.5)
        mine.check()
        mine.commit({"run_id": "mine"})


def test_what_is_no_lease_is_named(output: str) -> None:
    storage.write_bytes(f"{output}/lease.json", b'{"epoch": 1}')
    with pytest.raises(ValueError, match=r"lease\.json is no lease"):
        records.held(output, "mine", BRIEF).__enter__()


def test_too_brief_a_lease_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--lease\.seconds 0\.5: give at least 1"):
        LeaseSettings(0.5)


def test_a_reused_process_number_is_another_process(output: str) -> None:
    with records.held(output, "mine", BRIEF):
        pass
    machine = lease._machine()
    edit(output, process=f"{os.getpid()} 1 {machine}", host="here", run_id="old", seconds=600.0)
    with records.held(output, "mine", BRIEF) as mine:
        assert mine.epoch == 2
