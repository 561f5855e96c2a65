"""A file's first bytes tell what is no photo and what is too large; what they don't tell is left to the decoder."""

from __future__ import annotations

import struct

import pytest

from pipeline.decode.header import DecodeFailure, DecodeLimits, check_head
from pipeline.decode.photo import DecodeTarget, decode_photo
from tests.support.photo_samples import camera_jpeg, china_image, encode, in_every_format

FILES = in_every_format(china_image())


def refusal(head: bytes, limits: DecodeLimits | None = None) -> DecodeFailure:
    with pytest.raises(DecodeFailure) as caught:
        check_head(head, limits or DecodeLimits())
    return caught.value


@pytest.mark.parametrize("name", FILES)
def test_no_beginning_of_a_photo_is_refused_however_short(name: str) -> None:
    for length_bytes in (*range(32, 1200, 7), 4096, 20_000, len(FILES[name])):
        check_head(FILES[name][:length_bytes], DecodeLimits())


@pytest.mark.parametrize("name", FILES)
def test_the_head_judges_as_the_decoder_does(name: str) -> None:
    """With the same words and facts."""
    data = FILES[name] if name != "webp" else encode(china_image(), "webp")
    check_head(data, DecodeLimits(max_pixels=640 * 427))
    limits = DecodeLimits(max_pixels=640 * 427 - 1)
    with pytest.raises(DecodeFailure) as caught:
        decode_photo(data, DecodeTarget(32, 36), limits)
    found = refusal(data[:4096] if name not in ("tiff", "gif") else data, limits)
    assert (found.code, found.message) == (caught.value.code, caught.value.message)
    assert found.facts is not None
    assert (found.facts.width_px, found.facts.height_px) == (640, 427)


def test_what_a_camera_wrote_is_kept_where_a_photo_is_refused_by_its_head() -> None:
    data = camera_jpeg(china_image(), orientation=6, lat_deg=48.5, lon_deg=11.5)
    facts = refusal(data[:60_000], DecodeLimits(max_pixels=1000)).facts
    assert facts is not None
    assert (facts.width_px, facts.height_px) == (640, 427)
    assert facts.exif.lat_deg == pytest.approx(48.5)


@pytest.mark.parametrize(
    "head",
    [
        bytes(65_536),
        b"\0\0\0\x14ftypqt  \0\0\0\0qt  ",
        b"\0\0\0\x18ftypmp42\0\0\0\0isommp42",
        b"\x1a\x45\xdf\xa3matroska",
        b"%PDF-1.7",
        b"PK\3\4",
        b"RIFF\0\0\0\x18AVI LIST",
    ],
)
def test_what_is_no_photo(head: bytes) -> None:
    assert refusal(head.ljust(65_536, b"\1")).code == "unsupported_format"


@pytest.mark.parametrize(
    ("width_px", "height_px", "is_taken"),
    [(16_384, 16_384, True), (16_384, 16_385, False), (1, 30_000_000, True), (1, 200_000_000, False), (0, 5, True)],
)
def test_a_row_of_pixels_is_never_free(width_px: int, height_px: int, is_taken: bool) -> None:
    """200 million rows of one pixel take a pointer each; of a picture without a side the decoder says what is wrong."""
    size = struct.pack(">IIBBBBB", width_px, height_px, 8, 2, 0, 0, 0)
    head = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + size
    if is_taken:
        check_head(head, DecodeLimits())
    else:
        assert refusal(head).code == "too_large"
