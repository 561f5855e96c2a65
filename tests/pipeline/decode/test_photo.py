"""Real photos in every format, and every way they come broken."""

from __future__ import annotations

import contextlib
import io
import pickle
import struct
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from pipeline.decode.exif import ExifFacts
from pipeline.decode.jpeg import read_jpeg_header
from pipeline.decode.photo import DecodeFailure, DecodeLimits, DecodeTarget, PhotoFacts, decode_photo
from pipeline.schema import ErrorCode, PhotoError
from tests.support.photo_samples import (
    camera_jpeg,
    china_image,
    china_jpeg,
    encode,
    exif_block,
    flower_jpeg,
    in_every_format,
    large_jpeg,
    png_bomb,
)

pytestmark = pytest.mark.filterwarnings(r"ignore::UserWarning:PIL\.")
TARGET = DecodeTarget(image_size_px=224, resize_px=256)
FORMATS = ["jpeg", "png", "webp", "tiff", "gif", "bmp", "heic", "avif"]


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return in_every_format(china_image())


def reference_HWC(image: Image.Image, target: DecodeTarget = TARGET) -> np.ndarray:
    """Resize the whole picture with antialiasing, then cut: what shrinking on load must come close to."""
    side_px = min(image.size) * target.image_size_px / target.resize_px
    left, top = (image.width - side_px) / 2, (image.height - side_px) / 2
    size_px = (target.image_size_px, target.image_size_px)
    box = (left, top, left + side_px, top + side_px)
    return np.asarray(image.convert("RGB").resize(size_px, Image.Resampling.BILINEAR, box))


def difference(a_HWC: np.ndarray, b_HWC: np.ndarray) -> float:
    return float(np.abs(a_HWC.astype(int) - b_HWC.astype(int)).mean())


def refusal(data: bytes, limits: DecodeLimits | None = None) -> DecodeFailure:
    with pytest.raises(DecodeFailure) as caught:
        decode_photo(data, TARGET, limits)
    return caught.value


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_picture(name: str, files: dict[str, bytes]) -> None:
    photo = decode_photo(files[name], TARGET)
    assert (photo.format, photo.width_px, photo.height_px) == (name, 640, 427)
    assert photo.pixels_HWC.shape == (224, 224, 3)
    assert photo.pixels_HWC.dtype == np.uint8
    assert photo.pixels_HWC.flags.c_contiguous
    tolerance = {"gif": 6.0, "jpeg": 1.5, "heic": 1.5, "avif": 1.5}.get(name, 0.0)
    assert difference(photo.pixels_HWC, reference_HWC(china_image())) <= tolerance


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("part", [0.002, 0.05, 0.3, 0.5, 0.8, 0.97, 0.995])
def test_every_cut_file_is_truncated(name: str, part: float, files: dict[str, bytes]) -> None:
    data = files[name]
    cut = data[: max(12, int(len(data) * part))]
    if part > 0.96 and name in ("jpeg", "png", "tiff", "gif", "bmp"):  # of which nearly all can be seen
        assert 0.9 <= (decode_photo(cut, TARGET).decoded_share or 0) < 1
    else:
        assert refusal(cut).code == ErrorCode.TRUNCATED


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_cut_jpeg_is_truncated_wherever_it_is_cut(data: st.DataObject) -> None:
    progressive = data.draw(st.booleans())
    jpeg = encode(china_image(), "jpeg", progressive=progressive)
    cut = jpeg[: data.draw(st.integers(3, len(jpeg) - 8))]
    for broken in (cut, cut + b"\xff\xd9"):
        found: float | str | None
        try:
            found = decode_photo(broken, TARGET).decoded_share
        except DecodeFailure as failure:
            found = str(failure.code)
        # Progressive ones may be whole with fewer scans.
        is_whole = found is None and progressive and broken is not cut
        assert is_whole or found in ("truncated", "corrupt") or 0.9 <= float(found or 0) < 1


