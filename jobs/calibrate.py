"""Fit a model's temperatures to an archive whose cameras wrote positions, and save the model with them as a new one.

python -m jobs.calibrate OUTPUT --to calibrated-model
"""

from __future__ import annotations

import dataclasses
import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import tyro
from numpy.typing import NDArray

from jobs import run_command
from jobs.build_prior import read_prior
from model.checkpoint import CONFIG_FILE, Checkpoint, weights_id
from model.readout import AUTO, BEST_CELL, RADIUS_PROBABILITY
from pipeline import storage
from pipeline.decode.photo import DecodeTarget
from pipeline.locate.locator import model_folder, save_model
from pipeline.locate.places import Places
from pipeline.published import records
from pipeline.published.records import RunRecord
from training.data.dataset import PhotoStore
from training.data.geotagged import MEANINGS, Drop, GeotaggedPhotos, implausible, read_geotagged
from training.data.labelled import labelled_photos
from training.data.split import SplitConfig, fingerprint, photo_groups, split_photos
from training.evaluate import evaluation
from training.evaluate.calibration import Fit, Judged, fit_reading, reliability
from training.metrics import Bootstrap

log = logging.getLogger(__name__)

FEWEST_PHOTOS = 50
"""With so many, a share of 90 % is known to 8 points at best (two standard errors); with fewer nobody could say whether
the new temperatures are better."""
FEWEST_GROUPS = 5


@dataclass(frozen=True)
class Settings:
    """Fit a model's temperatures to the positions that cameras wrote, so that confidence and radius are true there."""

    output: tyro.conf.Positional[str]
    """The --output of jobs.geotag_archive."""
    to: str
    """Folder or prefix for the new model: a path or URI."""
    model: str = ""
    """The model to calibrate; if not given, that of the output's newest run."""
    trained_on: str = ""
    """The table that the model was trained with: its training photos are left out, as it knows them too well."""
    root: str = ""
    """Where that table's relative paths lie, if not beside it."""
    only: str = ""
    """The table's column of 0 and 1 that the training was told to obey."""
    by_folder: Literal["always", "never"] = "always"
    """Whether the photos of a folder belong together, or those of a place only."""
    sample: int = evaluation.MOST_TO_CALIBRATE
    """Take at most so many photos, by lot: all logits are kept in memory."""
    seed: int = 0
    """For the lot."""
    folds: int = 10
    """Judge the new temperatures on photos that they were not fitted on, in so many turns."""
    max_failed_fraction: float = 0.02
    """Stop if more of the photos than this can't be read any more."""
    prior: str = ""
    """Where photos are taken: the model's own prior if not given; `world`, `none`, or a file of jobs.build_prior."""
    anyway: bool = False
    """Write the new model even if its confidence is no truer."""


def run(settings: Settings) -> int:
    """Fit, judge, save; return the exit code: 3 if nothing was written because it would not help."""
    for name, value, least in (("--sample", settings.sample, FEWEST_PHOTOS), ("--folds", settings.folds, 2)):
        if value < least:
            raise ValueError(f"{name} {value}: give at least {least}")
    output, to = storage.absolute(settings.output), storage.absolute(settings.to)
    photos = read_geotagged(output)
    if not photos.is_archive:
        raise ValueError(f"{settings.output} is a table: give an --output of jobs.geotag_archive")
    record = records.run_records(output)[-1]
    checkpoint = _checkpoint(settings, record)
    if storage.exists(storage.join(to, CONFIG_FILE)):
        raise ValueError(f"there is a model at {settings.to} already: give another --to")
    storage.check_writable(to)

    rows, counts = _rows(settings, photos, checkpoint)
    lat_deg_N, lon_deg_N = photos.lat_deg_N[rows], photos.lon_deg_N[rows]
    kin_N = [photos.folder(row) if settings.by_folder == "always" else "" for row in rows.tolist()]
    group_N = photo_groups(lat_deg_N, lon_deg_N, kin_N, SplitConfig())
    label_NH = checkpoint.hierarchy.label_NH(lat_deg_N, lon_deg_N)
    _check_enough(settings, counts, label_NH, group_N)

    store = PhotoStore(
        [photos.uri_N[row] for row in rows.tolist()],
        DecodeTarget.of(checkpoint.config.preprocessing),
        settings.max_failed_fraction,
        memory_bytes=0,  # each photo is read once
    )
    megabytes = 4 * len(rows) * sum(checkpoint.hierarchy.class_counts) / 1e6
    log.info("%d photos through the network in fp32, once; their logits take %.0f MB", len(rows), megabytes)
    found_N, batches = evaluation.labelled_logits(checkpoint.build_model(), store, label_NH, range(len(rows)))
    if len(found_N) < len(rows):
        counts["could not be read any more"] = len(rows) - len(found_N)
    _check_enough(settings, counts, label_NH[found_N], group_N[found_N])
    position = lat_deg_N[found_N], lon_deg_N[found_N]
    prior = checkpoint.prior if settings.prior == "" else read_prior(settings.prior)
    result = fit_reading(
        batches, *position, group_N[found_N], checkpoint.hierarchy, checkpoint.reading, prior, settings.folds
    )

    found = _numbers(checkpoint, result, group_N[found_N], counts, len(found_N))
    print(_text(output, checkpoint, found))
    if not result.helps and not settings.anyway:
        print("On photos that it was not fitted to, the new model is no better: nothing was written.")
        print("More photos may tell more; --anyway writes the model all the same.")
        return 3
    training = dict(checkpoint.training)
    training["calibrations"] = [*training.get("calibrations", ()), {"output": output, **_settings(settings), **found}]
    model_id = save_model(
        to,
        checkpoint.build_model(),
        checkpoint.hierarchy,
        result.reading,
        training=training,
        name=checkpoint.name,
        prior=prior,
    )
    print(f"{settings.to}: {model_id}. To have its answers for the same photos:")
    print("    " + _next_command(settings, record, checkpoint))
    return 0


