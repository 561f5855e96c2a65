"""Camera raw files: told by content, looked at by their largest preview or developed, with the camera's own facts."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable
from datetime import datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from pipeline.decode.photo import DecodedPhoto, DecodeFailure, DecodeLimits, DecodeTarget, decode_photo, sniff_format
from pipeline.read.isolation import DecodeOrder, IsolatedDecoder
from pipeline.read.reader import ReaderSettings
from pipeline.schema import Media
from tests.support.photo_samples import camera_jpeg, china_image, encode, exif_block
from tests.support.raw_samples import DNG, Tags, cr3, exif_tags, jpeg_of, mosaic_dng, nef, raf, rw2, tiff_raw

TARGET = DecodeTarget(96, 110)
CHINA = china_image().resize((1600, 1200))
EXIF = exif_tags(47.5, 19.25, "2021:05:06 07:08:09")
SMALL = jpeg_of(Image.new("RGB", (80, 60), "red"))
LARGE = jpeg_of(CHINA)
TAKEN_AT = datetime(2021, 5, 6, 7, 8, 9)

WITH_EXIF: dict[str, Callable[[int], bytes]] = {
    "nef": lambda turn: nef(LARGE, EXIF, turn),
    "dng": lambda turn: mosaic_dng(china_image().resize((1608, 1204)), turn, LARGE, EXIF),
    "cr2": lambda turn: tiff_raw(
        {256: 1600, 257: 1200, 259: 6, 271: b"Canon\0", 274: turn}, [], LARGE, EXIF, b"II*\0CR\2\0"
    ),
    "cr3": lambda turn: cr3(LARGE, SMALL, EXIF, turn),
    "rw2": lambda turn: rw2(LARGE, EXIF, turn),
    "orf": lambda turn: tiff_raw({274: turn, 271: b"OLYMPUS\0"}, [({254: 1}, LARGE)], b"", EXIF, b"IIRO"),
}


def looked_at(data: bytes, target: DecodeTarget = TARGET) -> DecodedPhoto:
    return decode_photo(data, target)


def difference(one: DecodedPhoto, other: DecodedPhoto) -> float:
    return float(np.abs(one.pixels_HWC.astype(int) - other.pixels_HWC).mean())


def failure(data: bytes, limits: DecodeLimits | None = None) -> DecodeFailure:
    with pytest.raises(DecodeFailure) as caught:
        decode_photo(data, TARGET, limits)
    return caught.value


@pytest.mark.parametrize("name", WITH_EXIF)
@pytest.mark.parametrize("turn", [1, 3, 6, 8])
def test_largest_preview_is_looked_at_and_turned_once(name: str, turn: int) -> None:
    photo = looked_at(WITH_EXIF[name](turn))
    same = looked_at(encode(CHINA, "jpeg", quality=90, exif=exif_block(orientation=turn)))
    assert difference(photo, same) < 0.5
    assert photo.format == name
    wide, high = (photo.width_px, photo.height_px) if turn < 5 else (photo.height_px, photo.width_px)
    assert (abs(wide - 1600) <= 40, abs(high - 1200) <= 12) == (True, True)
    assert (photo.exif.lat_deg, photo.exif.lon_deg, photo.exif.taken_at) == (47.5, 19.25, TAKEN_AT)


def test_where_a_raw_file_tells_nothing_its_preview_does() -> None:
    own = {"lat_deg": 48.5, "lon_deg": 11.5, "taken_at": TAKEN_AT}
    photo = looked_at(raf(camera_jpeg(CHINA.transpose(Image.Transpose.ROTATE_270), 6, **own)))  # type: ignore[arg-type]
    assert photo.format == "raf"
    assert photo.width_px < photo.height_px
    assert photo.exif.lat_deg == pytest.approx(48.5)
    assert photo.exif.taken_at == TAKEN_AT
    upright = looked_at(encode(CHINA.transpose(Image.Transpose.ROTATE_270), "jpeg"))
    assert difference(photo, upright) < 3


def test_preview_that_its_camera_turned_already_is_not_turned_again() -> None:
    upright = CHINA.transpose(Image.Transpose.ROTATE_270)
    photo = looked_at(nef(jpeg_of(upright), EXIF, 6))
    assert difference(photo, looked_at(jpeg_of(upright))) < 0.5
    assert (photo.width_px, photo.height_px) == (1208, 1640)


def test_orientation_may_stand_with_the_sensor_s_data_alone() -> None:
    first: Tags = {254: 1, 256: 16, 257: 16, 258: 8, 259: 1, 262: 1, 271: b"SONY\0", 277: 1, 278: 16}
    sensor: Tags = {254: 0, 256: 1640, 257: 1208, 259: 32767, 262: 32803, 274: 8}
    photo = looked_at(tiff_raw(first, [({254: 1}, LARGE), (sensor, bytes(64))], bytes(256)))
    assert difference(photo, looked_at(encode(CHINA, "jpeg", quality=90, exif=exif_block(orientation=8)))) < 0.5


def test_preview_s_own_orientation_does_not_count_beside_the_file_s() -> None:
    preview = encode(CHINA, "jpeg", quality=90, exif=exif_block(orientation=6))
    assert difference(looked_at(nef(preview, EXIF, 6)), looked_at(preview)) < 0.5
    assert difference(looked_at(nef(preview, EXIF, 1)), looked_at(LARGE)) < 0.5


def test_preview_keeps_its_colour_profile() -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    with_profile = encode(CHINA, "jpeg", quality=90, icc_profile=lab)
    assert difference(looked_at(nef(with_profile)), looked_at(with_profile)) < 0.5


@pytest.mark.parametrize("turn", [1, 6, 8])
@pytest.mark.parametrize("preview", [b"", SMALL])
def test_without_a_preview_that_is_large_enough_the_mosaic_is_developed(turn: int, preview: bytes) -> None:
    image = china_image().resize((640, 428))
    photo = looked_at(mosaic_dng(image, turn, preview, EXIF))
    stored = looked_at(encode(image, "png"))
    undone = {1: 0, 6: 1, 8: 3}[turn]
    assert np.abs(np.rot90(photo.pixels_HWC, undone).astype(int) - stored.pixels_HWC).mean() < 25
    assert (photo.width_px, photo.height_px) == ((640, 428) if turn == 1 else (428, 640))
    assert photo.exif.lat_deg == 47.5


def test_a_monochrome_sensor_is_developed_in_grey() -> None:
    grey = china_image().convert("L").resize((640, 428))
    words = (np.asarray(grey).astype(np.float64) / 255) ** 2.2 * 65535
    sensor: Tags = {254: 0, 256: 640, 257: 428, 258: 16, 259: 1, 262: 34892, 274: 6, 277: 1, 278: 428, 50717: 65535}
    photo = looked_at(tiff_raw(DNG | sensor, [], words.astype("<u2").tobytes()))
    stored = looked_at(encode(grey, "png"))
    assert np.abs(np.rot90(photo.pixels_HWC).astype(int) - stored.pixels_HWC).mean() < 25
    assert (photo.width_px, photo.height_px) == (428, 640)


def test_small_preview_is_better_than_none() -> None:
    photo = looked_at(nef(SMALL))
    assert difference(photo, looked_at(SMALL)) < 1
    assert (photo.width_px, photo.height_px) == (1640, 1208)


def test_damaged_preview_gives_way_to_the_next() -> None:
    cut = LARGE[:-20_000]
    other = jpeg_of(CHINA, (800, 600))
    first = {254: 1, 256: 16, 257: 16, 258: 8, 259: 1, 262: 1, 271: b"SONY\0", 277: 1, 278: 16}
    sensor = {254: 0, 256: 1640, 257: 1208, 259: 32767, 262: 32803}
    photo = looked_at(tiff_raw(first, [({254: 1}, cut), ({254: 1}, other), (sensor, bytes(64))], bytes(256)))
    assert photo.format == "arw"
    assert difference(photo, looked_at(other)) < 1


@pytest.mark.parametrize(
    ("make", "name"),
    [("NIKON", "nef"), ("SONY", "arw"), ("PENTAX", "pef"), ("SAMSUNG", "srw"), ("Hasselblad", "3fr"), ("Acme", "raw")],
)
def test_kind_is_told_by_the_maker(make: str, name: str) -> None:
    assert sniff_format(nef(LARGE, make=make.encode())) == name


@pytest.mark.parametrize("start", [b"FOVb", b"\0MRM\0\0\0\0", b"II\x1a\0\0\0HEAPCCDR"])
def test_raw_without_a_preview_that_nothing_can_develop_is_unsupported(start: bytes) -> None:
    found = failure(start.ljust(4096, b"\1"))
    assert found.code == "unsupported_format"
    assert found.message.startswith("camera raw file without an embedded preview")


def test_a_healthy_raw_of_an_unknown_sensor_without_a_preview_is_unsupported_and_keeps_its_facts() -> None:
    sensor = {254: 0, 256: 64, 257: 48, 258: 14, 259: 34713, 262: 32803, 271: b"NIKON\0", 277: 1, 278: 48}
    found = failure(tiff_raw(sensor, [], bytes(64 * 48), EXIF))
    assert found.code == "unsupported_format"
    assert "without an embedded preview" in found.message
    assert found.facts is not None
    assert (found.facts.format, found.facts.media, found.facts.exif.lat_deg) == ("nef", Media.RAW, 47.5)


def test_cut_raw_is_truncated_and_never_shown_half() -> None:
    assert failure(mosaic_dng(china_image())[:-100_000]).code == "truncated"
    assert failure(nef(LARGE)[:40_000]).code == "truncated"
    assert failure(raf(LARGE)[:40_000]).code == "truncated"


def test_sensor_s_data_that_are_half_there_are_no_picture() -> None:
    data = bytearray(mosaic_dng(china_image()))
    data[-300_000:] = bytes(300_000)
    found = failure(bytes(data))
    assert found.code == "truncated"
    assert "sensor's data are damaged" in found.message


def test_tiff_that_is_only_a_tiff_stays_one() -> None:
    for options in ({}, {"compression": "jpeg"}, {"compression": "tiff_lzw"}):
        assert sniff_format(encode(china_image(), "tiff", **options)) == "tiff"
    exported = tiff_raw(DNG | {254: 0, 256: 64, 257: 48, 258: 8, 259: 1, 262: 1, 277: 1, 278: 48}, [], bytes(64 * 48))
    photo = looked_at(exported)
    assert (photo.format, photo.width_px) == ("tiff", 64)


def test_limits_hold_for_previews_and_for_developing() -> None:
    progressive = jpeg_of(CHINA, progressive=True)
    limits = DecodeLimits(max_memory_bytes=1 << 20)
    found = failure(nef(progressive), limits)
    assert found.code == "too_large"
    found = failure(mosaic_dng(china_image()), limits)
    assert found.code == "too_large"
    assert "developing" in found.message
    assert failure(nef(LARGE), DecodeLimits(max_pixels=1000)).code == "too_large"


def test_sensors_of_any_size_are_judged_before_memory_is_spent() -> None:
    bomb = bytearray(mosaic_dng(china_image()))
    for tag, old in ((256, 640), (257, 427)):
        at = bomb.find(struct.pack("<HHII", tag, 4, 1, old))
        bomb[at + 8 : at + 12] = struct.pack("<I", 30_000)
    assert failure(bytes(bomb)).code in ("too_large", "truncated", "unsupported_format")


SEEDS = [make(6) for make in WITH_EXIF.values()] + [raf(LARGE), mosaic_dng(china_image().resize((320, 214)), 6)]


SMALL_LIMITS = DecodeLimits(max_memory_bytes=64 << 20)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, len(SEEDS) - 1),
    st.lists(st.tuples(st.integers(0, 12_000), st.binary(min_size=1, max_size=6)), max_size=6),
    st.integers(0, 1 << 20),
)
def test_no_raw_file_breaks_a_promise(seed: int, changes: list[tuple[int, bytes]], cut: int) -> None:
    data = bytearray(SEEDS[seed])
    for at, change in changes:
        data[at : at + len(change)] = change
    with contextlib.suppress(DecodeFailure):
        photo = decode_photo(bytes(data[: max(16, len(data) - cut % 40_000)]), TARGET, SMALL_LIMITS)
        assert photo.pixels_HWC.shape == (96, 96, 3)


def test_child_s_decoder_takes_raw_files_too() -> None:
    how = ReaderSettings(TARGET)
    decoder = IsolatedDecoder(DecodeOrder(TARGET, how.limits, 20.0, how.decode_memory_bytes))
    try:
        answers = decoder([nef(LARGE, EXIF), mosaic_dng(china_image())])
    finally:
        decoder.close()
    assert [facts.media for (facts, _), _ in answers] == ["raw", "raw"]  # type: ignore[misc]
