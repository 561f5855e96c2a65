"""The sidecars that owners keep beside their photos, under whatever names, for whoever may hide none of them."""

from __future__ import annotations

import collections
import threading
from dataclasses import dataclass

from pipeline import storage
from pipeline.beside import names
from pipeline.beside.names import Kind

_MOST_FOLDERS, _MOST_NAMES = 64, 1_000_000
"""So many folders' sidecars are remembered, and so many sidecars: photos come in the order of their names."""

_Index = dict[str, list[tuple[str, int]]]


@dataclass(frozen=True)
class Owned:
    """A sidecar that may be a photo's. `rank`: as in `names`; `is_cut`: only its title tells whose it is."""

    uri: str
    kind: Kind
    rank: int

    @property
    def is_cut(self) -> bool:
        """Whether the name was cut, so that it may be another photo's."""
        return self.rank in names.CUT_RANKS

    @property
    def takes_ours(self) -> bool:
        """Whether programs look for what is said of the photo in it."""
        return self.rank in (names.FULL_NAME, names.STEM)


class OwnersSidecars:
    """Finds sidecars by listing each folder once; any thread may ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._folders: collections.OrderedDict[str, _Index] = collections.OrderedDict()

    def of(self, photo_uri: str) -> list[Owned]:
        """Return what may be the sidecars of a photo, there or not, in its folder; the closest first.

        Of Takeout's JSON the closest ones only. Raises OSError where the folder can't be listed.
        """
        folder, _, name = photo_uri.rpartition("/")
        index = self._index(folder)
        found: dict[str, Owned] = {}
        for kind in names.ENDINGS.values():
            closest: int | None = None
            for key in sorted(names.photo_keys(name, kind), key=lambda key: key.rank):
                closeness = names.CUT if key.rank == names.CUT_OTHER_NUMBER else key.rank
                if kind == "takeout" and closest not in (None, closeness):
                    break
                for sidecar, rank in sorted(index.get(key.spelling.lower(), ())):
                    found.setdefault(sidecar, Owned(f"{folder}/{sidecar}", kind, key.rank + rank))
                    closest = closeness
        # A name in the photo's own letters before one in others.
        return sorted(found.values(), key=lambda each: (each.rank, not each.uri.startswith(photo_uri), each.uri))

    def _index(self, folder: str) -> _Index:
        with self._lock:
            if folder in self._folders:
                self._folders.move_to_end(folder)
                return self._folders[folder]
            index: _Index = {}
            for entry in storage.list_folder(folder):
                sidecar = entry.uri.rpartition("/")[2]
                if names.kind_of(sidecar) is not None:
                    for key in names.sidecar_keys(sidecar):
                        index.setdefault(key.spelling.lower(), []).append((sidecar, key.rank))
            self._folders[folder] = index
            while len(self._folders) > 1 and (
                len(self._folders) > _MOST_FOLDERS or sum(map(len, self._folders.values())) > _MOST_NAMES
            ):
                self._folders.popitem(last=False)
            return index
