"""What a photo does to its decoder costs its own row, and no other's: with real crashes, stalls and hogs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import schema, storage
from pipeline.decode.photo import DecodedPhoto, DecodeLimits, DecodeTarget
from pipeline.read.reader import IsolatedReader, Reader, ReaderSettings
from tests.pipeline.read import bad_decoders
from tests.pipeline.read.bad_decoders import ABORT, BLOAT, BUG, CRASH, EXIT, ONCE, SLEEP, SPIN
from tests.support.photo_samples import camera_jpeg, china_image, china_jpeg, encode, flower_jpeg, in_every_format

SETTINGS = ReaderSettings(DecodeTarget(32, 36), DecodeLimits(max_memory_bytes=16 << 20), decode_timeout_s=2.0)
GOOD = {
    "china": china_jpeg(),
    "flower": flower_jpeg(),
    "empty": b"",
    "text": b"This is text.",
    "cut": china_jpeg()[:50],
}


def plan_of(folder: Path, *photos: bytes) -> pa.Table:
    uris = [f"{folder}/{index}" for index in range(len(photos))]
    for uri, data in zip(uris, photos, strict=True):
        storage.write_bytes(uri, data)
    rows = [{schema.PHOTO_ID: schema.photo_id(uri), schema.URI: uri} for uri in uris]
    return pa.Table.from_pylist(rows, schema=schema.MANIFEST)


@pytest.fixture
def reader() -> Iterator[IsolatedReader]:
    reader = IsolatedReader(SETTINGS, bad_decoders.decode_photo)
    yield reader
    reader.close()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "did not come about"
        time.sleep(0.01)


def untimed(table: pa.Table) -> pa.Table:
    """Return `table` without what differs from one time to the next."""
    return table.drop_columns([schema.FETCH_SECONDS, schema.DECODE_SECONDS])


def check_rows(plan: pa.Table, table: pa.Table, bad: dict[int, tuple[str, str]]) -> None:
    """Fail unless the rows at `bad` have these codes and messages, and all others are exactly the plain Reader's."""
    healthy = [index for index in range(plan.num_rows) if index not in bad]
    assert untimed(table.take(healthy)).equals(untimed(Reader(SETTINGS)(plan.take(healthy))))
    rows = table.to_pylist()
    assert {index: (rows[index][schema.ERROR_CODE], rows[index][schema.ERROR_MESSAGE]) for index in bad} == bad
    for index in bad:
        listed = plan.slice(index, 1).to_pylist()[0]
        assert rows[index][schema.PHOTO_ID] == listed[schema.PHOTO_ID]
        assert rows[index][schema.PIXELS_HWC] is None
        assert rows[index][schema.CONTENT_HASH] is not None


def test_every_row_is_the_plain_readers_bit_for_bit(tmp_path: Path) -> None:
    turned = camera_jpeg(china_image(), orientation=6, lat_deg=48.5, lon_deg=11.5)
    large = encode(china_image().resize((3000, 2000)), "bmp")  # more than the memory usually holds
    photos = [*GOOD.values(), turned, large, *in_every_format(china_image()).values()]
    plan = plan_of(tmp_path, *photos)
    settings = replace(SETTINGS, limits=DecodeLimits())
    reader = IsolatedReader(settings)
    pid = reader.decoder.pid
    assert untimed(reader(plan)).equals(untimed(Reader(settings)(plan)))
    assert reader(plan.slice(0, 0)).num_rows == 0
    assert reader.decoder.pid == pid, "a refusal ended the child"
    reader.close()


@pytest.mark.parametrize("at", [0, 5, 10])
@pytest.mark.parametrize(
    ("data", "code", "message"),
    [
        (CRASH, "decoder_crashed", "its decoder ended by SIGSEGV, twice"),
        (ABORT, "decoder_crashed", "its decoder ended by SIGABRT, twice"),
        (EXIT, "decoder_crashed", "its decoder ended by exit status 7, twice"),
        (BLOAT, "too_large", "decoding needs more than the 704 MiB of memory that it may take"),
    ],
)
def test_one_bad_file_among_ten(
    at: int, data: bytes, code: str, message: str, tmp_path: Path, reader: IsolatedReader
) -> None:
    photos = [*GOOD.values(), *GOOD.values()]
    photos.insert(at, data)
    plan = plan_of(tmp_path, *photos)
    check_rows(plan, reader(plan), {at: (code, message)})


