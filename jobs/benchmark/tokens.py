"""How much faster a frozen backbone's decoder trains on kept tokens than on photos, both in one run.

`python -m jobs.benchmark tokens` is the command.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from jobs import train as train_job
from jobs.benchmark.figure import Figure
from jobs.demo_photos import write_demo_archive
from model.backbones.pretrained import pretrained
from pipeline import storage
from pipeline.decode.photo import DecodeTarget
from training import hierarchy as partition
from training.data.dataset import PhotoStore
from training.fit.loop import Task, TrainingLoop, Upkeep
from training.fit.objective import Labels, Objective
from training.fit.recipe import Recipe
from training.fit.team import Team
from training.fit.tokens import TokenCache
from training.fit.trainer import Network

_LEAST_SPEED_UP = 5.0


@dataclass(frozen=True)
class TokensBenchmark:
    """Photos a second of training with a frozen backbone: on kept tokens, and on the photos, which are decoded already
    and in memory, so that the backbone alone makes the difference."""

    photos: str | None = None
    """Folder of photos to measure on; the demo's little archive if not given."""
    backbone: str = ""
    """What jobs.train takes as --backbone; the network's own, its weights at random, if not given."""
    network: Literal["paper_swin_b", "small", "bundled", "tiny"] = "small"
    """The decoder, and its backbone where none is given."""
    batch_size: int = 16
    """Photos a step."""
    most_photos: int = 256
    """So many photos at most."""
    epochs: int = 30
    """The length of a training to reckon the whole of."""
    repeats: int = 2
    """An epoch on photos is timed so often, each between two on tokens; medians count."""
    threads: int = 1
    """Of the network."""

    def measure(self) -> list[Figure]:
        """Print photos a second and what a whole training takes; return the figures."""
        torch.set_num_threads(self.threads)
        with tempfile.TemporaryDirectory(prefix="graticule-bench-") as folder:
            return self._measure(Path(folder))

    def _measure(self, folder: Path) -> list[Figure]:
        if self.photos is None:
            write_demo_archive(folder / "archive")
        config = train_job.NETWORKS[self.network]()
        if self.backbone:
            found = pretrained(self.backbone)
            config = dataclasses.replace(config, backbone=found.config, preprocessing=found.preprocessing)
        listed = [entry.uri for entry in storage.list_files(storage.absolute(self.photos or str(folder / "archive")))]
        store = PhotoStore(listed, DecodeTarget.of(config.preprocessing), 1.0)
        readable = np.concatenate([row_B for row_B, _ in store.batches(range(len(listed)), 32)])[: self.most_photos]
        if len(readable) < self.batch_size:
            raise ValueError(f"{len(readable)} photos could be read, and a batch has {self.batch_size}: give more")
        random = np.random.default_rng(0)
        lat_deg_N = np.degrees(np.arcsin(random.uniform(-1, 1, len(listed))))
        lon_deg_N = random.uniform(-180, 180, len(listed))
        hierarchy = partition.build_hierarchy(lat_deg_N, lon_deg_N, partition.PRESETS["hundreds"])
        labels = Labels.of(hierarchy, lat_deg_N, lon_deg_N, np.full(len(listed), -1))
        network = Network(config, hierarchy.class_counts)
        recipe = Recipe(epochs=1, batch_size=self.batch_size, backbone_rate=0.0, balance=0.0)
        none = np.empty(0, np.int64)
        model = network.build()
        backbone = model.backbone
        cache = TokenCache.planned(
            str(folder), backbone.state_dict(), {}, (backbone.tokens, backbone.width), listed, readable, none
        )

        def epoch_s(tokens: TokenCache | None) -> float:
            loop = TrainingLoop(
                network.build(), Task(recipe, labels, readable, none, tokens=tokens), Team(), Upkeep(quiet=True)
            )
            return _seconds(lambda: loop.run(store, store))

        filling_s = _seconds(lambda: cache.fill(Objective(model, recipe, labels).train().tokens, store, Team()))
        on_tokens, on_photos = [epoch_s(cache)], list[float]()
        for _ in range(self.repeats):
            on_photos.append(epoch_s(None))
            on_tokens.append(epoch_s(cache))
        with_s, without_s = float(np.median(on_tokens)), float(np.median(on_photos))
        with_per_s, without_per_s = len(readable) / with_s, len(readable) / without_s
        whole_s, whole_without_s = filling_s + self.epochs * with_s, self.epochs * without_s
        print(
            f"{config.backbone.model_type}, {config.preprocessing.image_size_px} px, {backbone.tokens} tokens of "
            f"{backbone.width}; {len(readable)} photos, batches of {self.batch_size}, {self.threads} threads"
        )
        for name, per_s in (
            ("the tokens are made", len(readable) / filling_s),
            ("trained on tokens", with_per_s),
            ("trained on photos", without_per_s),
        ):
            print(f"{name:<24}{per_s:>9.1f} photos/s")
        print(f"{self.epochs} epochs: {whole_s:.0f} s with their tokens, {whole_without_s:.0f} s without")
        return [
            Figure("frozen", "tokens ÷ photos", with_per_s, without_per_s, without_s / with_s,
                   least=_LEAST_SPEED_UP),
            Figure(f"frozen, {self.epochs} epochs", "with making them ÷ photos", self.epochs * len(readable) / whole_s,
                   self.epochs * len(readable) / whole_without_s, whole_without_s / whole_s),
        ]  # fmt: skip


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