def _checkpoint(settings: Settings, record: RunRecord) -> Checkpoint:
    """Return the model to calibrate, its point where the newest run had it."""
    made_by, uri = record.model_id, settings.model or record.model_uri
    if not uri:
        raise ValueError(f"the run {record.run_id} does not say where its model is: give --model")
    checkpoint = Checkpoint.load(model_folder(uri if uri == "bundled" else storage.absolute(uri)))
    if checkpoint.model_id != weights_id(made_by):
        if not settings.model:
            raise ValueError(
                f"{uri} holds {checkpoint.model_id} now, not {made_by}, which made the newest run {record.run_id}: "
                "give --model, where that is or another one to calibrate"
            )
        log.warning("calibrating %s, though %s made the newest run", checkpoint.model_id, made_by)
    return checkpoint.pointing(record.settings.get("point", BEST_CELL))


def _rows(
    settings: Settings, photos: GeotaggedPhotos, checkpoint: Checkpoint
) -> tuple[NDArray[np.int64], dict[str, int]]:
    """Return the rows of the photos to take, and how many others there are, by the reason why not."""
    drop_N = implausible(photos, [photos.folder(row) for row in range(len(photos))], Places())
    counts = {MEANINGS[reason]: int((drop_N == reason).sum()) for reason in Drop}
    rows = np.flatnonzero(drop_N == "")
    if settings.trained_on:
        learned = _learned(settings, checkpoint)
        is_new = np.array([photos.uri_N[row] not in learned for row in rows.tolist()], np.bool_)
        if is_new.all():
            raise ValueError(
                f"none of the {len(learned)} photos that {checkpoint.model_id} was trained on is in {settings.output}, "
                f"by its URI, such as {min(learned)}: give --root as the archive has it, or leave --trained-on out"
            )
        counts["the model was trained on it"] = int((~is_new).sum())
        rows = rows[is_new]
    elif "parts" in checkpoint.training:
        log.warning(
            "photos that %s was trained on make it look surer than it is: --trained-on TABLE leaves them out",
            checkpoint.model_id,
        )
    if len(rows) > settings.sample:
        counts[f"not drawn (--sample {settings.sample}, --seed {settings.seed})"] = len(rows) - settings.sample
        rows = np.sort(np.random.default_rng(settings.seed).choice(rows, settings.sample, replace=False))
    return rows, {reason: count for reason, count in counts.items() if count}


def _learned(settings: Settings, checkpoint: Checkpoint) -> set[str]:
    """Return the URIs of the photos that the model was trained on; ValueError where the table is another one."""
    table = labelled_photos(settings.trained_on, settings.root, settings.only)
    split = split_photos(table, SplitConfig(**checkpoint.training.get("split", {})))
    rows = split.rows("train").tolist()
    expected = checkpoint.training.get("parts", {}).get("train", {}).get("fingerprint")
    if fingerprint(table.name_N[row] for row in rows) != expected:
        raise ValueError(
            f"{settings.trained_on} is not the table that {checkpoint.model_id} was trained with (its training photos "
            "differ): give that table, and --only as in the training"
        )
    return {storage.canonical(table.uri_N[row]) for row in rows}


