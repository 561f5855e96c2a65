"""How well a model places photos that it was not trained on, beside two baselines that need no training.

python -m jobs.evaluate --model checkpoint --manifest photos.parquet
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from jobs import run_command
from model import geodesy
from model.checkpoint import Checkpoint
from model.engines import EngineName, load_engine
from pipeline.decode import DecodeTarget
from pipeline.locator import model_folder
from training import evaluation
from training.dataset import PhotoStore
from training.labelled import LabelledPhotos, labelled_photos
from training.metrics import THRESHOLDS_KM, accuracy, level_accuracy
from training.split import SplitConfig, fingerprint, split_photos
from training.teacher import Teacher

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
_TEACHER = SHARED / "weights" / "mobilenetv2_1.0_imagenet_trunk_f32.onnx"


@dataclass(frozen=True)
class Settings:
    """Measure a model on held-out photos whose positions are known."""

    manifest: str = ""
    """Table of photos as jobs.train takes it; without one, the photos that the bundled model was held out from."""
    model: str = "bundled"
    """Checkpoint folder or URI."""
    root: str = ""
    """Where the table's relative paths lie, if not beside it."""
    only: str = ""
    """A column of 0 and 1: take only the rows of 1."""
    part: Literal["test", "validation", "all"] = "test"
    """The part of the split that the checkpoint was trained with, or all photos of a table it never saw."""
    teacher_onnx: Path | None = None
    """An ONNX network from images to features, for the nearest-neighbour baseline (not with --part all)."""
    engine: EngineName = "auto"
    max_failed_fraction: float = 0.02
    """Stop if more of the photos than this can't be read."""


def run(settings: Settings) -> int:
    """Evaluate the model on the manifest's photos and print its numbers; return the exit code."""
    settings = _with_defaults(settings)
    checkpoint = Checkpoint.load(model_folder(settings.model))
    photos = labelled_photos(settings.manifest, settings.root, settings.only)
    rows, known_rows = _parts(settings, checkpoint, photos)
    target = DecodeTarget.of(checkpoint.config.preprocessing)
    store = PhotoStore(photos.uri_N, target, settings.max_failed_fraction)
    engine = load_engine(settings.engine, checkpoint)
    said = evaluation.predict(engine, checkpoint.hierarchy, store, rows.tolist())
    true_N = photos.lat_deg_N[said.row_N], photos.lon_deg_N[said.row_N]
    error_km_N = geodesy.haversine_km(said.lat_deg_N, said.lon_deg_N, *true_N)
    lines = {checkpoint.model_id: error_km_N}
    lines["always the commonest cell"] = geodesy.haversine_km(*evaluation.commonest_cell(checkpoint.hierarchy), *true_N)
    if settings.teacher_onnx is not None and len(known_rows):
        teacher = Teacher(settings.teacher_onnx)
        whole = PhotoStore(photos.uri_N, DecodeTarget(teacher.size_px, teacher.size_px), settings.max_failed_fraction)
        lines["nearest neighbour, teacher's features"] = _neighbours_km(photos, whole, teacher, said.row_N, known_rows)
    counts = f"{len(said.row_N)} photos ({settings.part}), {len(store.failures)} more could not be read"
    print(f"{counts}; engine {engine.name} {engine.precision}")
    print(_table(lines))
    label_NH = checkpoint.hierarchy.label_NH(*true_N)
    for number, (photos_in_cells, share) in enumerate(level_accuracy(said.best_NH, label_NH)):
        print(f"level {number}: {photos_in_cells} photos lie in one of its cells, of these {share:.1%} were put there")
    print(f"inside the radius meant to hold 90 %: {(error_km_N <= said.radius_km_N).mean():.1%}")
    return 0


def _with_defaults(settings: Settings) -> Settings:
    if settings.manifest:
        return settings
    manifest = SHARED / "photos.csv"
    if settings.model != "bundled" or not manifest.is_file():
        raise ValueError(f"give --manifest, a table of photos with positions (for the bundled model it was {manifest})")
    return Settings(
        manifest=str(manifest),
        root=str(SHARED / "photos"),
        only="scene_ok",
        part=settings.part,
        teacher_onnx=settings.teacher_onnx or (_TEACHER if settings.part != "all" else None),
        engine=settings.engine,
        max_failed_fraction=settings.max_failed_fraction,
    )


def _parts(
    settings: Settings, checkpoint: Checkpoint, photos: LabelledPhotos
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows to evaluate and those that were trained on, having checked that the split is the checkpoint's."""
    if settings.part == "all":
        if settings.teacher_onnx is not None:
            raise ValueError("the nearest neighbour is sought among the training photos: not with --part all")
        return np.arange(len(photos)), np.array([], np.int64)
    training: dict[str, Any] = checkpoint.training
    if "split" not in training or "parts" not in training:
        raise ValueError(f"{checkpoint.folder} does not say how its photos were split: use --part all on other photos")
    split = split_photos(photos, SplitConfig(**training["split"]))
    for part, expected in training["parts"].items():
        if fingerprint(photos.name_N[row] for row in split.rows(part)) != expected["fingerprint"]:
            raise ValueError(
                f"{settings.manifest} is not the table that {checkpoint.folder} was trained with (its {part} photos "
                f"differ): give that table and --only, or use --part all if the model has seen none of these photos"
            )
    rows = split.rows(settings.part)
    if not len(rows):
        raise ValueError(f"no photos were held out for {settings.part}: use another --part")
    return rows, split.rows("train")


def _neighbours_km(
    photos: LabelledPhotos, store: PhotoStore, teacher: Teacher, rows: NDArray[np.int64], known_rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    found_N, features_ND = evaluation.teacher_features(teacher, store, rows.tolist())
    known_M, known_MD = evaluation.teacher_features(teacher, store, known_rows.tolist())
    nearest_N = known_M[evaluation.nearest_neighbour(features_ND, known_MD)]
    return geodesy.haversine_km(
        photos.lat_deg_N[nearest_N], photos.lon_deg_N[nearest_N], photos.lat_deg_N[found_N], photos.lon_deg_N[found_N]
    )


def _table(errors: dict[str, NDArray[np.float64]]) -> str:
    """Return a table with a line for each way of placing photos: % within each threshold, and the median error."""
    width = max(map(len, errors))
    lines = [" " * width + "".join(f"{f'{km:g} km':>10}" for km in THRESHOLDS_KM.values()) + f"{'median km':>12}"]
    for name, error_km_N in errors.items():
        measured = accuracy(error_km_N)
        shares = "".join(f"{share:>10.1%}" for share in measured.share_within.values())
        lines.append(f"{name:<{width}}{shares}{measured.median_km:>12.0f}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(Settings, run)
