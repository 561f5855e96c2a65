"""Folders and object prefixes, patterns of names, and single photos, as sources."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline import schema, storage
from pipeline.sources.lists import names
from pipeline.sources.patterns import Patterns
from pipeline.sources.search import FolderVisit, Search, below
from pipeline.sources.tables import TableFolder
from pipeline.storage import local_files

_ROWS_PER_TABLE = 10_000
_TIME = schema.MANIFEST.field(schema.MODIFIED_AT).type
_WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Folder:
    """Everything below a folder or object prefix: any value of `--photos` that is nothing else.

    One that holds the parts of a table, and nothing else, is a manifest: what the table names is listed.
    """

    place: str

    @classmethod
    def of(cls, uri: str) -> Folder:
        """Return the folder."""
        return cls(uri)

    def tables(self, search: Search) -> Iterator[pa.Table]:
        """Yield the files below; ValueError where there is none."""
        if _is_table(self.place):
            yield from TableFolder(self.place).tables(search)
            return
        entries = walked(self.place, search)
        first = next(entries, None)
        if first is not None:
            yield from photos(itertools.chain([first], entries), self.place, search)
        elif storage.is_remote(self.place) and storage.exists(self.place):
            yield from Photo(self.place).tables(search)
        elif not search.left_out:
            raise ValueError(f"no photos at {self.place}: the folder or prefix is empty or missing")


@dataclass(frozen=True)
class NamePattern:
    """The files that a pattern names, such as `/photos/2024-*/*.jpg`; a folder that it names, with all below it."""

    place: str
    pattern: str

    @classmethod
    def of(cls, uri: str) -> NamePattern | None:
        """Return the pattern, unless something has just this name."""
        wild = wild_name(uri)
        if wild is None:
            return None
        if names.is_table(uri):
            raise ValueError(f"{uri}: a pattern can't name manifests: give each of them as --photos")
        return cls(*wild)

    def tables(self, search: Search) -> Iterator[pa.Table]:
        """Yield the files that match; ValueError where none does."""
        yield from photos(matching(self.place, self.pattern, search), self.place, search)
        if not search.found and not search.left_out:
            raise ValueError(f"no photos match {self.place.rstrip('/')}{self.pattern}: check it, or name the folder")


@dataclass(frozen=True)
class Photo:
    """A single photo, named by itself."""

    place: str

    @classmethod
    def of(cls, uri: str) -> Photo | None:
        """Return the photo where a file of this machine has this name; prefixes are listed before an object is."""
        return cls(uri) if not storage.is_remote(uri) and storage.exists(uri) else None

    def tables(self, search: Search) -> Iterator[pa.Table]:
        """Yield the photo."""
        yield from photos([storage.head(self.place)], self.place.rpartition("/")[0], search)


def _is_table(folder: str) -> bool:
    try:
        return names.holds_parts(folder)
    except OSError:  # listing it all will tell
        return False


def walked(folder: str, search: Search, for_archives: bool = False) -> Iterator[storage.Entry]:
    """Yield the files below a folder or prefix that are to be looked at; nothing that is left out is entered."""
    visit = FolderVisit(folder, search, for_archives)
    if visit.may_enter_source():
        yield from filter(visit.looks_at, storage.list_files(folder, visit))


def matching(folder: str, pattern: str, search: Search, for_archives: bool = False) -> Iterator[storage.Entry]:
    """Yield the files below a folder whose names match a pattern from there, as `--include` would take them."""
    wanted = Patterns([pattern])
    visit = _PatternVisit(folder, search, for_archives, wanted)
    if visit.may_enter_source():
        entries = filter(visit.looks_at, storage.list_files(folder, visit))
        while chunk := list(itertools.islice(entries, _ROWS_PER_TABLE)):
            names = pa.chunked_array([pa.array([below(each.uri, f"{folder.rstrip('/')}/") for each in chunk])])
            yield from itertools.compress(chunk, wanted.takes(names).to_pylist())


class _PatternVisit(FolderVisit):
    """Enters only folders in which a pattern can match."""

    def __init__(self, folder: str, search: Search, for_archives: bool, wanted: Patterns) -> None:
        super().__init__(folder, search, for_archives)
        self._folder, self._wanted = f"{folder.rstrip('/')}/", wanted

    def enters(self, folder_uri: str) -> bool:
        """Whether a folder is to be listed."""
        return self._wanted.enters(below(folder_uri, self._folder)) and super().enters(folder_uri)


def wild_name(uri: str) -> tuple[str, str] | None:
    """Return the folder above the first `*`, `?` or `[` of a name and the pattern from there, None where it has none.

    A thing that has just this name is no pattern.
    """
    if not _WILD.search(uri):
        return None
    if storage.is_remote(uri):
        if storage.exists(uri) or next(iter(storage.list_files(uri)), None) is not None:
            return None
    elif os.path.lexists(local_files.path_of(uri)):
        return None
    folder, _, rest = uri[: _WILD.search(uri).start()].rpartition("/")  # type: ignore[union-attr]
    return folder or "/", f"/{rest}{uri[len(folder) + 1 + len(rest) :]}"


def photos(entries: Iterable[storage.Entry], folder: str, search: Search) -> Iterator[pa.Table]:
    """Yield the wanted ones of files below a folder as rows."""
    prefix = folder.rstrip("/") + "/"
    every = iter(entries)
    while chunk := list(itertools.islice(every, _ROWS_PER_TABLE)):
        names = pa.array([below(entry.uri, prefix) for entry in chunk], pa.string())
        yield search.take(_table(chunk), pa.chunked_array([names]))


def _table(entries: Sequence[storage.Entry]) -> pa.Table:
    columns = {
        schema.URI: pa.array([entry.uri for entry in entries], pa.string()),
        schema.ETAG: pa.array([entry.etag for entry in entries], pa.string()),
        schema.SIZE_BYTES: pa.array([entry.size_bytes for entry in entries], pa.int64()),
        schema.MODIFIED_AT: pa.array([entry.modified_us for entry in entries], _TIME),
    }
    return pa.table(columns)
