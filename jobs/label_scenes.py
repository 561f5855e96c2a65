"""Label photos with the kinds of scene that they show, by a Places365 network: what a scene loss is trained on.

python -m jobs.label_scenes --network resnet18_places365.pth.tar --manifest photos.parquet --output scenes.parquet
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs import run_command
from model.geodecoder import SCENES_3, SCENES_16
from pipeline import storage
from pipeline.decode.photo import DecodeTarget
from pipeline.run.staging import parquet_bytes
from training.data.dataset import PhotoStore
from training.data.labelled import labelled_photos
from training.data.places_network import PREPROCESSING, PlacesNetwork, summed_BG

log = logging.getLogger(__name__)

_BATCH = 32
_TELL_S = 10.0
_MOST_PRINTED = 10


@dataclass(frozen=True)
class Settings:
    """Label photos with the kinds of scene that they show, by a Places365 network."""

    network: Path
    """A Places365 classifier: ONNX with 365 outputs (logits), or the state dict of a ResNet, .pth or .pth.tar, of which
    nothing but tensors is read."""
    manifest: str
    """Table of photos as jobs.train takes it: a path or URI."""
    output: str
    """The table to write, NAME.parquet, which jobs.train takes as --scenes: a path or URI."""
    root: str = ""
    """Where the table's relative paths lie, if not beside it."""
    only: str = ""
    """A column of 0 and 1: take only the rows of 1."""
    max_failed_fraction: float = 0.02
    """Stop if more of the photos than this can't be read."""


def run(settings: Settings) -> int:
    """Look at the photos, write the table, say what was found; return the exit code."""
    if not settings.output.endswith(".parquet"):
        raise ValueError(f"--output {settings.output}: give a name that ends in .parquet")
    network = PlacesNetwork(settings.network)
    photos = labelled_photos(settings.manifest, settings.root, settings.only)
    output = storage.absolute(settings.output)
    storage.check_writable(output.rpartition("/")[0])
    store = PhotoStore(
        photos.uri_N, DecodeTarget.of(PREPROCESSING), settings.max_failed_fraction, memory_bytes=0
    )  # each photo is read once
    row_N, probability_NP = _looked_at(network, store, len(photos))
    table = _table(photos.name_N, row_N, probability_NP)
    storage.write_bytes(output, parquet_bytes(table))
    print(f"{settings.output}: {len(row_N)} of {len(photos)} photos labelled")
    scene_N = np.bincount(summed_BG(probability_NP, 16).argmax(axis=1), minlength=16)
    for number in np.argsort(-scene_N, kind="stable").tolist():
        print(f"{scene_N[number]:>9}  {SCENES_16[number]}")
    for row, reason in sorted(store.failures.items())[:_MOST_PRINTED]:
        print(f"  not labelled: {photos.name_N[row]}: {reason}")
    return 0


def _looked_at(network: PlacesNetwork, store: PhotoStore, photos: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    rows, probabilities = [], []
    begin_s = told_s = time.monotonic()
    for row_B, pixels_BSSC in store.batches(range(photos), _BATCH):
        if len(row_B):
            rows.append(row_B)
            probabilities.append(network(pixels_BSSC))
        if time.monotonic() > told_s + _TELL_S:
            told_s, done = time.monotonic(), sum(map(len, rows))
            log.info("%d of %d photos labelled, %.1f/s", done, photos, done / (told_s - begin_s))
    if not rows:
        raise ValueError("none of the photos could be read")
    return np.concatenate(rows), np.concatenate(probabilities)


def _table(name_N: tuple[str, ...], row_N: NDArray[np.int64], probability_NP: NDArray[np.float64]) -> pa.Table:
    """Return a row a photo, as the field lays them out; those that could not be read have a name and nothing else."""
    columns: dict[str, pa.Array] = {"path": pa.array(name_N, pa.string())}

    def add(name: str, values_N: NDArray[np.generic], kind: pa.DataType) -> None:
        spread: list[object] = [None] * len(name_N)
        for row, value in zip(row_N.tolist(), values_N.tolist(), strict=True):
            spread[row] = value
        columns[name] = pa.array(spread, kind)

    three_N3 = summed_BG(probability_NP, 3)
    add("S3_Label", three_N3.argmax(axis=1), pa.int16())
    add("S16_Label", summed_BG(probability_NP, 16).argmax(axis=1), pa.int16())
    add("S365_Label", probability_NP.argmax(axis=1), pa.int16())
    for number, scene in enumerate(SCENES_3):
        add(f"Prob_{scene}", three_N3[:, number], pa.float32())
    return pa.table(columns)


if __name__ == "__main__":
    run_command(Settings, run)
