"""Sources become rows of the manifest's schema; which kinds of source there are, `registry` says."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline import schema, storage
from pipeline.schema import SourceProblem
from pipeline.sources import archive_sources
from pipeline.sources.lists import names
from pipeline.sources.patterns import Patterns
from pipeline.sources.registry import source_of
from pipeline.sources.search import MARKS, Search
from pipeline.storage import local_files

_ROWS_PER_BATCH = 10_000


def read_manifest(
    source: str,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    allow_http: bool = False,
    *,
    output: str = "",
    is_alone: bool = True,
    honours_marks: bool = True,
    roots: Sequence[str] | None = None,
) -> Listing:
    """List the photos of `source` as batches of `schema.MANIFEST`, in the source's order, duplicates and all.

    - A list by its name, such as `.parquet`, `.csv` or `.txt`, is a manifest, `tables.Table`, and so is a folder that
      holds parts of one, `tables.TableFolder`; `manifest.json` is an AWS S3 Inventory.
    - A name ending in `.tar` or `.zip` is an archive: its members are the photos, called `archive#member`; `/*.tar` or
      `/*.zip` at the end takes every such archive at any depth of the folder.
    - A name with `*`, `?` or `[a-z]` in it is a pattern, unless something has just this name.
    - A file is a photo. Anything else is a folder or prefix: every object below it is a photo, whatever its name.

    `include` and `exclude` are what `patterns.Patterns` takes. They match a name below the folder, an archive's there
    or a name in an archive, or, for manifests and inventories, a whole URI. What they leave out is not opened, nor
    what owners have marked (see `search.FOLDER_MARKS`), with `honours_marks`, nor the folder `output`. `roots` are
    where manifests may name local photos, as `local_roots` tells them; None for anywhere.

    Iterating raises ValueError where the source is missing, can't be listed or isn't what it says; what is amiss with
    a part of it is among the listing's problems, also a whole archive where the source `is_alone` not.
    """
    search = Search(Patterns(include, exclude), output, is_alone, allow_http, honours_marks, roots)
    return Listing(source, search)


class Listing(Iterator[pa.RecordBatch]):
    """The batches of one source; `search` has what was noticed so far."""

    def __init__(self, source: str, search: Search) -> None:
        self.search = search
        self._source = source
        self._batches = self._listed()

    def __next__(self) -> pa.RecordBatch:
        """Return the next batch, never an empty one."""
        return next(self._batches)

    def _listed(self) -> Iterator[pa.RecordBatch]:
        try:
            for rows in source_of(self._source).tables(self.search):
                for batch in rows.to_batches(max_chunksize=_ROWS_PER_BATCH):
                    if batch.num_rows:
                        yield _manifest_batch(batch)
        except OSError as error:
            raise ValueError(f"can't read --photos {self._source}: {error}") from error
        if not self.search.found and not self.search.left_out:
            raise ValueError(f"no photos in {self._source}: it lists none")


@dataclass(frozen=True)
class ListSettings:
    """How sources are listed, see `read_manifest`.

    `photos_root` are folders below which manifests may name local photos, beside the sources; None for anywhere.
    """

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    allow_http: bool = False
    honours_marks: bool = True
    photos_root: Sequence[str] | None = None


class SourceList:
    """What several sources list, as one stream; afterwards, what was left out and what went wrong on the way.

    Iterating raises ValueError as `read_manifest`; `error` keeps it, for streams that tell its text only.
    """

    def __init__(self, sources: Sequence[str], output: str, settings: ListSettings) -> None:
        self.sources, self._output, self.settings = tuple(sources), output, settings
        self.searches: list[Search] = []
        self.error: Exception | None = None

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield batches of `schema.MANIFEST`."""
        patterns = Patterns(self.settings.include, self.settings.exclude)
        more = self.settings.photos_root
        roots = None if more is None else local_roots(self.sources, more)
        try:
            for source in self.sources:
                search = Search(
                    patterns=patterns,
                    output=self._output,
                    is_alone=len(self.sources) == 1,
                    allow_http=self.settings.allow_http,
                    honours_marks=self.settings.honours_marks,
                    roots=roots,
                    keeps_beside=True,
                )
                self.searches.append(search)
                yield from Listing(source, search)
        except Exception as error:
            self.error = error
            raise

    def counted(self, name: str) -> int:
        """Return the sum of one of `Search`'s counts over all sources."""
        return sum(getattr(search, name) for search in self.searches)

    @property
    def problems(self) -> tuple[SourceProblem, ...]:
        """What could not be looked at, each once."""
        return tuple(dict.fromkeys(problem for search in self.searches for problem in search.problems))

    @property
    def marked_prefixes(self) -> list[str]:
        """What the URIs begin with that owners' marks leave out, and that were listed nevertheless."""
        return [prefix for search in self.searches for prefix in search.marked_prefixes]

    def check(self, listed: int) -> None:
        """Raise ValueError where nothing is listed, as all was left out; problems are another matter."""
        if listed or self.problems:
            return
        which = ", ".join(self.sources)
        photos, folders = self.counted("excluded"), self.counted("excluded_folders")
        if photos or folders:
            what = " and ".join([f"all {photos} photos"] * bool(photos) + [f"{folders} folders"] * bool(folders))
            raise ValueError(f"--include and --exclude leave out {what} of {which}: write --include '*.jpg'")
        if self.counted("marked") or self.counted("marked_folders") or self.marked_prefixes:
            marks = ", ".join(MARKS)
            raise ValueError(f"an owner's mark ({marks}) leaves out all of {which}: --ignore-marks looks all the same")
        raise ValueError(f"no photos in {which}: all that is listed there lies below --output {self._output}")


