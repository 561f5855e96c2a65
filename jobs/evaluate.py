"""How well a model places photos that it was not trained on, beside two baselines that need no training.

python -m jobs.evaluate --model checkpoint --manifest photos.parquet --to evaluation
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from jobs import run_command
from model.checkpoint import Checkpoint
from model.engines import EngineName, load_engine
from model.geodecoder import GeoDecoderConfig
from model.readout import AUTO, BEST_CELL, PointRule
from model.world import geodesy, s2
from pipeline import storage
from pipeline.decode.photo import DecodeTarget
from pipeline.locate.locator import BUNDLED_MODEL, model_folder
from pipeline.locate.places import Places
from pipeline.report.elements import Look
from training.data.dataset import PhotoStore
from training.data.labelled import LabelledPhotos, labelled_photos
from training.data.split import SplitConfig, fingerprint, split_photos
from training.data.teacher import Teacher
from training.evaluate import attention, evaluation
from training.evaluate.evaluation import TEN_CROPS, Measured, Truth
from training.evaluate.page import page
from training.evaluate.summary import Kinds, Summary, summarise
from training.metrics import THRESHOLDS_KM, Breakdown, Estimate

log = logging.getLogger(__name__)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
_TEACHER = SHARED / "weights" / "mobilenetv2_1.0_imagenet_trunk_f32.onnx"
_MOST_PRINTED = 10
_BEST_CELL_INSTEAD = "its best cell instead"


@dataclass(frozen=True)
class Settings:
    """Measure a model on held-out photos whose positions are known."""

    manifest: str = ""
    """Table of photos as jobs.train takes it, or one of the field's (Im2GPS3k, YFCC4k) with --root and --part all;
    without one, the photos that the bundled model was held out from."""
    model: str = "bundled"
    """Checkpoint folder or URI."""
    to: str = ""
    """Folder or prefix for evaluation.json and the page evaluation.html; if empty, the numbers are only printed."""
    root: str = ""
    """Where the table's relative paths lie, if not beside it."""
    only: str = ""
    """A column of 0 and 1: take only the rows of 1."""
    scenes: str = ""
    """A table with path and scene, if the manifest has no column scene."""
    part: Literal["test", "validation", "all"] = "test"
    """The part of the split that the checkpoint was trained with, or all photos of a table it never saw."""
    teacher_onnx: Path | None = None
    """An ONNX network from images to features, for the nearest-neighbour baseline (not with --part all)."""
    engine: EngineName = "auto"
    crops: Literal[1, 10] = 1
    """10 averages the logits of the frame's four corners, its centre and their mirror images, as in the paper, in place
    of the model's own framing: by torch, slowly."""
    point: PointRule = AUTO
    """Where a photo's point is, as for jobs.geotag_archive; other than best-cell, the best cell is shown beside it."""
    attention_photos: int = 4
    """How many photos the page shows with what each level looks at."""
    max_failed_fraction: float = 0.02
    """Stop if more of the photos than this can't be read."""


