"""Decoding in a process of its own: a photo that crashes, stalls or bloats its decoder costs its own row, no other's.

A few photos' bytes at a time go to a child through shared memory, and pixels or refusals come back; the child decodes
one after the other and marks which, so that the one under way when it ends is known. Fetching stays with the parent:
nothing that was fetched is lost. The child limits itself: a timer whose signal ends it, with no Python needed, and a
limit that the kernel holds on the memory that a photo's bytes and its decoding may add, whatever its header says; one
that keeps memory after a photo ends itself, and the next photo starts another. It ends when the parent's end of their
socket closes, at the latest once the photo under way is done or out of time.

Why no library's pool: `pebble` 5.2.3, which has such time limits, hands bytes and pixels over as pickles in a pipe and
from thread to thread; it cost 34 % more processor time than decoding alone on photos of 640 × 480, where this costs 6 %
(and a socket that carries the bytes, 14 %). It starts its workers by multiprocessing, too: a fork copies the locks of
Ray's and obstore's threads, and spawn imports the parent's main module again, which is Ray's worker. A child of ours
imports neither: it is up in 0.3 s, with 70 MB of which 25 are its own.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import pickle
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.decode.photo import DecodedPhoto, DecodeLimits, DecodeTarget, PhotoFacts, decode_photo
from pipeline.schema import ErrorCode, PhotoError

Decode = Callable[[bytes, DecodeTarget, DecodeLimits], DecodedPhoto]
"""`decode_photo` or alike; the child imports it by its name."""

Decoded = tuple[PhotoFacts, bytes]
"""A photo's facts and its RGB pixels, row by row."""

Answer = tuple[Decoded | PhotoError, float]
"""What became of a photo, and the seconds that its decoding took (the last time, where it ended its decoder)."""

_STARTS = 3
_READY = b"ready"
_MEMORY_STEP_BYTES = 16 << 20
_MOST_KEPT_BYTES = 128 << 20
"""A child that holds so much more between photos than at its start is replaced: 0.3 s for what may be a leak."""
_MAX_MESSAGE_BYTES = 128 << 10
_MAX_BUG_CHARS = 8000
_MARK = struct.Struct("<Q")
_PAGE_BYTES = resource.getpagesize()
# The parent's path, so that the child finds the code that was shipped with a submitted job.
_BOOT = (
    "import sys; sys.path[:] = sys.argv[3:]; from pipeline.read.isolation import serve; serve(*map(int, sys.argv[1:3]))"
)

# The heap is kept between photos: glibc would give it back after each and take it anew, which on photos of 640 × 480
# costs a quarter of their decoding in page faults. What is larger than 32 MiB, glibc's maximum, still goes back.
_HEAP_PIECE_BYTES, _HEAP_KEPT_BYTES = 32 << 20, 64 << 20
_KEEP_HEAP = {"MALLOC_MMAP_THRESHOLD_": str(_HEAP_PIECE_BYTES), "MALLOC_TRIM_THRESHOLD_": str(_HEAP_KEPT_BYTES)}
_ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # LibRaw's; photos are what runs in parallel
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h


@dataclass(frozen=True)
class DecodeOrder:
    """What a decoder process does with every photo.

    Attributes:
        timeout_s: how long one photo may take.
        memory_bytes: how much memory its bytes and its decoding may add to the process.
    """

    target: DecodeTarget
    limits: DecodeLimits
    timeout_s: float
    memory_bytes: int
    decode: Decode = decode_photo