@pytest.mark.parametrize("data", [SLEEP, SPIN])
def test_a_decoder_that_never_ends(data: bytes, tmp_path: Path, reader: IsolatedReader) -> None:
    plan = plan_of(tmp_path, *GOOD.values(), data, *GOOD.values())
    table = reader(plan)
    check_rows(plan, table, {5: ("decoder_timeout", "not decoded within 2 s, twice")})
    decode_s = table.column(schema.DECODE_SECONDS).to_pylist()
    assert decode_s[5] >= 2.0  # the one that an operator looks for
    assert max(seconds or 0 for seconds in decode_s[:5] + decode_s[6:]) < 2.0  # null where nothing was decoded


def test_several_in_one_block_and_then_another_block(tmp_path: Path, reader: IsolatedReader) -> None:
    plan = plan_of(tmp_path, CRASH, CRASH, china_jpeg(), BLOAT, SLEEP, flower_jpeg(), CRASH)
    crashed = ("decoder_crashed", "its decoder ended by SIGSEGV, twice")
    bad = {
        0: crashed,
        1: crashed,
        3: ("too_large", "decoding needs more than the 704 MiB of memory that it may take"),
        4: ("decoder_timeout", "not decoded within 2 s, twice"),
        6: crashed,
    }
    check_rows(plan, reader(plan), bad)
    check_rows(plan.slice(0, 4), reader(plan.slice(0, 4)), {index: bad[index] for index in (0, 1, 3)})


def test_a_hog_leaves_the_child_at_work(tmp_path: Path, reader: IsolatedReader) -> None:
    pid = reader.decoder.pid
    reader(plan_of(tmp_path, china_jpeg(), BLOAT, BLOAT, china_jpeg()))
    assert reader.decoder.pid == pid


def test_a_stray_kill_costs_nothing(tmp_path: Path, reader: IsolatedReader) -> None:
    """While a photo is decoded, while none is, and while the child starts."""
    small = encode(china_image().resize((160, 107)), "jpeg")  # or its first bytes would be looked at before
    once = ONCE + bytes(tmp_path / "killed") + b"\n" + small
    plan = plan_of(tmp_path, flower_jpeg(), once, flower_jpeg())
    for _ in range(2):
        assert reader.decoder.pid
        os.kill(reader.decoder.pid, signal.SIGKILL)
        table = reader(plan)
        assert table.column(schema.ERROR_CODE).null_count == 3
        pixels = table.column(schema.PIXELS_HWC).to_pylist()
        assert pixels[1] == Reader(SETTINGS)(plan_of(tmp_path, small)).column(schema.PIXELS_HWC)[0].as_py()
    assert (tmp_path / "killed").exists()


def test_a_bug_in_the_child_stops_the_parent(tmp_path: Path, reader: IsolatedReader) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)in the decoder process:.*bad_decoders.*LookupError: a bug in our own"):
        reader(plan_of(tmp_path, china_jpeg(), BUG, china_jpeg()))
    plan = plan_of(tmp_path, *GOOD.values())
    check_rows(plan, reader(plan), {})


def gone_decoder(data: bytes, target: DecodeTarget, limits: DecodeLimits) -> DecodedPhoto:
    raise AssertionError("never imported")


def test_a_child_that_cannot_start_stops_the_parent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    gone_decoder.__module__ = "tests.no_such_module"
    sys.modules["tests.no_such_module"] = sys.modules[__name__]
    try:
        reader = IsolatedReader(SETTINGS, gone_decoder)
        with pytest.raises(RuntimeError, match=r"does not start \(exit status 1\)"):
            reader(plan_of(tmp_path, china_jpeg()))
    finally:
        del sys.modules["tests.no_such_module"]
    assert "No module named 'tests.no_such_module'" in capfd.readouterr().err


INTERRUPTED = """
import os, signal, sys, threading
from pipeline.decode.photo import DecodeLimits, DecodeTarget, PhotoFacts
from pipeline.read.isolation import DecodeOrder, IsolatedDecoder
from tests.pipeline.read.bad_decoders import SLEEP, decode_photo
decoder = IsolatedDecoder(DecodeOrder(DecodeTarget(32, 36), DecodeLimits(), 30.0, 1 << 30, decode_photo))
good = open(sys.argv[1], "rb").read()
decoder([good])
threading.Timer(0.3, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()
try:
    decoder([SLEEP, SLEEP])
except KeyboardInterrupt:
    print([type(decoded[0]).__name__ for decoded, _ in decoder([good])])
"""