@pytest.mark.parametrize("scale", [1, 2, 5, 9])
def test_shrinking_on_load_is_close_to_full_decode(scale: int) -> None:
    image = china_image().resize((640 * scale, 427 * scale), Image.Resampling.BICUBIC)
    data = encode(image, "jpeg", quality=92)
    expected = reference_HWC(Image.open(io.BytesIO(data)))
    one_pixel_aside = difference(expected[:, 1:], expected[:, :-1])
    assert difference(decode_photo(data, TARGET).pixels_HWC, expected) < min(2.5, one_pixel_aside / 3)


def test_an_infinite_margin_shrinks_nothing() -> None:
    image = china_image().resize((640 * 6, 427 * 6), Image.Resampling.BICUBIC)
    exact = DecodeTarget(TARGET.image_size_px, TARGET.resize_px, shrink_margin=float("inf"))
    for name in ("jpeg", "png", "tiff"):
        data = encode(image, name)
        assert np.array_equal(decode_photo(data, exact).pixels_HWC, reference_HWC(Image.open(io.BytesIO(data))))
    with pytest.raises(ValueError, match="shrink_margin"):
        DecodeTarget(224, 224, shrink_margin=0.5)


@pytest.mark.parametrize("name", ["png", "webp", "tiff", "heic", "avif"])
def test_averaging_down_before_resizing_is_not_seen(name: str) -> None:
    data = encode(china_image().resize((640 * 5, 427 * 5), Image.Resampling.BICUBIC), name)
    exact = decode_photo(data, DecodeTarget(224, 256, shrink_margin=float("inf"))).pixels_HWC
    ours = decode_photo(data, TARGET).pixels_HWC
    assert not np.array_equal(ours, exact)
    assert difference(ours, exact) < difference(exact[:, 1:], exact[:, :-1]) / 15


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_all_give_the_same_upright_picture(orientation: int) -> None:
    image = china_image().resize((1280, 854))
    photo = decode_photo(camera_jpeg(image, orientation, lat_deg=39.9998, lon_deg=116.2755), TARGET)
    assert (photo.width_px, photo.height_px, photo.exif.orientation) == (1280, 854, orientation)
    assert photo.exif.lat_deg == pytest.approx(39.9998, abs=1e-5)
    assert difference(photo.pixels_HWC, decode_photo(camera_jpeg(image), TARGET).pixels_HWC) < 1.0


@pytest.mark.parametrize("name", ["png", "webp", "tiff", "avif"])
def test_orientation_and_position_in_other_formats(name: str) -> None:
    exif = exif_block(-33.8568, 151.2153, datetime(2020, 2, 3, 4, 5, 6), orientation=6)
    data = encode(china_image().transpose(Image.Transpose.ROTATE_90), name, exif=exif)
    photo = decode_photo(data, TARGET)
    assert (photo.width_px, photo.height_px) == (640, 427)
    assert (photo.exif.lat_deg, photo.exif.lon_deg) == pytest.approx((-33.8568, 151.2153), abs=1e-5)
    assert photo.exif.taken_at == datetime(2020, 2, 3, 4, 5, 6)
    assert difference(photo.pixels_HWC, reference_HWC(china_image())) < 3


def test_heic_is_turned_by_its_container_alone() -> None:
    exif = exif_block(1.5, 2.5, orientation=6)
    photo = decode_photo(encode(china_image(), "heic", exif=exif, quality=95), TARGET)
    assert photo.exif.lat_deg == pytest.approx(1.5)
    upright = china_image() if photo.width_px == 640 else china_image().transpose(Image.Transpose.ROTATE_270)
    assert difference(photo.pixels_HWC, reference_HWC(upright)) < 2


