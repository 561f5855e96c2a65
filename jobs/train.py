"""Train a model on photos whose positions are known: in this process, or by many on a Ray cluster.

python -m jobs.train --manifest photos.parquet --output checkpoint
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
import tyro
from numpy.typing import NDArray

from jobs import run_command
from jobs.build_prior import read_prior
from model import geodecoder
from model.backbones.framing import Framing
from model.backbones.pretrained import Pretrained, pretrained
from model.checkpoint import Checkpoint
from model.geodecoder import ONE_SCENE, GeoDecoder, GeoDecoderConfig
from model.networks import build
from model.readout import Reading
from model.world.hierarchy import JSON_NAME, PARQUET_NAME, Hierarchy
from model.world.prior import Prior
from pipeline import storage
from pipeline.cluster.flow import NamedPath
from pipeline.cluster.ray_cluster import Driver, check_paths, start_ray
from pipeline.decode.photo import DecodeTarget
from pipeline.locate.locator import model_folder, save_model
from training import hierarchy as partition
from training.data.dataset import PhotoStore
from training.data.labelled import LabelledPhotos, labelled_photos
from training.data.split import PARTS, Split, SplitConfig, part_record, split_photos
from training.evaluate import evaluation
from training.evaluate.calibration import FEWEST_PHOTOS, Fit
from training.evaluate.evaluation import Truth
from training.fit.loop import Progress, Task, TrainingLoop, Upkeep
from training.fit.objective import Labels, TeacherView
from training.fit.presets import PRESETS, preset_record
from training.fit.recipe import Recipe
from training.fit.run_record import RunRecord, identity_of
from training.fit.snapshot import Snapshots
from training.fit.team import Team
from training.fit.tokens import TokenCache
from training.fit.trainer import Network, Photos, Workers, fit
from training.globe import globe_study

log = logging.getLogger(__name__)

NETWORKS: dict[str, Callable[[], GeoDecoderConfig]] = {
    "paper_swin_b": geodecoder.paper_swin_b,
    "small": geodecoder.small,
    "bundled": geodecoder.bundled,
    "tiny": geodecoder.tiny,
    "globe": functools.partial(globe_study.network, globe_study.Variant(), geodecoder.SCENES_3),
}
BESIDE_RECIPE: dict[str, dict[str, Any]] = {"paper": {"network": "paper_swin_b", "preset": "paper7"}}
"""What a recipe's preset says of other settings."""
NEW_FRAMING: Framing = "letterbox"
"""What trainings without --init begin with; `jobs.benchmark framing` compares them."""
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
    backbone: str = ""
    """A pretrained backbone in place of the network's own: a Hugging Face folder, a model of the hub that was
    downloaded (such as openai/clip-vit-base-patch32), or efficientnet-lite0."""
    image_size: int = 0
    """Height and width in pixels of what --backbone sees; its own if 0."""
    framing: Literal["auto", "centre", "letterbox", "squares"] = "auto"
    """What is seen of a photo: all of it in one square with bars (letterbox), a square at each of its ends (squares:
    twice the time), or the square in its middle alone (centre). auto: what --init's model sees, else letterbox."""
    freeze: bool = False
    """Leave the backbone as it is, and train the rest (the same as --recipe.backbone-rate 0)."""
    cache_tokens: str = ""
    """Folder or prefix that keeps what a frozen backbone says of each photo, so that it is asked once and not in every
    epoch. Photos are then seen as when serving: no crops, mirror images or changed colours. --recipe.preset probe
    keeps it beside the output, if nothing is given."""
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