def test_an_interrupted_photo_does_not_answer_for_the_next(tmp_path: Path) -> None:
    """In a process of its own: an interrupt is nothing to send to the one that tests."""
    (tmp_path / "good").write_bytes(china_jpeg())
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path / "good")]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (answer.returncode, answer.stdout) == (0, "['PhotoFacts']\n"), answer.stderr


def test_two_readers_in_one_process(tmp_path: Path, reader: IsolatedReader) -> None:
    """Closing one ends its child alone: neither child holds the other's socket open."""
    other = IsolatedReader(SETTINGS, bad_decoders.decode_photo)
    plan = plan_of(tmp_path, china_jpeg(), CRASH, china_jpeg())
    bad = {1: ("decoder_crashed", "its decoder ended by SIGSEGV, twice")}
    for each in (reader, other, reader, other):
        check_rows(plan, each(plan), bad)
    pid, other_pid = reader.decoder.pid, other.decoder.pid
    assert pid != other_pid
    assert pid
    assert other_pid
    reader.close()
    wait_for(lambda: not is_running(pid))
    assert is_running(other_pid)
    check_rows(plan, other(plan), bad)
    other.close()


PARENT = """
import sys, time
from pipeline import schema
from pipeline.decode.photo import DecodeTarget
from pipeline.read.reader import IsolatedReader, ReaderSettings
from tests.pipeline.read.bad_decoders import decode_photo
import pyarrow as pa
reader = IsolatedReader(ReaderSettings(DecodeTarget(32, 36), decode_timeout_s=float(sys.argv[1])), decode_photo)
rows = [{schema.PHOTO_ID: schema.photo_id(uri), schema.URI: uri} for uri in sys.argv[2:]]
reader(pa.Table.from_pylist(rows[:1], schema=schema.MANIFEST))
print(reader.decoder.pid, flush=True)
reader(pa.Table.from_pylist(rows[1:], schema=schema.MANIFEST))
print("torch" in sys.modules or "ray" in sys.modules, flush=True)
time.sleep(float(sys.stdin.readline() or 0))
"""


@pytest.mark.parametrize("busy_with", [None, SLEEP])
@pytest.mark.parametrize("how", [signal.SIGKILL, None])
def test_the_child_goes_with_its_parent(busy_with: bytes | None, how: signal.Signals | None, tmp_path: Path) -> None:
    """Killed, or at its own exit; while the child waits, or while a photo keeps it busy (then once its time is up)."""
    (tmp_path / "good").write_bytes(china_jpeg())
    (tmp_path / "next").write_bytes(busy_with or china_jpeg())
    command = [sys.executable, "-c", PARENT, "2.0", str(tmp_path / "good"), str(tmp_path / "next")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdin
        assert parent.stdout
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        if busy_with is None:
            assert parent.stdout.readline() == "False\n"
        if how is None:
            parent.stdin.write("0\n")
            parent.stdin.close()
        else:
            parent.send_signal(how)
        parent.wait(15)
        wait_for(lambda: not is_running(pid))


def test_the_child_is_lean(reader: IsolatedReader, tmp_path: Path) -> None:
    """It holds neither torch nor Ray nor what fetches: a cluster's every reading process has one."""
    reader(plan_of(tmp_path, china_jpeg()))
    mapped = Path(f"/proc/{reader.decoder.pid}/maps").read_text()
    assert "_imaging" in mapped, "is this the child?"
    for library in ("torch", "/ray/", "obstore", "openvino"):
        assert library not in mapped
    files = [os.readlink(link) for link in Path(f"/proc/{reader.decoder.pid}/fd").iterdir()]
    assert sum("socket:" in file for file in files) == 1, "it holds its parent's end, and would outlive it"


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan")])
def test_a_time_limit_is_more_than_nothing(timeout_s: float) -> None:
    with pytest.raises(ValueError, match=r"decode_timeout_s .*: give more than 0 seconds"):
        replace(SETTINGS, decode_timeout_s=timeout_s)
