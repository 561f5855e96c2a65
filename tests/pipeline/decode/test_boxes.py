"""JPEG XL, JPEG 2000 and the sizes of HEIC and AVIF: files that are made of boxes."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.decode.header import check_head
from pipeline.decode.photo import DecodedPhoto, DecodeFailure, DecodeLimits, DecodeTarget, decode_photo
from pipeline.decode.pictures.iso_media import iso_box, primary_size_px
from pipeline.decode.pictures.jpeg2000 import halvings_for, read_jpeg2000_header
from pipeline.decode.pictures.jpeg_xl import jxl_size_px
from tests.support.photo_samples import camera_jpeg, china_image, encode, exif_block

TARGET = DecodeTarget(96, 110)
CHINA = china_image().resize((1280, 854))
PLAIN = decode_photo(encode(CHINA, "png"), TARGET)


def jxl(**options: object) -> bytes:
    return encode(CHINA, "jxl", effort=3, **options)


def recompressed(jpeg: bytes, folder: Path) -> bytes:
    """Return the JPEG as a JPEG XL that gives it back."""
    path = folder / "photo.jpg"
    path.write_bytes(jpeg)
    buffer = io.BytesIO()
    with pytest.warns(UserWarning, match="reconstruction"), Image.open(path) as image:
        image.save(buffer, "jxl", lossless_jpeg=None)
    return buffer.getvalue()


def difference(photo: DecodedPhoto, other: DecodedPhoto = PLAIN) -> float:
    return float(np.abs(photo.pixels_HWC.astype(int) - other.pixels_HWC).mean())


def refusal(data: bytes, limits: DecodeLimits | None = None) -> DecodeFailure:
    with pytest.raises(DecodeFailure) as caught:
        decode_photo(data, TARGET, limits)
    return caught.value


def test_codestream_and_container_are_told_and_keep_what_the_camera_wrote() -> None:
    bare = decode_photo(jxl(), TARGET)
    boxed = decode_photo(jxl(exif=exif_block(48.5, 11.5, orientation=6)), TARGET)
    assert difference(bare) < 2
    assert difference(boxed) < 2, "its codestream says how it is turned, its EXIF does not count"
    assert (boxed.format, boxed.width_px, boxed.height_px) == ("jxl", 1280, 854)
    assert boxed.exif.lat_deg == pytest.approx(48.5)


@pytest.mark.parametrize("orientation", [1, 6, 8])
def test_jpeg_inside_is_turned_once(orientation: int, tmp_path: Path) -> None:
    jpeg = camera_jpeg(CHINA, orientation, lat_deg=48.5, lon_deg=11.5)
    data = recompressed(jpeg, tmp_path)
    photo = decode_photo(data, TARGET)
    assert difference(photo, decode_photo(jpeg, TARGET)) == 0
    assert (photo.format, photo.width_px, photo.height_px) == ("jxl", 1280, 854)
    assert jxl_size_px(data) == (1280, 854)
    assert photo.exif.lat_deg == pytest.approx(48.5)


@pytest.mark.parametrize("size_px", [(1, 1), (8, 8), (256, 256), (300, 200), (640, 427), (5, 4000), (1920, 1080)])
def test_size_stands_in_the_first_bytes(size_px: tuple[int, int]) -> None:
    image = Image.new("RGB", size_px)
    assert jxl_size_px(encode(image, "jxl", effort=1)[:64]) == size_px
    assert jxl_size_px(encode(image, "jxl", effort=1, use_container=True)[:128]) == size_px
    header = read_jpeg2000_header(encode(image, "jp2"))
    assert header is not None
    assert (header.width_px, header.height_px, header.components) == (*size_px, 3)


@pytest.mark.parametrize("name", ["jxl", "jp2"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_what_is_cut_is_truncated(name: str, share: float) -> None:
    for data in (jxl(), jxl(use_container=True)) if name == "jxl" else (encode(CHINA, "jp2"),):
        found = refusal(data[: int(len(data) * share)])
        assert found.code == "truncated"
        assert "vendored" not in found.message


@pytest.mark.parametrize("options", [{}, {"no_jp2": True}, {"tile_size": (256, 256)}, {"num_resolutions": 1}])
def test_jpeg_2000_of_any_make_is_the_same_picture(options: dict[str, object]) -> None:
    photo = decode_photo(encode(CHINA, "jp2", **options), TARGET)
    assert difference(photo) < 2
    assert (photo.format, photo.width_px, photo.height_px) == ("jp2", 1280, 854)


def test_jpeg_2000_is_halved_while_it_is_loaded_and_no_more_than_it_can_be() -> None:
    header = read_jpeg2000_header(encode(CHINA, "jp2"))
    flat = read_jpeg2000_header(encode(CHINA, "jp2", num_resolutions=1))
    assert header is not None
    assert flat is not None
    assert [halvings_for(header, side_px) for side_px in (100, 110, 300, 854)] == [2, 1, 0, 0]
    assert halvings_for(flat, 10) == 0


def test_jpeg_2000_tells_position_and_turn_in_a_box_of_exif() -> None:
    block = exif_block(48.5, 11.5, orientation=6)
    uuid = b"uuidJpgTiffExif->JP2" + block.removeprefix(b"Exif\0\0")
    data = encode(CHINA.transpose(Image.Transpose.ROTATE_90), "jp2")
    start = data.index(b"jp2c") - 4
    photo = decode_photo(data[:start] + struct.pack(">I", 4 + len(uuid)) + uuid + data[start:], TARGET)
    assert photo.exif.lat_deg == pytest.approx(48.5)
    assert (photo.width_px, photo.height_px) == (1280, 854)
    assert difference(photo) < 2


@pytest.mark.parametrize(
    "name_of_options",
    [("heic", {}), ("heic", {"orientation": 6}), ("avif", {}), ("jxl", {}), ("jp2", {})],
)
def test_what_is_too_large_is_refused_by_its_head(name_of_options: tuple[str, dict[str, int]]) -> None:
    name, options = name_of_options
    exif = {"exif": exif_block(**options)} if options else {}
    data = encode(CHINA, name, **exif)  # type: ignore[arg-type]
    check_head(data[:4096], DecodeLimits())
    with pytest.raises(DecodeFailure) as caught:
        check_head(data[:4096], DecodeLimits(max_pixels=1280 * 854 - 1))
    assert caught.value.code == "too_large"
    assert caught.value.facts is not None
    size_px = (caught.value.facts.width_px, caught.value.facts.height_px)
    photo = decode_photo(data, TARGET)
    assert size_px == (photo.width_px, photo.height_px)


def test_headers_that_claim_much_are_refused_before_memory_is_spent() -> None:
    huge = bytearray(encode(CHINA, "jp2", no_jp2=True))
    huge[8:16] = struct.pack(">II", 60_000, 60_000)
    assert refusal(bytes(huge)).code == "too_large"
    bits = (0 | 3 << 1 | (999_999 << 3) | (1 << 33)) << 0  # not small, 30 bits of height, as wide
    assert refusal(b"\xff\x0a" + bits.to_bytes(6, "little") + bytes(64)).code == "too_large"


def test_box_that_claims_another_size_than_the_codestream_is_not_believed() -> None:
    data = bytearray(encode(CHINA, "jp2"))
    at = data.index(b"ihdr") + 4
    data[at : at + 8] = struct.pack(">II", 40_000, 40_000)
    found = refusal(bytes(data))
    assert found.code == "corrupt"
    assert "different sizes" in found.message


def test_a_box_is_found_by_its_path_whatever_lies_about_it() -> None:
    data = encode(CHINA, "heic")
    assert iso_box(data, b"meta", b"iprp", b"ipco") is not None
    assert iso_box(data, b"meta", b"nope") is None
    assert iso_box(b"\0\0\0\4ftyp", b"ftyp") is None
    assert primary_size_px(data[:60]) is None


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["heic", "avif", "jxl", "jp2"]), st.integers(0, 600), st.binary(max_size=12), st.integers(0, 4096)
)
def test_no_head_breaks_a_promise(name: str, at: int, noise: bytes, length: int) -> None:
    data = SMALL[name]
    head = (data[:at] + noise + data[at + len(noise) :])[:length]
    for size_px in (primary_size_px(head), jxl_size_px(head)):
        assert size_px is None or min(size_px) >= 0
    header = read_jpeg2000_header(head)
    assert header is None or header.halvings in range(6)


SMALL = {name: encode(CHINA.resize((160, 120)), name) for name in ("heic", "avif", "jxl", "jp2")}
