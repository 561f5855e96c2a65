"""Odd and damaged pictures that any viewer shows: read as far as they go, and the share that is there is counted."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image, PngImagePlugin

from pipeline import schema, storage
from pipeline.decode.photo import DecodedPhoto, DecodeFailure, DecodeTarget, decode_photo
from pipeline.decode.repair.jpeg_scans import find_hole, share_of_scans
from pipeline.read.reader import IsolatedReader, ReaderSettings
from tests.pipeline.read.test_reader import plan_of
from tests.support.photo_samples import china_image, encode, exif_block

TARGET = DecodeTarget(image_size_px=224, resize_px=256)
JPEGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "fine": {"quality": 95, "subsampling": 0},
    "optimized": {"optimize": True},
    "restarts": {"restart_marker_rows": 2},
    "grey": {},
}
EOI = b"\xff\xd9"


def jpeg(name: str) -> bytes:
    image = china_image().convert("L") if name == "grey" else china_image()
    return encode(image, "jpeg", **JPEGS[name])


def code_of(data: bytes) -> str:
    with pytest.raises(DecodeFailure) as caught:
        decode_photo(data, TARGET)
    return str(caught.value.code)


def share_of(data: bytes) -> float | None:
    """Return the share that is decoded, None for all; 0 where that is too little."""
    failure: DecodeFailure
    try:
        return decode_photo(data, TARGET).decoded_share
    except DecodeFailure as error:
        failure = error
    assert failure.code == "truncated", failure
    assert failure.facts is not None
    assert (failure.facts.width_px, failure.facts.height_px) == (640, 427)
    return 0.0


def true_share(whole: bytes, cut: bytes) -> float:
    """Return the share of rows of pixels that libjpeg makes of a cut file as of the whole one."""
    rows = [simplejpeg.decode_jpeg(data, "RGB", strict=False).reshape(427, -1) for data in (whole, cut)]
    return float((rows[0] == rows[1]).all(axis=1).mean())


@pytest.mark.parametrize("name", JPEGS)
@pytest.mark.parametrize("part", [0.3, 0.7, 0.85, 0.93, 0.97, 0.995])
def test_of_a_cut_jpeg_whole_rows_are_counted(name: str, part: float) -> None:
    whole = jpeg(name)
    cut = whole[: int(len(whole) * part)]
    there = true_share(whole, cut)
    zeros = len(whole) - len(cut)
    for broken in (cut, cut + EOI, cut + bytes(zeros), cut + bytes(50_000), cut + b"\xff" * 3000):
        share = share_of(broken)
        assert share is not None
        if there < 0.9:
            assert share == 0
        elif there > 0.95:  # a row of blocks, and the two that its smoothing needs, are 18 of 427
            assert there - 18 / 427 <= share <= there


@pytest.mark.parametrize("name", ["plain", "fine", "restarts"])
def test_a_hole_in_a_jpeg_is_where_it_breaks_off_though_more_follows(name: str) -> None:
    whole = jpeg(name)
    for part, is_enough in ((0.5, False), (0.97, True)):
        at = int(len(whole) * part)
        share = share_of(whole[:at] + bytes(1500) + whole[at + 1500 :])
        assert share is not None
        assert (share >= 0.9) == is_enough
        assert share <= part + 0.03


@pytest.mark.parametrize("name", JPEGS)
def test_what_stands_beside_a_whole_jpeg_is_no_damage(name: str) -> None:
    whole = jpeg(name)
    plain = decode_photo(whole, TARGET).pixels_HWC
    for odd in (
        whole[:-2],
        whole[:-2] + bytes(700),
        whole[:-2] + bytes(700) + EOI,
        whole + b"MotionPhoto" * 999 + bytes(5000) + EOI,
        b"\r\n\r\n" + whole,
        b"\xef\xbb\xbf" + whole,
        b"\1\2\3\4\5" + whole,
        whole[:2] + b"".join(b"\xff\xe1" + struct.pack(">H", 60_002) + bytes(60_000) for _ in range(99)) + whole[2:],
    ):
        photo = decode_photo(odd, TARGET)
        assert photo.decoded_share is None
        assert np.array_equal(photo.pixels_HWC, plain)


def test_a_plain_picture_of_zeros_alone_has_no_hole() -> None:
    """Its codes are as short as can be, and a picture of one colour is zeros."""
    image = Image.new("L", (4000, 3000), 128)
    image.paste(china_image().convert("L"), (0, 0))
    data = encode(image, "jpeg", optimize=True)
    assert find_hole(data, 700) is not None
    assert decode_photo(data, TARGET).decoded_share is None


@pytest.mark.parametrize("quality", [75, 95])
def test_of_a_cut_progressive_jpeg_frequencies_are_counted(quality: int) -> None:
    whole = encode(china_image(), "jpeg", progressive=True, quality=quality)
    assert share_of_scans(whole)[0] > 0.96
    shares = []
    for part in np.arange(0.05, 1, 0.05):
        cut = whole[: int(len(whole) * part)]
        share = share_of(cut)
        assert share is not None
        assert share in (share_of(cut + bytes(3000)), share_of(cut + bytes(3000) + EOI))
        shares.append(share)
    assert shares == sorted(shares)
    assert shares[0] == shares[3] == 0  # mean colours alone, or fewer
    assert 0.9 <= shares[-1] < 1
    assert decode_photo(whole[:-2], TARGET).decoded_share is None  # only its end marker is missing


def test_of_a_scan_that_breaks_off_its_blocks_are_counted() -> None:
    """Against what libjpeg makes of it: rows of the same picture with and without the last scan."""
    whole = encode(china_image().convert("L"), "jpeg", progressive=True, quality=95)
    scans = [at for at in range(len(whole) - 1) if whole[at : at + 2] == b"\xff\xda"]
    start, end = scans[2], scans[3]  # the first bits of all high frequencies
    for part in (0.1, 0.5, 0.9):
        cut = whole[: int(start + (end - start) * part)]
        share, _, _ = share_of_scans(cut)
        rows = [
            simplejpeg.decode_jpeg(data + EOI, "GRAY", strict=False).reshape(427, -1).astype(int)
            for data in (whole[:end], cut)
        ]
        differs = np.flatnonzero(np.abs(rows[0] - rows[1]).max(axis=1) > 8)
        first = differs[0] / 427
        assert 0.9 * (6 / 64 + 58 / 64 * first) - 0.03 < share + 0.0 < 0.9 * (6 / 64 + 58 / 64 * first) + 0.03


@pytest.mark.parametrize("name", ["png", "tiff", "gif", "bmp"])
def test_of_other_formats_the_rows_that_their_codec_wrote_are_counted(name: str) -> None:
    whole = encode(china_image(), name)
    for part in (0.5, 0.97):
        share = share_of(whole[: int(len(whole) * part)])
        assert share is not None
        assert (0.95 < share < 1) if part > 0.9 else share == 0


def test_black_at_the_end_is_part_of_the_picture() -> None:
    image = Image.new("RGB", (640, 427))
    image.paste(china_image().crop((0, 0, 640, 300)))
    for name in ("png", "jpeg", "bmp"):
        data = encode(image, name)
        if name == "bmp":  # whose last rows are the uppermost
            data = data[: int(len(data) * 0.95)]
        elif name == "jpeg":
            data = data[:-4]
        else:
            data = data[:-20]
        assert (share_of(data) or 1.0) > 0.93


def test_what_is_missing_is_grey() -> None:
    whole = encode(china_image(), "png")
    photo = decode_photo(whole[: int(len(whole) * 0.95)], DecodeTarget(224, 224))
    assert (np.abs(photo.pixels_HWC[-3:].astype(int) - 128) <= 1).all()
    assert photo.pixels_HWC[:100].std() > 20


def chunk(kind: bytes, content: bytes, is_sound: bool = True) -> bytes:
    check = zlib.crc32(kind + content) ^ (not is_sound)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)


def with_chunks(png: bytes, *chunks: bytes, at: int = 33) -> bytes:
    """Put chunks behind a PNG's header."""
    return png[:at] + b"".join(chunks) + png[at:]