def keep_heap() -> None:
    """Have this process keep its heap, too: for one that does nothing but read photos, before its threads start.

    Reading 4 MB into memory taken anew costs 2.8 ms of core time, most of it page faults, and 0.9 ms into memory kept.
    Threads would each have a heap of their own, which is given back whenever it is empty: one heap has to do.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # not every C library has it, and none needs it
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _HEAP_PIECE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _HEAP_KEPT_BYTES)


class IsolatedDecoder:
    """Decodes as `decode_photo` does, in a child process that it starts and, when a photo ends it, starts anew.

    A photo is blamed only when it ended a second child too, a fresh one that had no other photo: neither a stray kill
    nor what an earlier photo did to the child's memory costs anybody a row. Not for several threads at once.
    """

    def __init__(self, order: DecodeOrder) -> None:
        self._order = order
        self._child: _Child | None = _Child(order)  # by the time a first photo is fetched, it is up

    def __call__(self, photos: Sequence[bytes]) -> list[Answer]:
        """Decode photos, one after the other, to an answer each.

        A `PhotoError` is what `decode_photo` would have raised, or says that the decoder crashed or took too long.
        RuntimeError for a bug: anything else that the child raises, or a child that does not start.
        """
        if not photos:
            return []
        answers = self._asked(photos)
        if not isinstance(answers, _Death):
            return answers
        at = answers.at
        again = self._asked([photos[at]])  # alone, in the fresh child
        suspect = [(self._blame(again), again.after_s)] if isinstance(again, _Death) else again
        return [*self(photos[:at]), *suspect, *self(photos[at + 1 :])]

    def _asked(self, photos: Sequence[bytes]) -> list[Answer] | _Death:
        child = self._ready_child()
        try:
            answers = child.ask(photos)
        except BaseException:  # interrupted, too: the answer still to come would be taken for the next photo's
            self.close()
            raise
        if isinstance(answers, _Death):
            self.close()
        return answers

    def _blame(self, death: _Death) -> PhotoError:
        if death.returncode == -signal.SIGALRM:
            return PhotoError(ErrorCode.DECODER_TIMEOUT, f"not decoded within {self._order.timeout_s:g} s, twice")
        return PhotoError(ErrorCode.DECODER_CRASHED, f"its decoder ended by {death}, twice")

    def _ready_child(self) -> _Child:
        """Return a child that is up and alive, so that what ends it from now on is neither its start nor the past."""
        deaths: list[_Death] = []
        while len(deaths) < _STARTS:
            self._child = child = self._child or _Child(self._order)
            death = child.wait_until_ready()
            if death is None:
                return child
            deaths.append(death)
            self.close()
        raise RuntimeError(f"the decoder process does not start ({deaths[-1]}): see what it wrote to stderr")

    @property
    def pid(self) -> int | None:
        """The child's process id, for whoever watches it; None while there is no child."""
        return self._child.process.pid if self._child else None

    def close(self) -> None:
        """End the child; the next photo starts another. The process' exit does the same."""
        if self._child:
            self._child.close()
            self._child = None


def serve(socket_descriptor: int, memory_descriptor: int) -> None:
    """Be the child: decode what the parent puts into the shared memory, until its end of the socket closes."""
    # All of these are inherited, and a parent may have any of them set otherwise.
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    link = _Link(socket.socket(fileno=socket_descriptor))
    limit = _MemoryLimit()
    try:
        order: DecodeOrder = pickle.loads(link.receive())
        memory = _PhotoMemory(memory_descriptor, order.target)
        link.send(_READY)
        while True:
            link.send(_answers(pickle.loads(link.receive()), order, memory, limit))
            if limit.kept_bytes() > _MOST_KEPT_BYTES and not limit.trimmed(_MOST_KEPT_BYTES):
                return
    except (EOFError, ConnectionError):  # the parent is gone, or needs no child any more
        return


def _answers(layout: _Layout, order: DecodeOrder, memory: _PhotoMemory, limit: _MemoryLimit) -> bytes:
    """Decode the photos that lie in the memory; return what there is to say of each, as one message."""
    answers: list[tuple[PhotoFacts | PhotoError | _Bug, float]] = []
    for index in range(len(layout.photo_bytes)):
        memory.mark(layout, index)
        start_s = time.perf_counter()
        answer = _answer(memory.photo(layout, index), order, limit)
        if isinstance(answer, DecodedPhoto):
            memory.put_pixels(layout, index, answer.pixels_HWC)
            answers.append((answer.facts, time.perf_counter() - start_s))
            continue
        answers.append((answer, time.perf_counter() - start_s))
        if isinstance(answer, _Bug):
            break
    return pickle.dumps(answers)


def _answer(data: bytes, order: DecodeOrder, limit: _MemoryLimit) -> DecodedPhoto | PhotoError | _Bug:
    limit.set(order.memory_bytes - len(data))  # which are there already
    signal.setitimer(signal.ITIMER_REAL, order.timeout_s)
    try:
        return order.decode(data, order.target, order.limits)
    except PhotoError as error:
        return error.without_frames()
    except MemoryError:
        allowed = f"decoding needs more than the {order.memory_bytes >> 20} MiB of memory that it may take"
        return PhotoError(ErrorCode.TOO_LARGE, allowed)
    except Exception:  # noqa: BLE001 - not swallowed: the parent raises it
        return _Bug(traceback.format_exc()[-_MAX_BUG_CHARS:])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        limit.lift()