def defaults(arguments: Sequence[str]) -> Settings:
    """Return the settings that stand where a command line says nothing: those of the preset that it names."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--recipe.preset", dest="preset", default="none")
    name = parser.parse_known_args(arguments)[0].preset
    recipe = PRESETS.get(name, Recipe())  # a name that is none is refused when the whole line is read
    return Settings(tyro.MISSING, tyro.MISSING, recipe=recipe, **BESIDE_RECIPE.get(name, {}))


def run(settings: Settings) -> int:
    """Train and write the checkpoint; return the exit code."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    settings = _with_preset(_with_frozen_recipe(settings))
    output = storage.absolute(settings.output)
    _check_paths(settings, output)
    prior = read_prior(settings.prior)
    start = Checkpoint.load(model_folder(settings.init)) if settings.init else None
    trunk = pretrained(settings.backbone, settings.image_size) if settings.backbone else None
    config = _config(settings, start, trunk)
    photos = labelled_photos(settings.manifest, settings.root, settings.only, settings.scenes, vocabulary=config.scenes)
    _check_scenes(config, photos, start.model_id if start else f"the network {settings.network}")
    if start is None:
        config = _with_scenes_of(config, photos)
    if settings.num_workers:
        local = [uri for uri in photos.uri_N if not storage.is_remote(uri)][:_SAMPLE]
        check_paths([NamedPath("the photo", storage.canonical(uri)) for uri in local], settings.shared_filesystem)
    split = split_photos(photos, settings.split)
    rows = _rows_to_train_on(settings, split)
    storage.check_writable(output)
    print(describe_split(split))
    hierarchy = _hierarchy(settings, photos, rows, start)
    network = Network(config, hierarchy.class_counts, settings.recipe.seed, _first_weights(start, trunk, hierarchy))
    task = _task(settings, photos, split, hierarchy, network)
    about = _about(settings, network, task, photos, split, start, prior) | {"hierarchy_sha256": hierarchy.content_hash}
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
    truth = Truth(photos.lat_deg_N, photos.lon_deg_N, task.labels.level_NH)
    plain = Reading.plain(len(hierarchy.levels))
    source = task.tokens.validation() if task.tokens else served
    fit = evaluation.fit_reading(model, source, truth, split.group_N, validation, hierarchy, plain, prior)
    training = about | {"identity": task.identity, "progress": dataclasses.asdict(progress)}
    training["fit"] = {"photos": len(validation), "gain_low": None if math.isnan(fit.gain_low) else fit.gain_low}
    model_id = save_model(output, model, hierarchy, fit.reading, training=training, name=settings.name, prior=prior)
    record.finish(model_id=model_id)
    snapshots.clear()
    print(f"{progress.draws} photos drawn ({progress.epochs} epochs); last losses {progress.losses}")
    if best := progress.best:
        print(
            f"kept is what was learned after {best.epochs:g} epochs, which makes the photos held out for validation "
            f"likeliest: {best.log_likelihood:.3f} nats a photo"
        )
    print(f"{settings.output}: {model_id}, classes {hierarchy.class_counts}, {in_words(fit)}")
    return 0


def _rows_to_train_on(settings: Settings, split: Split) -> NDArray[np.int64]:
    """The training photos' rows; ValueError where they, or those held out, are too few."""
    rows = split.rows("train")
    if not len(rows):
        raise ValueError(f"{settings.manifest} leaves no photo to train on")
    if (held_out := len(split.rows("validation"))) < FEWEST_PHOTOS:
        raise ValueError(
            f"{held_out} photos are held out for validation, and it takes {FEWEST_PHOTOS} to say how sure a model may "
            f"be and to fit a radius: give a larger --split.validation-share than {settings.split.validation_share:g}, "
            "more photos, or a table whose column part says validation of more of them"
        )
    return rows


def _about(
    settings: Settings,
    network: Network,
    task: Task,
    photos: LabelledPhotos,
    split: Split,
    start: Checkpoint | None,
    prior: Prior | None,
) -> dict[str, Any]:
    """What names a training, besides its first weights and its photos' labels (JSON values)."""
    return {
        "recipe": dataclasses.asdict(settings.recipe),
        "preset": preset_record(settings.recipe),
        "network": network.config.to_json(),
        "init": start.model_id if start else None,
        "backbone": settings.backbone.rstrip("/").rpartition("/")[2] or None,
        "tokens": task.tokens.name if task.tokens else None,
        "prior": prior.content_hash if prior else None,
        "teacher": settings.teacher_onnx.name if settings.teacher_onnx else None,
        "photos": len(photos),
        "split": dataclasses.asdict(settings.split),
        "parts": {part: part_record(photos, split, part) for part in PARTS},
    }


