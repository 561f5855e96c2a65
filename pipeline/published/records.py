"""The record of a run: what makes it count, and all that later runs, readers and people need to know about it.

It is written and read here alone. A record of an older version says less, and what it does not say is None here; what
a newer one says besides is kept. `RECORD_VERSION` rises when older readers would misunderstand a record.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from pipeline import storage
from pipeline.published import layout
from pipeline.schema import SourceProblem
from pipeline.storage import lease

RECORD_VERSION = 1
FORGETTING_VERSION = 2
"""The version of records of forgettings: older readers, who know no forgotten photos, are to refuse the output."""
_CONSISTENT_READS = 5
Part = TypeVar("Part")


@dataclass(frozen=True)
class PublishedFile:
    """One published file; `path` is relative to the output, `digest` the hex BLAKE2b-128 of its bytes."""

    path: str
    row_count: int | None = None
    size_bytes: int | None = None
    digest: str | None = None


@dataclass(frozen=True)
class AlbumCounts:
    """What became of a run's located photos: explained by others, alone in their album, or of unknown time."""

    explained: int
    alone: int
    without_time: int


@dataclass(frozen=True)
class PhotoCounts:
    """How a run's photos ended; `fingerprint` tells which they are (see `photo_set`).

    `copies` are those whose bytes are another's, `beyond_known_contents` those that were not compared any more;
    `recorded_apart` are those of which two recorded positions are more than a kilometre from each other.
    """

    located: int = 0
    undecided: int = 0
    failed: int = 0
    failed_by_code: Mapping[str, int] | None = None
    fingerprint: str | None = None
    copies: int | None = None
    beyond_known_contents: int | None = None
    context: AlbumCounts | None = None
    recorded_apart: int | None = None

    @property
    def published(self) -> int:
        """Photos that have a row by this run."""
        return self.located + self.undecided + self.failed


@dataclass(frozen=True, kw_only=True)
class PlanCounts:
    """What a run had to do: what its sources list, and what of it is done.

    `listed` counts manifest rows, `excluded` those that the sources' patterns left out before (and `excluded_folders`
    what they kept from being opened), `marked` and `marked_folders` what owners' marks left out, `source_problems` the
    parts of sources that could not be listed, `duplicates` those that
    repeat a photo; `already_done` the photos that have their row from an earlier run, `of_another_model` those of them
    whose row another model made; `waiting` those that failed in passing and are for a later run to try again;
    `forgotten` those that jobs.forget has forgotten, which are left out; `gone` the photos that have a row and are
    listed no more, `held_back` those that are missing and were not taken for gone (see `gone`). Of those this run takes
    on, `staged` have their row from before it was interrupted, `todo` are to process now, `changed` were published in
    another version, and `left` is how many the run had no time for.
    """

    listed: int = 0
    excluded: int = 0
    excluded_folders: int = 0
    marked: int = 0
    marked_folders: int = 0
    source_problems: int = 0
    duplicates: int = 0
    already_done: int = 0
    of_another_model: int = 0
    staged: int = 0
    todo: int = 0
    changed: int = 0
    gone: int | None = None
    held_back: int = 0
    forgotten: int = 0
    waiting: int = 0
    left: int = 0

    @property
    def is_complete(self) -> bool:
        """Whether all of the sources could be listed."""
        return not self.source_problems


