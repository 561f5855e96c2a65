"""Every benchmark that has an aim, each in a process of its own, several times, and one table of the medians.

`python -m jobs.benchmark all --photos SOURCE` is the command; `make bench PHOTOS=…` installs what it compares with
first.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jobs.benchmark.figure import Figure, medians, print_table, read, spreads

Name = Literal[
    "s2", "partition", "plan", "query", "decode", "shrink", "isolation", "engine", "scale", "ways", "ways-swin-b",
    "train", "fetch", "places",
]  # fmt: skip
_WITH_PHOTOS = {"decode", "shrink", "isolation", "engine", "ways", "ways-swin-b", "train"}
_SWIN_B_LONGER = 3
"""It takes so much longer for a photo that, in the same time, the start's ups and downs would be all that is seen."""

_WITHOUT_CHANCE: tuple[Name, ...] = ("shrink",)
"""What compares answers, not times: every run would find the same, so the first run's count."""


@dataclass(frozen=True)
class AllBenchmark:
    """All benchmarks that have an aim, and one table: each figure, the other, the ratio, the aim, pass or short."""

    photos: str | None = None
    """Folder of photos to measure on; the demo's few if not given."""
    s3: str | None = None
    """s3://BUCKET/PREFIX where `fetch` may write its objects; left out if not given."""
    towns: Path | None = None
    """Natural Earth's populated places as GeoJSON for `places`; left out if not given."""
    runs: int = 1
    """Everything that takes chances is run so often, and medians count; what only compares answers is run once."""
    seconds_each: float = 20.0
    """See `ways`; `ways-swin-b` gets three times as many."""
    only: tuple[Name, ...] = ()
    """Only these."""
    without: tuple[Name, ...] = ()
    """Not these."""
    save: Path | None = None
    """Folder for what each benchmark prints and finds, run by run; what is there already is not measured anew."""

    def measure(self) -> list[Figure]:
        """Print what is run, then the table; return the medians. ValueError where a benchmark fails."""
        if self.runs < 1:
            raise ValueError(f"--runs {self.runs}: give 1 or more")
        commands = self._commands()
        with tempfile.TemporaryDirectory(prefix="graticule-bench-") as made:
            folder = self.save or Path(made)
            folder.mkdir(parents=True, exist_ok=True)
            runs: list[list[Figure]] = []
            for number in range(1, self.runs + 1):
                runs.append([])
                for name, command in commands.items():
                    if name in _WITHOUT_CHANCE and number > 1:
                        continue
                    found = folder / f"{number}-{name}.json"
                    if not found.exists():
                        self._run(f"run {number}, {name}", command, found)
                    runs[-1] += read(found)
        figures = medians(runs)
        print_table(figures, spreads(runs) if self.runs > 1 else None)
        aimed = [figure for figure in figures if figure.verdict]
        short = sum(figure.verdict.endswith("short") for figure in aimed)
        print(f"{len(aimed) - short} of {len(aimed)} aims met, medians of {self.runs}")
        return figures

    def _commands(self) -> dict[Name, list[str]]:
        photos = [] if self.photos is None else ["--photos", self.photos]
        swin_b_seconds_each = _SWIN_B_LONGER * self.seconds_each
        commands: dict[Name, list[str]] = {
            "s2": ["s2"],
            "partition": ["partition"],
            "plan": ["plan"],
            "query": ["query"],
            "decode": ["decode"],
            "shrink": ["shrink"],
            "isolation": ["isolation"],
            "engine": ["engine"],
            "scale": ["scale"],
            "ways": ["ways", "--seconds-each", f"{self.seconds_each:g}"],
            "ways-swin-b": ["ways", "--seconds-each", f"{swin_b_seconds_each:g}", "--network", "paper_swin_b"],
            "train": ["train"],
        }
        for name in _WITH_PHOTOS & commands.keys():
            commands[name] += photos  # type: ignore[index]
        if self.s3 is not None:
            commands["fetch"] = ["fetch", "--output", self.s3, "--without", "s3fs"]
        if self.towns is not None:
            commands["places"] = ["places", "--towns", str(self.towns)]
        wanted = set(self.only or commands) - set(self.without)
        for name in wanted - commands.keys():
            raise ValueError(f"--only {name}: give {'--s3' if name == 'fetch' else '--towns'}, too")
        return {name: command for name, command in commands.items() if name in wanted}

    def _run(self, title: str, command: list[str], found: Path) -> None:
        start_s = time.perf_counter()
        print(f"{title}: python -m jobs.benchmark {' '.join(command)}", end="", flush=True)
        log = found.with_suffix(".txt")
        with log.open("wb") as output:
            whole = [sys.executable, "-m", "jobs.benchmark", "--to", str(found), *command]
            code = subprocess.run(whole, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
        print(f"  {time.perf_counter() - start_s:.0f} s", flush=True)
        if code:
            raise ValueError(
                f"{' '.join(command)} ended with {code}:\n{log.read_text(errors='replace')[-3000:]}\n"
                f"Leave it out with --without {found.stem.split('-', 1)[1]}"
            )