def run(settings: Settings) -> int:
    """Evaluate the model on the manifest's photos, print its numbers and write the page; return the exit code."""
    settings = _with_defaults(settings)
    if settings.crops == TEN_CROPS and settings.engine not in ("auto", "torch"):
        raise ValueError(f"ten crops need logits, which {settings.engine} does not give: use --engine torch")
    checkpoint = Checkpoint.load(model_folder(settings.model)).pointing(settings.point)
    photos = labelled_photos(
        settings.manifest, settings.root, settings.only, settings.scenes, vocabulary=checkpoint.config.scenes
    )
    rows, known_rows, split = parts(settings, checkpoint, photos)
    if settings.to:
        storage.check_writable(settings.to)
    served, truth = DecodeTarget.of(checkpoint.config.preprocessing), _truth(checkpoint, photos)
    target = evaluation.crops_target(checkpoint.config.preprocessing, settings.crops)
    store = PhotoStore(photos.uri_N, target, settings.max_failed_fraction, memory_bytes=0)  # each photo is read once
    engine = None if settings.crops == TEN_CROPS else load_engine(settings.engine, checkpoint)
    measured = evaluation.measure(checkpoint, store, rows.tolist(), truth, engine, settings.crops)
    if len(store.failures) > settings.max_failed_fraction * len(rows):
        row = min(store.failures)
        raise ValueError(
            f"{len(store.failures)} of the {len(rows)} photos could not be read, the first {photos.name_N[row]}: "
            f"{store.failures[row]}; --max-failed-fraction is {settings.max_failed_fraction:g}"
        )
    about = {
        "model_id": checkpoint.model_id,
        "part": settings.part,
        "answered_by": f"engine {engine.name} {engine.precision}"
        if engine
        else "torch fp32, ten crops' logits averaged",
        "confidence_from": "the logits of the torch model in fp32",
        "crops": settings.crops,
        "framing": target.framing,
        "manifest": settings.manifest,
        "only": settings.only,
        "photos_fingerprint": fingerprint(photos.name_N[row] for row in measured.said.row_N),
        "split": {} if settings.part == "all" else dataclasses.asdict(split),
        "place_s2_level": split.place_s2_level,
        "class_counts": checkpoint.hierarchy.class_counts,
        "temperatures": checkpoint.reading.temperatures,
        "prior_share": checkpoint.reading.prior_share,
        "radius_mass": checkpoint.reading.radius_mass,
        "prior": "the model's own" if checkpoint.reading.prior else "the world's, since the model has none",
        "hierarchy_sha256": checkpoint.hierarchy.content_hash,
        "weights_sha256": checkpoint.weights_sha256,
    }
    error_km = _errors(settings, checkpoint, photos, measured, known_rows)
    summary = summarise(
        about,
        measured,
        truth,
        error_km,
        _units(photos, measured.said.row_N, split),
        _kinds(checkpoint, photos, measured),
        {photos.name_N[row]: reason for row, reason in sorted(store.failures.items())},
    )
    print(_text(summary))
    if (point := checkpoint.reading.point) != BEST_CELL:
        said_km, best_km = (float(error_km[name].mean()) for name in (checkpoint.model_id, _BEST_CELL_INSTEAD))
        print(f"mean error with the point by {point}: {said_km:.0f} km; at its best cell instead {best_km:.0f} km")
    if settings.to:
        looks = _looks(settings, checkpoint, photos, measured, error_km[checkpoint.model_id], served)
        numbers = json.dumps(summary.to_json(), indent=1, allow_nan=False) + "\n"
        storage.write_bytes(storage.join(settings.to, "evaluation.html"), page(summary, looks).encode())
        storage.write_bytes(storage.join(settings.to, "evaluation.json"), numbers.encode())
        print(f"{storage.join(settings.to, 'evaluation.html')} shows more; evaluation.json has every number")
    return 0


def _with_defaults(settings: Settings) -> Settings:
    if settings.manifest:
        return settings
    manifest = SHARED / "photos.csv"
    if settings.model != "bundled" or not manifest.is_file():
        raise ValueError(f"give --manifest, a table of photos with positions (for the bundled model it was {manifest})")
    return dataclasses.replace(
        settings,
        manifest=str(manifest),
        root=str(SHARED / "photos"),
        only="scene_ok",
        scenes=settings.scenes or str(BUNDLED_MODEL / "scenes.csv"),
        teacher_onnx=settings.teacher_onnx or (_TEACHER if settings.part != "all" else None),
    )


def parts(
    settings: Settings, checkpoint: Checkpoint, photos: LabelledPhotos
) -> tuple[NDArray[np.int64], NDArray[np.int64], SplitConfig]:
    """Return the rows to evaluate, those to train on, and how they were split: as the checkpoint's were, having checked
    that, or as the table says."""
    if settings.part == "all":
        if settings.teacher_onnx is not None:
            raise ValueError("the nearest neighbour is sought among the training photos: not with --part all")
        return np.arange(len(photos)), np.array([], np.int64), SplitConfig()
    training: dict[str, Any] = checkpoint.training
    says_parts = all(part is not None for part in photos.part_N)
    if not says_parts and ("split" not in training or "parts" not in training):
        raise ValueError(f"{checkpoint.folder} does not say how its photos were split: use --part all on other photos")
    try:
        config = SplitConfig(**training.get("split", {}))
    except TypeError as error:
        raise ValueError(
            f"{checkpoint.folder} was split by rules of another version ({error}): use --part all on other photos, "
            "or a table that says its parts"
        ) from error
    split = split_photos(photos, config)
    for part, expected in training.get("parts", {}).items():
        if fingerprint(photos.name_N[row] for row in split.rows(part)) == expected["fingerprint"]:
            continue
        if says_parts:
            log.warning(
                "%s was trained with another table: whether it has seen photos of this one is yours to know",
                checkpoint.model_id,
            )
            break
        raise ValueError(
            f"{settings.manifest} is not the table that {checkpoint.folder} was trained with (its {part} photos "
            f"differ): give that table and --only, or use --part all if the model has seen none of these photos"
        )
    rows = split.rows(settings.part)
    if not len(rows):
        raise ValueError(f"no photos were held out for {settings.part}: use another --part")
    return rows, split.rows("train"), config


