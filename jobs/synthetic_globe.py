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

import torch
import tyro

from jobs import run_command
from pipeline import storage
from pipeline.locate.context import ContextSettings
from training.globe import globe_ablation, globe_albums, globe_radius, globe_study
from training.globe.globe_ablation import ROWS, Conditions, Trained
from training.globe.synthetic_globe import Globe, GlobeConfig, write_archive

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ablate:
    """Train every network of the paper's ablations on a long-tailed globe until it has converged, and print one table
    of what each idea is worth, beside the optimum and beside what the paper found."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Each is another globe, with other photos and another network; all networks of a seed share globe and photos."""
    processes: int = 2
    """Networks trained at a time, each on one processor core."""
    only: tuple[str, ...] = ()
    """Names of rows, as the table has them; all if none is given. The full network is always trained."""
    json: str = ""
    """A file or URI for all results, as JSON."""
    conditions: Conditions = field(default_factory=Conditions)

    def run(self) -> int:
        """Train, print the table; return the exit code."""
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or self.processes < 1:
            raise ValueError("give one or more different seeds, and 1 process or more")
        unknown = set(self.only) - set(ROWS)
        if unknown:
            raise ValueError(f"there is no row {unknown.pop()!r}: take some of {', '.join(map(repr, ROWS))}")
        if self.json:
            storage.check_writable(self.json.rpartition("/")[0] or ".")
        full = next(iter(ROWS))
        tasks = [(name, seed) for seed in self.seeds for name in ROWS if name in (*(self.only or ROWS), full)]
        results = _in_processes(tasks, self.conditions, self.processes)
        print(globe_ablation.table(results, self.conditions))
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
    fitting_per_town: int = 80
    """Photos of each town that the reading is fitted to. By chance alone the share held by a radius that is fitted to
    n photos in all has a standard deviation of 0.3 / √n."""
    fresh_per_town: int = 200
    """Photos of each town that the radius is tried on."""

    def run(self) -> int:
        """Train, fit, look, print the table; return the exit code."""
        if min(self.seeds, self.photos_per_town, self.draws, self.fitting_per_town, self.fresh_per_town) < 1:
            raise ValueError("give at least 1 of everything")
        counts = self.photos_per_town, self.draws, self.fitting_per_town, self.fresh_per_town
        torch.set_num_threads(1)  # the networks are small: threads would wait for each other
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


def _in_processes(tasks: list[tuple[str, int]], conditions: Conditions, processes: int) -> list[Trained]:
    """Return the results in the tasks' order, which is not that in which they are ready."""
    results: dict[tuple[str, int], Trained] = {}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting = {pool.submit(globe_ablation.study, *task, conditions): task for task in tasks}
        for future in as_completed(waiting):
            result = results[waiting[future]] = future.result()
            log.info("%d of %d: %s", len(results), len(tasks), result)
    return [results[task] for task in tasks]


if __name__ == "__main__":
    run_command(Settings, run)
