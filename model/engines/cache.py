"""Compiled engines on the local disk, each made once however many processes ask for it, and shared if asked to.

An entry is a folder: what a compiler made, and `manifest.json`, which says what it is and every file's size and hash.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

log = logging.getLogger(__name__)

MANIFEST_FILE = "manifest.json"

Maker = Callable[[Path], object]
"""Fills an empty folder with an entry's files; what it returns is of no account."""

Share = Callable[[str, Path, Maker], None]
"""(entry's name, empty local folder, maker): fills the folder from where machines share engines; where the entry isn't
there yet, by the maker, and puts it there. `pipeline.locate.engine_share` has one on any store."""


def entry(
    cache_dir: Path,
    name: str,
    details: Mapping[str, object],
    make: Maker,
    share: Share | None = None,
    remake: bool = False,
) -> Path:
    """Return the folder `cache_dir`/`name`, whole: as it is there, else from `share`, else made here.

    It appears by one rename. Other processes that want it wait for the one that makes it; if that one dies, the next
    makes it. A damaged entry is made again, with a warning.

    Args:
        name: what the entry depends on, and so never to be made of anything else; fit for a folder's name.
        details: JSON values for people, written into the manifest.
        remake: make it anew, and here: what is there is whole, but of no use.
    """
    folder = cache_dir / name
    cache_dir.mkdir(parents=True, exist_ok=True)

    def make_sealed(fresh: Path) -> None:
        make(fresh)
        _seal(fresh, details)

    with _locked(cache_dir / f"{name}.lock", name):
        if folder.exists():
            problem = "it does not work here" if remake else damage(folder)
            if problem is None:
                return folder
            log.warning("the compiled engine %s is of no use (%s): making it again", folder, problem)
            shutil.rmtree(folder)
        with tempfile.TemporaryDirectory(dir=cache_dir) as partial:
            fresh = Path(partial) / name
            fresh.mkdir()
            if share is None or remake:
                make_sealed(fresh)
            else:
                share(name, fresh, make_sealed)
            os.rename(fresh, folder)
    return folder


def damage(folder: Path) -> str | None:
    """Return what is wrong with the entry at `folder`, None if it is whole.

    This finds accidents. Whoever can write to a cache can also write a manifest, and a compiled engine is code: keep
    engines only where those write whom you trust.
    """
    try:
        files = json.loads((folder / MANIFEST_FILE).read_bytes())["files"]
        found = {name: _described(folder / name) for name in files}
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    wrong = [name for name, described in found.items() if described != files[name]]
    return f"{wrong[0]} is not as it was written" if wrong else None


def _seal(folder: Path, details: Mapping[str, object]) -> None:
    files = {path.name: _described(path) for path in sorted(folder.iterdir())}
    manifest = json.dumps({**details, "files": files}, indent=2) + "\n"
    (folder / MANIFEST_FILE).write_text(manifest, encoding="utf-8")


def _described(path: Path) -> dict[str, object]:
    with open(path, "rb") as file:
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


@contextlib.contextmanager
def _locked(path: Path, name: str) -> Iterator[None]:
    """Keep other processes out; the kernel lets the next one in when this one ends, however it ends."""
    with open(path, "wb") as lock:  # never removed: a process may be waiting for this very file
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another process is making %s: waiting for it", name)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
