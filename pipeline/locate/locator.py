"""Rows with pixels become prediction rows: owns one engine.

Shapes: B photos of a batch · N photos of a table that have pixels · H levels · T alternatives · K cells of a level
· G countries.
"""

from __future__ import annotations

import datetime as dt
import functools
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

import model
from model.checkpoint import CONFIG_FILE, Checkpoint
from model.engines import Engine, EngineName, NumpyAnswers, Precision, load_engine
from model.engines.tensorrt_engine import TensorRtSettings
from model.readout import AUTO, PointRule
from model.world import s2
from model.world.hierarchy import Level
from pipeline import schema, storage
from pipeline.locate.engine_share import EngineShare
from pipeline.locate.places import Gazetteer, Names
from pipeline.locate.precision import PRECISIONS, PrecisionName, coarsen, wkb_points
from pipeline.locate.zones import local_N, utc_N
from pipeline.schema import ErrorCode, Status

TOP_COUNTRIES = 3
AtLeast = Literal["country", "region", "city", "street", "any"]
"""To which precision a photo has to be more likely right than not, or else it is undecided."""
_HALF = 0.5
BUNDLED_MODEL = Path(model.__file__).parent / "bundled"


@dataclass(frozen=True)
class LocatorSettings:
    """How photos are located.

    Attributes:
        model_uri: checkpoint folder, local or remote, or `bundled`.
        model_id: what that checkpoint must be, pointing as `point` says; another one there by now is an error.
        engine: which engine runs it.
        engine_precision: what its network computes in.
        threads: CPU threads of the engine, all if None.
        batch_size: photos in one call of the engine.
        precision: nothing finer than this is kept.
        point: where an answer has its point.
        at_least: a photo that is not more likely right than not to this precision is undecided.
        engine_cache: local folder that keeps compiled models, or None.
        engine_share: folder or object prefix where machines keep them in common, or None.
        tensorrt: what the tensorrt engine is compiled for.
    """

    model_uri: str
    model_id: str
    run_id: str
    engine: EngineName = "auto"
    engine_precision: Precision = "auto"
    threads: int | None = None
    batch_size: int = 32
    precision: PrecisionName = "street"
    point: PointRule = AUTO
    at_least: AtLeast = "country"
    engine_cache: Path | None = None
    engine_share: str | None = None
    tensorrt: TensorRtSettings = field(default_factory=TensorRtSettings)


EngineLoader = Callable[..., Engine]
"""`load_engine` or alike; a module's function, since it travels to the process that runs the engine."""


@dataclass
class EngineUse:
    """Calls of an engine that had photos: how many these were, how many would have had room, how long each took."""

    photos: int = 0
    slots: int = 0
    call_seconds: list[float] = field(default_factory=list)


