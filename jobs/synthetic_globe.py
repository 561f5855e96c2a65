"""The synthetic globe: what each idea of GeoDecoder is worth in a world with a known best answer, and its photographs.

python -m jobs.synthetic_globe ablate
python -m jobs.synthetic_globe context
python -m jobs.synthetic_globe radius
python -m jobs.synthetic_globe write globe-photos
"""

from __future__ import annotations

import dataclasses
import json
import logging
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from jobs import run_command
from pipeline import storage
from pipeline.context import ContextSettings
from training import globe_albums, globe_radius, globe_study
from training.globe_study import FINEST, PRODUCT, VARIANTS, YARDSTICKS, Answer, Result
from training.synthetic_globe import Globe, GlobeConfig, write_archive

log = logging.getLogger(__name__)

_BASE = next(iter(VARIANTS))
_LEGEND = """climate, country, town: % of new photos put into the right one, mean ± standard deviation over the seeds
Δ: difference from the base, seed by seed; of optimum: climate, country, town; scene: % told right
learnt: % of towns right on the photos learnt from; counting: naive Bayes on the symbols that the photos show"""


@dataclass(frozen=True)
class Ablate:
    """Train every variant of the network with several seeds and print one table, beside the optimum."""

    seeds: int = 3
    """Each is another globe, with other photos and another network; all variants of a seed share globe and photos."""
    processes: int = 2
    """Networks trained at a time, each on one processor core."""
    photos_per_town: tuple[int, ...] = (6, 24)
    """How many photos of each of the 48 towns to learn from; a table for each number."""
    draws: int = 18_432
    """Photos drawn in each training, however many different ones there are."""
    only: tuple[str, ...] = ()
    """Names of variants, as the table has them; all if none is given. The base is always trained."""
    json: str = ""
    """A file or URI for all results, as JSON."""

    def run(self) -> int:
        """Train, print the table; return the exit code."""
        if self.seeds < 1 or self.processes < 1 or self.draws < 1 or min(self.photos_per_town, default=0) < 1:
            raise ValueError("seeds, processes, draws and photos-per-town must be 1 or more")
        unknown = set(self.only) - set(VARIANTS)
        if unknown:
            raise ValueError(f"there is no variant {unknown.pop()!r}: take some of {', '.join(map(repr, VARIANTS))}")
        names = [name for name in VARIANTS if name == _BASE or name in (self.only or VARIANTS)]
        if self.json:
            storage.check_writable(self.json.rpartition("/")[0] or ".")
        seeds = range(self.seeds)
        tasks = [(name, seed, count, self.draws) for count in self.photos_per_town for seed in seeds for name in names]
        results = _in_processes(tasks, self.processes)
        print(_LEGEND)
        for count in self.photos_per_town:
            print(table([result for result in results if result.photos_per_town == count], names, self.draws))
        if self.json:
            content = json.dumps([dataclasses.asdict(result) for result in results], indent=1)
            storage.write_bytes(self.json, content.encode())
        return 0


@dataclass(frozen=True)
class Write:
    """Write photographs of a globe as PNG files with photos.csv, which jobs.train takes."""

    folder: tyro.conf.Positional[str]
    """Folder or prefix, a path or URI."""
    train: int = 6
    """Photos of each town for training."""
    validation: int = 1
    """Photos of each town for validation."""
    test: int = 2
    """Photos of each town for the test."""
    globe: GlobeConfig = field(default_factory=GlobeConfig)

    def run(self) -> int:
        """Write the archive and say what is in it; return the exit code."""
        storage.check_writable(self.folder)
        globe = Globe(self.globe)
        counts = {"train": self.train, "validation": self.validation, "test": self.test}
        manifest = write_archive(globe, self.folder, counts)
        print(f"{manifest}: {sum(counts.values()) * globe.towns} photos of {globe.towns} towns")
        for name, cell_T in globe_study.yardsticks(globe).items():
            print(f"{name:<8} at best {globe.optimum(cell_T):.1%} right, by chance {1 / (cell_T.max() + 1):.1%}")
        return 0


@dataclass(frozen=True)
class Context:
    """Train a network, let photographers travel, and print what their albums' context adds to its answers."""

    seed: int = 0
    """Another globe, other photos, another network, other journeys."""
    photos_per_town: int = 24
    """How many photos of each of the 48 towns to learn from."""
    draws: int = 18_432
    """Photos drawn in training."""
    albums: int = 60
    """Journeys; each is of `photos` photos."""
    photos: int = 40
    """Photos of each journey."""
    with_position: tuple[float, ...] = (0.0, 0.1)
    """Shares of photos in which the camera wrote its position."""
    album: ContextSettings = field(default_factory=ContextSettings)

    def run(self) -> int:
        """Train, travel, print the table; return the exit code."""
        counts = (self.photos_per_town, self.draws, self.albums, self.photos)
        if min(counts) < 1 or not all(0 <= share <= 1 for share in self.with_position):
            raise ValueError("give at least 1 of everything, and shares from 0 to 1")
        journeys = globe_albums.Journeys(self.albums, self.photos)
        results = globe_albums.study(
            self.seed, self.photos_per_town, self.draws, journeys, self.with_position, self.album
        )
        print(globe_albums.table(results))
        return 0