def test_exif_behind_a_png_s_picture_data_is_read_and_obeyed() -> None:
    """The PNG specification allows it there, and so do programs that add a position to a finished file."""
    stored = china_image().transpose(Image.Transpose.ROTATE_90)
    data = encode(stored, "png", exif=exif_block(-33.8568, 151.2153, orientation=6))
    start = data.index(b"eXIf") - 4
    chunk = data[start : start + 12 + int.from_bytes(data[start : start + 4], "big")]
    end = data.index(b"IEND") - 4
    assert start < data.index(b"IDAT") < end
    photo = decode_photo(data[:start] + data[start + len(chunk) : end] + chunk + data[end:], TARGET)
    assert (photo.exif.lat_deg, photo.exif.lon_deg) == pytest.approx((-33.8568, 151.2153), abs=1e-5)
    assert (photo.width_px, photo.height_px) == (640, 427)
    assert np.array_equal(photo.pixels_HWC, decode_photo(encode(china_image(), "png"), TARGET).pixels_HWC)


# --- oddities of good JPEGs


def test_jpeg_without_its_end_marker_but_with_all_its_data() -> None:
    data = china_jpeg()
    whole = decode_photo(data, TARGET).pixels_HWC
    assert np.array_equal(decode_photo(data.removesuffix(b"\xff\xd9"), TARGET).pixels_HWC, whole)


def test_jpeg_with_a_trailer_as_phones_append_it() -> None:
    whole = decode_photo(china_jpeg(), TARGET).pixels_HWC
    assert np.array_equal(decode_photo(china_jpeg() + b"SEFH" + bytes(5000), TARGET).pixels_HWC, whole)
    cut = china_jpeg()[:60_000]
    assert refusal(cut + flower_jpeg()).code in (ErrorCode.TRUNCATED, ErrorCode.CORRUPT)


def test_jpeg_with_stray_bytes_between_headers() -> None:
    data = china_jpeg()
    at = data.index(b"\xff\xdb")
    odd = decode_photo(data[:at] + b"\0\0\0" + data[at:], TARGET)
    assert difference(odd.pixels_HWC, decode_photo(data, TARGET).pixels_HWC) < 0.5


def test_jpeg_whose_tables_come_before_its_frame() -> None:
    data = china_jpeg()
    frame, table = data.index(b"\xff\xc0"), data.index(b"\xff\xc4")
    end = table + 2 + int.from_bytes(data[table + 2 : table + 4], "big")
    assert frame < table
    odd = data[:frame] + data[table:end] + data[frame:table] + data[end:]
    assert np.array_equal(decode_photo(odd, TARGET).pixels_HWC, decode_photo(data, TARGET).pixels_HWC)


def test_jpeg_cut_inside_the_header_of_its_scan() -> None:
    data = china_jpeg()
    scan = data.index(b"\xff\xda")
    for length in range(scan, scan + 14):
        assert refusal(data[:length]).code == ErrorCode.TRUNCATED, length - scan


@pytest.mark.parametrize(("subsampling", "samples"), [("4:4:4", 3.0), ("4:2:2", 2.0), ("4:2:0", 1.5), ("4:1:1", 1.5)])
def test_memory_of_a_progressive_jpeg_is_two_bytes_a_sample(subsampling: str, samples: float) -> None:
    image = china_image().resize((640, 480))
    header = read_jpeg_header(encode(image, "jpeg", progressive=True, subsampling=subsampling))
    assert header.coefficient_bytes == 2 * 640 * 480 * samples
    assert read_jpeg_header(encode(image, "jpeg", subsampling=subsampling)).coefficient_bytes == 0


def test_jpeg_second_half_zeroed_or_garbled() -> None:
    data = encode(china_image(), "jpeg")
    half = len(data) // 2
    assert refusal(data[:half] + bytes(half)).code == ErrorCode.TRUNCATED
    assert refusal(data[:half] + b"\x55\xaa\x12" * 20 + data[half + 60 :]).code == ErrorCode.CORRUPT


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": "4:4:4"}, {"subsampling": "4:1:1"}])
def test_jpeg_kinds(options: dict[str, object]) -> None:
    data = encode(china_image(), "jpeg", quality=92, **options)
    assert difference(decode_photo(data, TARGET).pixels_HWC, reference_HWC(Image.open(io.BytesIO(data)))) < 1


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_jpeg_modes_agree_with_pillow(mode: str) -> None:
    data = encode(china_image().convert(mode), "jpeg", quality=95)
    assert difference(decode_photo(data, TARGET).pixels_HWC, reference_HWC(Image.open(io.BytesIO(data)))) < 1.5


