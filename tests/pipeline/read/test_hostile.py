"""Files made to do harm: bombs, absurd sizes, loops, and models whose descriptions lie.

Each has the outcome that was looked at and found right, in bounded time; what a decoder may allocate is measured in a
child process. Random damage is test_fuzz's matter.
"""

from __future__ import annotations

import io
import json
import resource
import shutil
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from jobs import demo, query
from model.checkpoint import Checkpoint, _sha256
from pipeline.decode.exif import ExifFacts, read_exif, tiff_extent_bytes, tiff_number
from pipeline.decode.photo import DecodeFailure, DecodeTarget, decode_photo
from pipeline.published.catalog import Catalog
from tests.conftest import published_output
from tests.support.photo_samples import china_image, encode, in_every_format, png_bomb
from tests.tools.fuzz_mutation import _png_chunk, rle_bmp

pytestmark = pytest.mark.filterwarnings(r"ignore::UserWarning:PIL\.")
TARGET = DecodeTarget(image_size_px=64, resize_px=72)
_EXIF_HEAD = b"Exif\0\0II*\0\x08\0\0\0"


@contextmanager
def _at_most(seconds: float, grown_bytes: int | None = None) -> Iterator[None]:
    """Fail when the block takes more processor time, or the process grows by more; generous, the machine may be any."""
    begun_s, before_kib = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert time.process_time() - begun_s < seconds
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
    assert grown_bytes is None or grown_kib << 10 < grown_bytes


def _outcome(data: bytes) -> str:
    try:
        photo = decode_photo(data, TARGET)
    except DecodeFailure as failure:
        return str(failure.code)
    assert photo.pixels_HWC.shape == (64, 64, 3)
    return "ok"


def _with_png_chunks(chunks: bytes) -> bytes:
    png = encode(_small(), "png")
    at = png.index(b"IDAT") - 4
    return png[:at] + chunks + png[at:]


def _small() -> Image.Image:
    return china_image().resize((64, 64))