@dataclass(frozen=True)
class _Bug:
    """What the child raised that is no photo's failure, as text."""

    text: str


@dataclass(frozen=True)
class _Death:
    """How the child ended (a signal's number, negative, or an exit status, as subprocess has it), at which photo and
    how long after it was asked."""

    returncode: int
    at: int = 0
    after_s: float = 0.0

    def __str__(self) -> str:
        if self.returncode >= 0:
            return f"exit status {self.returncode}"
        try:
            return signal.Signals(-self.returncode).name
        except ValueError:  # the real-time signals have no names
            return f"signal {-self.returncode}"


class _Child:
    """A running child, as the parent sees it."""

    def __init__(self, order: DecodeOrder) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        memory = os.memfd_create("photo")
        passed = (theirs.fileno(), memory)
        path = [os.path.abspath(entry) for entry in sys.path]
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, *map(str, passed), *path],
                env=os.environ | _KEEP_HEAP | _ONE_THREAD,
                stdin=subprocess.DEVNULL,
                pass_fds=passed,
            )
        self._link = _Link(ours)
        self._memory = _PhotoMemory(memory, order.target)
        self._order = order
        self._is_ready = False
        # At the latest when this process exits.
        self.close = weakref.finalize(self, _end, self.process, self._link, self._memory)

    def wait_until_ready(self) -> _Death | None:
        """Wait until the child takes photos; return how it ended if it did, now or while nobody asked it anything."""
        if self._is_ready:
            returncode = self.process.poll()
            return None if returncode is None else _Death(returncode)
        try:
            self._link.send(pickle.dumps(self._order))
            answer = self._link.receive()
        except (EOFError, ConnectionError):
            return _Death(self.process.wait())
        assert answer == _READY, answer
        self._is_ready = True
        return None

    def ask(self, photos: Sequence[bytes]) -> list[Answer] | _Death:
        """Return the child's answer to each photo, or how it ended over one of them."""
        layout = self._memory.put_photos(photos)
        start_s = time.perf_counter()
        try:
            self._link.send(pickle.dumps(layout))
            answers: list[tuple[PhotoFacts | PhotoError | _Bug, float]] = pickle.loads(self._link.receive())
        except (EOFError, ConnectionError):
            returncode = self.process.wait()
            return _Death(returncode, self._memory.marked(layout), time.perf_counter() - start_s)
        found = [
            (
                (answer, self._memory.pixels(layout, index)) if isinstance(answer, PhotoFacts) else _raised(answer),
                taken_s,
            )
            for index, (answer, taken_s) in enumerate(answers)
        ]
        self._memory.give_back(layout)
        return found


def _raised(answer: PhotoError | _Bug) -> PhotoError:
    if isinstance(answer, _Bug):
        raise RuntimeError(f"in the decoder process:\n{answer.text}")
    return answer


def _end(process: subprocess.Popen[bytes], link: _Link, memory: _PhotoMemory) -> None:
    link.close()
    memory.close()
    process.kill()  # it holds nothing that could be lost
    process.wait()


class _MemoryLimit:
    """Lets the process' data grow by so much from what it is at the time: a leak is no later photo's fault.

    RLIMIT_DATA counts what is private and writable, on the heap or mapped; neither libraries nor the shared memory.
    """

    def __init__(self) -> None:
        self._statm = os.open("/proc/self/statm", os.O_RDONLY)  # kept open: opening takes longer than all else here
        self._hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        self._at_start_bytes = self._data_bytes()

    def _data_bytes(self) -> int:
        return int(os.pread(self._statm, 200, 0).split()[5]) * _PAGE_BYTES

    def kept_bytes(self) -> int:
        """Return how much more data the process has than at its start."""
        return self._data_bytes() - self._at_start_bytes

    def trimmed(self, most_bytes: int) -> bool:
        """Give free memory back to the system; return whether no more than `most_bytes` are kept then."""
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:  # not every C library has it
            trim(_HEAP_KEPT_BYTES)
        return self.kept_bytes() <= most_bytes

    def set(self, more_bytes: int) -> None:
        soft = self._data_bytes() + more_bytes
        soft = soft if self._hard == resource.RLIM_INFINITY else min(soft, self._hard)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, self._hard))

    def lift(self) -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (self._hard, self._hard))


