"""Archives as sources: one by its name, and all below a folder."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema, storage
from pipeline.schema import ProblemKind
from pipeline.sources import archives, folders
from pipeline.sources.search import FOLDER_MARKS, MARKS, Search, below

ALL_BELOW = tuple(f"*{ending}" for ending in archives.ENDINGS)
"""Names behind a folder's that stand for all archives at any depth."""
_TIME = schema.MANIFEST.field(schema.MODIFIED_AT).type


@dataclass(frozen=True)
class ArchivesBelow:
    """All archives of a folder or prefix, `FOLDER/*.tar`, or those that a pattern names, `FOLDER/2024-*.zip`."""

    place: str
    pattern: str

    @classmethod
    def of(cls, uri: str) -> ArchivesBelow | None:
        """Return the archives, for a name with a pattern in it that ends as an archive's does."""
        folder, _, name = uri.rpartition("/")
        if name.lower() in ALL_BELOW:
            return cls(folder or "/", f"/**/{name}")
        wild = folders.wild_name(uri) if name.lower().endswith(archives.ENDINGS) else None
        return None if wild is None else cls(*wild)

    def tables(self, search: Search) -> Iterator[pa.Table]:
        """Yield the members of each; ValueError where there is no archive."""
        yield from _members(self._containers(search), f"{self.place.rstrip('/')}/", search)

    def _containers(self, search: Search) -> Iterator[storage.Entry]:
        prefix = f"{self.place.rstrip('/')}/"
        for entry in folders.matching(self.place, self.pattern, search, for_archives=True):
            if not entry.uri.lower().endswith(archives.ENDINGS):  # of a folder that is called so
                continue
            if search.patterns.opens(below(entry.uri, prefix)):
                yield entry
            else:
                search.excluded_folders += 1


@dataclass(frozen=True)
class Archive:
    """One tar or zip."""

    place: str

    @classmethod
    def of(cls, uri: str) -> Archive | None:
        """Return the archive; ValueError for one of a kind that can't be read."""
        if not archives.is_archive(uri) or not storage.exists(uri):
            return None
        archives.check_readable(uri)
        return cls(uri)

    def tables(self, search: Search) -> Iterator[pa.Table]:
        """Yield its members; ValueError where it is the only source and nothing in it can be read."""
        yield from _members([storage.head(self.place)], "", search)
        if search.is_alone and search.problems and not search.found and not search.excluded:
            raise ValueError(f"{self.place} can't be listed: {search.problems[0].reason}")


def _members(containers: Iterable[storage.Entry], prefix: str, search: Search) -> Iterator[pa.Table]:
    """Yield the photos of archives; `prefix` is what patterns do not see of an archive's name, "" for no patterns."""
    for contents in archives.list_archives(containers):
        container = contents.container
        for reason in contents.problems:
            search.note(ProblemKind.ARCHIVE, container.uri, reason)
        is_included = bool(prefix) and search.patterns.includes(below(container.uri, prefix))
        members = _looked_at(contents.members, search)
        names = members.column(archives.MEMBER)
        columns = {name: members.column(name) for name in members.schema.names if name != archives.MEMBER}
        columns[schema.URI] = pc.binary_join_element_wise(container.uri, names, "#")
        columns[schema.CONTAINER_URI] = pa.repeat(container.uri, len(names))
        columns[schema.CONTAINER_ETAG] = pa.repeat(container.etag, len(names))
        columns[schema.MODIFIED_AT] = pa.repeat(pa.scalar(container.modified_us, _TIME), len(names))
        yield search.take(pa.table(columns), names, is_included)


def _looked_at(members: pa.Table, search: Search) -> pa.Table:
    """Return the members that are no owner's marks, nor in a folder that has one."""
    names = members.column(archives.MEMBER)
    is_mark = pc.match_substring_regex(names, rf"(?:\A|/)(?:{'|'.join(map(_literal, MARKS))})\z")
    if not pc.any(is_mark).as_py():
        return members
    marks = names.filter(is_mark).to_pylist()
    members = members.filter(pc.invert(is_mark))
    if not search.honours_marks:
        return members
    marked = {posixpath.dirname(mark) for mark in marks if posixpath.basename(mark) in FOLDER_MARKS}
    search.marked_folders += len(marked)
    is_marked = [_is_below(name, marked) for name in members.column(archives.MEMBER).to_pylist()]
    search.marked += sum(is_marked)
    return members.filter(pa.array([not each for each in is_marked], pa.bool_()))


def _is_below(name: str, folders_above: set[str]) -> bool:
    while name:
        name = name.rpartition("/")[0]
        if name in folders_above:
            return True
    return False


def _literal(name: str) -> str:
    return name.replace(".", r"\.")
