"""Make one HTML page about what is published, which opens without a network.

python -m jobs.report OUTPUT --to report.html
"""

from __future__ import annotations

import datetime as dt
import logging
from dataclasses import dataclass

import tyro

from jobs import run_command
from pipeline import report_page, storage
from pipeline.catalog import Catalog
from pipeline.report import gather
from pipeline.thumbnails import thumbnails

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
    thumbnails: int = 0
    """How many of the photos that are listed singly are read and shown, in the page's order."""


def run(settings: ReportSettings) -> int:
    """Make the page and write it; return the exit code."""
    if settings.thumbnails < 0:
        raise ValueError(f"--thumbnails {settings.thumbnails}: give 0 or more")
    output = storage.absolute(settings.output)
    to = storage.canonical(settings.to)
    report = gather(Catalog(output), output, settings.where)
    shown = {x.photo_id: x.uri for x in (*report.wrong, *report.at_sea, *report.unsure, *report.sample)}
    pictures = thumbnails(list(shown.values())[: settings.thumbnails]) if settings.thumbnails else {}
    page = report_page.page(report, settings.title, pictures, dt.datetime.now(dt.UTC)).encode()
    try:
        storage.write_bytes(to, page)
    except OSError as error:
        raise ValueError(f"can't write --to {settings.to}: {error}") from error
    unseen = sum(isinstance(picture, str) for picture in pictures.values())
    log.info("%d photos, %d of %d pictures: %s", report.photos, len(pictures) - unseen, len(pictures), to)
    print(f"{to} ({len(page) / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    run_command(ReportSettings, run)