@pytest.mark.parametrize(
    "odd",
    [
        chunk(b"zTXt", b"XML:com.adobe.xmp\0\0" + zlib.compress(bytes(48 << 20))),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(48 << 20))),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"x" * (9 << 20)),
        b"".join(chunk(b"tEXt", b"Comment\0" + bytes(200_000)) for _ in range(300)),
        chunk(b"tEXt", b"Comment\0wrong", is_sound=False),
        chunk(b"tIME", b"\0", is_sound=False),
        chunk(b"iCCP", b"broken\0\0" + b"no zlib"),
        b"".join(chunk(b"iCCP", b"many\0\0" + zlib.compress(bytes(1000))) for _ in range(20)),
        chunk(b"pHYs", b"\0"),
        chunk(b"sRGB", b""),
        chunk(b"gAMA", b"\0", is_sound=False),
        chunk(b"acTL", struct.pack(">II", 99, 0)) + chunk(b"fcTL", bytes(3)),
        chunk(b"vpAg", bytes(9)) + chunk(b"caNv", bytes(16)),
        chunk(b"eXIf", b"broken", is_sound=False),
    ],
    ids=lambda odd: f"{odd[4:8].decode()} {len(odd)}",
)
def test_what_is_no_part_of_a_png_s_picture_does_not_matter(odd: bytes) -> None:
    png = encode(china_image(), "png")
    plain = decode_photo(png, TARGET)
    for data in (with_chunks(png, odd), png + odd, with_chunks(png, odd) + b"behind it" * 99):
        photo = decode_photo(data, TARGET)
        assert np.array_equal(photo.pixels_HWC, plain.pixels_HWC)
        assert photo.decoded_share is None


