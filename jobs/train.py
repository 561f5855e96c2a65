"""Train a model on photos whose positions are known, in this process.

python -m jobs.train --manifest photos.parquet --hierarchy auto --output checkpoint
"""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from jobs import run_command
from model import geodecoder
from model.checkpoint import CONFIG_FILE, Checkpoint
from model.geodecoder import GeoDecoder, GeoDecoderConfig
from model.hierarchy import JSON_NAME, PARQUET_NAME, Hierarchy
from pipeline import storage
from pipeline.decode import DecodeTarget
from training import evaluation, partition
from training.dataset import PhotoStore
from training.labelled import LabelledPhotos, labelled_photos
from training.loop import Labels, LoopConfig, train
from training.split import PARTS, Split, SplitConfig, fingerprint, split_photos
from training.teacher import Teacher

log = logging.getLogger(__name__)

NETWORKS = {
    "paper_swin_b": geodecoder.paper_swin_b,
    "small": geodecoder.small,
    "bundled": geodecoder.bundled,
    "tiny": geodecoder.tiny,
}
ONE_SCENE = ("any",)


@dataclass(frozen=True)
class Settings:
    """Train a model on photos whose positions are known."""

    manifest: str
    """Parquet or CSV table with path or uri, latitude, longitude and, where known, photographer and scene."""
    output: str
    """Folder or prefix for the checkpoint: a path or URI."""
    hierarchy: str = "auto"
    """Folder or prefix that jobs.build_hierarchy wrote; auto builds one from the training photos."""
    preset: Literal["paper7", "isn3", "small", "hundreds"] = "hundreds"
    """Thresholds of the automatic hierarchy."""
    root: str = ""
    """Where the table's relative paths lie, if not beside it."""
    only: str = ""
    """A column of 0 and 1: take only the rows of 1."""
    scenes: str = ""
    """A table with path and scene, if the manifest has no column scene."""
    network: Literal["paper_swin_b", "small", "bundled", "tiny"] = "small"
    teacher_onnx: Path | None = None
    """An ONNX network from images to features, to learn from by distillation."""
    name: str = "geodecoder"
    """Readable part of the model's id: lower-case letters, digits, dots and dashes."""
    max_failed_fraction: float = 0.02
    """Stop if more of the photos than this can't be read."""
    threads: int = 0
    """Processor threads for the network; all if 0."""
    split: SplitConfig = field(default_factory=SplitConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)


def run(settings: Settings) -> int:
    """Train and write the checkpoint; return the exit code."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    photos = labelled_photos(settings.manifest, settings.root, settings.only, settings.scenes)
    split = split_photos(photos, settings.split)
    rows = split.rows("train")
    storage.check_writable(settings.output)
    print(describe_split(split))
    hierarchy = _hierarchy(settings, photos, rows)
    config = _network(settings, photos)
    torch.manual_seed(settings.loop.seed)
    model = GeoDecoder(config, hierarchy.class_counts)
    labels = Labels(
        hierarchy.label_NH(photos.lat_deg_N, photos.lon_deg_N),
        np.array([config.scenes.index(scene) if scene else -1 for scene in photos.scene_N]),
    )
    teacher = Teacher(settings.teacher_onnx, settings.threads or None) if settings.teacher_onnx else None
    # Larger than the model's size, so that crops of a part of the photo still have its resolution.
    store = PhotoStore(photos.uri_N, _square(config.preprocessing.resize_px * 5 // 4), settings.max_failed_fraction)
    progress = train(model, store, labels, rows, settings.loop, teacher)
    served = DecodeTarget.of(config.preprocessing)
    validation = PhotoStore(photos.uri_N, served, settings.max_failed_fraction)
    temperature = evaluation.fit_temperature(model, validation, labels.level_NH, split.rows("validation").tolist())
    model_id = _save(
        settings.output,
        model,
        hierarchy,
        temperatures=(temperature,) * len(hierarchy.levels),
        training={
            "photos": len(photos),
            "split": dataclasses.asdict(settings.split),
            "parts": {part: _part(photos, split, part) for part in PARTS},
            "loop": dataclasses.asdict(settings.loop),
            "progress": dataclasses.asdict(progress),
            "teacher": settings.teacher_onnx.name if settings.teacher_onnx else None,
            "unreadable": len(store.failures),
        },
        name=settings.name,
    )
    print(
        f"{progress.draws} photos drawn ({progress.epochs} epochs) in {progress.minutes} min; losses {progress.losses}"
    )
    print(f"{settings.output}: {model_id}, classes {hierarchy.class_counts}, temperature {temperature}")
    return 0


def _save(output: str, *content: Any, **more: Any) -> str:
    """Save a checkpoint at any URI, its config.json last as always, and return its id."""
    if not storage.is_remote(output):
        return Checkpoint.save(storage.local_folder(output), *content, **more).model_id
    with tempfile.TemporaryDirectory() as folder:
        model_id = Checkpoint.save(Path(folder), *content, **more).model_id
        for path in sorted(Path(folder).iterdir(), key=lambda path: path.name == CONFIG_FILE):
            storage.write_bytes(storage.join(output, path.name), path.read_bytes())
    return model_id


def describe_split(split: Split) -> str:
    """Return a line for each part: photos, and the groups of photographers and places that were kept whole."""
    lines = []
    for part in PARTS:
        rows = split.rows(part)
        lines.append(f"{part:<10} {len(rows):>8} photos in {len(np.unique(split.group_N[rows])):>6} groups")
    return "\n".join(lines)


def _part(photos: LabelledPhotos, split: Split, part: str) -> dict[str, int | str]:
    names = [photos.name_N[row] for row in split.rows(part)]
    return {"photos": len(names), "fingerprint": fingerprint(names)}


def _square(size_px: int) -> DecodeTarget:
    return DecodeTarget(size_px, size_px)


def _hierarchy(
    settings: Settings, photos: LabelledPhotos, rows: np.ndarray[tuple[int], np.dtype[np.int64]]
) -> Hierarchy:
    if settings.hierarchy == "auto":
        config = partition.PRESETS[settings.preset]
        return partition.build_hierarchy(photos.lat_deg_N[rows], photos.lon_deg_N[rows], config)
    try:
        names = (JSON_NAME, PARQUET_NAME)
        files = {name: storage.read_bytes(storage.join(settings.hierarchy, name)) for name in names}
    except OSError as error:
        raise ValueError(f"cannot read the hierarchy {settings.hierarchy}: {error}") from error
    return Hierarchy.from_files(files, settings.hierarchy)


def _network(settings: Settings, photos: LabelledPhotos) -> GeoDecoderConfig:
    config = NETWORKS[settings.network]()
    unknown = {scene for scene in photos.scene_N if scene} - set(config.scenes)
    if unknown:
        raise ValueError(f"the network {settings.network} has no scene {sorted(unknown)[0]!r}: it has {config.scenes}")
    if any(photos.scene_N):
        return config
    log.warning("no photo has a scene, so the network gets one scene for all: %s", ONE_SCENE[0])
    return dataclasses.replace(config, scenes=ONE_SCENE)


if __name__ == "__main__":
    run_command(Settings, run)
