"""Compiled engines in a folder or object prefix that several machines use, so that each is compiled by one of them.

URI/<name>/  the files of `model.engines.cache`'s entry of that name, its manifest put last
"""

from __future__ import annotations

import logging
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from model.engines import cache
from pipeline import storage
from pipeline.storage import lease

log = logging.getLogger(__name__)

_LOOK_AGAIN_S = 5.0


@dataclass(frozen=True)
class EngineShare:
    """A `cache.Share` on any store: takes an entry from below `uri`, or has it made and puts it there.

    Of machines that want the same entry at once, one makes it, under a lease; the others wait for it. The maker's death
    is noticed as any lease holder's.

    Attributes:
        uri: folder or object prefix; whoever can write there decides what code the engines run.
    """

    uri: str
    lease: lease.LeaseSettings = field(default_factory=lease.LeaseSettings)

    def __call__(self, name: str, folder: Path, make: cache.Maker) -> None:
        """Fill the empty `folder` with the entry `name`.

        Raises:
            ValueError: the store knows no conditional puts.
            OSError: it can't be read or written.
        """
        uri = storage.join(self.uri, name)
        waiting = False
        while not self._fetched(uri, folder):
            try:
                with lease.held(uri, name, self.lease):
                    if not self._fetched(uri, folder):  # nobody has made it since
                        make(folder)
                        self._put(uri, folder)
                return
            except lease.LeaseHeldError as error:
                if not waiting:
                    log.info("another machine is making %s: waiting for it (%s)", uri, error)
                waiting = True
                time.sleep(_LOOK_AGAIN_S)

    def _fetched(self, uri: str, folder: Path) -> bool:
        """Whether the entry is there and has been copied whole; else `folder` is empty."""
        try:
            storage.head(storage.join(uri, cache.MANIFEST_FILE))
        except FileNotFoundError:
            return False
        for entry in storage.list_files(uri):
            name = entry.uri.removeprefix(storage.canonical(uri) + "/")
            if name != lease.FILE and "/" not in name:
                (folder / name).write_bytes(storage.read_bytes(entry.uri))
        problem = cache.damage(folder)
        if problem is None:
            log.info("took %s", uri)
            return True
        log.warning("the shared engine %s is damaged (%s): making it again", uri, problem)
        shutil.rmtree(folder)
        folder.mkdir()
        return False

    def _put(self, uri: str, folder: Path) -> None:
        storage.delete(storage.join(uri, cache.MANIFEST_FILE))  # of a damaged one
        files = sorted(folder.iterdir(), key=lambda file: (file.name == cache.MANIFEST_FILE, file.name))
        for file in files:
            storage.write_bytes(storage.join(uri, file.name), file.read_bytes())
        log.info("put %s, for other machines", uri)