class _Link:
    """One end of the socket between parent and child; EOFError or ConnectionError where the other end is gone."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self.close = end.close

    def send(self, message: bytes) -> None:
        self._end.sendall(message)

    def receive(self) -> bytes:
        message = self._end.recv(_MAX_MESSAGE_BYTES)
        if not message:
            raise EOFError("the other end is closed")
        return message


@dataclass(frozen=True)
class _Layout:
    """What lies in the shared memory: which photo is at work, room for the pixels of each, the photos."""

    memory_bytes: int
    photo_bytes: list[int]


def _write_whole(descriptor: int, data: bytes, at: int) -> None:
    rest = memoryview(data)
    while rest:
        written = os.pwrite(descriptor, rest, at)
        rest, at = rest[written:], at + written


def _read_on(descriptor: int, size_bytes: int, at: int) -> Iterator[bytes]:
    while size_bytes:
        piece = os.pread(descriptor, size_bytes, at)
        assert piece, "the shared memory is shorter than its layout says"
        yield piece
        size_bytes, at = size_bytes - len(piece), at + len(piece)


class _PhotoMemory:
    """The memory that parent and child share, as one of them sees it."""

    def __init__(self, descriptor: int, target: DecodeTarget) -> None:
        self._descriptor = descriptor
        self._pixels_bytes = target.pixels_bytes
        self._memory: mmap.mmap | None = None

    def put_photos(self, photos: Sequence[bytes]) -> _Layout:
        """Put photos into the memory, which is made to fit: what a huge one took is given back after it."""
        photo_bytes = [len(data) for data in photos]
        at = _MARK.size + len(photos) * self._pixels_bytes
        needed_bytes = at + sum(photo_bytes)
        layout = _Layout(-(-needed_bytes // _MEMORY_STEP_BYTES) * _MEMORY_STEP_BYTES, photo_bytes)
        if os.fstat(self._descriptor).st_size != layout.memory_bytes:
            os.ftruncate(self._descriptor, layout.memory_bytes)
        memory = self._mapped(layout)
        for data in photos:
            if len(data) <= _MEMORY_STEP_BYTES:
                memory[at : at + len(data)] = data
            else:  # not by way of pages that would then be this process', too
                _write_whole(self._descriptor, data, at)
            at += len(data)
        self.mark(layout, 0)
        return layout

    def give_back(self, layout: _Layout) -> None:
        """Give back what a huge photo took: the next one may be long in coming."""
        if layout.memory_bytes > _MEMORY_STEP_BYTES:
            os.ftruncate(self._descriptor, 0)

    def photo(self, layout: _Layout, index: int) -> bytes:
        at = _MARK.size + len(layout.photo_bytes) * self._pixels_bytes + sum(layout.photo_bytes[:index])
        size_bytes = layout.photo_bytes[index]
        if size_bytes <= _MEMORY_STEP_BYTES:
            return self._mapped(layout)[at : at + size_bytes]
        data = os.pread(self._descriptor, size_bytes, at)
        if len(data) < size_bytes:  # beyond 2 GiB one call gives less
            data += b"".join(_read_on(self._descriptor, size_bytes - len(data), at + len(data)))
        return data

    def mark(self, layout: _Layout, index: int) -> None:
        """Say which photo is at work."""
        _MARK.pack_into(self._mapped(layout), 0, index)

    def marked(self, layout: _Layout) -> int:
        return int(_MARK.unpack_from(self._mapped(layout))[0])

    def put_pixels(self, layout: _Layout, index: int, pixels_HWC: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        assert pixels_HWC.nbytes == self._pixels_bytes
        at = _MARK.size + index * self._pixels_bytes
        self._mapped(layout)[at : at + self._pixels_bytes] = pixels_HWC.data.cast("B")

    def pixels(self, layout: _Layout, index: int) -> bytes:
        at = _MARK.size + index * self._pixels_bytes
        return self._mapped(layout)[at : at + self._pixels_bytes]

    def close(self) -> None:
        os.close(self._descriptor)
        if self._memory is not None:
            self._memory.close()

    def _mapped(self, layout: _Layout) -> mmap.mmap:
        if self._memory is None or len(self._memory) != layout.memory_bytes:
            if self._memory is not None:
                self._memory.close()
            self._memory = mmap.mmap(self._descriptor, layout.memory_bytes)
        return self._memory
