"""Photos are counted once, whoever stages them again, and after a restart too."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from pathlib import Path

from pipeline import schema
from pipeline.run.staging import Stage
from pipeline.run.tally import Fetches, Tally, outcomes, staged_outcomes
from pipeline.schema import ErrorCode
from tests.support.photo_rows import NOON, failed_row, located_row, photos

ROWS = [
    located_row("a.jpg", 50.0, 10.0),
    located_row("b.jpg", 50.0, 10.0),
    failed_row("c.jpg", ErrorCode.TRUNCATED),
]


def test_a_part_that_is_staged_again_counts_once() -> None:
    tally = Tally()
    counted = outcomes(photos(ROWS))
    assert counted == {("located", ""): 2, ("failed", "truncated"): 1}
    for _ in range(2):
        tally.note_staged("rows/one", counted)
        tally.note_waiting("copies/one", 4)
    tally.note_staged("rows/two", {("located", ""): 5})
    tally.note_read(Fetches(64))
    tally.note_located(32)
    progress = tally.progress()
    assert progress.outcomes == {("located", ""): 7, ("failed", "truncated"): 1}
    assert (progress.staged, progress.waiting, progress.read, progress.located) == (8, 4, 64, 32)


def test_how_the_last_photos_came_is_remembered() -> None:
    tally = Tally(remembered=10)
    for number in range(6):
        tally.note_read(Fetches(4, {"not_found": number}, f"photo {number}"))
    tally.note_read(Fetches(1))
    assert tally.progress().last == Fetches(13, {"not_found": 3 + 4 + 5}, "photo 5")
    assert tally.progress().read == 25


def test_everything_that_is_done_is_progress() -> None:
    tally = Tally()
    seen = [tally.progress()]
    for step in (
        lambda: tally.note_read(Fetches(1)),
        tally.note_engine,
        lambda: tally.note_located(1),
        lambda: tally.note_staged("one", {("located", ""): 1}),
        lambda: tally.note_waiting("two", 1),
    ):
        assert tally.progress() == seen[-1]
        step()
        assert tally.progress() not in seen
        seen.append(tally.progress())
    assert Tally().progress() != Tally().progress(), "one that replaces a lost one must be told from it"


def test_what_earlier_starts_staged(tmp_path: Path) -> None:
    stage = Stage(str(tmp_path), "r1")
    assert staged_outcomes(stage) == {}
    stage.put_rows(photos(ROWS))
    stage.put_rows(photos([failed_row("d.jpg", ErrorCode.EMPTY)]))
    earlier = {schema.PROCESSED_AT: NOON - dt.timedelta(days=400)}  # by a clock that is behind
    again = replace(stage, epoch=2)
    again.put_rows(photos([located_row("c.jpg", 50.0, 10.0, **earlier)]))  # changed, and read again
    assert staged_outcomes(stage) == {("located", ""): 3, ("failed", "empty"): 1}