def test_first_frame_of_several() -> None:
    flower = Image.open(io.BytesIO(flower_jpeg())).convert("RGB")
    expected = reference_HWC(china_image())
    for name in ("mpo", "gif", "webp", "tiff", "png"):
        data = encode(china_image(), name, save_all=True, append_images=[flower.copy()])
        assert difference(decode_photo(data, TARGET).pixels_HWC, expected) < 6, name


# --- sizes


def test_300_megapixel_jpeg_is_shrunk_on_load() -> None:
    photo = decode_photo(large_jpeg(20_480, 14_720), TARGET, DecodeLimits(max_memory_bytes=1 << 20))
    assert photo.width_px * photo.height_px > 300_000_000


def test_bomb_is_refused_from_its_header() -> None:
    data = png_bomb()
    failure = refusal(data)
    assert failure.code == ErrorCode.TOO_LARGE
    assert failure.facts == PhotoFacts("png", 20_000, 20_000, ExifFacts())
    assert refusal(data[:100]).code == ErrorCode.TOO_LARGE


def test_limits() -> None:
    assert refusal(china_jpeg(), DecodeLimits(max_bytes=1000)).code == ErrorCode.TOO_LARGE
    assert refusal(china_jpeg(), DecodeLimits(max_pixels=1000)).code == ErrorCode.TOO_LARGE
    progressive = encode(china_image(), "jpeg", progressive=True)
    assert refusal(progressive, DecodeLimits(max_memory_bytes=1000)).code == ErrorCode.TOO_LARGE
    decode_photo(china_jpeg(), TARGET, DecodeLimits(max_memory_bytes=1000))


@pytest.mark.parametrize("name", ["png", "webp", "gif"])
def test_limits_are_what_is_allowed_at_most(name: str, files: dict[str, bytes]) -> None:
    bytes_per_pixel = {"png": 4, "gif": 4, "webp": 12}[name]
    data, pixels = files[name], 640 * 427
    decode_photo(data, TARGET, DecodeLimits(len(data), pixels, bytes_per_pixel * pixels))
    for limits in (
        DecodeLimits(max_bytes=len(data) - 1),
        DecodeLimits(max_pixels=pixels - 1),
        DecodeLimits(max_memory_bytes=bytes_per_pixel * pixels - 1),
    ):
        assert refusal(data, limits).code == ErrorCode.TOO_LARGE


def test_a_gif_is_refused_before_it_is_opened() -> None:
    """Opening makes a picture of its screen's size; this one has no more than its header, and would be cut."""
    header = b"GIF89a" + struct.pack("<HHBBB", 3000, 3000, 0, 0, 0)
    assert refusal(header, DecodeLimits(max_memory_bytes=4 * 3000 * 3000 - 1)).code == ErrorCode.TOO_LARGE
    assert refusal(header, DecodeLimits(max_memory_bytes=4 * 3000 * 3000)).code == ErrorCode.TRUNCATED


def test_a_size_that_does_not_fit_its_column_is_no_fact() -> None:
    most = (1 << 31) - 1
    failure = refusal(grey_tiff(most, 1, b"x", bits=8))
    assert (failure.code, failure.facts) == (ErrorCode.TOO_LARGE, PhotoFacts("tiff", most, 1, ExifFacts()))
    failure = refusal(grey_tiff(most + 1, 1, b"x", bits=8))
    assert (failure.code, failure.facts) == (ErrorCode.TOO_LARGE, None)


@pytest.mark.parametrize("name", FORMATS)
def test_one_pixel(name: str) -> None:
    photo = decode_photo(encode(Image.new("RGB", (1, 1), (200, 100, 50)), name), TARGET)
    assert (photo.width_px, photo.height_px) == (1, 1)
    assert np.abs(photo.pixels_HWC.astype(int) - (200, 100, 50)).max() < 12