def _truth(checkpoint: Checkpoint, photos: LabelledPhotos) -> Truth:
    label_NH = checkpoint.hierarchy.label_NH(photos.lat_deg_N, photos.lon_deg_N)
    return Truth(photos.lat_deg_N, photos.lon_deg_N, label_NH)


def _errors(
    settings: Settings,
    checkpoint: Checkpoint,
    photos: LabelledPhotos,
    measured: Measured,
    known_rows: NDArray[np.int64],
) -> dict[str, NDArray[np.float64]]:
    """Return the errors in km of the model and of the baselines, by name."""
    said = measured.said
    true_N = photos.lat_deg_N[said.row_N], photos.lon_deg_N[said.row_N]
    errors = {checkpoint.model_id: geodesy.haversine_km(said.lat_deg_N, said.lon_deg_N, *true_N)}
    if checkpoint.reading.point != BEST_CELL:
        best, finest = said.best_NH[:, -1], checkpoint.hierarchy.levels[-1]
        errors[_BEST_CELL_INSTEAD] = geodesy.haversine_km(finest.lat_deg_K[best], finest.lon_deg_K[best], *true_N)
    commonest = evaluation.commonest_cell(checkpoint.hierarchy)
    errors["always the commonest cell"] = geodesy.haversine_km(*commonest, *true_N)
    errors["the prior alone"] = geodesy.haversine_km(*evaluation.prior_point(checkpoint), *true_N)
    errors["the best constant point, in hindsight"] = geodesy.haversine_km(*evaluation.best_constant(*true_N), *true_N)
    if settings.teacher_onnx is not None and len(known_rows):
        teacher = Teacher(settings.teacher_onnx)
        whole = DecodeTarget(teacher.size_px, teacher.size_px)
        store = PhotoStore(photos.uri_N, whole, settings.max_failed_fraction, memory_bytes=0)
        found_N, features_ND = evaluation.teacher_features(teacher, store, said.row_N.tolist())
        if not np.array_equal(found_N, said.row_N):
            raise ValueError("some photos can no longer be read: run the same command again")
        known_M, known_MD = evaluation.teacher_features(teacher, store, known_rows.tolist())
        nearest_N = known_M[evaluation.nearest_neighbour(features_ND, known_MD)]
        nearest = photos.lat_deg_N[nearest_N], photos.lon_deg_N[nearest_N]
        errors["nearest neighbour, teacher's features"] = geodesy.haversine_km(*nearest, *true_N)
    return errors


def _units(photos: LabelledPhotos, row_N: NDArray[np.int64], split: SplitConfig) -> dict[str, NDArray[np.int64]]:
    """Return what photos are not independent by: who took them, and the place as the split has it."""
    number: dict[str, int] = {"": -1}
    who_N = [number.setdefault(photos.photographer_N[row], len(number)) for row in row_N]
    cell_N = s2.cell_id_N(photos.lat_deg_N[row_N], photos.lon_deg_N[row_N], split.place_s2_level)
    place_N = np.unique(cell_N, return_inverse=True)[1]
    return {"photographers": np.array(who_N, np.int64), "places": place_N.astype(np.int64)}


def _kinds(checkpoint: Checkpoint, photos: LabelledPhotos, measured: Measured) -> Kinds:
    said, places = measured.said, Places()
    return Kinds(
        country_N=places.country_code_N(photos.lat_deg_N[said.row_N], photos.lon_deg_N[said.row_N]),
        predicted_country_N=places.country_code_N(said.lat_deg_N, said.lon_deg_N),
        scene_N=[photos.scene_N[row] for row in said.row_N],
        predicted_scene_N=[checkpoint.config.scenes[scene] for scene in said.scene_N],
    )


def _looks(
    settings: Settings,
    checkpoint: Checkpoint,
    photos: LabelledPhotos,
    measured: Measured,
    error_km_N: NDArray[np.float64],
    target: DecodeTarget,
) -> list[Look]:
    """Return what the model looks at in a few photos, from the best placed one to the worst."""
    said, has_queries = measured.said, isinstance(checkpoint.config, GeoDecoderConfig)
    shown = min(settings.attention_photos, len(error_km_N)) if has_queries else 0
    by_error = np.argsort(error_km_N, kind="stable")
    chosen = by_error[np.linspace(0, len(by_error) - 1, shown).round().astype(int)].tolist() if shown else []
    store = PhotoStore(photos.uri_N, target, settings.max_failed_fraction)
    model = checkpoint.build_model()
    looks = []
    for number in chosen:
        row = int(said.row_N[number])
        for _, pixels_BHWC in store.batches([row], 1):
            facts = (
                f"{error_km_N[number]:,.0f} km off, at {_place(said.lat_deg_N[number], said.lon_deg_N[number])} "
                f"instead of {_place(photos.lat_deg_N[row], photos.lon_deg_N[row])}"
            )
            looks.append(attention.look(model, pixels_BHWC[0], photos.name_N[row], facts))
    return looks