@dataclass(frozen=True, kw_only=True)
class Forgetting:
    """What was forgotten at once: it counts, for all runs, as soon as the record is there that says it.

    Attributes:
        photos: how many photos lost their rows.
        rows_by_run: how many rows were removed from which run.
        list: all photos forgotten so far, of `schema.FORGOTTEN`; None where none is any more.
        rewritten: the records of the runs without those rows, which stand for those that are in their places still.
    """

    photos: int = 0
    rows_by_run: Mapping[str, int] = field(default_factory=dict)
    list: PublishedFile | None = None
    rewritten: tuple[RunRecord, ...] = ()

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Forgetting:
        """Return what a JSON document says; ValueError where it names what can't be."""
        if not (isinstance(document, dict) and isinstance(document.get("rewritten", []), list)):
            raise ValueError("forgets what can't be forgotten")
        _check_list(document.get("list"))
        rewritten = tuple(RunRecord.from_json(record) for record in document.get("rewritten", ()))
        found: PublishedFile | None = _part(PublishedFile, document["list"]) if document.get("list") else None
        photos, rows_by_run = int(document.get("photos", 0)), dict(document.get("rows_by_run", {}))
        return cls(photos=photos, rows_by_run=rows_by_run, list=found, rewritten=rewritten)

    def to_json(self) -> dict[str, Any]:
        """Return the same as a JSON document."""
        listed = None if self.list is None else _said(dataclasses.asdict(self.list))
        rewritten = [record.to_json() for record in self.rewritten]
        return {"photos": self.photos, "rows_by_run": dict(self.rows_by_run), "list": listed, "rewritten": rewritten}


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One finished run, or one that was let go of: see `removed_at`; or a `forgetting`, which is no run.

    Attributes:
        sequence: its place in the order of runs, which the lease hands out.
        finished_at: ISO time in UTC; None of a run that has not finished, which does not count.
        dataflow_s: how long the cluster read and located photos.
        settings: what the command line said, nested as its settings are.
        source_problems: what of the sources could not be listed; of very many the first, `plan` has their number.
        gone: the list of photos that were listed no more, if this run has changed it.
        rewritten_by: the sequence of the forgetting that has rewritten it last.
        removed_at: when it was let go of; `files` is empty once they are removed.
        others: what a newer version says besides.
    """

    run_id: str
    sequence: int | None = None
    started_at: str | None = None
    finished_at: str | None = None
    wall_s: float | None = None
    dataflow_s: float | None = None
    sources: tuple[str, ...] = ()
    model_id: str = ""
    model_uri: str = ""
    hierarchy_sha256: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    plan: PlanCounts | None = None
    photos: PhotoCounts | None = None
    source_problems: tuple[SourceProblem, ...] = ()
    files: tuple[PublishedFile, ...] = ()
    gone: PublishedFile | None = None
    rewritten_by: int | None = None
    forgetting: Forgetting | None = None
    removed_at: str | None = None
    record_version: int = RECORD_VERSION
    others: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, document: object) -> RunRecord:
        """Return the record that a JSON document is; ValueError, saying what is amiss, where it is none.

        One that names a file which can't be a published one is none: whoever reads and removes files goes by it.
        """
        if not isinstance(document, dict) or not isinstance(document.get("run_id"), str):
            raise ValueError("is no record of a run")
        version = document.get("record_version", 0)
        if not isinstance(version, int) or version > FORGETTING_VERSION:
            raise ValueError(
                f"is a record of version {version}, and this Graticule reads {FORGETTING_VERSION}: update it"
            )
        files, photos, model_id = document.get("files", []), document.get("photos"), document.get("model_id", "")
        if not (isinstance(files, list) and isinstance(model_id, str) and isinstance(photos, dict | None)):
            raise ValueError("says no model, files or photos")
        for file in files:
            path = file.get("path") if isinstance(file, dict) else None
            if not isinstance(path, str) or not layout.is_published_file(path):
                raise ValueError(f"names a file that can't be the run's: {path}")
        problems = document.get("source_problems") or []
        if not (isinstance(problems, list) and all(map(_is_problem, problems))):
            raise ValueError("says no source problems")
        _check_list(document.get("gone"))
        names = {part.name for part in dataclasses.fields(cls)} - {"others"}
        said = {name: value for name, value in document.items() if name in names and value is not None}
        if photos is not None:
            context = photos.get("context")
            said["photos"] = _part(PhotoCounts, photos | {"context": context and _part(AlbumCounts, context)})
        if isinstance(said.get("plan"), dict):
            said["plan"] = _part(PlanCounts, said["plan"])
        if "gone" in said:
            said["gone"] = _part(PublishedFile, said["gone"])
        if "forgetting" in said:
            said["forgetting"] = Forgetting.from_json(said["forgetting"])
        said["files"] = tuple(_part(PublishedFile, file) for file in files)
        said["source_problems"] = tuple(_part(SourceProblem, each) for each in problems)
        said["sources"] = tuple(said.get("sources", ()))
        others = {name: value for name, value in document.items() if name not in names}
        return cls(**said | {"record_version": version, "others": others})

    def to_json(self) -> dict[str, Any]:
        """Return the record as a JSON document; what it does not say is left out."""
        document = dataclasses.asdict(replace(self, forgetting=None))
        document["forgetting"] = None if self.forgetting is None else self.forgetting.to_json()
        others = document.pop("others")
        for name in ("plan", "photos", "gone"):
            document[name] = _said(document[name] or {})
        document["files"] = [_said(file) for file in document["files"]]
        is_said = {name: value not in (None, "", (), {}) for name, value in document.items()}
        is_said |= {"files": True, "record_version": self.record_version > 0}
        return {**{name: value for name, value in document.items() if is_said[name]}, **others}

    def setting(self, name: str) -> Any:
        """Return one of the run's settings; None where its version did not have it."""
        return self.settings.get(name)

    @property
    def counts(self) -> PhotoCounts:
        """How its photos ended, as far as it says so."""
        return self.photos or PhotoCounts()

    def has_finished_before(self, time: dt.datetime) -> bool:
        """Whether it ended before that time."""
        return self.finished_at is not None and dt.datetime.fromisoformat(self.finished_at) < time

    def file_uris(self, output: str) -> list[str]:
        """Return the URIs of its published files."""
        return [storage.join(output, file.path) for file in self.files]

    @property
    def objects(self) -> tuple[PublishedFile, ...]:
        """All that it names: its published files and its list of photos that are gone."""
        return (*self.files, *([self.gone] if self.gone else []))

    def object_uris(self, output: str) -> list[str]:
        """Return the URIs of all that it names."""
        return [storage.join(output, file.path) for file in self.objects]


