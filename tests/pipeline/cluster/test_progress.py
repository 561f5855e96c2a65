"""What people are told while a run goes."""

from __future__ import annotations

import logging
import time

import pytest

from pipeline.cluster import progress
from pipeline.cluster.progress import RunProgress
from pipeline.run.tally import Progress
from pipeline.schema import ErrorCode, Status

LOCATED = (str(Status.LOCATED), "")
EMPTY = (str(Status.FAILED), str(ErrorCode.EMPTY))


def news(read: int = 0, located: int = 0, engines: int = 0, waiting: int = 0, **outcomes: int) -> Progress:
    counted = {LOCATED: outcomes.get("staged", 0), EMPTY: outcomes.get("failed", 0)}
    return Progress("t", read, located, waiting, engines, {key: n for key, n in counted.items() if n})


def test_first_it_says_what_it_waits_for() -> None:
    run = RunProgress(1000, {}, 0.0)
    assert run.words() == "0 of 1,000 photos done (0%); waiting for Ray to start the workers"
    run.take(news(), 4.0)
    assert run.words().endswith("waiting for the engine to be loaded or compiled")
    run.take(news(read=64), 8.0)
    assert run.words().endswith("loaded or compiled, 64 photos are read meanwhile")
    assert run.photos_per_second == 0
    assert run.left_s is None


def test_then_how_far_how_fast_and_for_how_long_still() -> None:
    run = RunProgress(1000, {}, 0.0)
    run.take(news(read=300, located=200, engines=1), 10.0)
    assert run.words() == (
        "200 of 1,000 photos done (20%), 20.0 photos/s, about 40 s left; reading photos and locating them"
    )
    assert run.photos_per_second == pytest.approx(20)
    assert run.left_s == pytest.approx(40)


def test_the_speed_is_that_of_late() -> None:
    run = RunProgress(100_000, {}, 0.0)
    for second in range(0, 1000, 4):
        run.take(news(read=1, located=100 * second, engines=1), float(second))
    for second in range(1000, 1200, 4):
        run.take(news(read=1, located=100_000 - (1200 - second), engines=1), float(second))
    assert run.photos_per_second == pytest.approx(1.0, rel=0.05)


def test_what_earlier_starts_have_staged_is_done_and_its_failures_are_told() -> None:
    run = RunProgress(1000, {LOCATED: 390, EMPTY: 10}, 0.0)
    assert run.words().startswith("400 of 1,000 photos done (40%), 10 failed;")
    run.take(news(read=100, located=100, engines=1, staged=50, failed=3), 10.0)
    assert "500 of 1,000 photos done (50%), 10.0 photos/s, about 50 s left, 13 failed" in run.words()


def test_photos_that_are_located_again_are_never_more_than_there_are() -> None:
    run = RunProgress(100, {}, 0.0)
    run.take(news(read=150, located=150, engines=1, staged=60), 10.0)
    assert run.words().startswith("100 of 100 photos done (100%)")
    assert run.words().endswith("staging the last rows")
    # A tally that takes a lost one's place begins anew: what was done stays done.
    run.take(news(read=1, located=1, engines=1), 20.0)
    assert run.words().startswith("100 of 100")


def test_copies_that_wait_for_another_photos_answer_are_done() -> None:
    run = RunProgress(100, {}, 0.0)
    run.take(news(read=100, located=40, waiting=60, staged=40, engines=1), 10.0)
    assert run.words().startswith("100 of 100")


@pytest.mark.parametrize(
    ("left_s", "words"), [(2, "2 s"), (89, "89 s"), (600, "10 min"), (10800, "3 h"), (345600, "4 days")]
)
def test_times_are_in_the_unit_that_people_would_use(left_s: float, words: str) -> None:
    run = RunProgress(1000, {}, 0.0)
    run.take(news(read=1, located=500, engines=1), left_s)  # half of them took as long as the other half will
    assert f"about {words} left" in run.words()


def test_without_a_terminal_a_line_of_the_log_tells_it(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_LOG_INTERVAL_S", 0.01)
    run = RunProgress(10, {}, 0.0)
    with caplog.at_level(logging.INFO), progress.told(run):
        while len(caplog.records) < 2:
            time.sleep(0.01)
        run.take(news(read=10, located=10, engines=1), 5.0)
    assert "0 of 10 photos done" in caplog.messages[0]
    assert caplog.messages[-1].startswith("10 of 10 photos done (100%), 2.0 photos/s")
