"""Make a checkpoint of somebody else's weights, or of one's own photos, and see whether it places what one knows.

python -m jobs.import_model geoclip --weights geoclip-1.3.0-py3-none-any.whl --clip FOLDER --output geoclip-model
python -m jobs.import_model gallery --backbone FOLDER --photos photos.parquet --output gallery-model
python -m jobs.import_model --check geoclip-model --photos PHOTOS
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from jobs import run_command
from jobs.build_prior import WORLD, read_prior
from jobs.import_check import check
from model.backbones.tower import load_tower, tower_shape
from model.checkpoint import CONFIG_FILE
from model.engines import EngineName, Precision
from model.gallery import Gallery
from model.world.hierarchy import Hierarchy
from model.world.prior import Prior
from pipeline import storage
from pipeline.decode.photo import DecodeTarget
from pipeline.locate.locator import save_model
from training import galleries, geoclip
from training.data.dataset import PhotoStore
from training.data.labelled import labelled_photos
from training.data.split import PARTS, SplitConfig, part_record, split_photos

log = logging.getLogger(__name__)

_NEVER_RUN = (
    "Never run with the real tower where this was written: see first whether it finds photos whose place you know, a\n"
    "handful from far apart:"
)


@dataclass(frozen=True)
class FromGeoClip:
    """GeoCLIP (MIT): its wheel's tensors and 100,000 places, behind OpenAI's CLIP ViT-L/14."""

    weights: Path
    """The wheel that `pip download --no-deps geoclip==1.3.0` brings; nothing of it is installed or run."""
    output: str
    """Folder or prefix for the checkpoint: a path or URI."""
    clip: str = "openai/clip-vit-large-patch14"
    """Folder with CLIP ViT-L/14's weights, or its name in the local Hugging Face cache."""
    prior: str = WORLD
    """Where photos are taken: `world`, or a file of jobs.build_prior."""
    tau_max: tuple[int, ...] = galleries.TAU_MAX
    """Cells hold at most so many places: one number a level, coarse to fine."""

    def make(self) -> int:
        """Read, compute the gallery, save; return the exit code."""
        _require_free(self.output)
        prior = _prior(self.prior)
        published = geoclip.read_wheel(self.weights)
        galleries.partition(len(published.lat_deg_N), self.tau_max)
        _require_shape(self.clip, tower_shape(self.clip), geoclip.needed_shape(published))
        tower, preprocessing = load_tower(self.clip)
        storage.check_writable(storage.absolute(self.output))
        print(f"the features of {len(published.lat_deg_N)} places, computed once: a minute or so")
        features_ND = geoclip.location_features(published, published.lat_deg_N, published.lon_deg_N)
        gallery, hierarchy = galleries.make_gallery(
            tower,
            preprocessing,
            published.head,
            features_ND,
            published.lat_deg_N,
            published.lon_deg_N,
            published.scale,
            self.tau_max,
        )
        training = {
            "imported": "geoclip 1.3.0 (MIT), arXiv 2309.16020",
            "wheel_sha256": published.sha256,
            "clip": self.clip.rstrip("/").rpartition("/")[2],
            "published_on_im2gps3k_percent": geoclip.PUBLISHED_ON_IM2GPS3K,
        }
        _save(self.output, gallery, hierarchy, prior, "geoclip", training)
        percent = " ".join(f"{share}" for share in geoclip.PUBLISHED_ON_IM2GPS3K.values())
        print(f"Published for GeoCLIP on Im2GPS3k, not measured here: {percent} % within 1, 25, 200, 750, 2500 km.")
        print(f"{_NEVER_RUN}\n    {_check_command(self.output)}")
        print(_not_calibrated(self.output))
        return 0


