"""The decoder's process stays below 1.5 GB, whatever a photo's header says, and holds nothing once it is answered."""

from __future__ import annotations

import contextlib
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from pipeline.decode.photo import DecodeTarget
from pipeline.read.isolation import Decode, DecodeOrder, IsolatedDecoder
from pipeline.read.reader import ReaderSettings
from pipeline.schema import PhotoError
from tests.pipeline.read import bad_decoders
from tests.pipeline.read.bad_decoders import LEAK
from tests.support.photo_samples import china_image, china_jpeg, encode

SETTINGS = ReaderSettings(DecodeTarget(32, 36))
MOST_BYTES = 1_500_000_000


def resident_bytes(pid: int, name: str = "VmRSS") -> int:
    """Return what a process holds in memory, or held at most (`VmHWM`)."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) << 10


@contextlib.contextmanager
def decoder_of(decode: Decode = bad_decoders.decode_photo) -> Iterator[IsolatedDecoder]:
    order = DecodeOrder(
        SETTINGS.target, SETTINGS.limits, SETTINGS.decode_timeout_s, SETTINGS.decode_memory_bytes, decode
    )
    decoder = IsolatedDecoder(order)
    yield decoder
    decoder.close()


def tiff_of(width_px: int, height_px: int, strips: int = 1) -> bytes:
    """Return a TIFF of grey pixels whose tags say that it is of that size, in so many strips of one byte each."""
    tags = [(256, 1, width_px), (257, 1, height_px), (258, 1, 8), (259, 1, 1), (262, 1, 1), (277, 1, 1)]
    tags += [(278, 1, max(1, height_px // strips))]
    places = 8 + 2 + 12 * (len(tags) + 2) + 4
    tags += [(273, strips, places if strips > 1 else 8), (279, strips, places + 4 * strips if strips > 1 else 1)]
    entries = b"".join(struct.pack("<HHII", tag, 4, count, value) for tag, count, value in sorted(tags))
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    return head + struct.pack("<I", 8) * strips + struct.pack("<I", 1) * strips


def webp_claim() -> bytes:
    """Return 34 bytes that say they are a lossless picture of 16,383 pixels a side."""
    sides = (16_382 | 16_382 << 14).to_bytes(4, "little")
    return b"RIFF" + struct.pack("<I", 26) + b"WEBPVP8L" + struct.pack("<I", 14) + b"\x2f" + sides + bytes(9)


BOMBS: dict[str, Callable[[], bytes]] = {
    "a tiff of one column": lambda: tiff_of(1, 200_000_000),
    "a tiff of four columns": lambda: tiff_of(4, 60_000_000),
    "a tiff of two million strips": lambda: tiff_of(16_000, 2_000_000, 2_000_000),
    "a small tiff of two million strips": lambda: tiff_of(8, 2_000_000, 2_000_000),
    "a tiff of 268 megapixels and no data": lambda: tiff_of(16_384, 16_383),
    "a webp without data": webp_claim,
    "a gif of 225 megapixels": lambda: b"GIF89a" + struct.pack("<HHBBB", 15_000, 15_000, 0, 0, 0) + b",",
    "a bmp of 268 megapixels": lambda: (
        b"BM" + struct.pack("<IHHI", 100, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 16_384, 16_383, 1, 24, *[0] * 6)
    ),
}


def test_no_bomb_takes_its_decoder_beyond_the_limit() -> None:
    """Each has its answer, in seconds; one child, and a fresh one for whichever ends it, are watched throughout."""
    peaks: dict[int, int] = {}
    with decoder_of() as decoder:
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.005):
                with contextlib.suppress(OSError, ValueError):
                    if pid := decoder.pid:
                        peaks[pid] = resident_bytes(pid, "VmHWM")

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            for name, make in BOMBS.items():
                ((answer, decode_s),) = decoder([make()])
                assert isinstance(answer, PhotoError), name
                assert answer.code in ("too_large", "truncated", "corrupt"), (name, answer)
                assert decode_s < 10, name
            assert decoder.pid
            assert resident_bytes(decoder.pid) < 300_000_000, "what a refused photo took is held"
        finally:
            done.set()
            watcher.join()
    assert max(peaks.values()) < MOST_BYTES, peaks


@pytest.mark.parametrize("mode", ["RGBA", "LA", "I;16", "P"])
def test_a_picture_of_unusual_mode_is_held_once(mode: str) -> None:
    """A picture with transparency was held four times over, which is what a limit for the process can't allow."""
    side_px = 4000
    picture = china_image().resize((side_px, side_px), Image.Resampling.NEAREST)
    data = encode(picture.convert("L").convert("I").convert("I;16") if mode == "I;16" else picture.convert(mode), "png")
    with decoder_of() as decoder:
        decoder([china_jpeg()])
        assert decoder.pid
        before_bytes = resident_bytes(decoder.pid)
        ((answer, _),) = decoder([data])
        assert not isinstance(answer, PhotoError), answer
        assert resident_bytes(decoder.pid, "VmHWM") - before_bytes < 4 * side_px**2 + len(data) + (60 << 20)


def test_a_photo_beyond_the_shared_memory_s_step_comes_whole_and_leaves_no_trace() -> None:
    bmp = encode(china_image().resize((3000, 2000)), "bmp")
    small = encode(china_image().resize((3000, 2000)), "png")
    with decoder_of() as decoder:
        (large, _), (again, _) = decoder([bmp, small])
        assert not isinstance(large, PhotoError)
        assert not isinstance(again, PhotoError)
        assert large[1] == again[1]
        assert decoder.pid
        shared = [link for link in Path(f"/proc/{decoder.pid}/fd").iterdir() if "memfd" in str(link.readlink())]
        assert sum(link.stat().st_size for link in shared) < 1 << 20
        assert decoder([china_jpeg()])[0][0] == decoder([china_jpeg()])[0][0]


def test_a_child_that_keeps_memory_is_replaced() -> None:
    with decoder_of() as decoder:
        decoder([china_jpeg()])
        pid = decoder.pid
        decoder([china_jpeg()] * 20)
        assert decoder.pid == pid
        for _ in range(12):  # more than one child could hold
            ((answer, _),) = decoder([LEAK + china_jpeg()])
            assert not isinstance(answer, PhotoError)
        assert decoder.pid != pid