def _jpeg_of(width_px: int, height_px: int, **options: object) -> bytes:
    """Return a small JPEG whose header says it is of that size."""
    jpeg = bytearray(encode(_small(), "jpeg", **options))
    at = jpeg.index(b"\xff\xc2" if options else b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", height_px, width_px)
    return bytes(jpeg)


def _scan_bomb(side_px: int, scans: int) -> bytes:
    """Return a progressive JPEG whose every scan makes the decoder visit all blocks, for two bytes per 32,767 of them.

    The only Huffman code, one bit long, means "the next 2^14 + n blocks are done", where 14 bits say n.
    """
    jpeg = encode(Image.new("L", (64, 64)), "jpeg", progressive=True)
    head = bytearray(jpeg[: jpeg.index(b"\xff\xda")])
    frame = head.index(b"\xff\xc2")
    head[frame + 5 : frame + 9] = struct.pack(">HH", side_px, side_px)
    table = b"\xff\xc4" + struct.pack(">HB", 20, 0x10) + b"\1" + bytes(15) + b"\xe0"
    bits = ("0" + "1" * 14) * -(-((side_px // 8) ** 2) // 32_767)
    bits += "1" * (-len(bits) % 8)
    picture = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    return (
        bytes(head) + table + (b"\xff\xda" + struct.pack(">H6B", 8, 1, 1, 0, 1, 63, 0) + picture) * scans + b"\xff\xd9"
    )


def _patched(data: bytes, at: int, layout: str, *values: int) -> bytes:
    return data[:at] + struct.pack(layout, *values) + data[at + struct.calcsize(layout) :]


def _tiff_of(compression: str, width_px: int, height_px: int) -> bytes:
    """Return a small TIFF whose tags say it is of that size, in one strip."""
    tiff = bytearray(encode(_small(), "tiff", compression=compression))
    (at,) = struct.unpack_from("<L", tiff, 4)
    for entry in range(at + 2, at + 2 + 12 * struct.unpack_from("<H", tiff, at)[0], 12):
        (tag,) = struct.unpack_from("<H", tiff, entry)
        if tag in (256, 257, 278):
            struct.pack_into("<HLL", tiff, entry + 2, 4, 1, width_px if tag == 256 else height_px)
    return bytes(tiff)


def _heif_of(name: str, side_px: int) -> bytes:
    data = encode(_small(), name)
    return _patched(data, data.index(b"ispe") + 8, ">II", side_px, side_px)


def _gif_with_far_frame() -> bytes:
    """Return 40 bytes whose frame lies so far out that the picture would have four gigapixels."""
    return (
        b"GIF89a"
        + struct.pack("<HH", 9, 9)
        + bytes(3)
        + b"!\xf9\4\x08\0\0\0\0,"
        + struct.pack("<4HB", *[32_000] * 4, 0)
    )


def _webp_of(side_px: int) -> bytes:
    webp = encode(_small(), "webp", save_all=True, append_images=[_small().rotate(90)])
    at = webp.index(b"VP8X") + 12
    return webp[:at] + (side_px - 1).to_bytes(3, "little") * 2 + webp[at + 6 :]


def _unfolds_to(size_bytes: int) -> bytes:
    return zlib.compress(bytes(size_bytes), 9)


def _profile_segment() -> bytes:
    return b"\xff\xe2" + struct.pack(">H", 65_535) + b"ICC_PROFILE\0\1\xff" + bytes(65_519)


def _many_strips() -> bytes:
    """Return a TIFF that says it has a million strips, all at the same place."""
    count = 1 << 20
    tags = [(256, 1, 64), (257, 1, count), (258, 1, 8), (259, 1, 1), (262, 1, 1), (273, count, 200), (277, 1, 1)]
    tags += [(278, 1, 1), (279, count, 200)]
    entries = b"".join(struct.pack("<HHLL", tag, 4, number, value) for tag, number, value in tags)
    return struct.pack("<2sHLH", b"II", 42, 8, len(tags)) + entries + bytes(5000)


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "png of 400 megapixels": (png_bomb, "too_large"),
    "png of 2^32 pixels a side": (lambda: _png_head(0xFFFFFFFF, 0xFFFFFFFF), "too_large"),
    "png one pixel high and 2^32 wide": (lambda: _png_head(0xFFFFFFFF, 1), "too_large"),
    "png profile of 200 MB": (
        lambda: _with_png_chunks(_png_chunk(b"iCCP", b"x\0\0" + _unfolds_to(200 << 20))),
        "ok",  # without it
    ),
    "png 3000 profiles": (
        lambda: _with_png_chunks(_png_chunk(b"iCCP", b"x\0\0" + _unfolds_to(1 << 20)) * 3000),
        "ok",  # without it
    ),
    "png text of 200 MB": (
        lambda: _with_png_chunks(_png_chunk(b"zTXt", b"x\0\0" + _unfolds_to(200 << 20))),
        "ok",  # without it
    ),
    "png 500 texts of 1 MB": (
        lambda: _with_png_chunks(_png_chunk(b"iTXt", b"x\0\1\0\0\0" + _unfolds_to(1 << 20)) * 500),
        "ok",  # without it
    ),
    "png real metadata of 2 MB": (lambda: _with_png_chunks(_png_chunk(b"zTXt", b"x\0\0" + _unfolds_to(2 << 20))), "ok"),
    "png 100,000 empty chunks": (lambda: _with_png_chunks(_png_chunk(b"abCd", b"") * 100_000), "ok"),
    "gif screen of 65,535": (lambda: _patched(encode(_small(), "gif"), 6, "<HH", 65_535, 65_535), "too_large"),
    "gif frame far outside": (_gif_with_far_frame, "too_large"),
    "gif 100,000 comments": (
        lambda: encode(_small(), "gif")[:781] + b"!\xfe\1a\0" * 100_000 + encode(_small(), "gif")[781:],
        "ok",
    ),
    "bmp of 2^31 pixels a side": (
        lambda: _patched(encode(_small(), "bmp"), 18, "<ii", 2**31 - 1, -(2**31)),
        "too_large",
    ),
    "bmp of 16,000 without data": (lambda: _patched(encode(_small(), "bmp"), 18, "<ii", 16_000, 16_000), "truncated"),
    "bmp of runs, 256 megapixels in 64 KB": (lambda: rle_bmp(16_000, 16_000), "too_large"),
    "bmp of runs": (lambda: rle_bmp(300, 300), "ok"),
    "jpeg of 65,535 a side": (lambda: _jpeg_of(65_535, 65_535), "too_large"),
    "jpeg of 960 megapixels without data": (lambda: _jpeg_of(60_000, 16_000)[:630], "truncated"),
    "jpeg progressive, 960 megapixels": (lambda: _jpeg_of(60_000, 16_000, progressive=True), "too_large"),
    "jpeg 100,000 scans": (lambda: _scan_bomb(8000, 1000), "too_large"),
    "jpeg a million comments": (
        lambda: b"\xff\xd8" + b"\xff\xfe\0\2" * 1_000_000 + encode(_small(), "jpeg")[2:],
        "corrupt",
    ),
    "jpeg 5000 comments": (lambda: b"\xff\xd8" + b"\xff\xfe\0\2" * 5000 + encode(_small(), "jpeg")[2:], "ok"),
    "jpeg 20 MB of fill bytes": (lambda: b"\xff\xd8" + b"\xff" * (20 << 20) + encode(_small(), "jpeg")[2:], "ok"),
    "jpeg only fill bytes": (lambda: b"\xff\xd8" + b"\xff" * (20 << 20), "truncated"),
    "jpeg bogus profile of 16 MB": (
        lambda: b"\xff\xd8" + _profile_segment() * 255 + encode(_small(), "jpeg")[2:],
        "ok",
    ),
    "tiff of 2^31 pixels a side": (lambda: _tiff_of("raw", 2**31 - 1, 2**31 - 1), "too_large"),
    "tiff of 2^32 wide": (lambda: _tiff_of("raw", 2**32 - 1, 1), "too_large"),
    "tiff of 8000 without data": (lambda: _tiff_of("raw", 8000, 8000), "truncated"),
    "tiff of 8000 with a small strip": (lambda: _tiff_of("tiff_adobe_deflate", 8000, 8000), "corrupt"),
    "tiff of a million strips": (_many_strips, "corrupt"),
    "tiff 65,535 entries that share 3 MB": (
        lambda: (
            struct.pack("<2sHLH", b"II", 42, 8, 65_535)
            + b"".join(struct.pack("<HHLL", i, 1, 3 << 20, 0) for i in range(65_535))
            + bytes(3 << 20)
        ),
        "unsupported_format",  # it has every tag, those of camera raw files, too
    ),
    "heic of 16,384": (lambda: _heif_of("heic", 16_384), "too_large"),
    "heic of 2^31": (lambda: _heif_of("heic", 2**31 - 1), "too_large"),
    "avif of 16,384": (lambda: _heif_of("avif", 16_384), "too_large"),
    "avif of 2^31": (lambda: _heif_of("avif", 2**31 - 1), "too_large"),
    "webp canvas of 16,384": (lambda: _webp_of(16_384), "too_large"),
}


def _png_head(width_px: int, height_px: int) -> bytes:
    """Return a small PNG whose header says it is of that size."""
    header = _png_chunk(b"IHDR", struct.pack(">IIBBBBB", width_px, height_px, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + encode(_small(), "png")[33:]


@pytest.mark.parametrize("name", BOMBS)
def test_bomb(name: str) -> None:
    make, expected = BOMBS[name]
    data = make()
    with _at_most(8):
        assert _outcome(data) == expected


def test_bombs_take_no_memory_to_speak_of() -> None:
    """All of them, one after the other, in a child whose peak is read at the end."""
    code = """
import resource
from tests.pipeline.read.test_hostile import BOMBS, _outcome
from tests.support.photo_samples import china_jpeg
made = [make() for make, _ in BOMBS.values()]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for data in made:
    _outcome(data)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""
    root = Path(__file__).parents[3]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert int(run.stdout) < 600, "MiB: some picture was unfolded"


# --- EXIF


def _directory(*entries: tuple[int, int, int, int]) -> bytes:
    return struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHLL", *entry) for entry in entries) + bytes(4)


EXIF_BOMBS: dict[str, Callable[[], bytes]] = {
    "directories that point to themselves": lambda: _EXIF_HEAD + _directory((0x8769, 4, 1, 8), (0x8825, 4, 1, 8)),
    "65,535 entries": lambda: _EXIF_HEAD + struct.pack("<H", 65_535) + struct.pack("<HHLL", 0x8769, 4, 1, 8) * 65_535,
    "a million entries (BigTIFF)": lambda: (
        b"II\x2b\0\x08\0\0\0" + struct.pack("<QQ", 16, 1_000_000) + struct.pack("<HHQQ", 0x8825, 4, 1, 16) * 1_000_000
    ),
    "maker note of 100 MB": lambda: _EXIF_HEAD + _directory((0x927C, 7, 100 << 20, 26)) + bytes(100 << 20),
    "offsets beyond everything": lambda: (
        _EXIF_HEAD + _directory((0x8769, 4, 1, 2**32 - 1), (0x8825, 4, 1, 2**31), (0x0132, 2, 2**32 - 1, 2**32 - 1))
    ),
    "counts of 2^32": lambda: _EXIF_HEAD + _directory(*((tag, 5, 2**32 - 1, 8) for tag in (2, 4, 273, 279, 258))),
    "a BigTIFF cut in its header": lambda: b"MM\0\x2b\0\x08\0\0\0\0",
    "not-a-number for an offset": lambda: (
        b"II*\0\x08\0\0\0"
        + _directory((273, 12, 1, 50), (279, 12, 1, 50))
        + bytes(12)
        + struct.pack("<d", float("nan"))
    ),
}


@pytest.mark.parametrize("name", EXIF_BOMBS)
def test_exif_bomb(name: str) -> None:
    data = EXIF_BOMBS[name]()
    with _at_most(2, grown_bytes=20 << 20):
        assert read_exif(data) == ExifFacts()
        assert tiff_extent_bytes(data) >= 0
        assert tiff_number(data, 256) is None


@pytest.mark.parametrize("container", ["png", "webp", "heic", "avif"])
def test_exif_bomb_inside_a_photo(container: str) -> None:
    for name in ("directories that point to themselves", "65,535 entries", "offsets beyond everything"):
        with _at_most(4):
            assert _outcome(encode(_small(), container, exif=EXIF_BOMBS[name]())) == "ok"


def test_size_that_fits_no_column_is_refused_without_facts() -> None:
    """Its row would otherwise break the whole table: the columns of sizes are int32."""
    for data in (_png_head(2**32 - 1, 5), _tiff_of("raw", 2**32 - 1, 5)):
        with pytest.raises(DecodeFailure) as caught:
            decode_photo(data, TARGET)
        assert (caught.value.code, caught.value.facts) == ("too_large", None)


def test_what_a_file_says_is_printable_in_its_error() -> None:
    for data in [*in_every_format(_small()).values(), b"\x1b]0;title\x07<script>"]:
        with pytest.raises(DecodeFailure) as caught:
            decode_photo(data[:12] + b"\x1b[31m\0\r\n" * 20, TARGET)
        assert caught.value.message.isprintable()


# --- models that lie

_Edit = Callable[[dict[str, Any]], object]


def _lying(checkpoint: Path, folder: Path, edit: _Edit, name: str = "config.json") -> Path:
    copy = Path(shutil.copytree(checkpoint, folder / "model"))
    values = json.loads((copy / name).read_text())
    edit(values)
    (copy / name).write_text(json.dumps(values))
    return copy


def _backbone(**settings: object) -> _Edit:
    return lambda v: v["model"]["backbone"]["overrides"].update(settings)


LIES: dict[str, tuple[_Edit, str]] = {
    "width of a terabyte": (lambda v: v["model"].update(width=10**12), "makes no sense"),
    "a billion layers": (lambda v: v["model"].update(independent_layers=10**9), "makes no sense"),
    "more layers than weights": (lambda v: v["model"].update(dependent_layers=8000), "too few layers"),
    "other width": (lambda v: v["model"].update(width=4096), "does not fit"),
    "other backbone depth": (_backbone(depths=[8000, 1]), "far more layers"),
    "a window of a terabyte": (_backbone(window_size=8000), "does not accept"),
    "patches of no size": (_backbone(patch_size=0), "cannot be built"),
    "an activation that is none": (_backbone(hidden_act="__import__"), "cannot be built"),
    "code from elsewhere": (_backbone(auto_map={"AutoModel": "evil--x.y"}), "no setting auto_map"),
    "a language model": (lambda v: v["model"]["backbone"].update(model_type="llama", overrides={}), "does not accept"),
    "another folder": (
        lambda v: v["model"]["backbone"].update(model_type="", overrides={}, name="../../etc"),
        "spelled inline",
    ),
    "photos of a terabyte": (
        lambda v: v["model"]["preprocessing"].update(image_size_px=10**6, resize_px=10**6),
        "makes no sense",
    ),
    "negative width": (lambda v: v["model"].update(width=-24, heads=-4), "must divide"),
    "number beyond floating point": (lambda v: v["model"]["preprocessing"].update(mean_rgb=[10**400] * 3), "too large"),
    "temperature beyond floating point": (lambda v: v.update(temperatures=[10**400] * 3), "temperatures"),
    "temperature not a number": (lambda v: v.update(temperatures=[float("nan")] * 3), "temperatures"),
    "temperature that makes infinities": (lambda v: v.update(temperatures=[1e-320] * 3), "temperatures"),
    "scenes with escapes": (lambda v: v["model"].update(scenes=["a\x1b[31m", "b\n", "c\0"]), "printable"),
    "scenes no file can hold": (lambda v: v["model"].update(scenes=["\ud800", "b", "c"]), "printable"),
    "a name of a megabyte": (lambda v: v.update(name="a" * 1_000_000), "64"),
    "a hash that is a number": (lambda v: v.update(weights_sha256=5), "hash differs"),
}


@pytest.mark.parametrize("name", LIES)
def test_lying_model_is_refused_quickly(name: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    edit, message = LIES[name]
    folder = _lying(tiny_checkpoint, tmp_path, edit)
    with _at_most(10, grown_bytes=400 << 20), pytest.raises(ValueError, match=message):
        Checkpoint.load(folder).build_model()


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("config.json", "{", '{"a": ' + "[" * 1_000_000, "damaged"),
        ("config.json", '"training": {', '"training": {"a": ' + "[" * 9999 + "]" * 9999 + ", ", "damaged"),
        ("config.json", '"width": 24', '"width": ' + "9" * 1_000_000, "damaged"),
        ("config.json", '"width": 24', '"width": 1e999999', "whole number"),
        ("config.json", '"width": 24', '"width": 48, "width": 24', "twice"),
        ("config.json", "{", " " * (17 << 20) + "{", "more than"),
        ("hierarchy.json", "{", "[" * 1_000_000, "hierarchy.json is damaged"),
    ],
    ids=["deep", "deep inside", "digits", "infinity", "twice", "long", "deep hierarchy"],
)
def test_json_bomb(name: str, old: str, new: str, message: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new, 1))
    with _at_most(5, grown_bytes=200 << 20), pytest.raises(ValueError, match=message):
        Checkpoint.load(folder)


def test_hierarchy_bomb(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))
    nothing = pa.table({"level": pa.nulls(20_000_000, pa.int8()).fill_null(0)})
    pq.write_table(nothing, folder / "hierarchy.parquet", compression="zstd")
    with pytest.raises(ValueError, match="20000000 cells"):
        Checkpoint.load(folder)


def _with_header(weights: bytes, edit: Callable[[dict[str, Any]], object]) -> bytes:
    (length,) = struct.unpack_from("<Q", weights)
    header = json.loads(weights[8 : 8 + length])
    edit(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + weights[8 + length :]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda w: struct.pack("<Q", 1 << 63) + w[8:], "cannot be read"),
        (lambda w: b"", "cannot be read"),
        (lambda w: struct.pack("<Q", 1_000_000) + b"[" * 1_000_000, "cannot be read"),
        (lambda w: _with_header(w, lambda h: h["norm.weight"].update(shape=[10**12])), "cannot be read"),
        (lambda w: _with_header(w, lambda h: h["norm.weight"].update(data_offsets=[0, 10**15])), "cannot be read"),
        (lambda w: _with_header(w, lambda h: h["norm.weight"].update(dtype="EVIL")), "cannot be read"),
        (lambda w: _with_header(w, lambda h: h["norm.weight"].update(dtype="F16", shape=[48])), "does not fit"),
        (lambda w: _with_header(w, lambda h: h.update({"\x1b[31m": h.pop("norm.weight")})), r"\\x1b"),
        (lambda w: w[:-4] + struct.pack("<f", float("nan")), "not finite"),
    ],
)
def test_lying_weights(damage: Callable[[bytes], bytes], message: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))
    weights = folder / "weights.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"weights_sha256": _sha256(weights)}))
    loaded = Checkpoint.load(folder)
    with _at_most(5, grown_bytes=200 << 20), pytest.raises(ValueError, match=message):
        loaded.build_model()


# --- what is shown to people

_NAME = "a\x1b[2J\x9b31m\nERROR all is lost [red]<script>[/no].jpg"


def test_names_in_errors_and_logs_can_not_fake_lines_or_move_the_cursor() -> None:
    code = f"""
import logging, sys
from dataclasses import dataclass
from jobs import run_command

@dataclass
class Settings: pass

def run(settings):
    logging.getLogger("x").warning("can't list %s", {_NAME!r})
    raise ValueError("can't read " + {_NAME!r})

run_command(Settings, run)
"""
    command = [sys.executable, "-c", code]
    shown = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True).stderr
    assert "\x1b" not in shown
    assert "\x9b" not in shown
    assert "can't list a\\x1b[2J\\x9b31m\\nERROR" in shown


def test_name_that_looks_like_markup_in_the_table_of_the_demo(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A folder `x[` with a folder `no]-photos` in it spells a closing tag."""
    published_output(tmp_path / "x[" / "no]", tiny_checkpoint)
    screen = io.StringIO()
    Console(file=screen, width=400).print(demo._photo_table(Catalog(str(tmp_path / "x[" / "no]")), "elsewhere"))
    assert screen.getvalue().count("x[/no]-photos/") == 3


def test_escapes_in_the_table_of_a_query(tiny_checkpoint: Path, tmp_path: Path) -> None:
    published_output(tmp_path / "out", tiny_checkpoint)
    sql = "SELECT chr(27) || '[2J' || chr(155) || '31m' AS uri"
    assert query.run(query.QuerySettings(str(tmp_path / "out"), sql, to=tmp_path / "shown")) == 0
    shown = (tmp_path / "shown").read_text()
    assert "[2J" in shown
    assert not {"\x1b", "\x9b"} & set(shown)
