"""Photos are counted exactly, in whatever order news comes; tests/integration/test_watching.py has the live part."""

from __future__ import annotations

import pytest

from pipeline.cluster.metrics import METRICS, RunMetrics
from pipeline.run.tally import Outcomes, Tally

LOCATED, EMPTY = ("located", ""), ("failed", "empty")


@pytest.fixture
def metrics() -> RunMetrics:
    return RunMetrics("r1", planned=20, staged_before={LOCATED: 3}, lease_age_s=lambda: 1.0)


def tally(*parts: Outcomes) -> Tally:
    counted = Tally()
    for index, part in enumerate(parts):
        counted.note_staged(str(index), part)
    return counted


def test_old_news_counts_nothing_twice(metrics: RunMetrics) -> None:
    counted = tally({LOCATED: 5})
    old = counted.progress()
    counted.note_staged("more", {LOCATED: 1, EMPTY: 2})
    for progress in (counted.progress(), old, counted.progress()):
        metrics.take(progress)
        assert metrics.staged == 3 + 5 + 1 + 2


def test_a_tally_that_replaces_a_lost_one_counts_on(metrics: RunMetrics) -> None:
    metrics.take(tally({LOCATED: 5}).progress())
    metrics.take(tally({LOCATED: 4}).progress())
    assert metrics.staged == 3 + 5 + 4


def test_the_end_makes_up_for_what_was_not_told(metrics: RunMetrics) -> None:
    counted = tally({LOCATED: 5})
    metrics.take(counted.progress())
    counted.note_staged("late", {LOCATED: 2})
    metrics.settle({LOCATED: 3 + 5 + 2, EMPTY: 1})
    metrics.take(counted.progress())
    assert metrics.staged == 3 + 5 + 2 + 1


def test_names_are_as_prometheus_has_them() -> None:
    for name, metric in METRICS.items():
        assert name.startswith("graticule_")
        assert name.endswith("_total") == (metric.kind == "counter"), f"{name}: Ray would export it under another name"
