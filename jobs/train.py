"""Train a model on photos whose positions are known: in this process, or by many on a Ray cluster.

python -m jobs.train --manifest photos.parquet --output checkpoint
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from jobs import run_command
from jobs.build_prior import read_prior
from model import geodecoder
from model.checkpoint import Checkpoint
from model.geodecoder import ONE_SCENE, GeoDecoder, GeoDecoderConfig
from model.hierarchy import JSON_NAME, PARQUET_NAME, Hierarchy
from model.networks import build
from model.readout import Reading
from pipeline import storage
from pipeline.cluster import Driver, NamedPath, check_paths, start_ray
from pipeline.decode import DecodeTarget
from pipeline.locator import model_folder, save_model
from training import evaluation, globe_study, partition
from training.calibration import Fit
from training.dataset import PhotoStore
from training.evaluation import Truth
from training.labelled import LabelledPhotos, labelled_photos
from training.loop import Progress, Task, TrainingLoop, Upkeep
from training.objective import Labels, TeacherView
from training.recipe import Recipe
from training.run_record import RunRecord, identity_of
from training.snapshot import Snapshots
from training.split import PARTS, Split, SplitConfig, part_record, split_photos
from training.team import Team
from training.trainer import Network, Photos, Workers, fit

log = logging.getLogger(__name__)

NETWORKS: dict[str, Callable[[], GeoDecoderConfig]] = {
    "paper_swin_b": geodecoder.paper_swin_b,
    "small": geodecoder.small,
    "bundled": geodecoder.bundled,
    "tiny": geodecoder.tiny,
    "globe": functools.partial(globe_study.network, globe_study.Variant(), geodecoder.SCENES_3),
}
_SAMPLE = 3
"""So many local photos every node is asked for, if there are any."""


@dataclass(frozen=True)
class Settings:
    """Train a model on photos whose positions are known. The same command goes on with a training that was stopped."""

    manifest: str
    """Parquet or CSV table with path or uri, latitude, longitude and, where known, photographer, scene and part."""
    output: str
    """Folder or prefix for the checkpoint, snapshots and metrics: a path or URI."""
    init: str = ""
    """Start from this model (a checkpoint's folder or URI, or bundled) and keep its network: fine-tuning."""
    hierarchy: str = "auto"
    """Folder or prefix that jobs.build_hierarchy wrote; auto takes --init's, or builds one from the training photos;
    new always builds one."""
    preset: Literal["paper7", "isn3", "small", "hundreds"] = "hundreds"
    """Thresholds of a hierarchy that is built."""
    root: str = ""
    """Where the table's relative paths lie, if not beside it."""
    only: str = ""
    """A column of 0 and 1: take only the rows of 1."""
    scenes: str = ""
    """A table with path and scene, if the manifest has no column scene."""
    network: Literal["paper_swin_b", "small", "bundled", "tiny", "globe"] = "small"
    """The network to train, without --init."""
    teacher_onnx: Path | None = None
    """An ONNX network from images to features, to learn from by distillation; every node needs the file."""
    name: str = "geodecoder"
    """Readable part of the model's id: lower-case letters, digits, dots and dashes."""
    num_workers: int = 0
    """Train on a Ray cluster with so many workers; 0: in this process."""
    workers: Workers = field(default_factory=Workers)
    """How the cluster's workers are (--num-workers takes the place of --workers.count)."""
    shared_filesystem: bool = False
    """Local paths are mounted on every node of the cluster; without this, several nodes take none."""
    prior: str = "world"
    """Where photos are taken: `world`, the prior that ships with Graticule; a file that jobs.build_prior wrote; or
    `none`, for a model that answers with the cells of its training photos alone."""
    threads: int = 0
    """Processor threads for the network in this process; all if 0."""
    log_steps: int = 20
    """A line of metrics every so many steps."""
    snapshot_steps: int = 500
    """A snapshot every so many steps, beside those at each epoch's end."""
    split: SplitConfig = field(default_factory=SplitConfig)
    recipe: Recipe = field(default_factory=Recipe)


def run(settings: Settings) -> int:
    """Train and write the checkpoint; return the exit code."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    output = storage.absolute(settings.output)
    _check_paths(settings, output)
    start = Checkpoint.load(model_folder(settings.init)) if settings.init else None
    config = _config(settings, start)
    photos = labelled_photos(settings.manifest, settings.root, settings.only, settings.scenes, vocabulary=config.scenes)
    _check_scenes(config, photos, start.model_id if start else f"the network {settings.network}")
    if start is None:
        config = _with_scenes_of(config, photos)
    if settings.num_workers:
        local = [uri for uri in photos.uri_N if not storage.is_remote(uri)][:_SAMPLE]
        check_paths([NamedPath("the photo", storage.canonical(uri)) for uri in local], settings.shared_filesystem)
    split = split_photos(photos, settings.split)
    rows = split.rows("train")
    if not len(rows):
        raise ValueError(f"{settings.manifest} leaves no photo to train on")
    storage.check_writable(output)
    print(describe_split(split))
    hierarchy = _hierarchy(settings, photos, rows, start)
    network = Network(config, hierarchy.class_counts, settings.recipe.seed, _first_weights(start, hierarchy))
    task = _task(settings, photos, split, hierarchy, config)
    about = {
        "recipe": dataclasses.asdict(settings.recipe),
        "network": config.to_json(),
        "init": start.model_id if start else None,
        "hierarchy_sha256": hierarchy.content_hash,
        "teacher": settings.teacher_onnx.name if settings.teacher_onnx else None,
        "photos": len(photos),
        "split": dataclasses.asdict(settings.split),
        "parts": {part: part_record(photos, split, part) for part in PARTS},
    }
    task = dataclasses.replace(task, identity=identity_of(task, network.weights, **about))
    record = RunRecord(output, task.identity)
    if record.finished:
        print(f"Nothing to do: {output} holds the finished training of {record.values['model_id']}")
        return 0
    record.begin(settings.num_workers, **about)
    progress = _train(settings, network, task, photos, Upkeep(output, settings.log_steps, settings.snapshot_steps))
    snapshots = Snapshots(output)
    model = _trained(network, snapshots)
    served = PhotoStore(photos.uri_N, DecodeTarget.of(config.preprocessing), settings.recipe.max_failed_fraction)
    validation = split.rows("validation").tolist()
    prior = read_prior(settings.prior)
    truth = Truth(photos.lat_deg_N, photos.lon_deg_N, task.labels.level_NH)
    plain = Reading.plain(len(hierarchy.levels))
    fit = evaluation.fit_reading(model, served, truth, split.group_N, validation, hierarchy, plain, prior)
    training = about | {"identity": task.identity, "progress": dataclasses.asdict(progress)}
    training["fit"] = {"photos": len(validation), "gain_low": None if math.isnan(fit.gain_low) else fit.gain_low}
    model_id = save_model(output, model, hierarchy, fit.reading, training=training, name=settings.name, prior=prior)
    record.finish(model_id=model_id)
    snapshots.clear()
    print(f"{progress.draws} photos drawn ({progress.epochs} epochs); last losses {progress.losses}")
    print(f"{settings.output}: {model_id}, classes {hierarchy.class_counts}, {in_words(fit)}")
    return 0


def _config(settings: Settings, start: Checkpoint | None) -> GeoDecoderConfig:
    """Return the network to train; ValueError where the model to begin with has none."""
    config = start.config if start else NETWORKS[settings.network]()
    if not isinstance(config, GeoDecoderConfig):
        raise ValueError(f"--init {settings.init}: that model has no network to train: leave --init out")
    return config


def _check_paths(settings: Settings, output: str) -> None:
    """Raise ValueError for a local path that a node of the cluster does not see."""
    if not settings.num_workers:
        return
    given = {
        "--manifest": settings.manifest,
        "--init": settings.init if settings.init != "bundled" else "",
        "--hierarchy": settings.hierarchy if settings.hierarchy not in ("auto", "new") else "",
        "--root": settings.root,
        "--scenes": settings.scenes,
        "--teacher-onnx": str(settings.teacher_onnx or ""),
    }
    paths = [NamedPath(flag, storage.absolute(uri)) for flag, uri in given.items() if uri]
    check_paths([*paths, NamedPath("--output", output)], settings.shared_filesystem, output)


def _train(settings: Settings, network: Network, task: Task, photos: LabelledPhotos, upkeep: Upkeep) -> Progress:
    target, served = _training_target(settings, network.config), DecodeTarget.of(network.config.preprocessing)
    uris = [storage.canonical(uri) for uri in photos.uri_N]
    if settings.num_workers:
        workers = dataclasses.replace(settings.workers, count=settings.num_workers)
        size = start_ray(least_cpus=math.ceil(workers.count * workers.cpus_each), dashboard=True)
        named = [upkeep.output, *uris, *([str(settings.teacher_onnx)] if settings.teacher_onnx else [])]
        is_local = not all(storage.is_remote(uri) for uri in named)
        driver = Driver.here(uses_local_paths=is_local and not settings.shared_filesystem)
        listed = Photos(pa.array(uris, pa.large_string()), target, served)
        return fit(network, task, listed, upkeep, workers, size.gpus, driver)
    loop = TrainingLoop(network.build(), task, Team(), upkeep)
    # The loop has its own limit on photos that can't be had, by epoch.
    return loop.run(PhotoStore(uris, target, 1.0), PhotoStore(uris, served, 1.0))


def _training_target(settings: Settings, config: GeoDecoderConfig) -> DecodeTarget:
    """Return the size to train from: where views are crops, larger than served, so that they keep its resolution."""
    size_px = config.preprocessing.resize_px
    if settings.recipe.augment.least_area < 1:
        size_px = size_px * 5 // 4
    return DecodeTarget(size_px, size_px)


def _task(
    settings: Settings, photos: LabelledPhotos, split: Split, hierarchy: Hierarchy, config: GeoDecoderConfig
) -> Task:
    scene_N = np.array([config.scenes.index(scene) if scene else -1 for scene in photos.scene_N])
    labels = Labels.of(hierarchy, photos.lat_deg_N, photos.lon_deg_N, scene_N)
    rows = split.rows("train")
    if (labels.level_NH[rows] < 0).all():
        raise ValueError("no training photo lies in a cell of the hierarchy: give --hierarchy new, or a finer --preset")
    teacher = None
    if settings.teacher_onnx is not None:
        store = PhotoStore(photos.uri_N, _training_target(settings, config), settings.recipe.max_failed_fraction)
        teacher = TeacherView.fitted(settings.teacher_onnx.resolve(), store, rows)
    return Task(settings.recipe, labels, rows, split.rows("validation"), teacher)


def _first_weights(start: Checkpoint | None, hierarchy: Hierarchy) -> dict[str, torch.Tensor] | None:
    """Return the weights to begin with: all of the model's, less those whose shape another hierarchy changes."""
    if start is None:
        return None
    weights = start.build_model().state_dict()
    shapes = build(start.config, hierarchy).state_dict()
    kept = {name: x for name, x in weights.items() if name in shapes and shapes[name].shape == x.shape}
    if start.hierarchy.content_hash != hierarchy.content_hash:
        # Equal shapes by chance: a classifier's rows mean other cells now.
        kept = {name: x for name, x in kept.items() if not name.startswith("classifiers.")}
        log.info("another hierarchy: %d of %d tensors of %s are kept", len(kept), len(weights), start.model_id)
    return kept


def in_words(fitted: Fit) -> str:
    """Return how a model is read, and whether its network has a say at all."""
    reading = fitted.reading
    words = f"temperatures {reading.temperatures}, shares of the prior {reading.prior_share}"
    if reading.is_prior:
        words += "; on held-out photos the network knows no more than its prior, so the model answers with the prior"
    return f"{words}; its radius holds {reading.radius_mass:.3f} of the probability"


def _trained(network: Network, snapshots: Snapshots) -> GeoDecoder:
    """Return the network of the newest snapshot: the moving average where one was kept."""
    state = snapshots.load(snapshots.steps()[-1])
    prefix = "model."
    weights = {name.removeprefix(prefix): x for name, x in state["weights"].items() if name.startswith(prefix)}
    model = network.build()
    model.load_state_dict(weights | state["average"])
    return model.eval()


def describe_split(split: Split) -> str:
    """Return a line for each part: photos, and the groups of photographers and places that were kept whole."""
    lines = []
    for part in PARTS:
        rows = split.rows(part)
        lines.append(f"{part:<10} {len(rows):>8} photos in {len(np.unique(split.group_N[rows])):>6} groups")
    return "\n".join(lines)


def _hierarchy(
    settings: Settings, photos: LabelledPhotos, rows: NDArray[np.int64], start: Checkpoint | None
) -> Hierarchy:
    if settings.hierarchy == "auto" and start is not None:
        return start.hierarchy
    if settings.hierarchy in ("auto", "new"):
        config = partition.PRESETS[settings.preset]
        return partition.build_hierarchy(photos.lat_deg_N[rows], photos.lon_deg_N[rows], config)
    try:
        names = (JSON_NAME, PARQUET_NAME)
        files = {name: storage.read_bytes(storage.join(settings.hierarchy, name)) for name in names}
    except OSError as error:
        raise ValueError(f"cannot read the hierarchy {settings.hierarchy}: {error}") from error
    return Hierarchy.from_files(files, settings.hierarchy)


def _with_scenes_of(config: GeoDecoderConfig, photos: LabelledPhotos) -> GeoDecoderConfig:
    if any(photos.scene_N):
        return config
    log.warning("no photo has a scene, so the network gets one scene for all: %s", ONE_SCENE[0])
    return dataclasses.replace(config, scenes=ONE_SCENE)


def _check_scenes(config: GeoDecoderConfig, photos: LabelledPhotos, what: str) -> None:
    unknown = {scene for scene in photos.scene_N if scene} - set(config.scenes)
    if unknown:
        raise ValueError(f"{what} has no scene {sorted(unknown)[0]!r}: it has {config.scenes}")


if __name__ == "__main__":
    run_command(Settings, run)
