"""Give what is published to other programs: map files, spreadsheets, or XMP sidecars for photo managers.

python -m jobs.export OUTPUT --format geojson --to photos.geojson
python -m jobs.export OUTPUT --format xmp            # says what it would do; --write does it
"""

from __future__ import annotations

import collections
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import tyro

from jobs import run_command
from pipeline import schema, storage
from pipeline.answers import sidecars
from pipeline.answers.export import Counted, Selection, columns_of, count, export, taken_rows
from pipeline.answers.sidecars import TROUBLE, WRITTEN, Done, Outcome, Sidecars
from pipeline.published.catalog import Catalog

_SIDECARS_AT_ONCE = 16
_EXAMPLES = 3
_SIDECAR_MIN_CONFIDENCE = 0.5
_SIDECAR_MAX_RADIUS_KM = 25.0


@dataclass(frozen=True)
class ExportSettings:
    """Write the newest row of every located photo as GeoJSON, CSV or KML, or as XMP sidecars."""

    output: tyro.conf.Positional[str]
    """The --output of jobs.geotag_archive."""
    format: Literal["geojson", "geojsonl", "csv", "kml", "xmp"]
    """geojsonl is a feature a line; xmp a sidecar a photo."""
    to: str | None = None
    """File to write, local or in a store. For xmp a folder that sidecars lie below; without it, beside their photos."""
    where: str | None = None
    """Only photos for which this SQL condition over the view photos holds."""
    min_confidence: float | None = None
    """Only photos with at least this confidence (xmp: 0.5 unless said)."""
    max_radius_km: float | None = None
    """Only photos with at most this radius (xmp: 25 unless said)."""
    undecided: bool = False
    """Photos too of which no place is more likely right than not, with status and the best guess; not for xmp."""
    all: bool = False
    """Every photo: the undecided ones and those that failed too, with status and error_code; not for xmp."""
    with_gone: bool = False
    """Photos too that their sources list no more."""
    relative_to: str | None = None
    """xmp with --to: names below it begin below this folder, else with the photos' whole path."""
    write: bool = False
    """xmp: write the sidecars, rather than say what would be written."""
    undo: bool = False
    """xmp: take away what an earlier export wrote, where nobody has edited it since."""


def run(settings: ExportSettings) -> int:
    """Export, print what was written and what was left out and why; return the exit code."""
    if settings.format == "xmp":
        return _run_sidecars(settings)
    for name, is_given in (
        ("--write", settings.write),
        ("--undo", settings.undo),
        ("--relative-to", settings.relative_to is not None),
    ):
        if is_given:
            raise ValueError(f"{name} is for --format xmp only")
    if settings.to is None or settings.to.endswith("/"):
        raise ValueError(f"--format {settings.format} needs a file: add --to FILE.{settings.format}")
    selection = Selection(
        settings.where,
        settings.min_confidence,
        settings.max_radius_km,
        with_failed=settings.all,
        with_undecided=settings.all or settings.undecided,
        with_gone=settings.with_gone,
    )
    to = storage.canonical(settings.to)
    catalog = Catalog(storage.absolute(settings.output))
    counted = count(catalog, selection)
    try:
        size_bytes = export(catalog, selection, settings.format, to)
    except OSError as error:
        raise ValueError(f"can't write --to {settings.to}: {error}") from error
    print(f"{counted.taken} photos written to {schema.printable(to)} ({size_bytes:,} bytes)")
    _print_left_out(counted)
    return 0


def _run_sidecars(settings: ExportSettings) -> int:
    for name, is_given in (("--all", settings.all), ("--undecided", settings.undecided)):
        if is_given:
            raise ValueError(f"{name} is not for --format xmp: a photo without a place has nothing to say")
    if settings.undo:
        if settings.min_confidence is not None or settings.max_radius_km is not None:
            raise ValueError("--undo looks at every photo's sidecar: choose with --where only")
        selection, chosen = Selection(settings.where, with_failed=True, with_undecided=True, with_gone=True), ""
    else:
        confidence = _SIDECAR_MIN_CONFIDENCE if settings.min_confidence is None else settings.min_confidence
        radius_km = _SIDECAR_MAX_RADIUS_KM if settings.max_radius_km is None else settings.max_radius_km
        selection = Selection(
            settings.where, confidence, radius_km, with_gone=settings.with_gone, without_recorded_position=True
        )
        chosen = f" with a confidence of at least {confidence:g} within at most {radius_km:g} km"
    each = Sidecars(settings.to, settings.relative_to, undo=settings.undo, is_dry=not settings.write)
    catalog = Catalog(storage.absolute(settings.output))
    counted = count(catalog, selection)
    print(f"{counted.taken} photos{chosen}")
    counts: collections.Counter[Outcome] = collections.Counter()
    examples: dict[Outcome, list[Done]] = collections.defaultdict(list)
    with ThreadPoolExecutor(_SIDECARS_AT_ONCE, thread_name_prefix="sidecar") as pool:
        for batch in taken_rows(catalog, selection, columns_of(catalog, sidecars.COLUMNS)):
            for done in pool.map(each, batch.to_pylist()):
                counts[done.outcome] += 1
                if len(examples[done.outcome]) < _EXAMPLES:
                    examples[done.outcome].append(done)
    assert counts.total() == counted.taken
    for outcome in (outcome for outcome in Outcome if counts[outcome]):
        print(f"{counts[outcome]:>12}  {'' if outcome in WRITTEN else 'left: '}{outcome}")
        for done in examples[outcome]:
            print(f"{'':14}{schema.printable(done.sidecar)}{f': {done.detail}' if done.detail else ''}")
    _print_left_out(counted)
    if not settings.write:
        print("This was a dry run, nothing was written. Add --write to do it.")
    return 3 if any(counts[outcome] for outcome in TROUBLE) else 0


def _print_left_out(counted: Counted) -> None:
    for reason, photos in counted.left_out.items():
        print(f"{photos:>12}  left out: {reason}")


if __name__ == "__main__":
    run_command(ExportSettings, run)
