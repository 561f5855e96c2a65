"""A watchdog ends what stands still, and nothing else."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import pytest

from pipeline.cluster.watchdog import FlowEndedError, NoProgressError, Watchdog
from tests.conftest import REPOSITORY


def test_what_stands_still_is_ended_with_what_is_seen() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with (
        pytest.raises(NoProgressError, match=r"for 0\.005 minutes .*: 3 of 9 photos\. What was staged stays"),
        Watchdog(0.3, look=lambda: 3, describe=lambda: "3 of 9 photos"),
    ):
        threading.Event().wait()
    assert signal.getsignal(signal.SIGUSR1) == before


def test_what_moves_goes_on_however_long_it_takes() -> None:
    silences: list[float] = []
    enough = threading.Event()

    def report(silent_s: float) -> None:
        silences.append(silent_s)
        if len(silences) == 20:  # of 0.5 s: five times the limit
            enough.set()

    with Watchdog(2.0, look=time.monotonic, report=report):
        enough.wait()
    assert max(silences) < 2.0


def test_who_can_not_tell_makes_no_progress() -> None:
    with pytest.raises(NoProgressError), Watchdog(0.3, look=lambda: None):
        threading.Event().wait()


def test_who_looks_may_end_it_for_a_reason_of_its_own() -> None:
    class ForAReasonError(FlowEndedError):
        pass

    def look() -> int:
        raise ForAReasonError("seen enough")

    with pytest.raises(ForAReasonError, match="seen enough"), Watchdog(60, look):
        threading.Event().wait()
    with pytest.raises(OSError, match="full"), Watchdog(60, look=lambda: 1):
        raise OSError("full")


def test_nobody_who_looks_or_describes_can_hold_it_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("_DESCRIBE_LIMIT_S", "_LAST_LOOK_LIMIT_S"):
        monkeypatch.setattr(f"pipeline.cluster.watchdog.{limit}", 0.1)
    never = threading.Event()

    def hang() -> str:
        never.wait()
        return ""

    with pytest.raises(NoProgressError, match="neither cluster nor store answers"), Watchdog(0.3, hang, hang):
        threading.Event().wait()
    never.set()


def test_an_interruption_by_the_user_stays_one() -> None:
    with pytest.raises(KeyboardInterrupt), Watchdog(60, look=lambda: 1):
        raise KeyboardInterrupt


def test_an_error_of_the_body_stays_one() -> None:
    with pytest.raises(OSError, match="full"), Watchdog(60, look=lambda: 1):
        raise OSError("full")


def test_a_thread_that_no_signal_reaches_ends_with_its_process() -> None:
    script = (
        "import logging, threading; from pipeline.cluster.watchdog import Watchdog; logging.basicConfig()\n"
        "def body():\n"
        "    with Watchdog(0.2, look=lambda: 1, end_limit_s=0.2): threading.Event().wait()\n"
        "thread = threading.Thread(target=body); thread.start(); thread.join()\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "it does not stop within 0 s: this process ends here" in ended.stderr


def test_it_works_where_ctrl_c_is_ignored() -> None:
    """As in a script's background job."""
    script = (
        "import signal, threading; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from pipeline.cluster.watchdog import NoProgressError, Watchdog\n"
        "try:\n"
        "    with Watchdog(0.2, look=lambda: 1): threading.Event().wait()\n"
        "except NoProgressError: print('ended')\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert ended.stdout == "ended\n"
