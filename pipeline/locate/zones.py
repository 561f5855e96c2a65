"""The moment at which a clock showed a local time, and the other way round, by the time zone of its place."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import resources
from zoneinfo import ZoneInfo


def utc_N(local_N: Sequence[datetime], zone_N: Sequence[str]) -> list[datetime | None]:
    """Return local times (naive) of the tz database's zones in UTC, None where a zone is unknown.

    Of an hour that the clock showed twice, the first is meant; one that it left out is counted on as if the clock had
    not been put forward.
    """
    return [_utc(local, zone) for local, zone in zip(local_N, zone_N, strict=True)]


def local_N(utc_N: Sequence[datetime], zone_N: Sequence[str]) -> list[datetime | None]:
    """Return moments in UTC as the clocks of the tz database's zones showed them, naive, None where one is unknown."""
    return [_local(moment, zone) for moment, zone in zip(utc_N, zone_N, strict=True)]


def _local(moment: datetime, zone_name: str) -> datetime | None:
    zone = _zone(zone_name)
    try:
        return moment.astimezone(zone).replace(tzinfo=None) if zone else None
    except OverflowError:  # at the calendar's ends
        return None


def _utc(local: datetime, zone_name: str) -> datetime | None:
    zone = _zone(zone_name)
    try:
        return local.replace(tzinfo=zone, fold=0).astimezone(UTC) if zone else None
    except OverflowError:  # at the calendar's ends
        return None


@functools.cache
def _zone(name: str) -> ZoneInfo | None:
    """Return a zone of the package tzdata, so that all machines have the same; None where it has none by that name."""
    file = resources.files("tzdata").joinpath("zoneinfo", *name.split("/"))
    if not name or not file.is_file():
        return None
    with file.open("rb") as opened:
        return ZoneInfo.from_file(opened, name)
