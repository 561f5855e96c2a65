"""Local times in UTC by their zones, where clocks are put forward and back too."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from pipeline.locate.zones import utc_N


@pytest.mark.parametrize(
    ("zone", "local", "expected"),
    [
        ("Europe/Paris", datetime(2021, 7, 1, 12), datetime(2021, 7, 1, 10, tzinfo=UTC)),
        ("Europe/Paris", datetime(2021, 1, 1, 12), datetime(2021, 1, 1, 11, tzinfo=UTC)),
        ("Europe/Paris", datetime(2021, 10, 31, 2, 30), datetime(2021, 10, 31, 0, 30, tzinfo=UTC)),  # shown twice
        ("Europe/Paris", datetime(2021, 3, 28, 2, 30), datetime(2021, 3, 28, 1, 30, tzinfo=UTC)),  # left out
        ("Asia/Kathmandu", datetime(2021, 7, 1, 12, 0, 0, 5), datetime(2021, 7, 1, 6, 15, 0, 5, tzinfo=UTC)),
        ("Etc/GMT+12", datetime(2021, 7, 1, 12), datetime(2021, 7, 2, tzinfo=UTC)),
        ("Etc/GMT-14", datetime(1, 1, 1), None),
        ("Nowhere/At_All", datetime(2021, 7, 1), None),
        ("", datetime(2021, 7, 1), None),
    ],
)
def test_local_times_in_utc(zone: str, local: datetime, expected: datetime | None) -> None:
    assert utc_N([local], [zone]) == [expected]
