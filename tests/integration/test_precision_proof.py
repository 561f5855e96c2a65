"""`--precision` as a promise: whatever a run leaves anywhere, finished or not, nothing in it tells a finer place.

A run at street precision says what there is to tell. Runs of the same archive at coarser ones are then searched for it,
every file and byte: numbers in Parquet, in text and in binary, names of cells, and all that users make of an output.
"""

from __future__ import annotations

import base64
import datetime as dt
import io
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from model import s2
from model.checkpoint import Checkpoint
from model.geodecoder import GeoDecoder, tiny
from pipeline import schema
from pipeline.precision import PRECISIONS
from tests.conftest import REPOSITORY, RayCluster
from tests.photo_samples import camera_jpeg, china_image, china_jpeg
from training.partition import PartitionConfig, build_hierarchy

S2_LEVEL = {"city": 9, "region": 6, "country": 4}
TOLERANCE_DEG = 5e-3
"""500 m, as two decimals are rounded: a number so near to a fine coordinate tells it, whatever it is called."""
SAME_DEG = 1e-6
"""Where any eight bytes are taken for a number, only what is really the same is no chance."""
EXIF = {"one.jpg": (-33.86771, 151.20933), "two.jpg": (64.14661, -21.94263), "three.jpg": (-33.86801, 151.21003)}

STOPPED = """
import sys
from pipeline import dataflow
def stopped(*_): raise RuntimeError("stopped before anything is published")
dataflow.publish_on_ray = stopped
from jobs import run_command
from jobs.geotag_archive import GeotagSettings, run
run_command(GeotagSettings, run)
"""
"""The job as it is when its machine dies as all is staged: what it has staged stays."""


@dataclass(frozen=True)
class Secrets:
    """What nobody may read: coordinates, and cells by number and name."""

    degrees: np.ndarray
    cells: frozenset[int]
    tokens: frozenset[str]


@pytest.fixture(scope="module")
def fine_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network whose finest cells are some kilometres across: finer than every precision but street."""
    rng = np.random.default_rng(5)
    towns = [(53.54624, -113.49037), (-37.81402, 144.96332), (35.68951, 139.69171), (43.11981, 131.88691)]
    lat_deg_N, lon_deg_N = np.concatenate([np.array(town) + rng.normal(0, 0.2, (300, 2)) for town in towns]).T
    hierarchy = build_hierarchy(lat_deg_N, lon_deg_N, PartitionConfig(tau_min=0, tau_max=(400, 60, 6)))
    assert hierarchy.levels[-1].s2_level_K.max() > 9
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint") / "fine"
    Checkpoint.save(folder, GeoDecoder(tiny(), hierarchy.class_counts), hierarchy, name="fine")
    return folder


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of one album: with positions, without, a copy and a broken one that still has its position."""
    photos = tmp_path_factory.mktemp("photos")
    for minute, (name, (lat_deg, lon_deg)) in enumerate(EXIF.items()):
        image, taken_at = china_image().rotate(90 * minute), dt.datetime(2024, 5, 1, 12, minute)
        (photos / name).write_bytes(camera_jpeg(image, lat_deg=lat_deg, lon_deg=lon_deg, taken_at=taken_at))
    (photos / "none.jpg").write_bytes(china_jpeg())
    (photos / "copy of one.jpg").write_bytes((photos / "one.jpg").read_bytes())
    (photos / "broken.jpg").write_bytes((photos / "two.jpg").read_bytes()[:-4000])
    return photos


