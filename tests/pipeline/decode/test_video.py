"""Videos, when they are asked for: one frame that shows something, upright, with the container's place and time."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from pipeline.decode.header import check_head
from pipeline.decode.photo import DecodedPhoto, DecodeFailure, DecodeLimits, DecodeTarget, decode_photo
from pipeline.decode.pictures.quicktime import QuickTimeFacts, read_iso_6709, read_quicktime
from pipeline.decode.pictures.video import video_format
from pipeline.read.reader import IsolatedReader, ReaderSettings
from pipeline.schema import Media, RecordedBy, UtcBy
from tests.support.photo_samples import china_image, encode, flower_jpeg
from tests.support.video_samples import apple_keys, box, loci, video, with_movie_boxes, xyz

TARGET = DecodeTarget(96, 110, video_frames=5)
CHINA = china_image().resize((640, 432))
BLACK = Image.new("RGB", CHINA.size)
PLAIN = decode_photo(encode(CHINA, "png"), TARGET)
MP4 = video([CHINA])
UTC_TIME = datetime(2021, 5, 6, 7, 8, 9, tzinfo=UTC)
LOCAL_TIME = datetime(2021, 5, 6, 9, 8, 9)


def difference(photo: DecodedPhoto, other: DecodedPhoto = PLAIN) -> float:
    return float(np.abs(photo.pixels_HWC.astype(int) - other.pixels_HWC).mean())


def refusal(data: bytes, target: DecodeTarget = TARGET, limits: DecodeLimits | None = None) -> DecodeFailure:
    with pytest.raises(DecodeFailure) as caught:
        decode_photo(data, target, limits)
    return caught.value


@pytest.mark.parametrize(
    ("container", "codec", "name"),
    [
        ("mp4", "mpeg4", "mp4"),
        ("mov", "mjpeg", "mov"),
        ("3gp", "mpeg4", "3gp"),
        ("matroska", "mpeg4", "matroska"),
        ("webm", "libvpx-vp9", "webm"),
        ("avi", "mjpeg", "avi"),
        ("mpegts", "mpeg2video", "mpegts"),
        ("mp4", "libx264", "mp4"),
    ],
)
def test_frame_of_any_container_is_the_picture(container: str, codec: str, name: str) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"FFmpeg is built without {codec}")
    data = video([CHINA] * 3, container, codec)
    photo = decode_photo(data, TARGET)
    assert difference(photo) < 8
    assert (photo.format, photo.width_px, photo.height_px) == (name, 640, 432)
    assert video_format(data[:4096]) == name
    check_head(data[:65_536], DecodeLimits(), with_videos=True)


def test_video_is_no_photo_unless_it_is_asked_for() -> None:
    assert refusal(MP4, dataclasses.replace(TARGET, video_frames=0)).code == "unsupported_format"
    with pytest.raises(DecodeFailure):
        check_head(MP4[:4096], DecodeLimits())


@pytest.mark.parametrize("turn", [3, 6, 8])
def test_frame_is_turned_as_players_turn_it(turn: int) -> None:
    undo = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}[turn]
    photo = decode_photo(video([CHINA.transpose(undo)], turn=turn), TARGET)
    assert difference(photo) < 8
    assert (photo.width_px, photo.height_px) == (640, 432)


def test_dark_flat_and_blurred_frames_give_way() -> None:
    blurred = CHINA.filter(ImageFilter.GaussianBlur(12))
    grey = Image.new("RGB", CHINA.size, (128, 128, 128))
    photo = decode_photo(video([BLACK, grey, blurred, CHINA, blurred]), TARGET)
    assert difference(photo) < 8
    first = decode_photo(video([BLACK, CHINA]), dataclasses.replace(TARGET, video_frames=1))
    assert first.pixels_HWC.mean() < 20
    assert decode_photo(video([BLACK, BLACK]), TARGET).pixels_HWC.mean() < 20, "a dark video is looked at all the same"


def test_apple_s_place_and_time_come_first() -> None:
    keys = apple_keys(location_ISO6709="+48.8577+002.2950+035.1/", creationdate="2021-05-06T09:08:09+0200")
    data = with_movie_boxes(MP4, keys, xyz("+10.0+010.0/"), created=datetime(2020, 1, 1, tzinfo=UTC))
    found = decode_photo(data, TARGET).recorded
    assert (found.lat_deg, found.lon_deg, found.by) == (48.8577, 2.295, RecordedBy.VIDEO)
    assert (found.taken_at, found.taken_at_utc, found.utc_by) == (LOCAL_TIME, UTC_TIME, UtcBy.QUICKTIME)


@pytest.mark.parametrize(
    "more", [xyz("+48.5000-011.2500/"), loci(48.5, -11.25), loci(48.5, -11.25, b"\xfe\xff\0a\0\0")]
)
def test_other_cameras_place_and_the_movie_s_own_time(more: bytes) -> None:
    facts = read_quicktime(with_movie_boxes(MP4, more, created=UTC_TIME))
    assert facts == QuickTimeFacts(48.5, -11.25, None, UTC_TIME)


def test_unknown_is_unknown() -> None:
    nothing = with_movie_boxes(MP4, xyz("+00.0000+000.0000/"), created=datetime(1904, 1, 1, tzinfo=UTC))
    assert read_quicktime(nothing) == QuickTimeFacts()
    assert read_quicktime(MP4[:40]) == QuickTimeFacts()
    from_1970 = with_movie_boxes(
        MP4, created=datetime(1904, 1, 1, tzinfo=UTC) + (UTC_TIME - datetime(1970, 1, 1, tzinfo=UTC))
    )
    assert read_quicktime(from_1970).taken_at_utc == UTC_TIME


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("+48.8577+002.295/", (48.8577, 2.295)),
        ("-33.8568+151.2153+012.3CRSWGS_84/", (-33.8568, 151.2153)),
        ("+4851.462+00217.7/", (48.8577, 2.295)),
        ("-335124.48-1511255.08/", (-33.8568, -151.215300)),
        ("+48+002", (48.0, 2.0)),
        ("+91+002/", None),
        ("+48.5/", None),
        ("+4899.0+00217.7/", None),
        ("", None),
    ],
)
def test_iso_6709(text: str, position: tuple[float, float] | None) -> None:
    assert read_iso_6709(text) == (None if position is None else pytest.approx(position, abs=1e-6))


def test_what_is_cut_too_large_or_has_no_pictures() -> None:
    assert refusal(MP4[: len(MP4) // 2]).code == "truncated"
    assert refusal(MP4, limits=DecodeLimits(max_pixels=1000)).code == "too_large"
    assert refusal(MP4, limits=DecodeLimits(max_memory_bytes=1 << 20)).code == "too_large"
    assert refusal(box(b"ftyp", b"isom\0\0\0\0") + box(b"moov")).code in ("corrupt", "unsupported_format")


def test_video_whose_index_comes_first_is_looked_at_however_it_ends() -> None:
    data = video([CHINA] * 10, options={"movflags": "frag_keyframe+empty_moov"})
    assert difference(decode_photo(data[: len(data) * 2 // 3], TARGET)) < 8


def test_reader_gives_a_row_of_its_own_kind() -> None:
    keys = apple_keys(location_ISO6709="+48.8577+002.2950/", creationdate="2021-05-06T09:08:09+0200")
    reader = IsolatedReader(ReaderSettings(TARGET))
    try:
        ((facts, _), _), (refused, _) = reader.decoder([with_movie_boxes(MP4, keys), MP4[:3000]])  # type: ignore[misc]
    finally:
        reader.close()
    assert facts.media == Media.VIDEO
    assert facts.recorded.by == RecordedBy.VIDEO
    assert refused.code == "truncated"  # type: ignore[attr-defined]


def test_flower_is_another_picture() -> None:
    assert difference(decode_photo(flower_jpeg(), TARGET)) > 30, "or all of the above would tell nothing"


SEEDS = [
    with_movie_boxes(MP4, apple_keys(location_ISO6709="+48.1+011.5/", creationdate="2021-05-06T09:08:09+0200")),
    with_movie_boxes(MP4, xyz("+48.5000-011.2500/")),
    with_movie_boxes(MP4, loci(48.5, -11.25)),
]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(SEEDS), st.integers(0, 2000), st.binary(max_size=8), st.integers(0, 500))
def test_no_boxes_break_a_promise(seed: bytes, back: int, noise: bytes, cut: int) -> None:
    at = max(0, len(seed) - back)
    facts = read_quicktime((seed[:at] + noise + seed[at + len(noise) :])[: len(seed) - cut])
    assert (facts.lat_deg is None) == (facts.lon_deg is None)
    if facts.lat_deg is not None and facts.lon_deg is not None:
        assert -90 <= facts.lat_deg <= 90
        assert -180 <= facts.lon_deg <= 180
    assert facts.taken_at is None or facts.taken_at.tzinfo is None
    assert facts.taken_at_utc is None or facts.taken_at_utc.tzinfo is UTC


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 4000), st.binary(min_size=1, max_size=8), st.booleans())
def test_no_video_breaks_a_promise(at: int, noise: bytes, from_end: bool) -> None:
    at = max(0, len(MP4) - at) if from_end else at
    data = MP4[:at] + noise + MP4[at + len(noise) :]
    try:
        photo = decode_photo(data, TARGET, DecodeLimits(max_memory_bytes=64 << 20))
    except DecodeFailure:
        return
    assert photo.pixels_HWC.shape == (96, 96, 3)