def _with_frozen_recipe(settings: Settings) -> Settings:
    """Return the settings with what --freeze means for the recipe; ValueError for flags that exclude each other."""
    if settings.backbone and settings.init:
        raise ValueError("--init brings its own backbone: leave --backbone or --init out")
    if settings.image_size and not settings.backbone:
        raise ValueError("--image-size is for --backbone: every other network has its own size")
    recipe = dataclasses.replace(settings.recipe, backbone_rate=0.0) if settings.freeze else settings.recipe
    if settings.teacher_onnx is not None and recipe.is_frozen:
        raise ValueError("a teacher teaches the backbone, and a frozen one learns nothing: leave --teacher-onnx out")
    if settings.cache_tokens and not recipe.is_frozen:
        raise ValueError(
            "what a backbone says can be kept only where it does not learn: add --freeze to --cache-tokens"
        )
    return dataclasses.replace(settings, recipe=recipe)


def _with_preset(settings: Settings) -> Settings:
    """Return the settings with what a preset needs beside its recipe, and say what it set.

    Raises:
        ValueError: a preset that begins with something learned, and nothing learned to begin with.
    """
    recipe = settings.recipe
    if recipe.preset == "none":
        return settings
    if recipe.preset == "finetune" and not settings.init:
        raise ValueError("--recipe.preset finetune goes on from a model: add --init MODEL (a folder, URI, or bundled)")
    if recipe.preset == "probe" and not (settings.backbone or settings.init):
        raise ValueError(
            "--recipe.preset probe trains a decoder on a backbone that has learned: add --backbone or --init"
        )
    set_by = preset_record(recipe)
    print(f"recipe {recipe.preset}: {_flags_in_words(set_by['set'])}")
    if set_by["given_instead"]:
        print(f"given in place of the preset's: {_flags_in_words(set_by['given_instead'])}")
    if recipe.preset == "paper" and not (settings.backbone or settings.init):
        log.warning(
            "the paper's backbone has learned from ImageNet-22k and this one begins with random weights: add "
            "--backbone microsoft/swin-base-patch4-window7-224-in22k"
        )
    if recipe.preset == "probe" and recipe.is_frozen and not settings.cache_tokens:
        return dataclasses.replace(settings, cache_tokens=settings.output.rstrip("/") + "-tokens")
    return settings


def _flags_in_words(flags: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in flags.items()
    )


def _config(settings: Settings, start: Checkpoint | None, trunk: Pretrained | None) -> GeoDecoderConfig:
    """Return the network to train; ValueError where the model to begin with has none."""
    config = start.config if start else NETWORKS[settings.network]()
    if not isinstance(config, GeoDecoderConfig):
        raise ValueError(f"--init {settings.init}: that model has no network to train: leave --init out")
    if trunk is not None:
        config = dataclasses.replace(config, backbone=trunk.config, preprocessing=trunk.preprocessing)
        _describe(settings, trunk)
    framing = settings.framing
    if framing == "auto":
        framing = config.preprocessing.framing if start else NEW_FRAMING
    preprocessing = dataclasses.replace(config.preprocessing, framing=framing)
    return dataclasses.replace(config, preprocessing=preprocessing)


def _describe(settings: Settings, trunk: Pretrained) -> None:
    pixels = trunk.preprocessing
    print(
        f"backbone {settings.backbone}: {trunk.config.model_type}, {pixels.image_size_px} px out of "
        f"{pixels.resize_px} px, mean {_in_short(pixels.mean_rgb)}, deviation {_in_short(pixels.std_rgb)}"
    )


def _in_short(numbers: tuple[float, ...]) -> str:
    return " ".join(f"{number:.3f}" for number in numbers)


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
    if settings.cache_tokens:
        paths.append(NamedPath("--cache-tokens", storage.absolute(settings.cache_tokens)))
    check_paths([*paths, NamedPath("--output", output)], settings.shared_filesystem, output)


def _train(settings: Settings, network: Network, task: Task, photos: LabelledPhotos, upkeep: Upkeep) -> Progress:
    target, served = _training_target(settings, network.config), DecodeTarget.of(network.config.preprocessing)
    uris = [storage.canonical(uri) for uri in photos.uri_N]
    if settings.num_workers:
        workers = dataclasses.replace(settings.workers, count=settings.num_workers)
        size = start_ray(least_cpus=math.ceil(workers.count * workers.cpus_each), dashboard=True)
        named = [upkeep.output, *uris, *([str(settings.teacher_onnx)] if settings.teacher_onnx else [])]
        named += [task.tokens.folder] if task.tokens else []
        is_local = not all(storage.is_remote(uri) for uri in named)
        driver = Driver.here(uses_local_paths=is_local and not settings.shared_filesystem)
        listed = Photos(pa.array(uris, pa.large_string()), target, served)
        return fit(network, task, listed, upkeep, workers, size.gpus, driver)
    loop = TrainingLoop(network.build(), task, Team(), upkeep)
    # The loop has its own limit on photos that can't be had, by epoch.
    return loop.run(PhotoStore(uris, target, 1.0), PhotoStore(uris, served, 1.0))