@pytest.mark.parametrize("size_px", [(60_000, 3), (3, 60_000), (16_000, 300)])
@pytest.mark.parametrize("name", ["png", "jpeg"])
def test_extreme_shapes(size_px: tuple[int, int], name: str) -> None:
    photo = decode_photo(encode(china_image().resize(size_px), name), TARGET)
    assert (photo.width_px, photo.height_px) == size_px


@pytest.mark.parametrize("sizes_px", [(0, 256), (257, 256), (-1, -1)])
def test_impossible_target_is_a_value_error(sizes_px: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="image_size_px"):
        DecodeTarget(*sizes_px)


# --- modes and colours


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    grey = np.asarray(china_image().convert("L"))
    words = Image.fromarray(grey.astype(np.uint16) * 257)
    expected = reference_HWC(Image.fromarray(grey))
    for name in ("png", "tiff"):
        assert difference(decode_photo(encode(words, name), TARGET).pixels_HWC, expected) < 1
    floats = Image.fromarray((grey / 255).astype(np.float32))
    assert difference(decode_photo(encode(floats, "tiff"), TARGET).pixels_HWC, expected) < 1


def grey_tiff(width_px: int, height_px: int, strip: bytes, bits: int) -> bytes:
    """Lay out a TIFF by hand, of kinds that Pillow doesn't write."""
    tags = {256: width_px, 257: height_px, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: height_px, 279: len(strip)}
    directory = b"".join(struct.pack("<HHLL", tag, 4, 1, value) for tag, value in tags.items())
    return b"II\x2a\0" + struct.pack("<L", 8 + len(strip)) + strip + struct.pack("<H", len(tags)) + directory + bytes(4)


def test_white_of_a_twelve_bit_tiff_is_what_twelve_bits_hold() -> None:
    """As scientific and film scanners write it: two samples in three bytes."""
    grey_HW = np.asarray(china_image().convert("L"))
    samples_H2 = (grey_HW.astype(np.uint32) * 4095 // 255).reshape(len(grey_HW), -1, 2)
    words = samples_H2[..., 0] << 12 | samples_H2[..., 1]
    strip = np.stack([words >> 16, words >> 8 & 255, words & 255], axis=-1).astype(np.uint8).tobytes()
    data = grey_tiff(grey_HW.shape[1], grey_HW.shape[0], strip, bits=12)
    photo = decode_photo(data, TARGET)
    assert difference(photo.pixels_HWC, reference_HWC(Image.fromarray(grey_HW))) < 1


@pytest.mark.parametrize(("mode", "name"), [("LA", "png"), ("RGBA", "png"), ("RGBA", "webp"), ("RGBA", "tiff")])
def test_transparency_lies_on_white(mode: str, name: str) -> None:
    image = china_image().convert(mode)
    image.putalpha(0)
    photo = decode_photo(encode(image, name), TARGET)
    assert photo.pixels_HWC.min() == 255


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_few_colours(mode: str) -> None:
    image = china_image().convert(mode)
    photo = decode_photo(encode(image, "png"), TARGET)
    assert difference(photo.pixels_HWC, reference_HWC(image.convert("RGB"))) < 1
    transparent = Image.new("P", (64, 64), 7)
    transparent.putpalette([10] * 768)
    assert decode_photo(encode(transparent, "png", transparency=7), TARGET).pixels_HWC.min() == 255


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped_profile() -> bytes:
    """Return a profile that takes red for green."""
    swapped = SRGB.replace(b"rXYZ", b"tmp1").replace(b"gXYZ", b"rXYZ").replace(b"tmp1", b"gXYZ")
    return swapped.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))