def job(cluster: RayCluster, module: str | None, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run one of our commands, or the job that is stopped before it publishes."""
    command = [sys.executable, *(["-m", module] if module else ["-c", STOPPED]), *map(str, arguments)]
    return subprocess.run(
        command, cwd=REPOSITORY, env=cluster.environment, capture_output=True, text=True, check=False, timeout=240
    )


def everything(cluster: RayCluster, photos: Path, model: Path, precision: str, out: Path) -> dict[str, bytes]:
    """Run, stopped once, and all that can be made of the output: name → bytes of every file and log there ever was."""
    arguments = ("--photos", photos, "--output", out, "--model", model, "--run-id", "r1", "--precision", precision)
    arguments += ("--context", "--max-failed-fraction", 1)
    found: dict[str, bytes] = {}

    def keep(when: str, answer: subprocess.CompletedProcess[str], code: int = 0) -> None:
        assert answer.returncode == code, answer.stderr
        found[f"{when}: log"] = (answer.stdout + answer.stderr).encode()
        for file in out.parent.rglob("*"):
            if file.is_file():
                found[f"{when}: {file.relative_to(out.parent)}"] = file.read_bytes()

    keep("stopped", job(cluster, None, *arguments), code=1)
    assert any("/staging/" in name and "/rows/" in name for name in found)
    assert any("/plan/" in name for name in found)
    assert any(name.endswith("lease.json") for name in found)
    keep("finished", job(cluster, "jobs.geotag_archive", *arguments))
    keep("verified", job(cluster, "jobs.geotag_archive", "--verify", out))
    keep("reported", job(cluster, "jobs.report", out, "--to", out.parent / "report.html", "--thumbnails", 6))
    for kind in ("geojson", "geojsonl", "csv", "kml"):
        options = ("--format", kind, "--to", out.parent / f"photos.{kind}", "--all")
        keep(kind, job(cluster, "jobs.export", out, *options))
    options = ("--format", "xmp", "--to", out.parent / "sidecars", "--min-confidence", 0, "--max-radius-km", 30_000)
    keep("xmp", job(cluster, "jobs.export", out, *options, "--write"))
    assert any(name.endswith(".xmp") for name in found)
    keep("asked", job(cluster, "jobs.query", out, "SELECT * FROM history", "--format", "json"))
    keep("accuracy", job(cluster, "jobs.query", out, "SELECT * FROM accuracy", "--format", "csv"))
    return found


def leaves(values: pa.Array | pa.ChunkedArray) -> Iterator[pa.Array]:
    """Yield all arrays of plain values in a column, however deep."""
    for chunk in values.chunks if isinstance(values, pa.ChunkedArray) else [values]:
        if pa.types.is_list(chunk.type):
            yield from leaves(chunk.values)  # not flatten(): what null lists hide counts, too
        elif pa.types.is_struct(chunk.type):
            for index in range(chunk.type.num_fields):
                yield from leaves(chunk.field(index))
        else:
            yield chunk


def doubles(data: bytes) -> np.ndarray:
    """Return what any 8 bytes in a row would be as a number, in either order of bytes."""
    windows = [data[start : start + (len(data) - start) // 8 * 8] for start in range(min(8, len(data)))]
    return np.concatenate([np.zeros(0), *(np.frombuffer(w, kind) for w in windows for kind in ("<f8", ">f8"))])


def numbers(name: str, data: bytes) -> tuple[np.ndarray, np.ndarray, set[int], str]:
    """Return all numbers in a file, those that its bytes may be, all whole ones, and its text."""
    found: list[np.ndarray] = []
    raw, texts = [doubles(data)], list[str]()
    whole: set[int] = set()
    if name.endswith(".parquet"):
        for column in pq.read_table(io.BytesIO(data)).columns:
            for leaf in leaves(column):
                if pa.types.is_floating(leaf.type):
                    found.append(leaf.drop_null().to_numpy(zero_copy_only=False).astype(np.float64))
                elif pa.types.is_integer(leaf.type):
                    whole |= {int(value) for value in leaf.drop_null().to_pylist()}
                elif pa.types.is_binary(leaf.type) or pa.types.is_fixed_size_binary(leaf.type):
                    raw += [doubles(value) for value in leaf.drop_null().to_pylist()]
                elif pa.types.is_string(leaf.type):
                    texts += leaf.drop_null().to_pylist()
        texts.append(str(pq.read_schema(io.BytesIO(data)).metadata))
        metadata = pq.read_metadata(io.BytesIO(data))
        texts.append(str(metadata.to_dict()))  # least and greatest values of each column
    else:
        texts.append(data.decode("utf-8", "replace"))
    text = "\n".join(texts)
    for packed in re.findall(r"[A-Za-z0-9+/]{16,}={0,2}", text) if not name.endswith(".parquet") else ():
        raw.append(doubles(base64.b64decode(packed[: len(packed) // 4 * 4])))
    # Not the seconds of a time, nor how many a run took.
    text_of_places = re.sub(r'"\w+_s": [\d.]+', "", text)
    tokens = re.findall(r"(?<!\d:)(?<![\d.])\d{1,3}\.\d{2,}", text_of_places)
    found.append(np.array([float(token) for token in tokens]))
    whole |= {int(token) for token in re.findall(r"\d{9,20}", text)}
    # EXIF and XMP write degrees and minutes: 48,8.226N
    minutes = re.findall(r"(\d{1,3})[,° ]+(\d{1,2}\.\d+)'?\s*([NSEW])", text)
    found.append(np.array([(int(d) + float(m) / 60) * (-1 if side in "SW" else 1) for d, m, side in minutes]))
    return np.concatenate(found), np.concatenate(raw), whole, text


def is_near(degrees: np.ndarray, numbers: np.ndarray, tolerance_deg: float) -> np.ndarray:
    """Return for each of `degrees` whether one of the numbers is it, whatever its sign."""
    with np.errstate(invalid="ignore"):
        sorted_numbers = np.unique(np.abs(numbers[np.abs(numbers) <= 181]))
    padded = np.concatenate([[-1e9], sorted_numbers, [1e9]])
    after = np.searchsorted(padded, degrees)
    return np.minimum(padded[after] - degrees, degrees - padded[after - 1]) < tolerance_deg


def told(name: str, data: bytes, secrets: Secrets) -> list[str]:
    """Return what a file tells of the secrets."""
    found, raw, whole, text = numbers(name, data)
    near = is_near(secrets.degrees, found, TOLERANCE_DEG) | is_near(secrets.degrees, raw, SAME_DEG)
    words = set(re.findall(r"[0-9a-f]{5,16}", text))
    problems = [f"{name}: {degrees}°" for degrees in secrets.degrees[near]]
    return problems + [f"{name}: cell {cell}" for cell in (whole & secrets.cells) | (words & secrets.tokens)]


def secrets_of(rows: list[dict[str, Any]], precision: str) -> Secrets:
    """Return what the rows of a street run tell that a coarser one must not, without what is known of coarse cells."""
    level = S2_LEVEL[precision]
    degrees, cells = {abs(value) for position in EXIF.values() for value in position}, set()
    allowed: set[float] = set()
    for row in rows:
        for name in (schema.LAT_DEG, schema.LON_DEG, schema.CONTEXT_LAT_DEG, schema.CONTEXT_LON_DEG):
            degrees |= {abs(row[name])} if row[name] is not None else set()
        cells |= {row[name] for name in (schema.CELL_ID, schema.CONTEXT_CELL_ID) if row[name] is not None}
        for cell in [*(row[schema.LEVELS] or ()), *(row[schema.ALTERNATIVES] or ())]:
            is_fine = s2.level_of_N([cell[schema.CELL_ID]])[0] > level
            (degrees if is_fine else allowed).update({abs(cell[schema.LAT_DEG]), abs(cell[schema.LON_DEG])})
            cells |= {cell[schema.CELL_ID]} if is_fine else set()
    # The middle of a coarse cell around a candidate is what is to be told, however near to the truth it is.
    fine = np.array(sorted(cells), np.uint64)
    exif_N2 = np.array([*EXIF.values()])
    around = np.concatenate([s2.parent_N(fine, level), s2.cell_id_N(exif_N2[:, 0], exif_N2[:, 1], level)])
    allowed |= {abs(float(value)) for values in s2.centre_deg_N(around) for value in values}
    kept = [value for value in degrees if all(abs(value - other) > 2 * TOLERANCE_DEG for other in allowed)]
    return Secrets(np.array(sorted(kept)), frozenset(cells), frozenset(s2.token(cell) for cell in cells))


@pytest.mark.ray
def test_nothing_finer_is_left_anywhere(
    ray_cluster: RayCluster, archive: Path, fine_checkpoint: Path, tmp_path: Path
) -> None:
    street = everything(ray_cluster, archive, fine_checkpoint, "street", tmp_path / "street" / "out")
    (published,) = (data for name, data in street.items() if name.startswith("finished: out/photos/"))
    rows = pq.read_table(io.BytesIO(published)).to_pylist()
    assert sum(row[schema.CONTEXT_LAT_DEG] is not None for row in rows) >= 3
    for precision in PRECISIONS[1:]:
        secrets = secrets_of(rows, precision)
        assert len(secrets.degrees) >= 8
        # The search finds all of it where it is told, in each kind of file that tells places at all.
        kinds = ("/staging/r1/rows/", "out/photos/", "report.html", ".geojson", ".geojsonl", ".csv", ".kml", ".xmp")
        for kind in (*kinds, "asked: log", "accuracy: log"):
            files = {name: data for name, data in street.items() if kind in name}
            assert any(told(name, data, secrets) for name, data in files.items()), kind
        # What the world's own outlines and names in the report happen to say is no secret: it is in every report.
        coarse = everything(ray_cluster, archive, fine_checkpoint, precision, tmp_path / precision / "out")
        found = [problem for name, data in coarse.items() for problem in told(name, data, secrets)]
        assert found == []
        assert not any(b"Exif\0\0" in base64.b64decode(packed) for packed in pictures(coarse["reported: report.html"]))


def pictures(page: bytes) -> list[str]:
    """Return the report's thumbnails, in base64."""
    found = re.findall(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", page.decode())
    assert found
    return found