def _training_target(settings: Settings, config: GeoDecoderConfig) -> DecodeTarget:
    """Return how to decode for training: what is served with, larger where crops are taken of it, so that they keep its
    resolution."""
    size_px = config.preprocessing.resize_px
    if settings.recipe.augment.least_area < 1:
        size_px = size_px * 5 // 4
    served = DecodeTarget.of(config.preprocessing)
    return dataclasses.replace(served, image_size_px=size_px, resize_px=size_px)


def _task(settings: Settings, photos: LabelledPhotos, split: Split, hierarchy: Hierarchy, network: Network) -> Task:
    config = network.config
    scene_N = np.array([config.scenes.index(scene) if scene else -1 for scene in photos.scene_N])
    labels = Labels.of(hierarchy, photos.lat_deg_N, photos.lon_deg_N, scene_N)
    rows = split.rows("train")
    if (labels.level_NH[rows] < 0).all():
        raise ValueError("no training photo lies in a cell of the hierarchy: give --hierarchy new, or a finer --preset")
    teacher = None
    if settings.teacher_onnx is not None:
        store = PhotoStore(photos.uri_N, _training_target(settings, config), settings.recipe.max_failed_fraction)
        teacher = TeacherView.fitted(settings.teacher_onnx.resolve(), store, rows)
    validation = split.rows("validation")
    tokens = _tokens(settings, photos, rows, validation, network) if settings.cache_tokens else None
    return Task(settings.recipe, labels, rows, validation, teacher, tokens=tokens)


def _tokens(
    settings: Settings,
    photos: LabelledPhotos,
    rows: NDArray[np.int64],
    validation: NDArray[np.int64],
    network: Network,
) -> TokenCache:
    """Return where the tokens are kept, and say how much they take."""
    backbone = network.build().backbone
    about = {
        "backbone": dataclasses.asdict(backbone.config),
        "preprocessing": network.config.preprocessing.to_json(),
        "precision": settings.recipe.precision,
    }
    cache = TokenCache.planned(
        storage.absolute(settings.cache_tokens),
        backbone.state_dict(),
        about,
        (network.config.preprocessing.views * backbone.tokens, backbone.width),
        photos.uri_N,
        rows,
        validation,
        settings.recipe.max_failed_fraction,
    )
    storage.check_writable(cache.folder)
    size_mb = cache.photos * cache.bytes_a_photo / 1e6
    print(
        f"tokens: {cache.shape[0]} of {backbone.width} for each of {cache.photos} photos, {size_mb:.0f} MB in "
        f"{cache.folder}; photos are seen as when serving, without crops, mirror images or changed colours"
    )
    return cache


def _first_weights(
    start: Checkpoint | None, trunk: Pretrained | None, hierarchy: Hierarchy
) -> dict[str, torch.Tensor] | None:
    """Return the weights to begin with: all of the model's, less those whose shape another hierarchy changes."""
    if trunk is not None:
        return {f"backbone.{name}": x for name, x in trunk.weights.items()}
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
    """Return the network of the best epoch, or of the newest snapshot if none was validated: the moving average where
    one was kept.

    A frozen backbone is in no snapshot: it is what the training began with.
    """
    state = snapshots.load_best()
    prefix = "model."
    weights = {name.removeprefix(prefix): x for name, x in state["weights"].items() if name.startswith(prefix)}
    model = network.build()
    missing, unknown = model.load_state_dict(weights | state["average"], strict=False)
    assert not unknown, f"the snapshot has parts that the network has not: {unknown}"
    assert all(name.startswith("backbone.") for name in missing), f"the snapshot lacks {missing}"
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
    run_command(Settings, run, defaults)