@pytest.mark.parametrize(("more_bytes", "is_applied"), [(0, True), (1, False)])
def test_a_profile_is_applied_up_to_four_mebibytes(more_bytes: int, is_applied: bool) -> None:
    """Larger ones are no profiles but attempts to fill the memory: each is kept for the next picture."""
    profile = swapped_profile().ljust((4 << 20) + more_bytes, b"\0")
    green = encode(Image.new("RGB", (64, 64), (20, 230, 20)), "tiff", icc_profile=profile)
    red_seen = decode_photo(green, TARGET).pixels_HWC[..., 0].mean()
    assert (red_seen > 150) == is_applied


def test_embedded_profile_is_applied_and_a_broken_one_ignored() -> None:
    swapped = swapped_profile()
    red = Image.new("RGB", (64, 64), (230, 20, 20))
    for name in ("png", "jpeg", "webp", "tiff"):
        seen = decode_photo(encode(red, name, icc_profile=swapped), TARGET).pixels_HWC.mean(axis=(0, 1))
        assert seen[1] > 150 > seen[0], name
        for harmless in (SRGB, b"broken", swapped[:200], bytes(900_000) if name == "png" else b"x" * 65_000):
            seen = decode_photo(encode(red, name, icc_profile=harmless), TARGET).pixels_HWC.mean(axis=(0, 1))
            assert seen == pytest.approx((230, 20, 20), abs=4), name


# --- refusals


def test_empty_and_unsupported() -> None:
    assert refusal(b"").code == ErrorCode.EMPTY
    others = [
        b"This is text\n",
        b"%!PS-Adobe-3.0 EPSF",
        b"\xff\xd8",
        b"RIFF\0\0\0\0AVI ",
    ]
    others += [encode(china_image(), name) for name in ("ppm", "ico", "tga", "eps")]
    for data in others:
        failure = refusal(data)
        assert (failure.code, failure.facts) == (ErrorCode.UNSUPPORTED_FORMAT, None)


def test_tiff_is_not_taken_for_its_thumbnail() -> None:
    assert refusal(encode(china_image(), "tiff", tiffinfo={254: 1})).code == ErrorCode.UNSUPPORTED_FORMAT
    assert decode_photo(encode(china_image(), "tiff", tiffinfo={50706: b"\x01\x04\0\0"}), TARGET).format == "tiff"


def test_failure_keeps_the_header_s_facts_and_survives_pickling() -> None:
    data = camera_jpeg(china_image(), 6, lat_deg=39.9998, lon_deg=116.2755)
    failure = refusal(data[: len(data) // 2])
    copy = pickle.loads(pickle.dumps(failure))
    assert isinstance(copy, PhotoError)
    assert (copy.code, copy.message, copy.facts) == (ErrorCode.TRUNCATED, failure.message, failure.facts)
    assert copy.facts.exif.lat_deg == pytest.approx(39.9998, abs=1e-5)
    assert (copy.facts.width_px, copy.facts.height_px) == (640, 427)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(FORMATS), st.floats(0, 1), st.binary(min_size=1, max_size=40), st.booleans())
def test_garbled_files_give_a_photo_or_a_refusal(name: str, at: float, noise: bytes, in_header: bool) -> None:
    data = _small_files()[name]
    start = int(at * (min(len(data), 200) if in_header else len(data)))
    garbled = data[:start] + noise + data[start + len(noise) :]
    with contextlib.suppress(DecodeFailure):
        decode_photo(garbled, TARGET, DecodeLimits(max_memory_bytes=64 << 20))


_SMALL: dict[str, bytes] = {}


def _small_files() -> dict[str, bytes]:
    if not _SMALL:
        _SMALL.update(in_every_format(china_image().resize((64, 43))))
    return _SMALL


def test_threads_agree(files: dict[str, bytes]) -> None:
    jobs = list(files) * 4
    alone = {name: decode_photo(data, TARGET).pixels_HWC for name, data in files.items()}
    with ThreadPoolExecutor(4) as pool:
        for name, photo in zip(jobs, pool.map(lambda name: decode_photo(files[name], TARGET), jobs), strict=True):
            assert np.array_equal(photo.pixels_HWC, alone[name])