def _check_enough(
    settings: Settings, counts: dict[str, int], label_NH: NDArray[np.int64], group_N: NDArray[np.int64]
) -> None:
    is_labelled_N = (label_NH >= 0).any(axis=1)  # the others have no say in the temperatures, only in the radius
    photos, groups = int(is_labelled_N.sum()), len(np.unique(group_N[is_labelled_N]))
    if photos < FEWEST_PHOTOS:
        counts = counts | {"it lies in none of the model's cells": len(label_NH) - photos}
        reasons = "".join(f"\n{count:>9}  {reason}" for reason, count in counts.items() if count)
        raise ValueError(
            f"{photos} photos of {settings.output} have a position to calibrate on; it takes {FEWEST_PHOTOS}, since "
            f"with fewer a share of 90 % is not even known to 8 points. Left out:{reasons or ' none'}"
        )
    if groups < FEWEST_GROUPS:
        by_folder = " (--by-folder never links them by place alone)" if settings.by_folder == "always" else ""
        raise ValueError(
            f"the {photos} photos are {groups} groups linked by place or folder{by_folder}; it takes {FEWEST_GROUPS} "
            "to tell whether temperatures that were fitted to some are true of others"
        )


def _settings(settings: Settings) -> dict[str, Any]:
    kept = ("trained_on", "only", "by_folder", "sample", "seed", "folds")
    return {name: value for name, value in dataclasses.asdict(settings).items() if name in kept}


def _numbers(
    checkpoint: Checkpoint, result: Fit, group_N: NDArray[np.int64], counts: dict[str, int], photos: int
) -> dict[str, Any]:
    """Return what was found, as the new model remembers it."""
    bootstrap = Bootstrap({"groups": group_N})
    levels = []
    for number, cells in enumerate(checkpoint.hierarchy.class_counts):
        before = reliability(checkpoint.reading.temperatures[number], result.before, number)
        after = reliability(result.reading.temperatures[number], result.after, number)
        levels.append(
            {
                "cells": cells,
                "photos_in_cells": int((~np.isnan(result.before.nll_NH[:, number])).sum()),
                "temperature": [before.temperature, after.temperature],
                "prior_share": [checkpoint.reading.prior_share[number], result.reading.prior_share[number]],
                "nll": [_or_none(before.mean_nll), _or_none(after.mean_nll)],
                "calibration_error": [_or_none(before.ece), _or_none(after.ece)],
            }
        )

    def holds(judged: Judged, mass: float) -> dict[str, float]:
        return dataclasses.asdict(bootstrap.share(judged.mass_nearer_N < mass))

    return {
        "from": checkpoint.model_id,
        "photos": photos,
        "groups": bootstrap.counts["groups"],
        "left_out": counts,
        "levels": levels,
        "radius_mass": [checkpoint.reading.radius_mass, result.reading.radius_mass],
        "gain_low": _or_none(result.gain_low),
        "radius_holds": [
            holds(result.before, checkpoint.reading.radius_mass),
            holds(result.after, result.reading.radius_mass),
        ],
    }


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else value


def _text(output: str, checkpoint: Checkpoint, found: dict[str, Any]) -> str:
    """Return what is printed: before and after, each photo judged by temperatures that it had no part in."""
    lines = [f"{checkpoint.model_id} on {found['photos']} photos of {output}, in {found['groups']} groups"]
    lines += [f"{count:>9}  left out: {reason}" for reason, count in found["left_out"].items()]
    heads = ("temperature", "share of the prior", "minus log-likelihood", "calibration error")
    lines.append(f"level{'cells':>9}{'photos in one':>15}" + "".join(f"{head:>24}" for head in heads))
    for number, level in enumerate(found["levels"]):
        columns = (
            _change(level["temperature"], "{:.3f}"),
            _change(level["prior_share"], "{:.3f}"),
            _change(level["nll"], "{:.3f}"),
            _change(level["calibration_error"], "{:.1%}"),
        )
        lines.append(
            f"{number:<5}{level['cells']:>9}{level['photos_in_cells']:>15}" + "".join(f"{x:>24}" for x in columns)
        )
    before, after = (f"{x['value']:.1%} [{100 * x['low']:.1f}–{100 * x['high']:.1f}]" for x in found["radius_holds"])
    lines.append(f"inside the radius meant to hold {RADIUS_PROBABILITY:.0%}: {before} → {after}")
    lines.append("after: as fitted without the photo's own group; the new model is fitted to all")
    if found["gain_low"] is not None and not found["gain_low"] > 0:
        lines.append("on these photos the network knows no more than its prior: the new model answers with the prior")
    return "\n".join(lines)


def _change(values: Sequence[float | None], form: str) -> str:
    return " → ".join("–" if value is None else form.format(value) for value in values)


def _next_command(settings: Settings, record: RunRecord, checkpoint: Checkpoint) -> str:
    sources = [f"--photos {shlex.quote(source)}" for source in record.sources] or ["--photos SOURCE"]
    point = [] if checkpoint.reading.point == AUTO else [f"--point {checkpoint.reading.point}"]
    where = f"--output {shlex.quote(settings.output)} --retag --model {shlex.quote(settings.to)}"
    return " ".join(["python -m jobs.geotag_archive", *sources, where, *point])


if __name__ == "__main__":
    run_command(Settings, run)
