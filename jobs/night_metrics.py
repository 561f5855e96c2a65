"""A night as a text file for node_exporter: where Ray ends with the night, nobody is left to ask in the morning."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prometheus_client import write_to_textfile
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from pipeline import schema

LAST_SUCCESS = "graticule_night_last_success_timestamp_seconds"
METRICS: Mapping[str, str] = {
    "graticule_night_exit_code": "exit code of the last night: 0 done, 1 stopped, 2 wrong usage, 3 too many failures",
    "graticule_night_start_timestamp_seconds": "when the last night began",
    "graticule_night_finish_timestamp_seconds": "when it ended",
    LAST_SUCCESS: "when a night last ended with exit code 0",
    "graticule_night_photos": "photos of the last night that was done, by status and error code",
    "graticule_night_photos_left": "photos that it left for the next one",
    "graticule_night_photos_gone": "photos that have a row and are listed no more",
}
"""What the file holds."""


def check(path: str) -> None:
    """Raise ValueError where node_exporter would not read `path`."""
    if not path.endswith(".prom"):
        raise ValueError(f"--metrics-file {path}: node_exporter reads files that end in .prom")
    if not Path(path).parent.is_dir():
        raise ValueError(f"--metrics-file {path}: there is no folder {Path(path).parent}")


def write(path: str, exit_code: int, started_at: dt.datetime, night: Mapping[str, Any] | None) -> None:
    """Write the file, whole or not at all; `night` is the record of one that is done.

    What an earlier file says of the last success stays where this night is none.
    """
    gauges: list[GaugeMetricFamily] = []

    def say(name: str, value: float) -> None:
        gauges.append(GaugeMetricFamily(name, METRICS[name], value))

    finished_at = dt.datetime.now(dt.UTC)
    if night is not None:
        started_at = dt.datetime.fromisoformat(night["started_at"])
        finished_at = dt.datetime.fromisoformat(night["finished_at"])
    say("graticule_night_exit_code", exit_code)
    say("graticule_night_start_timestamp_seconds", started_at.timestamp())
    say("graticule_night_finish_timestamp_seconds", finished_at.timestamp())
    last_success = finished_at.timestamp() if exit_code == 0 else _last_success(path)
    if last_success is not None:
        say(LAST_SUCCESS, last_success)
    if night is not None:
        name = "graticule_night_photos"
        photos = GaugeMetricFamily(name, METRICS[name], labels=(schema.STATUS, schema.ERROR_CODE))
        photos.add_metric((str(schema.Status.LOCATED), ""), night["located"])
        photos.add_metric((str(schema.Status.UNDECIDED), ""), night.get("undecided", 0))
        if night.get("skipped"):
            photos.add_metric((str(schema.Status.SKIPPED), str(schema.ErrorCode.NOT_A_PHOTO)), night["skipped"])
        for code, count in night["failed_by_code"].items():
            photos.add_metric((str(schema.Status.FAILED), code), count)
        gauges.append(photos)
        say("graticule_night_photos_left", night["left"])
        say("graticule_night_photos_gone", night["gone"])
    write_to_textfile(path, _File(gauges))


class _File(Collector):
    def __init__(self, gauges: list[GaugeMetricFamily]) -> None:
        self._gauges = gauges

    def collect(self) -> list[GaugeMetricFamily]:
        return self._gauges


def _last_success(path: str) -> float | None:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    for family in text_string_to_metric_families(text):
        if family.name == LAST_SUCCESS:
            return float(family.samples[0].value)
    return None
