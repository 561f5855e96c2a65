"""Which local files may be read: a manifest is another's word, and must not make this machine tell of any file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from pipeline.storage import local_files

_REMOTE = re.compile(r"(?!file://)[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def is_local(uri: str) -> bool:
    """Whether a canonical URI names a file of a machine, whatever other schemes there are."""
    return not _REMOTE.match(uri)


def is_allowed(uri: str, roots: Iterable[str]) -> bool:
    """Whether a photo's canonical URI is remote, or below one of `roots`: folders that end in a slash, or names."""
    if not is_local(uri):
        return True
    path = os.path.normpath(_path(uri))
    return any(path.startswith(root) if root.endswith(b"/") else path == root for root in map(_path, roots))


def refusal(uri: str) -> str:
    """Say why a photo is not allowed, and what to do if it should be."""
    return (
        f"{uri} lies outside of the manifest's folder: name a folder above it with --photos-root, if you trust the list"
    )


def _path(uri: str) -> bytes:
    return os.fsencode(local_files.path_of(uri))
