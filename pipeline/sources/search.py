"""What one listing of a source looks for, and what it notices on the way: what it leaves out, and what went wrong."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import pathspec
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema, storage
from pipeline.beside.names import ENDINGS
from pipeline.schema import ProblemKind, SourceProblem
from pipeline.sources.patterns import Patterns
from pipeline.storage import local_files

log = logging.getLogger(__name__)

FOLDER_MARKS = (".nomedia", ".noimage")
"""A folder that has one of these is, with all below it, not to be looked at: Android's and Nextcloud's."""
IGNORE_FILE = ".ppignore"
"""PhotoPrism's: its lines are patterns, as .gitignore has them, of what is not to be looked at below its folder."""
MARKS = (*FOLDER_MARKS, IGNORE_FILE)
_BESIDE = rf"(?i)(?:{'|'.join(map(re.escape, ENDINGS))})\z"
_SIDECARS = schema.MANIFEST.field(schema.SIDECARS).type
_MAX_IGNORE_FILE_BYTES = 1 << 20


@dataclass
class Search:
    """One listing of one source.

    Attributes:
        patterns: which photos are wanted.
        output: where the run writes; what lies there is no photo. "" for nowhere.
        is_alone: whether it is the only source, so that one that can't be read at all is the user's mistake.
        honours_marks: whether owners' marks count.
        roots: where manifests may name local photos, see `roots.is_allowed`; None for anywhere.
        keeps_beside: whether XMP and JSON files are listed for their photos' sake that are not included as photos.
        found: photos that are listed.
        excluded, excluded_folders: photos, and folders and archives, that the patterns leave out.
        marked, marked_folders: photos and folders that owners' marks leave out.
        marked_prefixes: what the URIs begin with that marks leave out, where a mark may come after its photos.
        problems: what could not be looked at.
    """

    patterns: Patterns = field(default_factory=Patterns)
    output: str = ""
    is_alone: bool = True
    allow_http: bool = False
    honours_marks: bool = True
    roots: Sequence[str] | None = None
    keeps_beside: bool = False
    found: int = 0
    excluded: int = 0
    excluded_folders: int = 0
    marked: int = 0
    marked_folders: int = 0
    marked_prefixes: list[str] = field(default_factory=list)
    problems: list[SourceProblem] = field(default_factory=list)

    def take(self, rows: pa.Table, names: pa.ChunkedArray, is_included: bool = False) -> pa.Table:
        """Return the wanted ones of the photos `rows`, whose names for the patterns are `names`, and count the others.

        With `is_included` they are wanted unless they are excluded. Where `keeps_beside`, what stands beside photos and
        is only not included comes too, and has an empty list of sidecars: it is no photo.
        """
        is_taken = self.patterns.takes(names, is_included)
        taken = rows.filter(is_taken)
        self.excluded += rows.num_rows - taken.num_rows
        self.found += taken.num_rows
        if not self.keeps_beside or taken.num_rows == rows.num_rows:
            return taken
        is_beside = pc.and_(pc.match_substring_regex(names, _BESIDE), self.patterns.takes(names, is_included=True))
        beside = rows.filter(pc.and_(is_beside, pc.invert(is_taken)))
        if not beside.num_rows:
            return taken
        no_photo = pa.array([[]] * beside.num_rows, _SIDECARS)
        photos = taken.append_column(schema.SIDECARS, pa.nulls(taken.num_rows, _SIDECARS))
        return pa.concat_tables([photos, beside.append_column(schema.SIDECARS, no_photo)])

    def note(self, kind: ProblemKind, uri: str, reason: str) -> None:
        """Take note of what could not be looked at; the log says it at once."""
        problem = SourceProblem(kind, uri, schema.printable(reason)[: schema.MAX_ERROR_MESSAGE_CHARS])
        log.warning("%s", problem)
        self.problems.append(problem)

    @property
    def left_out(self) -> bool:
        """Whether there is anything that is not among the listed photos."""
        counts = (self.excluded, self.excluded_folders, self.marked, self.marked_folders)
        return any(counts) or bool(self.problems)