@dataclass(frozen=True)
class Radius:
    """Train networks, fit how they are read to photos that they have not seen, and print how many of fresh photos lie
    within the radius, which is meant to hold 90 %."""

    seeds: int = 3
    """Each is another globe, with other photos and another network."""
    photos_per_town: int = 24
    """How many photos of each of the 48 towns to learn from."""
    draws: int = 9_216
    """Photos drawn in each training."""
    fitting_per_town: int = 40
    """Photos of each town that the reading is fitted to."""
    fresh_per_town: int = 100
    """Photos of each town that the radius is tried on."""

    def run(self) -> int:
        """Train, fit, look, print the table; return the exit code."""
        if min(self.seeds, self.photos_per_town, self.draws, self.fitting_per_town, self.fresh_per_town) < 1:
            raise ValueError("give at least 1 of everything")
        counts = self.photos_per_town, self.draws, self.fitting_per_town, self.fresh_per_town
        print(globe_radius.table([globe_radius.study(seed, *counts) for seed in range(self.seeds)]))
        return 0


@dataclass(frozen=True)
class Settings:
    """A world with a known best answer, to try networks and trainers on."""

    command: tyro.conf.OmitSubcommandPrefixes[
        Annotated[Ablate, tyro.conf.subcommand("ablate")]
        | Annotated[Context, tyro.conf.subcommand("context")]
        | Annotated[Radius, tyro.conf.subcommand("radius")]
        | Annotated[Write, tyro.conf.subcommand("write")]
    ]


def run(settings: Settings) -> int:
    """Run the command that the command line names; return the exit code."""
    return settings.command.run()


def table(results: list[Result], names: list[str], draws: int) -> str:
    """Return the table of one number of photos a town: shares in %, mean ± standard deviation over the seeds."""
    seeds = sorted({result.seed for result in results})
    of = {(result.variant, result.seed): result for result in results}
    photos_per_town = results[0].photos_per_town
    bayes = [globe_study.bayes(seed) for seed in seeds]
    optima = {name: np.array([optimum[name] for optimum, _, _ in bayes]) for name in YARDSTICKS}
    base = [of[_BASE, seed].answers[PRODUCT] for seed in seeds]

    def line(label: str, answers: list[Answer], scene: str = "") -> str:
        right = {name: np.array([answer.right[name] for answer in answers]) for name in YARDSTICKS}
        gain = {name: right[name] - np.array([answer.right[name] for answer in base]) for name in YARDSTICKS}
        learnt = np.mean([answer.trained_town for answer in answers])
        return _line(
            label,
            *(_spread(right[name]) for name in YARDSTICKS),
            *("" if answers is base else _spread(gain[name], "+") for name in YARDSTICKS),
            " ".join(f"{np.mean(right[name] / optima[name]):.0%}".rstrip("%") for name in YARDSTICKS),
            f"{np.mean([answer.mean_km for answer in answers]):.0f}",
            scene,
            "" if np.isnan(learnt) else f"{100 * learnt:.1f}",
        )

    optimum_scene = f"{100 * np.mean([scene for _, _, scene in bayes]):.1f}"
    lines = [
        "",
        f"{photos_per_town} photos of each town to learn from, {draws} draws, {len(seeds)} seeds",
        _line("", *YARDSTICKS, *(f"Δ {name}" for name in YARDSTICKS), "of optimum", "mean km", "scene", "learnt"),
        _line("optimum, each asked by itself", *map(_spread, optima.values()), *[""] * 5, optimum_scene, ""),
        line("most probable town (Bayes)", [answer for _, answer, _ in bayes]),
        line("counting, knows what is near", [globe_study.counted(seed, photos_per_town, True) for seed in seeds]),
        line("counting, town by town", [globe_study.counted(seed, photos_per_town, False) for seed in seeds]),
    ]
    for name in names:
        runs = [of[name, seed] for seed in seeds]
        scene = f"{100 * np.mean([run.scene for run in runs]):.1f}" if VARIANTS[name].scenes else ""
        lines.append(line(name, base if name == _BASE else [run.answers[PRODUCT] for run in runs], scene))
        if VARIANTS[name].levels > 1:
            lines.append(line("   its finest level alone", [run.answers[FINEST] for run in runs]))
    return "\n".join(lines)


def _line(label: str, *cells: str) -> str:
    widths = (12,) * 3 + (13,) * 3 + (12, 9, 7, 8)
    columns = "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
    return f"{label:<38}{columns}".rstrip()


def _spread(share: NDArray[np.float64], sign: str = "-") -> str:
    spread = f" ± {100 * share.std(ddof=1):.1f}" if len(share) > 1 else ""
    return f"{100 * share.mean():{sign}.1f}{spread}"


def _in_processes(tasks: list[tuple[str, int, int, int]], processes: int) -> list[Result]:
    """Return the results in the tasks' order, which is not that in which they are ready."""
    results: dict[tuple[str, int, int, int], Result] = {}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting = {pool.submit(globe_study.study, *task): task for task in tasks}
        for future in as_completed(waiting):
            result = results[waiting[future]] = future.result()
            log.info("%d of %d: %s", len(results), len(tasks), result)
    return [results[task] for task in tasks]


if __name__ == "__main__":
    run_command(Settings, run)
