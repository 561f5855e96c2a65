"""Which kinds of source there are: to add one, write its class as `Source` describes and name it in `SOURCES`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import pyarrow as pa

from pipeline.sources.archive_sources import Archive, ArchivesBelow
from pipeline.sources.folders import Folder, NamePattern, Photo
from pipeline.sources.inventory import Inventory
from pipeline.sources.search import Search
from pipeline.sources.tables import Table


class Source(Protocol):
    """One value of `--photos`: a class that knows which values are its own, and lists their photos."""

    @property
    def place(self) -> str:
        """Return the folder, archive or file where the photos are; "" where the source only names them."""

    @classmethod
    def of(cls, uri: str) -> Source | None:
        """Return the source that `uri` is, None if it is of another kind; ValueError where it can't be meant."""

    def tables(self, search: Search) -> Iterator[pa.Table]:
        """Yield the photos that `search.take` has let through: any columns of the manifest but the ID.

        Raises ValueError or OSError where the source is missing or can't be read; what is amiss with a part of it goes
        to `search.note`.
        """


SOURCES: tuple[type[Source], ...] = (ArchivesBelow, Inventory, Table, Archive, NamePattern, Photo, Folder)
"""The first one that says that a value of `--photos` is its own has it; a folder can be anything."""


def source_of(uri: str) -> Source:
    """Return the source that `uri` is; ValueError where it can't be meant, OSError where its store can't be asked."""
    return next(source for kind in SOURCES if (source := kind.of(uri)) is not None)