class FolderVisit:
    """A `storage.Visitor` that leaves out what patterns and owners exclude, and the run's own output."""

    def __init__(self, source: str, search: Search, for_archives: bool = False) -> None:
        self._source, self._search, self._for_archives = source.rstrip("/") + "/", search, for_archives
        self._output = _identity(search.output) if search.output and not storage.is_remote(search.output) else None
        self._ignored: list[tuple[str, pathspec.GitIgnoreSpec]] = []

    def may_enter_source(self) -> bool:
        """Whether the source's own folder has no mark."""
        return storage.is_remote(self._source) or self._may_look(self._source)

    def enters(self, folder_uri: str) -> bool:
        """Whether a folder is to be listed."""
        if not self._search.patterns.enters(below(folder_uri, self._source), self._for_archives):
            self._search.excluded_folders += 1
            return False
        if self._is_ignored(f"{folder_uri}/"):
            self._search.marked_folders += 1
            return False
        if self._output is not None and _identity(folder_uri) == self._output:
            log.info("not entered, it is the output: %s", folder_uri)
            return False
        return self._may_look(f"{folder_uri}/")

    def note_unseen(self, uri: str, error: OSError) -> None:
        """Make a source problem of what can't be listed."""
        self._search.note(ProblemKind.FOLDER, uri, error.strerror or str(error))

    def looks_at(self, entry: storage.Entry) -> bool:
        """Whether a file that was found is to be looked at: no mark, and nothing that an owner's patterns name."""
        name = entry.uri.rsplit("/", 1)[-1]
        if name in MARKS:
            if name in FOLDER_MARKS and self._search.honours_marks and storage.is_remote(entry.uri):
                self._search.marked_prefixes.append(entry.uri.removesuffix(name))
            return False
        if self._ignored and self._is_ignored(entry.uri):
            self._search.marked += 1
            return False
        return True

    def _may_look(self, folder: str) -> bool:
        """Whether a local folder has no mark; reads its patterns."""
        if not self._search.honours_marks:
            return True
        path = local_files.path_of(folder)
        if any(os.path.lexists(_joined(path, mark)) for mark in FOLDER_MARKS):
            self._search.marked_folders += 1
            return False
        self._ignored = [(begin, spec) for begin, spec in self._ignored if folder.startswith(begin)]
        if os.path.lexists(_joined(path, IGNORE_FILE)):
            try:
                text = storage.read(f"{folder}{IGNORE_FILE}", _MAX_IGNORE_FILE_BYTES).data.decode("utf-8", "replace")
                self._ignored.append((folder, pathspec.GitIgnoreSpec.from_lines(text.splitlines())))
            except (OSError, ValueError) as error:  # what its owner wants is not known: nothing below is looked at
                self._search.note(ProblemKind.FOLDER, folder.rstrip("/"), f"its {IGNORE_FILE} can't be read: {error}")
                return False
        return True

    def _is_ignored(self, uri: str) -> bool:
        return any(uri.startswith(begin) and spec.match_file(uri[len(begin) :]) for begin, spec in self._ignored)


def below(uri: str, prefix: str) -> str:
    """Return `uri` without the prefix, which is written otherwise in a local name that is no UTF-8."""
    if not uri.startswith(prefix) and not storage.is_remote(uri):
        uri, prefix = (_local_text(each) for each in (uri, prefix))
    return uri.removeprefix(prefix)


def _local_text(uri: str) -> str:
    path = local_files.path_of(uri)
    return path.decode("utf-8", "backslashreplace") if isinstance(path, bytes) else path


def _joined(folder: bytes | str, name: str) -> bytes:
    return os.path.join(os.fsencode(folder), name.encode())


def _identity(folder_uri: str) -> tuple[int, int] | None:
    """Return what tells a local folder from all others, by whatever name it was reached; None where it is missing."""
    try:
        status = os.stat(local_files.path_of(folder_uri))
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