def check_output(sources: Sequence[str], output: str) -> None:
    """Raise ValueError where the output is a folder of photos, or one above it: its own files would be among them.

    Local names are compared by where they lead.
    """
    for source in sources:
        try:
            place = source_of(source).place
        except OSError as error:
            raise ValueError(f"can't read --photos {source}: {error}") from error
        if place and f"{_real(place)}/".startswith(f"{_real(output).rstrip('/')}/"):
            raise ValueError(
                f"--output {output} holds the photos of --photos {source}: give a folder beside or below them"
            )


def _real(uri: str) -> str:
    if storage.is_remote(uri):
        return uri.rstrip("/")
    return local_files.uri_of(os.path.realpath(os.fsencode(local_files.path_of(uri))))


def _manifest_batch(rows: pa.RecordBatch) -> pa.RecordBatch:
    ids = [schema.photo_id(uri) for uri in rows.column(schema.URI).to_pylist()]
    arrays = [pa.array(ids, pa.binary(16))]
    for field in list(schema.MANIFEST)[1:]:
        is_given = field.name in rows.schema.names
        arrays.append(rows.column(field.name).cast(field.type) if is_given else pa.nulls(rows.num_rows, field.type))
    return pa.record_batch(arrays, schema=schema.MANIFEST)


def listed_below(sources: Iterable[str]) -> tuple[str, ...]:
    """Return what the URIs begin with of the photos that listing `sources` itself finds, rather than a manifest names.

    No photo of a manifest is below the manifest's own name: whether a source is one need not be asked.
    """
    prefixes: list[str] = []
    for source in sources:
        folder, _, name = source.rpartition("/")
        below = folder if name.lower() in archive_sources.ALL_BELOW else source.rstrip("/")
        if (wild := min((at for sign in "*?[" if (at := below.find(sign)) >= 0), default=-1)) >= 0:
            prefixes.append(f"{below[:wild].rpartition('/')[0]}/")
        prefixes += [f"{below}/", f"{below}#"]
    return tuple(prefixes)


def local_roots(sources: Iterable[str], photos_root: Iterable[str]) -> tuple[str, ...]:
    """Return what local photos' URIs begin with that may be read: below the sources, manifests' own folders included.

    A manifest is another's word: it must not make this machine read, and tell of, any file that it names.
    """
    roots = [f"{storage.absolute(root).rstrip('/')}/" for root in photos_root]
    for source in sources:
        roots += [source, *listed_below([source])]
        if names.is_list(source):
            roots.append(f"{source.rpartition('/')[0]}/")
    return tuple(roots)
