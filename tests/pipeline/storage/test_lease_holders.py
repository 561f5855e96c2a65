"""Who holds a lease, whether that process lives, and stores in which a lease keeps nobody out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.published import records
from pipeline.storage import lease
from pipeline.storage.lease import LeaseHeldError, LeaseSettings
from tests.pipeline.storage.test_lease import edit, far_away


def test_a_store_that_puts_what_it_should_refuse_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As some gateways do, which take no notice of a put's condition: two runs would both have the output."""

    def create_anyway(uri: str, data: bytes) -> str:
        storage.write_bytes(uri, data)
        return storage.read_version(uri).etag

    monkeypatch.setattr(storage, "create_bytes", create_anyway)
    with (
        pytest.raises(ValueError, match="knows no conditional puts"),
        records.held(str(tmp_path), "r1", LeaseSettings()),
    ):
        pytest.fail("nobody may work here")


def test_a_holder_that_lives_on_this_machine_is_believed_though_it_renews_nothing(tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    with records.held(output, "r1", LeaseSettings(3600)):
        edit(output, seconds=0.5)  # it seems to have been silent for longer than it should
        with pytest.raises(LeaseHeldError, match="r1"), records.held(output, "r2", LeaseSettings()):
            pytest.fail("its holder is this very process")
        far_away(output)  # and where nobody can look, the time decides
        with records.held(output, "r2", LeaseSettings()):
            pass


def test_the_start_of_a_process_is_told_whatever_its_name() -> None:
    code = "import sys; open('/proc/self/comm', 'w').write('a) Z (b)'); print('named', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        before = lease._started(process.pid)
        assert process.stdout.readline() == "named\n"
        assert before.isdigit()
        assert lease._started(process.pid) == before
        assert process.stdin is not None
        process.stdin.close()
    assert lease._started(process.pid) == ""
