"""A few steps of training for a tiny network on some family's backbone, alone or as one of two processes.

python -m tests.support.family_training RENDEZVOUS TOKENS FOLDER FOLDER …

is the second process, for each folder in turn, and then for the first one frozen, on tokens that are kept.
"""

from __future__ import annotations

import datetime
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from model.backbones.pretrained import pretrained
from model.geodecoder import ONE_SCENE, GeoDecoder, GeoDecoderConfig
from model.world.hierarchy import Hierarchy
from training.data.dataset import ArraySource
from training.fit.loop import Task, TrainingLoop, Upkeep
from training.fit.objective import Labels
from training.fit.recipe import Recipe
from training.fit.team import Team
from training.fit.tokens import TokenCache
from training.fit.trainer import Network
from training.hierarchy import PartitionConfig, build_hierarchy

PHOTOS, STEPS = 16, 3
_TIMEOUT = datetime.timedelta(seconds=120)


def hierarchy() -> Hierarchy:
    """One level of three towns: whatever reads it out is small."""
    towns = np.array([(48.8, 2.3), (-33.9, 18.4), (35.7, 139.7)])[np.arange(24) % 3]
    return build_hierarchy(towns[:, 0] + np.arange(24) / 100, towns[:, 1], PartitionConfig(0, (8,)))


def network(folder: str, size_px: int = 0) -> Network:
    """The network to train: the folder's backbone, and the smallest decoder there is."""
    found = pretrained(folder, size_px)
    config = GeoDecoderConfig(
        found.config, found.preprocessing, ONE_SCENE, 16, heads=2, feed_forward_width=16, independent_layers=0,
        dependent_layers=1,
    )  # fmt: skip
    return Network(config, hierarchy().class_counts, 0, {f"backbone.{name}": x for name, x in found.weights.items()})


def trained(start: Network, tokens: str = "") -> GeoDecoder:
    """The network after some steps of whatever team this process is in; its last gradients are still there.

    With a folder for `tokens` its backbone is frozen, and they are made and kept there.
    """
    model = start.build()
    size_px = start.config.preprocessing.image_size_px
    pixels_NHWC = np.random.default_rng(0).integers(0, 256, (PHOTOS, size_px, size_px, 3), dtype=np.uint8)
    labels = Labels(np.arange(PHOTOS)[:, None] % 3, np.full(PHOTOS, -1))
    rate = 0.0 if tokens else 1.0
    recipe = Recipe(epochs=STEPS, batch_size=PHOTOS, learning_rate=1e-3, balance=0.0, backbone_rate=rate)
    rows, none, cache = np.arange(PHOTOS), np.empty(0, np.int64), None
    if tokens:
        names, shape = [str(row) for row in rows], (model.backbone.tokens, model.backbone.width)
        cache = TokenCache.planned(tokens, model.backbone.state_dict(), {}, shape, names, rows, none)
    task = Task(recipe, labels, rows, none, tokens=cache)
    TrainingLoop(model, task, Team(), Upkeep(quiet=True)).run(ArraySource(pixels_NHWC), ArraySource(pixels_NHWC))
    return model


def join(rendezvous: Path, rank: int) -> None:
    """Become one of two processes that train together."""
    dist.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=2, timeout=_TIMEOUT)


if __name__ == "__main__":
    torch.set_num_threads(1)
    join(Path(sys.argv[1]), 1)
    for folder in sys.argv[3:]:
        trained(network(folder))
    trained(network(sys.argv[3]), sys.argv[2])
    dist.destroy_process_group()
