"""What stands beside a photo is fetched with it, read apart from it, and never fails it.

The plan says where it is (see `beside.matching`), so that no store is asked for what is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline import schema, storage
from pipeline.beside.names import Kind, title_fits
from pipeline.beside.sidecar import MAX_BYTES, Sidecar, completed
from pipeline.decode.recorded import Recorded
from pipeline.read.fetch import Fetcher, FetchSettings
from pipeline.schema import TRANSIENT_ERRORS, PhotoError

UNREADABLE = "sidecar_unreadable"
"""How a warning begins that tells of a sidecar."""

_FETCHED = "fetched"
_MAX_WARNING_CHARS = 300

ReadSidecars = Callable[[Sequence[tuple[Kind, bytes]]], Sequence[Sidecar | PhotoError]]


@dataclass
class Beside:
    """What stands beside a photo.

    Attributes:
        recorded: what each of its sidecars records, the first believed first.
        warnings: what could not be read, in words.
        is_whole: whether all could be had; what could not for the moment is to be read by a later run.
    """

    recorded: list[Recorded] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    is_whole: bool = True

    def complete(self, own: Recorded) -> Recorded:
        """Return what a photo records itself, with what it lacks."""
        return completed(own, self.recorded) if self.recorded else own

    def columns(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is to be changed in a photo's row, but for what is recorded."""
        changed: dict[str, Any] = {} if self.is_whole else {schema.SIDECAR_ETAG: None}
        if self.warnings:
            parts = [row.get(schema.DECODE_WARNING), f"{UNREADABLE}: {'; '.join(self.warnings)}"]
            changed[schema.DECODE_WARNING] = "; ".join(filter(None, parts))[:_MAX_WARNING_CHARS]
        return changed


class SidecarFetcher:
    """Fetches the sidecars of photos, rows of a plan as dictionaries; any thread may call it."""

    def __init__(self, settings: FetchSettings, local_roots: Sequence[str] | None) -> None:
        self._fetchers = {kind: Fetcher(settings, most, local_roots=local_roots) for kind, most in MAX_BYTES.items()}

    def fetch(self, listed: dict[str, Any]) -> None:
        """Keep the bytes of a photo's sidecars, or why they can't be had, in its row until `read` takes them."""
        for sidecar in listed.get(schema.SIDECARS) or ():
            try:
                found: bytes | PhotoError = self._fetchers[sidecar[schema.SIDECAR_KIND]](sidecar).data
            except PhotoError as error:
                found = error.without_frames()
            sidecar[_FETCHED] = found


def most_bytes(rows: Iterable[Mapping[str, Any]]) -> int:
    """Return how many bytes the sidecars of these photos have at most, those that are too large to be read left out."""
    found = 0
    for row in rows:
        for sidecar in row.get(schema.SIDECARS) or ():
            size_bytes = sidecar[schema.SIZE_BYTES]
            size_bytes = storage.HEAD_BYTES if size_bytes is None else size_bytes
            found += size_bytes if size_bytes <= MAX_BYTES[sidecar[schema.SIDECAR_KIND]] else 0
    return found


def read(photos: Sequence[dict[str, Any]], read_sidecars: ReadSidecars) -> list[Beside]:
    """Read what `fetch` has kept of each photo, and let go of it."""
    fetched = [(sidecar, sidecar.pop(_FETCHED)) for listed in photos for sidecar in listed.get(schema.SIDECARS) or ()]
    if not fetched:
        return [Beside() for _ in photos]
    readable = [(sidecar[schema.SIDECAR_KIND], data) for sidecar, data in fetched if isinstance(data, bytes)]
    answers = iter(read_sidecars(readable))
    outcomes = iter([data if isinstance(data, PhotoError) else next(answers) for _, data in fetched])
    return [
        _beside(listed, [(sidecar, next(outcomes)) for sidecar in listed[schema.SIDECARS] or ()]) for listed in photos
    ]


def _beside(listed: Mapping[str, Any], sidecars: Sequence[tuple[Mapping[str, Any], Sidecar | PhotoError]]) -> Beside:
    beside, name = Beside(), _name(listed)
    has_takeout = False
    for sidecar, outcome in sidecars:
        if isinstance(outcome, PhotoError):
            beside.warnings.append(f"{schema.printable(_name(sidecar))}: {outcome.message}")
            beside.is_whole = beside.is_whole and outcome.code not in TRANSIENT_ERRORS
            continue
        if sidecar[schema.SIDECAR_KIND] == "takeout":
            is_of_another = sidecar[schema.SIDECAR_IS_CUT] and outcome.title and not title_fits(outcome.title, name)
            if has_takeout or outcome.is_another or is_of_another:
                continue
            has_takeout = True
        beside.recorded.append(outcome.recorded)
    return beside


def _name(listed: Mapping[str, Any]) -> str:
    uri: str = listed[schema.URI]
    return uri.rpartition("/")[2]
