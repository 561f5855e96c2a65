"""Decoders for tests of isolation: a file's first bytes say what it does to its decoder; others are decoded as ever.

Each does for real what a broken codec would do: a child process imports this module by its name.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import time

from pipeline.decode import photo as pipeline_decode
from pipeline.decode.photo import DecodedPhoto, DecodeLimits, DecodeTarget

CRASH, ABORT, EXIT, SLEEP, SPIN, BLOAT, BUG, ONCE, LEAK = (
    b"\0!" + name for name in (b"crash", b"abort", b"exit", b"sleep", b"spin", b"bloat", b"bug", b"once", b"leak")
)


_leaked: list[bytearray] = []


def decode_photo(data: bytes, target: DecodeTarget, limits: DecodeLimits) -> DecodedPhoto:
    """Decode, or do as the file says. ONCE is followed by a path: killed while that is missing, then a good photo."""
    if data.startswith(CRASH):
        ctypes.string_at(0)
    if data.startswith(ABORT):
        os.abort()
    if data.startswith(EXIT):
        os._exit(7)
    if data.startswith(SLEEP):
        time.sleep(3600)
    if data.startswith(SPIN):
        re.match(r"(a+)+$", "a" * 60 + "b")  # in C, and its end is a matter of years
    if data.startswith(BLOAT):
        hoard = []
        while True:
            hoard.append(bytearray(16 << 20))
    if data.startswith(LEAK):
        _leaked.append(bytearray(200 << 20))
        data = data.removeprefix(LEAK)
    if data.startswith(BUG):
        raise LookupError("a bug in our own code")
    if data.startswith(ONCE):
        path, _, data = data.removeprefix(ONCE).partition(b"\n")
        if not os.path.exists(path):
            open(path, "wb").close()
            os.kill(os.getpid(), signal.SIGKILL)
    return pipeline_decode.decode_photo(data, target, limits)