class Locator:
    """Predicts places: a table of `schema.READ` in, one of `schema.PHOTOS` out, row for row."""

    def __init__(self, settings: LocatorSettings, load: EngineLoader = load_engine) -> None:
        """Load model and engine; ValueError where the checkpoint is damaged or not the one expected."""
        checkpoint = Checkpoint.load(model_folder(settings.model_uri)).pointing(settings.point)
        if checkpoint.model_id != settings.model_id:
            raise ValueError(
                f"{settings.model_uri} holds {checkpoint.model_id} now, not {settings.model_id}: start again"
            )
        self._settings = settings
        self._use = EngineUse()
        self._scene_names = pa.array(checkpoint.config.scenes, pa.string())
        self._levels = [_Cells(level) for level in checkpoint.hierarchy.levels]
        self._gazetteer = Gazetteer()
        # Names are looked up once, for the cells that can be a photo's point; the graph adds up each country's cells.
        self._names = cell_names(checkpoint, self._gazetteer)
        first_G, self._country_K = _countries(self._names)
        self._country_code_G, self._country_G = (
            names.take(pa.array(first_G)) for names in (self._names.country_code, self._names.country)
        )
        self.engine: Engine = load(
            settings.engine,
            checkpoint.grouping(self._country_K),
            threads=settings.threads,
            cache_dir=settings.engine_cache,
            precision=settings.engine_precision,
            share=EngineShare(settings.engine_share) if settings.engine_share else None,
            tensorrt=settings.tensorrt,
        )

    def __call__(self, read: pa.Table) -> pa.Table:
        """Locate every photo of `read` that has pixels; the others keep their error code, or are copies of others."""
        column = read.column(schema.PIXELS_HWC)
        pixels = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()  # which copies, even one
        rows_N = np.flatnonzero(pixels.is_valid().to_numpy(zero_copy_only=False))
        answers = self._answer(pixels, rows_N)
        finite_N = answers.finite_B.astype(bool)
        # Row of `read` → row of the answers, or null: `take` with it spreads the answers over all rows.
        spread = np.full(read.num_rows, -1)
        spread[rows_N[finite_N]] = np.flatnonzero(finite_N)
        spread_array = pa.array(spread, pa.int64(), mask=spread < 0)
        is_broken = np.zeros(read.num_rows, dtype=bool)
        is_broken[rows_N[~finite_N]] = True

        now = dt.datetime.now(dt.UTC)
        columns = {name: read.column(name) for name in schema.READ.names if name in schema.PHOTOS.names}
        decode_seconds = pc.fill_null(read.column(schema.DECODE_SECONDS), 0.0)  # of what was never fetched
        columns[schema.READ_SECONDS] = pc.add(read.column(schema.FETCH_SECONDS), decode_seconds)
        broken = pa.array(is_broken)
        columns[schema.ERROR_CODE] = pc.if_else(broken, str(ErrorCode.MODEL_FAILED), columns[schema.ERROR_CODE])
        columns[schema.ERROR_MESSAGE] = pc.if_else(
            broken, "the network's outputs are not finite numbers", columns[schema.ERROR_MESSAGE]
        )
        is_skipped = pc.fill_null(pc.equal(columns[schema.ERROR_CODE], str(ErrorCode.NOT_A_PHOTO)), False)
        refused = pc.if_else(is_skipped, str(Status.SKIPPED), str(Status.FAILED))
        without_place = pc.if_else(pc.is_valid(columns[schema.ERROR_CODE]), refused, schema.COPIED)
        columns |= self._exif_names(read)
        columns |= self._utc_by_zone(read)
        if self._settings.precision == "street":  # a coarser place must not be told by its clocks
            columns |= self._local_by_zone(read)
        columns |= {name: values.take(spread_array) for name, values in self._answer_columns(answers).items()}
        is_decided = self._is_decided(columns[schema.PRECISION])
        with_place = pc.if_else(is_decided, str(Status.LOCATED), str(Status.UNDECIDED))
        columns[schema.STATUS] = pc.if_else(pa.array(spread >= 0), with_place, without_place)
        constants: dict[str, object] = {
            schema.MODEL_ID: self._settings.model_id,
            schema.RUN_ID: self._settings.run_id,
            schema.PROCESSED_AT: now,
        }
        constants |= dict.fromkeys(schema.CONTEXT)  # of which nothing is known before all of a folder's photos are
        constants[schema.RUN_SEQUENCE] = None  # nor of this before the run is published
        for name, value in constants.items():
            columns[name] = pa.repeat(pa.scalar(value, schema.PHOTOS.field(name).type), read.num_rows)
        rows = pa.Table.from_arrays(
            [_cast(columns[field.name], field.type) for field in schema.PHOTOS], schema=schema.PHOTOS
        )
        return coarsen(rows, self._settings.precision, self._gazetteer)

    def take_use(self) -> EngineUse:
        """Return how the engine was used since this was last asked."""
        use, self._use = self._use, EngineUse()
        return use

    def _answer(self, pixels: pa.BinaryArray, rows_N: np.ndarray) -> NumpyAnswers:
        shape_HWC, batch_size = self.engine.shape_HWC, self._settings.batch_size
        parts = []
        for start in range(0, max(len(rows_N), 1), batch_size):
            taken_B = rows_N[start : start + batch_size]
            flat = _bytes_of(pixels, taken_B, math.prod(shape_HWC))
            start_s = time.perf_counter()
            parts.append(self.engine(flat.reshape(-1, *shape_HWC)))
            if len(taken_B):  # of none, only the answer's shape is asked for
                self._use.photos += len(taken_B)
                self._use.slots += batch_size
                self._use.call_seconds.append(time.perf_counter() - start_s)
        return NumpyAnswers(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def _answer_columns(self, answers: NumpyAnswers) -> dict[str, pa.Array]:
        """Return the columns that answers decide, one row a photo with pixels."""
        finest = self._levels[-1]
        point_B = answers.point_index_B
        point = pa.array(point_B)
        country_probability_B = np.take_along_axis(
            answers.group_probability_BG, self._country_K[point_B][:, None], axis=1
        )[:, 0]
        precision = _precision_names(answers.mass_within_B4, country_probability_B)
        # A name stands only for what is more likely right than not: the point alone would always have one.
        country, region, place = (
            pa.array(np.where(known_B, point_B, -1), pa.int64(), mask=~known_B)
            for known_B in _known_B(precision, country_probability_B)
        )
        return {
            schema.LAT_DEG: finest.lat_deg.take(point),
            schema.LON_DEG: finest.lon_deg.take(point),
            schema.CELL_ID: finest.leaf_id.take(point),
            schema.GEOMETRY: finest.wkb.take(point),
            schema.RADIUS_KM: pa.array(answers.radius_km_B),
            schema.CONFIDENCE: pa.array(answers.point_probability_B),
            schema.LEVELS: self._level_lists(answers),
            schema.ALTERNATIVES: self._alternative_lists(answers),
            schema.SCENE: self._scene_names.take(pa.array(answers.scene_index_B)),
            schema.SCENE_PROBABILITY: pa.array(answers.scene_probability_B),
            schema.INFORMATION_BITS: pa.array(answers.information_bits_B, from_pandas=True),
            schema.COUNTRY_CODE: self._names.country_code.take(country),
            schema.COUNTRY: self._names.country.take(country),
            schema.REGION: self._names.region.take(region),
            schema.PLACE: self._names.place.take(place),
            schema.COUNTRY_PROBABILITY: pa.array(country_probability_B),
            schema.COUNTRIES: self._country_lists(answers.group_probability_BG),
            schema.PRECISION: precision,
        }

    def _is_decided(self, precision: pa.Array) -> pa.Array:
        if self._settings.at_least == "any":
            return pa.array(np.ones(len(precision), bool))
        enough = PRECISIONS[: PRECISIONS.index(self._settings.at_least) + 1]
        return pc.is_in(precision, pa.array(enough, pa.string()))

    def _exif_names(self, read: pa.Table) -> dict[str, pa.Array]:
        """Return the names of the cameras' own positions, null where there is none."""
        lat_deg, lon_deg = (read.column(name) for name in (schema.RECORDED_LAT_DEG, schema.RECORDED_LON_DEG))
        has_both = pc.and_(pc.is_valid(lat_deg), pc.is_valid(lon_deg)).to_numpy()
        known_N = np.flatnonzero(has_both)
        names = self._gazetteer.names_N(lat_deg.to_numpy()[known_N], lon_deg.to_numpy()[known_N])
        row_N = np.cumsum(has_both) - 1
        rows = pa.array(row_N, mask=~has_both)
        columns = (schema.RECORDED_COUNTRY_CODE, schema.RECORDED_COUNTRY, schema.RECORDED_REGION, schema.RECORDED_PLACE)
        return {column: values.take(rows) for column, values in zip(columns, names, strict=True)}

    def _utc_by_zone(self, read: pa.Table) -> dict[str, pa.Array | pa.ChunkedArray]:
        """Return the times in UTC and how they are known, with those that only the recorded position's zone tells."""
        known, by = (read.column(name) for name in (schema.TAKEN_AT_UTC, schema.TAKEN_AT_UTC_BY))
        needs = (schema.TAKEN_AT, schema.RECORDED_LAT_DEG, schema.RECORDED_LON_DEG)
        has_all = functools.reduce(pc.and_, (pc.is_valid(read.column(name)) for name in needs))
        rows = np.flatnonzero(pc.and_(has_all, pc.is_null(known)).to_numpy())
        if not len(rows):
            return {}
        local_N, lat_deg_N, lon_deg_N = (read.column(name).take(pa.array(rows)).to_pylist() for name in needs)
        utc = np.full(read.num_rows, None, object)
        utc[rows] = utc_N(local_N, self._gazetteer.places.zone_N(lat_deg_N, lon_deg_N))
        by_zone = pa.array(utc, known.type)
        zone = pa.scalar(str(schema.UtcBy.ZONE_OF_POSITION))
        return {
            schema.TAKEN_AT_UTC: pc.coalesce(known, by_zone),
            schema.TAKEN_AT_UTC_BY: pc.coalesce(
                by, pc.if_else(pc.is_valid(by_zone), zone, pa.scalar(None, pa.string()))
            ),
        }

    def _local_by_zone(self, read: pa.Table) -> dict[str, pa.Array | pa.ChunkedArray]:
        """Return the local times with those that Takeout tells in UTC only, by the recorded position's zone."""
        local, by = read.column(schema.TAKEN_AT), read.column(schema.TAKEN_AT_UTC_BY)
        is_wanted = pc.and_(pc.is_null(local), pc.fill_null(pc.equal(by, str(schema.UtcBy.TAKEOUT)), False))
        rows = np.flatnonzero(pc.and_(is_wanted, pc.is_valid(read.column(schema.RECORDED_LAT_DEG))).to_numpy())
        if not len(rows):
            return {}
        names = (schema.TAKEN_AT_UTC, schema.RECORDED_LAT_DEG, schema.RECORDED_LON_DEG)
        moment_N, lat_deg_N, lon_deg_N = (read.column(name).take(pa.array(rows)).to_pylist() for name in names)
        by_zone = np.full(read.num_rows, None, object)
        by_zone[rows] = local_N(moment_N, self._gazetteer.places.zone_N(lat_deg_N, lon_deg_N))
        return {schema.TAKEN_AT: pc.coalesce(local, pa.array(by_zone, local.type))}

    def _country_lists(self, probability_BG: np.ndarray) -> pa.ListArray:
        photos, count = len(probability_BG), min(TOP_COUNTRIES, probability_BG.shape[1])
        best_BT = np.argsort(-probability_BG, axis=1, kind="stable")[:, :count]
        best = pa.array(best_BT.ravel())
        columns = {
            schema.COUNTRY_CODE: self._country_code_G.take(best),
            schema.COUNTRY: self._country_G.take(best),
            schema.PROBABILITY: pa.array(np.take_along_axis(probability_BG, best_BT, axis=1).ravel(), pa.float32()),
        }
        fields = list(schema.PHOTOS.field(schema.COUNTRIES).type.value_type)
        values = pa.StructArray.from_arrays([columns[field.name] for field in fields], fields=fields)
        return pa.ListArray.from_arrays(pa.array(np.arange(photos + 1) * count, pa.int32()), values)

    def _level_lists(self, answers: NumpyAnswers) -> pa.ListArray:
        photos, levels = answers.level_index_BH.shape
        # One struct array a level, photos in order, then interleaved: photo 0's levels, photo 1's levels, …
        parts = [
            cells.structs(
                schema.PHOTOS.field(schema.LEVELS).type.value_type,
                answers.level_index_BH[:, level],
                answers.level_probability_BH[:, level],
                level,
            )
            for level, cells in enumerate(self._levels)
        ]
        order = np.arange(photos * levels).reshape(levels, photos).T.ravel()
        values = pa.concat_arrays(parts).take(pa.array(order))
        return pa.ListArray.from_arrays(pa.array(np.arange(photos + 1) * levels, pa.int32()), values)

    def _alternative_lists(self, answers: NumpyAnswers) -> pa.ListArray:
        photos, count = answers.top_index_BT.shape
        values = self._levels[-1].structs(
            schema.PHOTOS.field(schema.ALTERNATIVES).type.value_type,
            answers.top_index_BT.ravel(),
            answers.top_probability_BT.ravel(),
            len(self._levels) - 1,
        )
        return pa.ListArray.from_arrays(pa.array(np.arange(photos + 1) * count, pa.int32()), values)


def _bytes_of(values: pa.BinaryArray, rows_B: np.ndarray, length_bytes: int) -> np.ndarray:
    """Return rows of `length_bytes` one after the other, uint8 and read-only: as they lie where they do so already.

    They nearly always do. By way of Python's bytes the pixels would be copied three times.
    """
    if not len(rows_B):
        return np.empty(0, np.uint8)
    _, offsets, data = values.buffers()
    offsets_N = np.frombuffer(offsets, np.int32)[values.offset :][: len(values) + 1]
    data_N = np.frombuffer(data, np.uint8)
    start_B = offsets_N[rows_B]
    assert (offsets_N[rows_B + 1] - start_B == length_bytes).all(), "pixels of another size than the engine's"
    if (np.diff(start_B) == length_bytes).all():
        return data_N[start_B[0] : start_B[0] + len(rows_B) * length_bytes]
    return np.concatenate([data_N[start : start + length_bytes] for start in start_B])


def serving_checkpoint(checkpoint: Checkpoint) -> Checkpoint:
    """Return `checkpoint` as a Locator gives it to its engine: with its cells grouped by country."""
    _, country_K = _countries(cell_names(checkpoint, Gazetteer()))
    return checkpoint.grouping(country_K)


def cell_names(checkpoint: Checkpoint, gazetteer: Gazetteer) -> Names:
    """Return the names of the finest level's cells."""
    finest = checkpoint.hierarchy.levels[-1]
    return gazetteer.names_N(finest.lat_deg_K, finest.lon_deg_K)


def _countries(names: Names) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where each country is first among the cells, and each cell's country."""
    _, first_G, country_K = np.unique(names.country.to_numpy(False), return_index=True, return_inverse=True)
    return first_G, country_K


def model_folder(model_uri: str) -> Path:
    """Return a local folder with the checkpoint at `model_uri`; `bundled` is the one that ships with this code."""
    return BUNDLED_MODEL if model_uri == "bundled" else storage.local_folder(model_uri)


def save_model(uri: str, *content: Any, **more: Any) -> str:
    """Save a checkpoint at any URI, as `Checkpoint.save` takes it, its config.json last; return its id."""
    if not storage.is_remote(uri):
        return Checkpoint.save(storage.local_folder(uri), *content, **more).model_id
    with tempfile.TemporaryDirectory() as folder:
        model_id = Checkpoint.save(Path(folder), *content, **more).model_id
        for path in sorted(Path(folder).iterdir(), key=lambda path: path.name == CONFIG_FILE):
            storage.write_bytes(storage.join(uri, path.name), path.read_bytes())
    return model_id


class _Cells:
    """A level's cells as Arrow arrays, made once, so that a batch's answers are looked up by index."""

    def __init__(self, level: Level) -> None:
        self.lat_deg = pa.array(level.lat_deg_K)
        self.lon_deg = pa.array(level.lon_deg_K)
        self.leaf_id = pa.array(s2.leaf_id_N(level.lat_deg_K, level.lon_deg_K))
        self.wkb = wkb_points(level.lat_deg_K, level.lon_deg_K)
        self._columns = {
            schema.S2_LEVEL: pa.array(level.s2_level_K, pa.int8()),
            schema.CELL_ID: pa.array(level.cell_id_K, pa.uint64()),
            schema.CELL_TOKEN: pa.array([s2.token(int(cell_id)) for cell_id in level.cell_id_K], pa.string()),
            schema.LAT_DEG: self.lat_deg,
            schema.LON_DEG: self.lon_deg,
        }

    def structs(
        self, kind: pa.StructType, index_N: np.ndarray, probability_N: np.ndarray, level: int
    ) -> pa.StructArray:
        """Return `kind` structs of the cells `index_N` with their probabilities."""
        index = pa.array(index_N)
        columns = {name: values.take(index) for name, values in self._columns.items()}
        columns[schema.PROBABILITY] = pa.array(probability_N, pa.float32())
        columns[schema.LEVEL] = pa.array(np.full(len(index_N), level), pa.int8())
        fields = list(kind)
        return pa.StructArray.from_arrays([columns[field.name] for field in fields], fields=fields)


def _precision_names(mass_within_B4: np.ndarray, country_probability_B: np.ndarray) -> pa.Array:
    """Return the finest precision that is more likely right than not, null where none is.

    Street, city and region are right within their radius, a country where the photo lies in it: there are countries of
    all sizes.
    """
    enough_B4 = mass_within_B4 >= _HALF
    enough_B4[:, PRECISIONS.index("country")] = country_probability_B > _HALF
    index_B = enough_B4.argmax(axis=1)
    return pa.array(PRECISIONS, pa.string()).take(pa.array(index_B, mask=~enough_B4.any(axis=1)))


def _known_B(precision: pa.Array, country_probability_B: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return where the names of country, region and place stand for something: as far as the precision goes."""
    country_B = country_probability_B > _HALF
    finer = [pc.fill_null(pc.is_in(precision, pa.array(names, pa.string())), False).to_numpy(False) for names in _FINER]
    return country_B, country_B & finer[0], country_B & finer[1]


_FINER = (PRECISIONS[: PRECISIONS.index("region") + 1], PRECISIONS[: PRECISIONS.index("city") + 1])


def _cast(values: pa.Array | pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    column = values if isinstance(values, pa.ChunkedArray) else pa.chunked_array([values])
    return column if column.type == kind else column.cast(kind)