@dataclass(frozen=True)
class FromPhotos:
    """A gallery of one's own: photos whose places are known, told apart by any Hugging Face vision model."""

    backbone: str
    """Folder of a Hugging Face vision model, or its name in the local cache: of CLIP the projected features, of all
    others the mean of the tokens."""
    photos: str
    """Parquet or CSV table with path or uri, latitude and longitude. Where it says parts, those of train are taken;
    else some groups of photos are held out, as jobs.train does, so that jobs.evaluate can measure."""
    output: str
    """Folder or prefix for the checkpoint: a path or URI."""
    root: str = ""
    """Where the table's relative paths lie, if not beside it."""
    only: str = ""
    """A column of 0 and 1: take only the rows of 1."""
    kernel_width: float = 0.05
    """A photo of the gallery whose cosine is less by this counts 1/e as much."""
    name: str = "gallery"
    """Readable part of the model's id: lower-case letters, digits, dots and dashes."""
    prior: str = WORLD
    """Where photos are taken: `world`, or a file of jobs.build_prior."""
    tau_max: tuple[int, ...] = galleries.TAU_MAX
    """Cells hold at most so many photos: one number a level, coarse to fine."""
    max_failed_fraction: float = 0.02
    """Stop if more of the photos than this can't be read."""
    split: SplitConfig = dataclasses.field(default_factory=SplitConfig)

    def make(self) -> int:
        """Look at the photos, save; return the exit code."""
        if not 0 < self.kernel_width <= 2:
            raise ValueError(
                f"--kernel-width {self.kernel_width:g}: give a number above 0 and up to 2, as cosines differ"
            )
        _require_free(self.output)
        prior = _prior(self.prior)
        photos = labelled_photos(self.photos, self.root, self.only)
        split = split_photos(photos, self.split)
        rows = split.rows("train").tolist()
        galleries.partition(len(rows), self.tau_max)
        tower, preprocessing = load_tower(self.backbone)
        storage.check_writable(storage.absolute(self.output))
        store = PhotoStore(photos.uri_N, DecodeTarget.of(preprocessing), self.max_failed_fraction, memory_bytes=0)
        found_N, features_ND = galleries.photo_features(tower, preprocessing, store, rows)
        gallery, hierarchy = galleries.make_gallery(
            tower,
            preprocessing,
            (),
            features_ND,
            photos.lat_deg_N[found_N],
            photos.lon_deg_N[found_N],
            1 / self.kernel_width,
            self.tau_max,
        )
        training = {
            "imported": "a gallery of photos",
            "backbone": self.backbone.rstrip("/").rpartition("/")[2],
            "kernel_width": self.kernel_width,
            "split": dataclasses.asdict(self.split),
            "parts": {part: part_record(photos, split, part) for part in PARTS},
        }
        _save(self.output, gallery, hierarchy, prior, self.name, training)
        held_out = len(split.rows("test"))
        root = (f" --root {self.root}" if self.root else "") + (f" --only {self.only}" if self.only else "")
        if held_out:
            print(f"How good it is, {held_out} photos that are not in the gallery can tell:")
            print(f"    python -m jobs.evaluate --model {self.output} --manifest {self.photos}{root} --part test")
        print(_not_calibrated(self.output, f" --trained-on {self.photos}{root}"))
        return 0


@dataclass(frozen=True)
class Settings:
    """Import a model, or check one that was imported."""

    source: tyro.conf.OmitSubcommandPrefixes[
        Annotated[FromGeoClip, tyro.conf.subcommand("geoclip")]
        | Annotated[FromPhotos, tyro.conf.subcommand("gallery")]
        | Annotated[None, tyro.conf.subcommand("nothing")]
    ] = None
    check: str = ""
    """Import nothing: see whether this model finds photos whose place is known. A folder or URI, or `bundled`."""
    photos: str = ""
    """For --check: a table with uri (or path), lat and lon; or a folder or prefix of photos whose cameras wrote where
    they were."""
    root: str = ""
    """For --check: where the table's relative paths lie, if not beside it."""
    most: int = 24
    """For --check: look at so many of them, drawn by lot."""
    engine: EngineName = "auto"
    """For --check: what runs the model."""
    precision: Precision = "auto"
    """For --check: what its network computes in."""
    threads: int | None = None
    """For --check: CPU threads of the engine; all if not given."""


def run(settings: Settings) -> int:
    """Import, or check; return the exit code."""
    if settings.source is not None:
        if settings.check:
            raise ValueError("--check imports nothing: leave out what comes after it, or leave --check out")
        return settings.source.make()
    if not settings.check or not settings.photos:
        raise ValueError("say what to import, geoclip or gallery (--help), or give --check MODEL and --photos PHOTOS")
    engine = settings.engine, settings.precision, settings.threads
    return check(settings.check, settings.photos, settings.root, settings.most, *engine)


def _require_free(output: str) -> None:
    uri = storage.absolute(output)
    if storage.exists(storage.join(uri, CONFIG_FILE)):
        raise ValueError(f"there is a model at {output} already: give another --output")


def _require_shape(clip: str, found: dict[str, Any], needed: dict[str, Any]) -> None:
    wrong = [name for name, value in needed.items() if name in found and found[name] != value]
    if wrong:
        has, needs = (", ".join(f"{name} {values[name]}" for name in wrong) for values in (found, needed))
        raise ValueError(f"--clip {clip} has {has}; GeoCLIP needs {needs}: give openai/clip-vit-large-patch14")


def _prior(name: str) -> Prior:
    prior = read_prior(name)
    if prior is None:
        raise ValueError("--prior none: a gallery's own places are not all there are: give world, or a file")
    return prior


def _save(
    output: str, gallery: Gallery, hierarchy: Hierarchy, prior: Prior, name: str, training: dict[str, Any]
) -> None:
    reading = galleries.first_reading(hierarchy, prior)
    uri = storage.absolute(output)
    model_id = save_model(uri, gallery, hierarchy, reading, training=training, name=name, prior=prior)
    places = int(hierarchy.levels[-1].photo_count_K.sum())
    print(f"{output}: {model_id}, {places} places in cells {hierarchy.class_counts}")


def _check_command(output: str) -> str:
    return f"python -m jobs.import_model --check {output} --photos PHOTOS"


def _not_calibrated(output: str, trained_on: str = "") -> str:
    return (
        f"Its confidence and radius are fitted to nothing yet (temperature 1, {galleries.PRIOR_SHARE} of the prior).\n"
        "On photos of yours whose cameras wrote where they were, two commands fit them:\n"
        f"    python -m jobs.geotag_archive --photos PHOTOS --model {output} --output ANSWERS\n"
        f"    python -m jobs.calibrate ANSWERS{trained_on} --to CALIBRATED"
    )


if __name__ == "__main__":
    run_command(Settings, run)
