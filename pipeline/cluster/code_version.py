"""What names the code of Graticule that a process runs, so that a cluster's processes can be told from each other."""

from __future__ import annotations

import functools
import hashlib
import socket
from pathlib import Path

_PACKAGES = ("jobs", "model", "pipeline", "training")


class NodeError(RuntimeError):
    """A node of the cluster runs other code than the driver, or none: what they do together would be nobody's."""


@functools.cache
def code_version() -> str:
    """Return 16 hex digits that name the Python sources beside this file, whichever way they were installed."""
    root = Path(__file__).parents[2]
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(path for package in _PACKAGES for path in (root / package).rglob("*.py")):
        content = hashlib.blake2b(path.read_bytes(), digest_size=16).digest()
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + content)
    return digest.hexdigest()


def check_code(drivers: str) -> None:
    """Raise NodeError where this process runs other code than `drivers`, the driver's `code_version`."""
    if code_version() != drivers:
        raise mixed_code(socket.gethostname(), code_version(), drivers)


def mixed_code(where: str, theirs: str, drivers: str) -> NodeError:
    """Return the error that says what runs on the node `where`, and what to do."""
    return NodeError(
        f"the node {where} runs other code than this run's driver ({theirs} there, {drivers} here): install the same"
        " version on every node, or send it along with: ray job submit --working-dir ."
    )
