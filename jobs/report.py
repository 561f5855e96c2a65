"""Make one HTML page about what is published, which opens without a network.

python -m jobs.report OUTPUT --to report.html
"""

from __future__ import annotations

import datetime as dt
import logging
from dataclasses import dataclass

import tyro

from jobs import run_command
from model.checkpoint import Checkpoint, weights_id
from pipeline import storage
from pipeline.decode.photo import DecodeTarget
from pipeline.locate.locator import model_folder
from pipeline.published.catalog import Catalog
from pipeline.report import page as report_page
from pipeline.report import thumbnails
from pipeline.report.elements import Look
from pipeline.report.gather import Report, gather
from pipeline.schema import Status
from training.evaluate import attention

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReportSettings:
    """Make one HTML page about what is published, which opens without a network: map, counts, accuracy, failures."""

    output: tyro.conf.Positional[str]
    """The --output of jobs.geotag_archive."""
    to: str
    """Where the page goes: a file, or an object such as s3://bucket/report.html."""
    title: str = "Where the photos were taken"
    """The page's heading."""
    where: str | None = None
    """SQL condition on the columns of photos: the page is about those for which it is true."""
    with_gone: bool = False
    """The page is about photos too that their sources list no more."""
    thumbnails: int = 0
    """How many of the photos that are listed singly are read and shown, in the page's order."""
    attention: int = 0
    """For how many of the photos drawn by lot the page shows what the model looked at; this runs the model."""
    model: str = "bundled"
    """The checkpoint whose attention is shown: the one that tagged these photos."""


def run(settings: ReportSettings) -> int:
    """Make the page and write it; return the exit code."""
    if settings.thumbnails < 0:
        raise ValueError(f"--thumbnails {settings.thumbnails}: give 0 or more")
    if settings.attention < 0:
        raise ValueError(f"--attention {settings.attention}: give 0 or more")
    output = storage.absolute(settings.output)
    to = storage.canonical(settings.to)
    report = gather(Catalog(output), output, settings.where, settings.with_gone)
    shown = {x.photo_id: x.uri for x in (*report.wrong, *report.at_sea, *report.unsure, *report.sample)}
    pictures = thumbnails.thumbnails(list(shown.values())[: settings.thumbnails]) if settings.thumbnails else {}
    looks = _looks(report, settings) if settings.attention else []
    page = report_page.page(report, settings.title, pictures, dt.datetime.now(dt.UTC), looks).encode()
    try:
        storage.write_bytes(to, page)
    except OSError as error:
        raise ValueError(f"can't write --to {settings.to}: {error}") from error
    unseen = sum(isinstance(picture, str) for picture in pictures.values())
    log.info("%d photos, %d of %d pictures: %s", report.photos, len(pictures) - unseen, len(pictures), to)
    print(f"{to} ({len(page) / 1e6:.1f} MB)")
    return 0


def _looks(report: Report, settings: ReportSettings) -> list[Look]:
    """Return what the model looked at in some of the photos drawn by lot; ValueError for another model's checkpoint."""
    checkpoint = Checkpoint.load(model_folder(settings.model))
    if checkpoint.model_id not in map(weights_id, report.models):
        raise ValueError(
            f"these photos are by {', '.join(report.models) or 'no model'}: give that checkpoint as --model, not"
            f" {checkpoint.model_id}"
        )
    model = checkpoint.build_model()
    chosen = [photo for photo in report.sample if photo.status == Status.LOCATED][: settings.attention]
    found = thumbnails.pictures([photo.uri for photo in chosen], DecodeTarget.of(checkpoint.config.preprocessing))
    looks = []
    for photo in chosen:
        name, pixels_HWC = photo.uri.rpartition("/")[2], found[photo.photo_id]
        if isinstance(pixels_HWC, str):
            log.warning("%s can't be looked at any more: %s", photo.uri, pixels_HWC)
        else:
            looks.append(attention.look(model, pixels_HWC, name, f"placed in {photo.country}"))
    return looks


if __name__ == "__main__":
    run_command(ReportSettings, run)