def encoded(record: RunRecord) -> bytes:
    """Return the record as it is stored."""
    return _encoded(record.to_json())


def read_record(uri: str) -> RunRecord:
    """Return the record at `uri`; ValueError, saying what is amiss with it, where there is another thing.

    Raises FileNotFoundError where nothing is there.
    """
    data = storage.read_bytes(uri)
    stem = uri.rsplit("/", 1)[1].removesuffix(".json")
    try:
        document = json.loads(data)
    except ValueError as error:
        raise ValueError(f"is no JSON: {error}") from error
    if not isinstance(document, dict) or document.get("run_id") != stem:
        raise ValueError(f"is no record of a run {stem}")
    return RunRecord.from_json(document)


def run_records(output: str) -> list[RunRecord]:
    """Return the records of the runs that count, in the order in which they were published.

    A run that was removed does not count, though one that slept may have put its record again. Each is as the newest
    forgetting left it. Raises ValueError, naming it, for what is no record.
    """
    found = as_rewritten(_read_records(output))
    return sorted((record for record in found if record.finished_at is not None), key=_place)


def as_rewritten(found: Sequence[RunRecord]) -> list[RunRecord]:
    """Return the runs among the records of an output, each as the newest forgetting left it."""
    runs = {record.run_id: record for record in found if record.forgetting is None}
    for forgetting in sorted((record for record in found if record.forgetting is not None), key=_place):
        assert forgetting.forgetting is not None
        for new in forgetting.forgetting.rewritten:
            if new.run_id in runs and (runs[new.run_id].rewritten_by or 0) < (new.rewritten_by or 0):
                runs[new.run_id] = new
    return list(runs.values())


def to_rewrite(output: str) -> list[RunRecord]:
    """Return the records, as forgettings have rewritten them, that are not in their places yet."""
    found = _read_records(output)
    there = {record.run_id: record.rewritten_by for record in found}
    return [record for record in as_rewritten(found) if record.rewritten_by != there[record.run_id]]


def forgotten_list(output: str) -> PublishedFile | None:
    """Return the list of all forgotten photos; None where there is none."""
    forgettings = [record for record in _read_records(output) if record.forgetting is not None]
    newest = max(forgettings, key=_place, default=None)
    return None if newest is None or newest.forgetting is None else newest.forgetting.list


def _read_records(output: str) -> list[RunRecord]:
    """Return the records of an output but those of removed runs, forgettings too, as they are in their places.

    They are read again where one was rewritten by a forgetting whose own record was not there yet: all or none of what
    a forgetting changes is seen.
    """
    for _ in range(_CONSISTENT_READS):
        removed = {_name(entry.uri) for entry in storage.list_files(storage.join(output, layout.REMOVED))}
        entries = storage.list_files(storage.join(output, layout.RUNS))
        found = _records(entry.uri for entry in entries if _name(entry.uri) not in removed)
        seen = max((record.sequence or 0 for record in found if record.forgetting is not None), default=0)
        if max((record.rewritten_by or 0 for record in found), default=0) <= seen:
            break
    return found