def _place(lat_deg: float, lon_deg: float) -> str:
    return f"{abs(lat_deg):.2f}° {'N' if lat_deg >= 0 else 'S'} {abs(lon_deg):.2f}° {'E' if lon_deg >= 0 else 'W'}"


def _text(summary: Summary) -> str:
    """Return what is printed: the numbers of the README, with their intervals."""
    about = summary.about
    lines = [
        f"{summary.photos} photos ({about['part']}), {len(summary.unreadable)} more could not be read; "
        f"{about['answered_by']}",
        *(f"  not read: {name}: {reason}" for name, reason in [*summary.unreadable.items()][:_MOST_PRINTED]),
        *_table(summary),
        f"in brackets 95 % intervals, by resampling {summary.in_words}",
    ]
    lines += _likelihood_table(summary)
    for number, level in enumerate(summary.levels):
        before, after = level.before, level.after
        lines.append(
            f"level {number}: {level.photos_in_cells} photos lie in one of its {level.cells} cells, of these "
            f"{_percent(level.accuracy)} were put there; calibration error {before.ece:.1%}, at temperature "
            f"{after.temperature:g} {after.ece:.1%}"
        )
    lines.append(f"inside the radius meant to hold 90 %: {_percent(summary.radius_holds)}")
    lines.append(f"in the right country: {_percent(summary.country_right)}")
    if summary.scene_right is not None:
        lines.append(f"scene recognised, where it is known: {_percent(summary.scene_right)}")
    return "\n".join([*lines, *_kinds_table("country", summary.by_country), *_kinds_table("scene", summary.by_scene)])


def _table(summary: Summary) -> list[str]:
    """Return a line for each way of placing photos: % within each threshold, and the median error; intervals below."""
    width = max(len(way.name) for way in summary.ways)
    lines = [" " * width + "".join(f"{f'{km:g} km':>12}" for km in THRESHOLDS_KM.values()) + f"{'median km':>14}"]
    for way in summary.ways:
        shares, median = way.share_within.values(), way.median_km
        lines.append(f"{way.name:<{width}}{''.join(f'{x.value:>12.1%}' for x in shares)}{median.value:>14.0f}")
        intervals = "".join(f"{f'[{100 * x.low:.1f}–{100 * x.high:.1f}]':>12}" for x in shares)
        lines.append(f"{'':<{width}}{intervals}{f'[{median.low:.0f}–{median.high:.0f}]':>14}")
    return lines


def _likelihood_table(summary: Summary) -> list[str]:
    """Return a line for each level: how likely the right cell was, to the model and to what looks at no photo."""
    lines = ["minus log-likelihood of the right cell, in nats a photo (less is better):"]
    lines.append(f"{'':<8}{'model':>9}{'prior alone':>13}{'blind mean':>12}   model's gain over the prior")
    for number, level in enumerate(summary.likelihood):
        gain = level.gain
        if math.isnan(gain.value):
            lines.append(f"level {number}: no photo lies in one of its cells")
            continue
        lines.append(
            f"level {number:<2}{level.model.value:>9.3f}{level.prior.value:>13.3f}{level.blind.value:>12.3f}"
            f"   {gain.value:+.3f} [{gain.low:+.3f} to {gain.high:+.3f}]"
        )
    lines.append("blind mean: the model's mean answer to the other photos, whatever is in this one")
    return lines


def _kinds_table(what: str, kinds: Sequence[Breakdown]) -> list[str]:
    if not kinds:
        return []
    shown = kinds[:_MOST_PRINTED]
    width = max(len(kind.kind) for kind in shown)
    header = f"{what:<{width}}{'photos':>8}" + "".join(f"{f'{km:g} km':>10}" for km in THRESHOLDS_KM.values())
    lines = [header + f"{'median km':>12}"]
    for kind in shown:
        shares = "".join(f"{share:>10.1%}" for share in kind.measured.share_within.values())
        lines.append(f"{kind.kind:<{width}}{kind.measured.photos:>8}{shares}{kind.measured.median_km:>12.0f}")
    if len(kinds) > len(shown):
        lines.append(f"… and {len(kinds) - len(shown)} more lines in the page that --to writes")
    return lines


def _percent(estimate: Estimate) -> str:
    return f"{estimate.value:.1%} [{100 * estimate.low:.1f}–{100 * estimate.high:.1f}]"


if __name__ == "__main__":
    run_command(Settings, run)
