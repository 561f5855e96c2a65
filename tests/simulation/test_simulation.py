"""Whatever sleeps, dies or is not heard: no row of a run that counts is lost or doubled, and exit 0 means published.

Here are few schedules; `.ci/run` plays 500 by `python -m tests.simulation`, in two processes, and `make soak` 20,000.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from pipeline import storage
from pipeline.run import plan, publish
from pipeline.run.staging import Stage
from pipeline.storage import lease
from tests.simulation.world import play

_FIRST, _SCHEDULES, _GROUPS = 1_000_000, 60, 2


@pytest.mark.parametrize("group", range(_GROUPS))
def test_schedules(group: int) -> None:
    ends: set[str] = set()
    for seed in range(_FIRST + group, _FIRST + _SCHEDULES, _GROUPS):
        _, broken, trace, ended = play(seed)
        ends.update(ended)
        assert not broken, f"schedule {seed}: {broken}\n" + "\n".join(trace[-200:])
    assert {
        "exit 0",
        "exit 1",
        "killed",
        "retention",
        "forgotten",
        "LeaseHeldError",
    } <= ends  # it is a world where things happen


def _a_commit_without_the_lease(patched: pytest.MonkeyPatch) -> None:
    """The record is put, whoever has the output."""
    patched.setattr(lease.Lease, "commit", lambda self, record: self._ledger.enter(record))


def _a_discard_of_what_may_count(patched: pytest.MonkeyPatch) -> None:
    """As C1 and C1b: whoever finds the lease lost after its commit removes what it has published."""
    commit: Callable[..., None] = lease.Lease.commit

    def commit_and_look(self: lease.Lease, record: dict[str, Any]) -> None:
        try:
            commit(self, record)
            self.prove()
        except (lease.LeaseLostError, lease.CommitUnknownError):
            for file in record["files"]:
                storage.delete(storage.join(self._output, file["path"]))
            raise

    patched.setattr(lease.Lease, "commit", commit_and_look)


def _a_plan_that_anybody_removes(patched: pytest.MonkeyPatch) -> None:
    """As C2: the plans of all epochs are removed before one is written, and nobody compares what is published."""

    def delete_plans(self: Stage) -> None:
        for entry in storage.list_files(storage.join(self.folder, "plan")):
            storage.delete(entry.uri)

    patched.setattr(Stage, "delete_plan", delete_plans)
    patched.setattr(publish, "check_all_published", lambda *_: None)


def _a_plan_that_forgets_what_was_forgotten(patched: pytest.MonkeyPatch) -> None:
    """Forgotten photos are listed still, and taken again."""
    patched.setattr(plan, "_leave_out", lambda *_: 0)


def _holders_without_numbers(patched: pytest.MonkeyPatch) -> None:
    """Everybody writes under the same names, and nobody can tell which run is the newest."""
    patched.setattr(lease.Lease, "epoch", property(lambda _: 1))


@pytest.mark.parametrize(
    ("break_it", "what", "first"),
    [
        (_a_commit_without_the_lease, "located by several runs|its files are gone|verify", 190),
        (_a_discard_of_what_may_count, "its files are gone", 0),
        (_a_plan_that_anybody_removes, "exit 0 with", 405),  # like the first, rare: some hundreds of schedules
        (_a_plan_that_forgets_what_was_forgotten, "traces of them are left", 0),
        (_holders_without_numbers, ".", 0),
    ],
)
def test_it_finds_what_is_broken_by_hand(
    break_it: Callable[[pytest.MonkeyPatch], None], what: str, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_it(monkeypatch)
    for seed in range(first, first + 400):
        _, broken, _, _ = play(seed)
        if broken and re.search(what, broken):
            return
    pytest.fail("400 schedules, and nothing was found")
