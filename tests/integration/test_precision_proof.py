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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from jobs import export, report
from model.checkpoint import Checkpoint
from model.geodecoder import GeoDecoder, tiny
from model.world import s2
from pipeline import schema
from pipeline.decode.photo import DecodeTarget
from pipeline.locate.context import ContextSettings
from pipeline.locate.locator import Locator, LocatorSettings
from pipeline.locate.precision import PRECISIONS, PrecisionName, cell_count
from pipeline.published.catalog import Catalog
from pipeline.published.records import RunRecord
from pipeline.read.reader import Reader, ReaderSettings
from pipeline.run import albums
from pipeline.run.plan import make_plan
from pipeline.run.publish import publish, put_record
from pipeline.run.staging import Stage
from tests.conftest import REPOSITORY, RayCluster
from tests.support.photo_samples import camera_jpeg, china_image, china_jpeg
from training.hierarchy import PartitionConfig, build_hierarchy

S2_LEVEL = {"city": 9, "region": 6, "country": 4}
TOLERANCE_DEG = 5e-3
"""500 m, as two decimals are rounded: a number so near to a fine coordinate tells it, whatever it is called."""
SAME_DEG = 1e-6
"""Where any eight bytes are taken for a number, only what is really the same is no chance."""
EXIF = {"one.jpg": (-33.86771, 151.20933), "two.jpg": (64.14661, -21.94263), "three.jpg": (-33.86801, 151.21003)}

STOPPED = """
import sys
from pipeline.cluster import dataflow
def stopped(*_): raise RuntimeError("stopped before anything is published")
dataflow.publish_on_ray = stopped
from jobs import run_command
from jobs.geotag_archive import ArchiveSettings, run
run_command(ArchiveSettings, run)
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


def kept(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def everything(photos: Path, model: Path, precision: PrecisionName, folder: Path) -> dict[str, bytes]:
    """Tag as the job does, but in this process, and return every file there ever was, and all that is made of them."""
    checkpoint, output = Checkpoint.load(model), str(folder / "out")
    stage, found = Stage(output, "r1"), {}

    def keep(when: str) -> None:
        found.update({f"{when}: {name}": data for name, data in kept(folder).items()})

    plan = make_plan([str(photos)], stage, [], checkpoint.model_id, retry_failed=False, limit=None)
    preprocessing = checkpoint.config.preprocessing
    read = Reader(ReaderSettings(DecodeTarget(preprocessing.image_size_px, preprocessing.resize_px)))
    settings = LocatorSettings(
        str(model), checkpoint.model_id, "r1", engine="torch", precision=precision, at_least="any"
    )
    locate = Locator(settings)
    for file in plan.files:
        stage.put_rows(locate(read(pq.read_table(file, schema=schema.MANIFEST))))
    keep("staged")
    cells = cell_count(checkpoint.hierarchy.levels[-1].cell_id_K, precision)
    assert albums.add_context(stage, [], cells, precision, ContextSettings()).explained >= 3
    keep("in context")
    published = publish(stage)
    keep("published")
    record = {"run_id": "r1", "finished_at": "2026-01-01", "model_id": checkpoint.model_id}
    outcome = {"photos": {"located": published.located, "failed": published.failed}}
    files = {"files": [asdict(file) for file in published.files]}
    put_record(stage, RunRecord.from_json(record | outcome | files))
    assert report.run(report.ReportSettings(output, str(folder / "report.html"), thumbnails=6)) == 0
    for kind in ("geojson", "geojsonl", "csv", "kml"):
        assert export.run(export.ExportSettings(output, kind, str(folder / f"photos.{kind}"), all=True)) == 0
    sidecars = export.ExportSettings(
        *(output, "xmp", str(folder / "sidecars")), min_confidence=0, max_radius_km=30_000, write=True
    )
    assert export.run(sidecars) == 0
    keep("finished")
    for view in ("history", "accuracy", "levels", "runs"):
        found[f"asked: {view}"] = str(Catalog(output).rows(f"SELECT * FROM {view}").to_pylist()).encode()
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
    recorded_N2 = np.array([*EXIF.values()])
    around = np.concatenate([s2.parent_N(fine, level), s2.cell_id_N(recorded_N2[:, 0], recorded_N2[:, 1], level)])
    allowed |= {abs(float(value)) for values in s2.centre_deg_N(around) for value in values}
    kept = [value for value in degrees if all(abs(value - other) > 2 * TOLERANCE_DEG for other in allowed)]
    return Secrets(np.array(sorted(kept)), frozenset(cells), frozenset(s2.token(cell) for cell in cells))


@pytest.fixture(scope="module")
def street(archive: Path, fine_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """All that a run at street precision leaves."""
    return everything(archive, fine_checkpoint, "street", tmp_path_factory.mktemp("street"))


def published_rows(files: dict[str, bytes]) -> list[dict[str, Any]]:
    (published,) = (data for name, data in files.items() if name.startswith("published: out/photos/"))
    rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(published)).to_pylist()
    return rows


@pytest.mark.parametrize("precision", PRECISIONS[1:])
def test_nothing_finer_is_left_anywhere(
    street: dict[str, bytes], archive: Path, fine_checkpoint: Path, tmp_path: Path, precision: PrecisionName
) -> None:
    secrets = secrets_of(published_rows(street), precision)
    assert len(secrets.degrees) >= 8
    # The search finds what is told, in each kind of file that tells places at all.
    kinds = ("/rows/", "out/photos/", "report.html", ".geojson", ".geojsonl", ".csv", ".kml", ".xmp")
    for kind in (*kinds, "history", "accuracy", "levels"):
        files = {name: data for name, data in street.items() if kind in name}
        assert any(told(name, data, secrets) for name, data in files.items()), kind
    coarse = everything(archive, fine_checkpoint, precision, tmp_path)
    assert len(coarse) == len(street)
    assert [problem for name, data in coarse.items() for problem in told(name, data, secrets)] == []
    for picture in pictures(coarse["finished: report.html"]):
        assert b"Exif" not in base64.b64decode(picture)


@pytest.mark.ray
def test_nor_in_what_only_the_job_writes(
    street: dict[str, bytes], ray_cluster: RayCluster, archive: Path, fine_checkpoint: Path, tmp_path: Path
) -> None:
    """Its plan, lease, logs, record and the staging of a run that died before it published."""
    secrets = secrets_of(published_rows(street), "city")
    arguments = ["--photos", archive, "--output", tmp_path / "out", "--model", fine_checkpoint, "--run-id", "r1"]
    arguments += ["--precision", "city", "--context", "--max-failed-fraction", 1]
    for start, wanted in ((["-c", STOPPED], 1), (["-m", "jobs.geotag_archive"], 0)):
        answer = subprocess.run(
            [sys.executable, *start, *map(str, arguments)],
            cwd=REPOSITORY,
            env=ray_cluster.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=400,
        )
        assert answer.returncode == wanted, answer.stderr
        files = kept(tmp_path) | {"log": (answer.stdout + answer.stderr).encode()}
        assert "out/lease.json" in files
        assert any("/rows/" in name for name in files) == (wanted == 1)
        assert any("/plan/" in name for name in files) == (wanted == 1)
        assert ("out/runs/r1.json" in files) == (wanted == 0)
        assert [problem for name, data in files.items() for problem in told(name, data, secrets)] == []


def pictures(page: bytes) -> list[str]:
    """Return the report's thumbnails, in base64."""
    found = re.findall(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", page.decode())
    assert found
    return found