def removed_records(output: str) -> list[RunRecord]:
    """Return the notes of the runs that were removed; those whose files are gone name none."""
    return _records(entry.uri for entry in storage.list_files(storage.join(output, layout.REMOVED)))


def published_files(output: str, records: Sequence[RunRecord]) -> list[str]:
    """Return the URIs of the files that `records` name, in the records' order."""
    return [uri for record in records for uri in record.file_uris(output)]


def put_record(output: str, record: RunRecord) -> str:
    """Put a run's record, which makes the run count, unless it is there already; return its URI."""
    RunLedger(output).enter(record.to_json())
    return layout.record(output, record.run_id)


@dataclass(frozen=True)
class RunLedger:
    """The records of an output as what its lease's holders commit: a `lease.Ledger`."""

    output: str

    def enter(self, commit: dict[str, Any]) -> None:
        """Put a run's record as it was committed, by whatever version, unless it is there already."""
        run_id = str(commit["run_id"])
        if "/" in run_id:
            raise ValueError(f"{storage.join(self.output, layout.LEASE)} commits a run that can't be one: {run_id}")
        with contextlib.suppress(FileExistsError):  # another has completed the same commit
            storage.create_bytes(layout.record(self.output, run_id), _encoded(commit))

    def has(self, commit: dict[str, Any], epoch: int) -> bool:
        """Whether the record that the holder of that epoch has committed, or the note of its removal, is there."""
        for place in (layout.record, layout.removed_note):
            with contextlib.suppress(FileNotFoundError, ValueError):  # what is no record is not this one
                if read_record(place(self.output, str(commit["run_id"]))).sequence == epoch:
                    return True
        return False

    def highest_epoch(self) -> int:
        """Return the highest epoch that a record, or the name of anything at the output, has."""
        epochs = [0]
        for entry in storage.list_files(self.output):
            path = entry.uri.removeprefix(self.output + "/")
            if path.split("/")[0] in (layout.RUNS, layout.REMOVED) and path.endswith(".json"):
                with contextlib.suppress(FileNotFoundError, ValueError):
                    epochs.append(read_record(entry.uri).sequence or 0)
            epochs += layout.epochs_in(path)
        return max(epochs)

    def remove_temporaries(self) -> None:
        """Remove what puts of killed holders left beside the records and the lease."""
        for name in (layout.RUNS, layout.REMOVED, layout.LEASE):
            storage.remove_temporaries(storage.join(self.output, name))


def held(output: str, run_id: str, settings: lease.LeaseSettings) -> contextlib.AbstractContextManager[lease.Lease]:
    """Hold an output's lease, as `lease.held` does, to commit a run's record."""
    return lease.held(output, run_id, settings, RunLedger(output))


def _records(uris: Iterable[str]) -> list[RunRecord]:
    found = []
    for uri in uris:
        if uri.endswith(".json"):
            try:
                found.append(read_record(uri))
            except FileNotFoundError:  # removed since the folder was listed
                continue
            except ValueError as error:
                raise ValueError(f"{uri} {error}. See what jobs.geotag_archive --verify says of it") from error
    return found


def _check_list(file: object) -> None:
    """Raise ValueError for what can't be a list of photos: whoever reads and removes lists goes by it."""
    path = file.get("path") if isinstance(file, dict) else None
    if file is not None and (not isinstance(path, str) or layout.list_epoch(path) is None):
        raise ValueError(f"names a list that can't be one: {path}")


def _encoded(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=2).encode()


def _name(uri: str) -> str:
    return uri.rsplit("/", 1)[1]


def _place(record: RunRecord) -> tuple[int, str, str]:
    """Return a run's place in the order of runs: its sequence number, which the lease handed out, tells it.

    No clock does, but among the records of older versions, which have no number and come before all that have one.
    """
    return -1 if record.sequence is None else record.sequence, str(record.finished_at), record.run_id


def _part(kind: type[Part], values: Mapping[str, Any]) -> Part:
    """Return a part of a record, of what it says and this version knows."""
    names = {part.name for part in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in values.items() if name in names and value is not None})


def _is_problem(said: object) -> bool:
    names = [part.name for part in dataclasses.fields(SourceProblem)]
    return isinstance(said, dict) and all(isinstance(said.get(name), str) for name in names)


def _said(part: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in part.items() if value is not None}
