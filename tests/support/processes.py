"""This machine's processes, told apart by their environment: several tests' clusters run at once."""

from __future__ import annotations

import contextlib
from pathlib import Path


def processes_with(variable: str) -> dict[int, str]:
    """Return every process that has NAME=VALUE in its environment by its number, with its command line.

    Ray writes into the command line what a worker runs.
    """
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if variable.encode() in (folder / "environ").read_bytes().split(b"\0"):
                title = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(folder.name)] = title.decode(errors="replace").strip()
    return found
