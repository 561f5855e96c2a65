"""Turn a geotagged archive or table into photos to train, validate and test on, or into an even benchmark.

python -m jobs.build_training_manifest --source ~/geotags --output photos.parquet
python -m jobs.build_training_manifest --source photos.csv --output even.parquet --even 2000
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs import run_command
from pipeline import schema, storage
from pipeline.locate.places import Places
from pipeline.run.staging import parquet_bytes
from training.data.geotagged import MEANINGS, Drop, GeotaggedPhotos, implausible, read_geotagged
from training.data.labelled import PARTS, LabelledPhotos
from training.data.split import Split, SplitConfig, cut_photos, fingerprint, split_photos
from training.evaluate.evenness import Evenness, EvennessConfig, EvennessMeter, Land, draw_evenly
from training.globe.land_map import LandMap, draw_maps

EXAMPLES = 5
REPORT_ENDING = ".report.json"
MAP_ENDING = ".evenness.svg"


@dataclass(frozen=True)
class Settings:
    """Turn photos whose positions are known into a table to train, validate and test on, or into an even benchmark."""

    source: str
    """An --output of jobs.geotag_archive, or a Parquet or CSV table as the field publishes them: a path or URI."""
    output: str
    """The Parquet table to write: a path or URI. Beside it FILE.report.json says what was dropped and why."""
    root: str = ""
    """Where the photos lie that a table names by their ids alone, if not beside it."""
    scenes: Literal["16", "3", "none"] = "16"
    """Which scene numbers to take from a table that has no names for scenes: S16_Label, S3_Label or none."""
    by_folder: Literal["auto", "always", "never"] = "auto"
    """Whether photos of unknown photographers belong together with their folder; auto: in a geotagged archive."""
    links: Literal["keep", "cut"] = "keep"
    """Keep photos that are linked by place or photographer in one part, or cut: leave out those that link two parts."""
    region_s2_level: int = 7
    """With --links cut: the size of the regions that go to one part whole (level 7: about 70 km)."""
    split: SplitConfig = field(default_factory=SplitConfig)
    even: int = 0
    """Draw a test set of so many photos evenly over land and countries (with split.seed), instead of splitting."""
    part: Literal["train", "validation", "test", ""] = ""
    """With --even: draw from this part of a table that has parts only."""
    evenness: EvennessConfig = field(default_factory=EvennessConfig)


def run(settings: Settings) -> int:
    """Read, sift, split or draw, and write; return the exit code."""
    if settings.even < 0:
        raise ValueError(f"--even {settings.even}: give the number of photos to draw")
    if settings.part and not settings.even:
        raise ValueError("--part says what to draw --even photos from: give both or none")
    photos = read_geotagged(settings.source, settings.root, {"16": 16, "3": 3, "none": 0}[settings.scenes])
    if not settings.even and photos.is_unnamed:
        raise ValueError(f"{settings.source} does not name its photos: it can only be drawn from (--even COUNT)")
    places = Places()
    folders_link = settings.by_folder == "always" or (settings.by_folder == "auto" and photos.is_archive)
    kin_N = _kin(photos, folders_link)
    drop_N = implausible(photos, kin_N, places)
    rows = np.flatnonzero(drop_N == "")
    if not len(rows):
        raise ValueError(f"nothing is left of {settings.source}: {_summary(drop_N)}")
    report: dict[str, Any] = {
        "source": settings.source,
        "settings": dataclasses.asdict(settings),
        "photos": len(photos),
        "kept": len(rows),
        "dropped": _dropped(photos, drop_N),
        "folders_link": folders_link,
    }
    print(f"{len(photos)} photos in {settings.source}")
    print(describe_drops(report))
    if settings.even:
        rows, found, picture = _even(settings, photos, rows, places)
        report["evenness"] = found
        _write(settings.output + MAP_ENDING, picture.encode())
    labelled = _as_labelled(photos, rows, kin_N)
    if settings.links == "cut" and not settings.even:
        split = cut_photos(labelled, settings.split, settings.region_s2_level)
    else:
        split = split_photos(labelled, settings.split)
    if settings.even:
        split = dataclasses.replace(split, part_N=np.full(len(rows), PARTS.index("test")))
    report["left_out_as_links"] = int((split.part_N < 0).sum())
    uris = [photos.uri_N[row] for row in rows.tolist()]
    report["parts"] = {part: _part(uris, split, part) for part in PARTS}
    report["largest_group"] = int(np.bincount(split.group_N[split.part_N >= 0], minlength=1).max())
    print(describe_parts(report))
    _write(settings.output + REPORT_ENDING, (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())
    _write(settings.output, parquet_bytes(_table(photos, rows, split)))
    written = len(rows) - report["left_out_as_links"]
    print(f"{settings.output}: {written} photos; {settings.output}{REPORT_ENDING} says what became of the others")
    return 0


def _kin(photos: GeotaggedPhotos, folders_link: bool) -> list[str]:
    """Return who took each photo, or the folder where that is unknown and folders are to count, else ""."""
    return [
        who or (f"folder\0{photos.folder(row)}" if folders_link else "")
        for row, who in enumerate(photos.photographer_N)
    ]


def _as_labelled(photos: GeotaggedPhotos, rows: NDArray[np.int64], kin_N: Sequence[str]) -> LabelledPhotos:
    picked = rows.tolist()
    return LabelledPhotos(
        name_N=tuple(str(photos.name_N[row]) for row in picked),
        uri_N=tuple(photos.uri_N[row] for row in picked),
        lat_deg_N=photos.lat_deg_N[rows],
        lon_deg_N=photos.lon_deg_N[rows],
        photographer_N=tuple(kin_N[row] for row in picked),
        scene_N=tuple(photos.scene_N[row] for row in picked),
        part_N=(None,) * len(picked),
    )


def _even(
    settings: Settings, photos: GeotaggedPhotos, rows: NDArray[np.int64], places: Places
) -> tuple[NDArray[np.int64], dict[str, Any], str]:
    """Return the rows drawn, what there is to report of them, and the maps before and after."""
    if settings.part:
        rows = rows[[photos.part_N[row] == settings.part for row in rows.tolist()]]
        if not len(rows):
            raise ValueError(f"{settings.source} has no photos of the part {settings.part}: leave --part out")
    lat_deg_N, lon_deg_N = photos.lat_deg_N[rows], photos.lon_deg_N[rows]
    country_N = places.country_code_N(lat_deg_N, lon_deg_N)
    land = Land(places, settings.evenness.cell_km)
    meter = EvennessMeter(land, lat_deg_N, lon_deg_N, country_N)
    seed = settings.split.seed
    drawn = draw_evenly(
        land,
        lat_deg_N,
        lon_deg_N,
        country_N,
        settings.even,
        seed,
        settings.evenness,
        [photos.photographer_N[row] for row in rows.tolist()],
    )
    if not len(drawn):
        raise ValueError(f"{settings.source} has no photo on land to draw from")
    by_chance = np.random.default_rng(seed).choice(len(rows), len(drawn), replace=False)
    everything = np.arange(len(rows))
    measured = {
        "all photos": meter.measure(everything),
        f"{len(drawn)} at random": meter.measure(by_chance),
        f"{len(drawn)} drawn evenly": meter.measure(drawn),
        f"{len(drawn)} at best": meter.best(len(drawn)),
    }
    print(describe_evenness(measured))
    missing_land, missing_countries = meter.unreached()
    if len(drawn) < settings.even:
        print(
            f"only {len(drawn)} of {settings.even} photos could be drawn within --evenness.most-per-cell and the like"
        )
    print(f"without any photo: cells with {missing_land:.0%} of the land, {len(missing_countries)} countries")
    maps = [
        LandMap(
            title,
            f"covering {measured[name].covered:.1%} of the land, {measured[name].countries} countries; "
            f"{measured[name].fullest_share:.0%} of the photos in the fullest hundredth of the cells",
            meter.cell_K,
            meter.photos_K(chosen),
        )
        for title, name, chosen in (
            (f"Before: all {len(rows):,} photos", "all photos", everything),
            (f"After: {len(drawn):,} drawn evenly", f"{len(drawn)} drawn evenly", drawn),
        )
    ]
    found = {
        "asked": settings.even,
        "drawn": len(drawn),
        "measured": {name: dataclasses.asdict(values) for name, values in measured.items()},
        "land_without_photos": missing_land,
        "countries_without_photos": missing_countries,
    }
    return rows[drawn], found, draw_maps(f"Photos of {settings.source}", maps, land.grid, places)


def _table(photos: GeotaggedPhotos, rows: NDArray[np.int64], split: Split) -> pa.Table:
    taken = np.flatnonzero(split.part_N >= 0)
    rows, split = rows[taken], Split(split.part_N[taken], split.group_N[taken])
    picked = rows.tolist()
    columns = {
        schema.URI: [photos.uri_N[row] for row in picked],
        schema.LAT_DEG: photos.lat_deg_N[rows],
        schema.LON_DEG: photos.lon_deg_N[rows],
        schema.PHOTOGRAPHER: [photos.photographer_N[row] or None for row in picked],
        schema.SCENE: [photos.scene_N[row] for row in picked],
        schema.PART: [PARTS[part] for part in split.part_N.tolist()],
        schema.GROUP: split.group_N,
    }
    return pa.table([pa.array(columns[name], schema.TRAINING.field(name).type) for name in columns], schema.TRAINING)


def _dropped(photos: GeotaggedPhotos, drop_N: NDArray[np.object_]) -> dict[str, Any]:
    found = {}
    for reason in Drop:
        rows = np.flatnonzero(drop_N == reason)
        if len(rows):
            examples = [
                {
                    "row": row + 1,
                    "name": None if photos.name_N[row] is None else schema.printable(str(photos.name_N[row])),
                    schema.LAT_DEG: _number(photos.lat_deg_N[row]),
                    schema.LON_DEG: _number(photos.lon_deg_N[row]),
                }
                for row in rows[:EXAMPLES].tolist()
            ]
            found[str(reason)] = {"photos": len(rows), "meaning": MEANINGS[reason], "examples": examples}
    return found


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _summary(drop_N: NDArray[np.object_]) -> str:
    return ", ".join(f"{(drop_N == reason).sum()} {reason}" for reason in Drop if (drop_N == reason).any())


def _part(uris: Sequence[str], split: Split, part: str) -> dict[str, int | str]:
    rows = split.rows(part)
    return {
        "photos": len(rows),
        "groups": len(np.unique(split.group_N[rows])),
        "fingerprint": fingerprint(uris[row] for row in rows.tolist()),
    }


def describe_drops(report: dict[str, Any]) -> str:
    """Return a line for what was kept and for each reason to drop photos."""
    lines = [f"{'kept':<20} {report['kept']:>9}"]
    for reason, found in report["dropped"].items():
        lines.append(f"{reason:<20} {found['photos']:>9}  {found['meaning']}; {_example(found['examples'][0])}")
    return "\n".join(lines)


def _example(example: dict[str, Any]) -> str:
    return f"such as row {example['row']}: {example[schema.LAT_DEG]}, {example[schema.LON_DEG]}"


def describe_parts(report: dict[str, Any]) -> str:
    """Return a line for each part, and one where a group is so large that the parts can't be what was asked for."""
    lines = [
        f"{part:<20} {found['photos']:>9} photos in {found['groups']:>8} groups of place and photographer"
        for part, found in report["parts"].items()
        if found["photos"]
    ]
    if report["left_out_as_links"]:
        lines.append(f"{'left out':<20} {report['left_out_as_links']:>9} photos that link two parts (--links cut)")
    total = sum(found["photos"] for found in report["parts"].values())
    if report["settings"]["links"] == "keep" and not report["settings"]["even"] and report["largest_group"] > total / 2:
        lines.append(
            f"one group has {report['largest_group']} of the {total} photos, linked by places, photographers"
            f"{' and folders (--by-folder never leaves these out)' if report['folders_link'] else ''}, and goes to one "
            "part: --links cut splits it, at the price of the photos that link its parts"
        )
    return "\n".join(lines)


def describe_evenness(measured: dict[str, Evenness]) -> str:
    """Return a table with a line for each set of photos."""
    heads = ("photos", "land covered", "cells", "in fullest 1%", "countries", "off by country")
    lines = [f"{'':<20} " + "".join(f"{head:>15}" for head in heads)]
    for name, found in measured.items():
        values = (
            f"{found.photos}",
            f"{found.covered:.1%}",
            f"{found.cells}/{found.land_cells}",
            f"{found.fullest_share:.1%}",
            f"{found.countries}",
            f"{found.country_distance:.1%}",
        )
        lines.append(f"{name:<20} " + "".join(f"{value:>15}" for value in values))
    return "\n".join(lines)


def _write(uri: str, data: bytes) -> None:
    try:
        storage.write_bytes(uri, data)
    except OSError as error:
        raise ValueError(f"cannot write {uri}: {error}") from error


if __name__ == "__main__":
    run_command(Settings, run)
