"""What a benchmark finds: ratios of two things measured in one run, each with its aim, and the table of them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """A ratio, what it must at least (or at most) be, and the two numbers that it is made of.

    Attributes:
        subject: what was measured, such as a size of photos.
        name: what is compared with what.
        value: ours, in `unit`.
        comparator: the other, in `unit`.
        ratio: of the two; their difference where `unit` says so.
        least: the aim, where more is better.
        most: the aim, where less is better.
    """

    subject: str
    name: str
    value: float
    comparator: float
    ratio: float
    unit: str = "photos/s"
    least: float | None = None
    most: float | None = None

    @property
    def verdict(self) -> str:
        """The aim and whether it is met, or nothing where there is none."""
        if self.least is not None:
            return f"≥ {self.least:g}  {'pass' if self.ratio >= self.least else 'short'}"
        if self.most is not None:
            return f"< {self.most:g}  {'pass' if self.ratio < self.most else 'short'}"
        return ""


def print_table(figures: Sequence[Figure], spread: dict[tuple[str, str], tuple[float, float]] | None = None) -> None:
    """Print a line for each figure; `spread` holds the least and greatest ratio of several runs."""
    print(f"\n{'':<62}{'ours':>11}{'other':>11}  {'unit':<14}{'ratio':>7}  aim")
    for figure in figures:
        name = f"{figure.subject}: {figure.name}"
        line = f"{name:<62}{figure.value:>11,.4g}{figure.comparator:>11,.4g}  {figure.unit:<14}{figure.ratio:>7.2f}  "
        line += figure.verdict
        if spread is not None:
            least, most = spread[figure.subject, figure.name]
            line += f"  [{least:.2f}–{most:.2f}]"
        print(line.rstrip())


def write(figures: Sequence[Figure], to: Path) -> None:
    """Write figures as JSON, for `read`."""
    to.write_text(json.dumps([asdict(figure) | {"verdict": figure.verdict} for figure in figures], indent=2))


def read(file: Path) -> list[Figure]:
    """Return the figures that `write` wrote."""
    return [
        Figure(**{name: value for name, value in row.items() if name != "verdict"})
        for row in json.loads(file.read_text())
    ]


def medians(runs: Sequence[Sequence[Figure]]) -> list[Figure]:
    """Return each figure as the median of its ratio over the runs that have it, with the medians of its two numbers."""
    found: dict[tuple[str, str], list[Figure]] = {}
    for figure in (figure for run in runs for figure in run):
        found.setdefault((figure.subject, figure.name), []).append(figure)
    return [
        replace(
            same[0],
            **{part: statistics.median(getattr(x, part) for x in same) for part in ("value", "comparator", "ratio")},
        )
        for same in found.values()
    ]


def spreads(runs: Sequence[Sequence[Figure]]) -> dict[tuple[str, str], tuple[float, float]]:
    """Return the least and the greatest ratio of each figure over the runs."""
    found: dict[tuple[str, str], list[float]] = {}
    for figure in (figure for run in runs for figure in run):
        found.setdefault((figure.subject, figure.name), []).append(figure.ratio)
    return {key: (min(ratios), max(ratios)) for key, ratios in found.items()}
