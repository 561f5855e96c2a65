"""Times as cameras and programs write them: odd but recoverable ones are recovered, all others are none."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.decode.taken import gps_moment, offset_by_gps, read_moment, read_offset

AT = datetime(2016, 2, 3, 5, 6, 7)
DAY = datetime(2016, 2, 3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2016:02:03 05:06:07", AT),
        ("2016:02:03T05:06:07", AT),
        ("2016-02-03 05:06:07", AT),
        ("2016/02/03 05:06:07", AT),
        ("2016.02.03 05.06.07", AT),
        ("2016: 2: 3  5: 6: 7", AT),
        ("2016:2:3 5:6:7", AT),
        ("20160203T050607", AT),
        ("20160203 050607", AT),
        ("  2016:02:03 05:06:07 \0", AT),
        ("2016:02:03\x0005:06:07", AT),
        ("٢٠١٦:٠٢:٠٣ ٠٥:٠٦:٠٧", AT),  # as phones set to Arabic write it
        ("2016:02:03 05:06:07 AM", AT),
        ("2016:02:03 05:06:07 p.m.", AT.replace(hour=17)),
        ("2016:02:03 12:06:07 AM", AT.replace(hour=0)),
        ("2016:02:03 05:06", AT.replace(second=0)),
        ("2016:02:03 05:06:  ", AT.replace(second=0)),
        ("2016:02:03   :  :  ", DAY),
        ("2016-02-03", DAY),
        ("2016:02:03 24:08:19", DAY.replace(minute=8, second=19)),
        ("2016-02-03T24:00:00", DAY),
        ("2016:02:03 05:06:60", AT.replace(minute=7, second=0)),
        ("2016:12:31 23:59:60", datetime(2017, 1, 1)),
        ("2016:02:03 05:06:07.25", AT.replace(microsecond=250_000)),
        ("2016:02:03 05:06:07,1234567", AT.replace(microsecond=123_456)),
        ("1826:01:01 00:00:00", datetime(1826, 1, 1)),
        ("2099:01:01 00:00:00", datetime(2099, 1, 1)),
        ("0000:00:00 00:00:00", None),
        ("    :  :     :  :  ", None),
        ("1825:12:31 00:00:00", None),
        ("2016-02", None),
        ("2016", None),
        ("16:02:03 05:06:07", None),
        ("2016:02:30 05:06:07", None),
        ("2016:02:03 25:00:00", None),
        ("2016:02:03 05:61:00", None),
        ("2016:02:03 05:06:61", None),
        ("9999:12:31 23:59:60", None),
        ("", None),
        ("unknown", None),
    ],
)
def test_local_times(text: str, expected: datetime | None) -> None:
    moment = read_moment(text)
    assert (moment and moment.local) == expected


@pytest.mark.parametrize(
    ("text", "expected_h"),
    [
        ("2016:02:03 05:06:07+01:00", 1),
        ("2016:02:03 05:06:07 -0330", -3.5),
        ("2016-02-03T05:06:07.5+05:45", 5.75),
        ("2016-02-03T05:06Z", 0),
        ("20160203T050607+02", 2),
        ("2016-02-03T05:06:07+25:00", None),
        ("2016-02-03T05:06:07+01:99", None),
        ("2016-02-03T05:06:07 CEST", None),
    ],
)
def test_offsets_behind_times(text: str, expected_h: float | None) -> None:
    moment = read_moment(text)
    assert moment is not None
    assert moment.offset == (None if expected_h is None else timedelta(hours=expected_h))


@pytest.mark.parametrize(
    ("text", "expected_h"),
    [
        ("+01:00", 1),
        ("-1", -1),
        ("+0100\0", 1),
        ("Z", 0),
        ("+14:00", 14),
        ("+14:15", None),
        ("   :  ", None),
        ("", None),
    ],
)
def test_offsets(text: str, expected_h: float | None) -> None:
    assert read_offset(text) == (None if expected_h is None else timedelta(hours=expected_h))


@pytest.mark.parametrize(
    ("fraction", "microsecond"),
    [("5", 500_000), ("050", 50_000), ("12 ", 120_000), ("", 0), ("x", 0), ("1234567", 123_456)],
)
def test_fractions_that_stand_apart(fraction: str, microsecond: int) -> None:
    moment = read_moment("2016:02:03 05:06:07", fraction)
    assert moment is not None
    assert moment.local.microsecond == microsecond


@pytest.mark.parametrize(
    ("day", "numbers", "expected"),
    [
        ("2016:02:03", [5.0, 6.0, 7.5], datetime(2016, 2, 3, 5, 6, 7, 500_000, tzinfo=UTC)),
        ("2016-02-03", [24.0, 0.0, 0.0], datetime(2016, 2, 4, tzinfo=UTC)),
        ("2016:02:03", [5.0, 6.0, 60.0], datetime(2016, 2, 3, 5, 7, tzinfo=UTC)),
        ("2016:02:03", [float("nan"), 6.0, 7.0], None),
        ("2016:02:03", [5.0, 6.0], None),
        ("2016:02:03", [99.0, 6.0, 7.0], None),
        ("", [5.0, 6.0, 7.0], None),
    ],
)
def test_times_of_gps(day: str, numbers: list[float], expected: datetime | None) -> None:
    assert gps_moment(day, numbers) == expected


@pytest.mark.parametrize(
    ("gps_utc", "expected_h"),
    [
        (datetime(2016, 2, 3, 4, 6, 7), 1),
        (datetime(2016, 2, 3, 4, 1, 0), 1),  # the fix is five minutes older
        (datetime(2016, 2, 2, 23, 36, 7), 5.5),
        (datetime(2016, 2, 3, 17, 6, 7), -12),
        (datetime(2016, 2, 2, 15, 6, 7), 14),
        (datetime(2016, 2, 3, 4, 46, 7), None),  # 20 minutes ahead: no country's time
        (datetime(2016, 2, 2, 13, 6, 7), None),
        (datetime(2016, 2, 3, 20, 6, 7), None),
        (datetime(1996, 6, 19), None),  # a receiver that counts its weeks anew
    ],
)
def test_the_offset_that_gps_tells(gps_utc: datetime, expected_h: float | None) -> None:
    found = offset_by_gps(AT, gps_utc.replace(tzinfo=UTC))
    assert found == (None if expected_h is None else timedelta(hours=expected_h))


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="0123456789:-/. TZ+apm\0٣x", max_size=30), st.text(max_size=5))
def test_no_text_raises(text: str, fraction: str) -> None:
    moment = read_moment(text, fraction)
    assert moment is None or moment.utc is None or moment.utc.tzinfo is UTC