def test_what_is_of_use_beside_a_png_s_picture_is_kept() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "hello", zip=True)
    exif = exif_block(48.5, 11.5)
    out = io.BytesIO()
    china_image().convert("P").save(out, "PNG", pnginfo=info, exif=exif, transparency=3, optimize=True)
    photo = decode_photo(with_chunks(out.getvalue(), chunk(b"tEXt", b"x\0y", is_sound=False)), TARGET)
    assert photo.exif.lat_deg == pytest.approx(48.5)


@pytest.mark.parametrize("length", ["file", "more", "less", "none", "huge", "behind"])
@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": exif_block(1.0, 2.0)}], ids=str)
def test_a_webp_with_a_wrong_length_is_whole_where_its_chunks_are(length: str, options: dict[str, Any]) -> None:
    webp = encode(china_image(), "webp", **options)
    said = {"file": len(webp), "more": len(webp) - 6, "less": len(webp) - 9, "none": 0, "huge": 0xFFFFFFFF}
    data = webp[:4] + struct.pack("<I", said.get(length, len(webp) + 90)) + webp[8:]
    photo: DecodedPhoto = decode_photo(data + b"behind it" * 9 * (length == "behind"), TARGET)
    assert np.array_equal(photo.pixels_HWC, decode_photo(webp, TARGET).pixels_HWC)
    assert code_of(data[: len(data) * 9 // 10]) in ("truncated", "corrupt")


@pytest.mark.parametrize("name", ["heic", "avif"])
@pytest.mark.parametrize(
    "tail", [b"SEFHSEFT" + b"x" * 90, b"\0\0\x10\0abcd" + b"y" * 20, b"\xff\xd8\xff" * 30, b"x", bytes(4000)]
)
def test_bytes_behind_a_heic_are_not_its_affair(name: str, tail: bytes) -> None:
    data = encode(china_image(), name)
    assert np.array_equal(decode_photo(data + tail, TARGET).pixels_HWC, decode_photo(data, TARGET).pixels_HWC)


def test_a_gif_without_its_trailer_is_whole() -> None:
    assert decode_photo(encode(china_image(), "gif")[:-1], TARGET).decoded_share is None


def test_no_byte_of_a_file_is_in_what_codecs_say() -> None:
    png, secret = encode(china_image(), "png"), b"SeCr"
    for data in (
        with_chunks(png, chunk(secret.upper()[:4], bytes(9), is_sound=False)),
        png[:60] + secret * 50 + png[260:],
        encode(china_image(), "tiff")[:8] + secret * 99,
        b"GIF89a" + secret * 99,
        encode(china_image(), "avif")[:40] + secret * 99,
    ):
        message = ""
        try:
            decode_photo(data, TARGET)
        except DecodeFailure as failure:
            message = failure.message
        assert "secr" not in message.lower()
    assert "(" in message


def test_rows_say_that_a_photo_is_damaged_and_how_much_of_it_is_there(tmp_path: Any) -> None:
    whole = jpeg("plain")
    files = {"whole.jpg": whole, "cut.jpg": whole[: int(len(whole) * 0.97)], "half.jpg": whole[: len(whole) // 2]}
    for name, data in files.items():
        storage.write_bytes(f"{tmp_path}/{name}", data)
    reader = IsolatedReader(ReaderSettings(TARGET))
    try:
        rows = reader(plan_of(*(f"{tmp_path}/{name}" for name in files))).to_pylist()
    finally:
        reader.close()
    assert [row[schema.DECODE_WARNING] for row in rows] == [None, "truncated", None]
    assert [row[schema.ERROR_CODE] for row in rows] == [None, None, "truncated"]
    assert rows[1][schema.DECODED_SHARE] == pytest.approx(0.97, abs=0.03)
    assert rows[0][schema.DECODED_SHARE] is rows[2][schema.DECODED_SHARE] is None
    assert "%" in rows[2][schema.ERROR_MESSAGE]
