"""Prediction rows say what the engine says, no more and no less, one for each photo whatever became of it."""

from __future__ import annotations

import dataclasses
import datetime as dt
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from jobs.demo_photos import write_demo_archive
from model.checkpoint import Checkpoint
from model.engines import Engine, EngineName, NumpyAnswers, load_engine
from model.engines.export import ServingGraph
from model.world import s2
from pipeline import schema, storage
from pipeline.decode.photo import DecodeTarget
from pipeline.locate.locator import BUNDLED_MODEL, AtLeast, Locator, LocatorSettings, model_folder
from pipeline.locate.places import OPEN_SEA, Gazetteer
from pipeline.read.reader import Reader, ReaderSettings
from tests.support.photo_rows import NOON

SIZE_PX = 32
RNG = np.random.default_rng(7)


@pytest.fixture(scope="session")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return Checkpoint.load(tiny_checkpoint)


def settings(checkpoint: Checkpoint, **changed: object) -> LocatorSettings:
    values = {"model_uri": str(checkpoint.folder), "model_id": checkpoint.model_id, "run_id": "r1"}
    values |= {
        "engine": "torch",
        "engine_precision": "fp32",
    }  # bf16, where there is it, differs from what is computed here
    return LocatorSettings(**(values | changed))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def locator(checkpoint: Checkpoint) -> Locator:
    return Locator(settings(checkpoint))


def read_table(pixels: list[np.ndarray | None]) -> pa.Table:
    """What the Reader hands over: pixels, or a failed row where there are none."""
    rows = []
    for index, pixels_HWC in enumerate(pixels):
        uri = f"/{index}"
        row = {schema.PHOTO_ID: schema.photo_id(uri), schema.URI: uri, schema.ETAG: "v1", schema.SIZE_BYTES: index}
        row |= {schema.FETCH_SECONDS: 0.5}
        if pixels_HWC is None:
            row |= {schema.ERROR_CODE: "truncated", schema.ERROR_MESSAGE: "cut", schema.RECORDED_LAT_DEG: 1.5}
        else:
            row |= {schema.PIXELS_HWC: pixels_HWC.tobytes(), schema.FORMAT: "jpeg", schema.WIDTH_PX: 640}
            row |= {schema.DECODE_SECONDS: 0.25}
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=schema.READ)


def random_pixels(count: int) -> list[np.ndarray]:
    return list(RNG.integers(0, 256, (count, SIZE_PX, SIZE_PX, 3), dtype=np.uint8))


def without_time(table: pa.Table) -> pa.Table:
    return table.drop_columns([schema.PROCESSED_AT])


def test_rows_equal_what_the_engine_and_the_hierarchy_say(checkpoint: Checkpoint, locator: Locator) -> None:
    pixels = random_pixels(5)
    table = locator(read_table([pixels[0], None, *pixels[1:]]))
    assert table.schema.equals(schema.PHOTOS, check_metadata=True)
    table.validate(full=True)
    answers = locator.engine(np.stack(pixels))
    levels, finest = checkpoint.hierarchy.levels, checkpoint.hierarchy.levels[-1]
    located = [row for row in table.to_pylist() if row[schema.STATUS] != "failed"]
    assert len(located) == 5
    for photo, row in enumerate(located):
        best = answers.point_index_B[photo]
        assert row[schema.LAT_DEG] == finest.lat_deg_K[best]
        assert row[schema.LON_DEG] == finest.lon_deg_K[best]
        assert row[schema.CELL_ID] == s2.leaf_id_N([row[schema.LAT_DEG]], [row[schema.LON_DEG]])[0]
        assert struct.unpack("<xIdd", row[schema.GEOMETRY]) == (1, row[schema.LON_DEG], row[schema.LAT_DEG])
        assert row[schema.RADIUS_KM] == pytest.approx(answers.radius_km_B[photo], rel=1e-5)
        assert row[schema.CONFIDENCE] == pytest.approx(answers.point_probability_B[photo], rel=1e-5)
        assert row[schema.SCENE] == checkpoint.config.scenes[answers.scene_index_B[photo]]
        assert [cell[schema.LEVEL] for cell in row[schema.LEVELS]] == list(range(len(levels)))
        for cell, level, index in zip(row[schema.LEVELS], levels, answers.level_index_BH[photo], strict=True):
            assert cell[schema.CELL_ID] == level.cell_id_K[index]
            assert cell[schema.S2_LEVEL] == level.s2_level_K[index]
            assert cell[schema.CELL_TOKEN] == s2.token(int(level.cell_id_K[index]))
            assert (cell[schema.LAT_DEG], cell[schema.LON_DEG]) == (level.lat_deg_K[index], level.lon_deg_K[index])
        assert [cell[schema.CELL_ID] for cell in row[schema.ALTERNATIVES]] == list(
            finest.cell_id_K[answers.top_index_BT[photo]]
        )
        shares = [cell[schema.PROBABILITY] for cell in row[schema.ALTERNATIVES]]
        assert shares == sorted(shares, reverse=True)
        near = zip(("street", "city", "region"), answers.mass_within_B4[photo], strict=False)
        enough = [name for name, mass in near if mass >= 0.5]
        if row[schema.COUNTRY_PROBABILITY] > 0.5:
            enough.append("country")
        assert row[schema.PRECISION] == (enough[0] if enough else None)
        assert row[schema.STATUS] == ("located" if enough else "undecided")
        assert (row[schema.MODEL_ID], row[schema.RUN_ID]) == (checkpoint.model_id, "r1")
        assert row[schema.PROCESSED_AT] > NOON.replace(year=2025)
    assert table.column(schema.READ_SECONDS).to_pylist() == [0.75, 0.5, 0.75, 0.75, 0.75, 0.75]  # one had no decoding


def test_names_and_countries_are_those_of_the_cells(checkpoint: Checkpoint, locator: Locator) -> None:
    pixels = random_pixels(6)
    table = locator(read_table([*pixels, None]))
    finest = checkpoint.hierarchy.levels[-1]
    names = Gazetteer().names_N(finest.lat_deg_K, finest.lon_deg_K)
    of_country = {"street", "city", "region", "country"}
    known = dict.fromkeys((schema.COUNTRY_CODE, schema.COUNTRY), of_country)
    known |= {schema.REGION: of_country - {"country"}, schema.PLACE: {"street", "city"}}
    assert any(name is not None for name in table.column(schema.COUNTRY).to_pylist())
    assert table.column(schema.COUNTRY).null_count > 1
    country_K = np.array(names.country.to_pylist())
    with torch.no_grad():
        graph = ServingGraph(checkpoint)
        preprocessing = checkpoint.config.preprocessing
        mean_C, std_C = torch.tensor(preprocessing.mean_rgb), torch.tensor(preprocessing.std_rgb)
        output = graph.network(((torch.tensor(np.stack(pixels)).float() / 255 - mean_C) / std_C).permute(0, 3, 1, 2))
        probability_BK = graph.read_out.log_probabilities(output.logits)[-1].exp().double().numpy()
    for row, p_K in zip(table.to_pylist()[:6], probability_BK, strict=True):
        cell = int(
            np.flatnonzero((finest.lat_deg_K == row[schema.LAT_DEG]) & (finest.lon_deg_K == row[schema.LON_DEG]))[0]
        )
        for column, values in zip(
            (schema.COUNTRY_CODE, schema.COUNTRY, schema.REGION, schema.PLACE), names, strict=True
        ):
            # A name stands only for what is more likely right than not.
            is_known = row[schema.COUNTRY_PROBABILITY] > 0.5 and row[schema.PRECISION] in known[column]
            assert row[column] == (values[cell].as_py() if is_known else None)
        mass = {country: p_K[country_K == country].sum() for country in set(country_K.tolist())}
        assert row[schema.COUNTRY_PROBABILITY] == pytest.approx(mass[country_K[cell]], abs=1e-5)
        assert row[schema.COUNTRY_PROBABILITY] >= row[schema.CONFIDENCE] - 1e-6
        said = [country[schema.PROBABILITY] for country in row[schema.COUNTRIES]]
        assert len(said) == min(3, len(mass))
        assert said == pytest.approx(sorted(mass.values(), reverse=True)[:3], abs=1e-5)
        for country in row[schema.COUNTRIES]:
            assert country[schema.PROBABILITY] == pytest.approx(mass[country[schema.COUNTRY]], abs=1e-5)
            assert (country[schema.COUNTRY_CODE] is None) == (country[schema.COUNTRY] == OPEN_SEA)


@dataclasses.dataclass
class _Sure:
    """An engine whose photos have half, or all but a little, within each radius, as told."""

    engine: Engine
    within_B4: list[list[float]]
    is_in_country_B: list[bool]

    @property
    def shape_HWC(self) -> tuple[int, int, int]:
        return self.engine.shape_HWC

    def __call__(self, pixels_BHWC: np.ndarray) -> NumpyAnswers:
        answers = self.engine(pixels_BHWC)
        count = answers.group_probability_BG.shape[1]
        one_BG = np.full((len(pixels_BHWC), count), 0.4 / count, np.float32)
        one_BG[np.array(self.is_in_country_B)] = 0.6
        return answers._replace(mass_within_B4=np.array(self.within_B4, np.float32), group_probability_BG=one_BG)


@pytest.mark.parametrize(
    ("at_least", "decided"),
    [
        ("any", [True, True, True, True, True]),
        ("country", [True, True, True, True, False]),
        ("region", [True, True, True, False, False]),
        ("city", [True, True, False, False, False]),
        ("street", [True, False, False, False, False]),
    ],
)
def test_a_photo_is_undecided_where_nothing_so_fine_is_more_likely_right_than_not(
    checkpoint: Checkpoint, locator: Locator, at_least: AtLeast, decided: list[bool]
) -> None:
    within_B4 = [[0.5, 0.6, 0.7, 0.8], [0.49, 0.5, 0.7, 0.8], [0, 0, 0.5, 0.9], [0, 0, 0.49, 0.5], [0, 0, 0.1, 0.9]]
    sure = _Sure(locator.engine, within_B4, [True, True, True, True, False])
    told = Locator(settings(checkpoint, at_least=at_least), load=lambda *_, **__: sure)
    rows = told(read_table([*random_pixels(5), None])).to_pylist()
    assert [row[schema.STATUS] for row in rows] == [*("located" if x else "undecided" for x in decided), "failed"]
    assert [row[schema.PRECISION] for row in rows] == ["street", "city", "region", "country", None, None]
    assert [row[schema.COUNTRY] is None for row in rows] == [False] * 4 + [True] * 2
    assert [row[schema.REGION] is None for row in rows][3:] == [True] * 3
    assert [row[schema.PLACE] is None for row in rows][2:] == [True] * 4
    # What was seen stays, whatever is made of it.
    for row in rows[:5]:
        assert row[schema.COUNTRIES]
        assert row[schema.LEVELS]
        assert row[schema.ALTERNATIVES]
        assert row[schema.LAT_DEG] is not None
        assert row[schema.ERROR_CODE] is None


def test_positions_of_cameras_are_named_even_of_photos_that_failed(locator: Locator) -> None:
    read = read_table([*random_pixels(3), None, None])
    places = {0: (48.8584, 2.2945), 2: (30.0, -45.0), 3: (-16.85, -179.98), 4: (None, 3.0)}
    for column, axis in ((schema.RECORDED_LAT_DEG, 0), (schema.RECORDED_LON_DEG, 1)):
        values = pa.array([places.get(row, (None, None))[axis] for row in range(5)], pa.float64())
        read = read.set_column(read.schema.get_field_index(column), read.schema.field(column), values)
    columns = (schema.RECORDED_COUNTRY_CODE, schema.RECORDED_COUNTRY, schema.RECORDED_REGION, schema.RECORDED_PLACE)
    rows = [tuple(row[name] for name in columns) for row in locator(read).to_pylist()]
    none = (None, None, None, None)
    assert rows == [
        ("FR", "France", "Île-de-France", "Paris"),
        none,
        (None, OPEN_SEA, None, None),
        ("FJ", "Fiji", "Northern", None),
        none,
    ]


def test_a_local_time_is_made_utc_by_the_zone_of_the_recorded_position(locator: Locator) -> None:
    noon, noon_utc = dt.datetime(2021, 7, 1, 12), dt.datetime(2021, 7, 1, 12, tzinfo=dt.UTC)
    paris, nowhere = (48.8583, 2.2945), (None, None)
    rows = [
        (noon, paris, None, None),
        (noon, nowhere, None, None),
        (None, paris, None, None),
        (noon, paris, noon_utc, "offset_time"),
        (noon, (0.0, -30.0), None, None),  # on the open sea, where zones follow the meridians
    ]
    names = (schema.RECORDED_LAT_DEG, schema.RECORDED_LON_DEG)
    table = pa.Table.from_pylist(
        [
            row
            | {schema.TAKEN_AT: taken_at, schema.TAKEN_AT_UTC: utc, schema.TAKEN_AT_UTC_BY: by}
            | dict(zip(names, place, strict=True))
            for row, (taken_at, place, utc, by) in zip(read_table([None] * len(rows)).to_pylist(), rows, strict=True)
        ],
        schema=schema.READ,
    )
    found = locator(table).to_pylist()
    assert [(row[schema.TAKEN_AT_UTC], row[schema.TAKEN_AT_UTC_BY]) for row in found] == [
        (noon_utc - dt.timedelta(hours=2), "zone_of_position"),
        (None, None),
        (None, None),
        (noon_utc, "offset_time"),
        (noon_utc + dt.timedelta(hours=2), "zone_of_position"),
    ]


def test_a_time_in_utc_by_takeout_is_made_local_by_the_zone_of_the_recorded_position(locator: Locator) -> None:
    noon, noon_utc = dt.datetime(2021, 7, 1, 12), dt.datetime(2021, 7, 1, 12, tzinfo=dt.UTC)
    rows = [
        {schema.TAKEN_AT_UTC: noon_utc, schema.TAKEN_AT_UTC_BY: by, schema.TAKEN_AT: taken_at}
        | {schema.RECORDED_LAT_DEG: lat_deg, schema.RECORDED_LON_DEG: None if lat_deg is None else 2.2945}
        for by, taken_at, lat_deg in (
            ("takeout", None, 48.8583),
            ("takeout", noon, 48.8583),
            ("takeout", None, None),
            ("gps_time", None, 48.8583),
        )
    ]
    bare = read_table([None] * len(rows)).to_pylist()
    table = pa.Table.from_pylist([row | more for row, more in zip(bare, rows, strict=True)], schema=schema.READ)
    found = locator(table).column(schema.TAKEN_AT).to_pylist()
    assert found == [noon + dt.timedelta(hours=2), noon, None, None]


def test_a_point_of_least_distance_is_another_models_answer(checkpoint: Checkpoint, locator: Locator) -> None:
    elsewhere = checkpoint.pointing("least-distance")
    other = Locator(settings(checkpoint, model_id=elsewhere.model_id, point="least-distance"))
    pixels = random_pixels(6)
    answers, finest = other.engine(np.stack(pixels)), checkpoint.hierarchy.levels[-1]
    assert (answers.point_index_B != answers.top_index_BT[:, 0]).any()
    for photo, (row, best) in enumerate(
        zip(other(read_table([*pixels])).to_pylist(), locator(read_table([*pixels])).to_pylist(), strict=True)
    ):
        point = answers.point_index_B[photo]
        assert (row[schema.LAT_DEG], row[schema.LON_DEG]) == (finest.lat_deg_K[point], finest.lon_deg_K[point])
        assert row[schema.CELL_ID] == s2.leaf_id_N([row[schema.LAT_DEG]], [row[schema.LON_DEG]])[0]
        assert row[schema.CONFIDENCE] == pytest.approx(answers.point_probability_B[photo], rel=1e-5)
        assert row[schema.CONFIDENCE] <= best[schema.CONFIDENCE] + 1e-6
        assert (
            row[schema.MODEL_ID] == f"{best[schema.MODEL_ID]}+least-distance"
        )  # so --retag, and copies, tell them apart
        for name in (schema.LEVELS, schema.ALTERNATIVES):
            assert [x[schema.CELL_ID] for x in row[name]] == [x[schema.CELL_ID] for x in best[name]]
    with pytest.raises(ValueError, match=r"least-distance now, not tiny-\w+: start again"):
        Locator(settings(checkpoint, point="least-distance"))


def test_failed_rows_pass_through_untouched(locator: Locator) -> None:
    failed = locator(read_table([*random_pixels(1), None])).to_pylist()[1]
    kept = {
        name: failed[name] for name in (schema.URI, schema.ERROR_CODE, schema.ERROR_MESSAGE, schema.RECORDED_LAT_DEG)
    }
    assert kept == {"uri": "/1", "error_code": "truncated", "error_message": "cut", "recorded_lat_deg": 1.5}
    assert failed[schema.STATUS] == "failed"
    for name in (schema.LAT_DEG, schema.LEVELS, schema.ALTERNATIVES, schema.GEOMETRY, schema.CELL_ID, schema.SCENE):
        assert failed[name] is None


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_a_table_without_any_pixels(locator: Locator, rows: int) -> None:
    table = locator(read_table([None] * rows))
    assert table.schema.equals(schema.PHOTOS)
    assert table.column(schema.STATUS).to_pylist() == ["failed"] * rows


def test_tables_of_several_and_of_no_chunks(locator: Locator) -> None:
    whole = read_table([*random_pixels(3), None])
    chunked = pa.concat_tables([whole.slice(0, 1), whole.slice(1, 2), whole.slice(3)])
    assert without_time(locator(chunked)).equals(without_time(locator(whole)))
    assert locator(pa.Table.from_batches([], schema=schema.READ)).num_rows == 0


def test_the_batch_size_does_not_change_the_answers(checkpoint: Checkpoint, locator: Locator) -> None:
    table = read_table([*random_pixels(4), None, *random_pixels(3)])
    one_by_one = Locator(settings(checkpoint, batch_size=1))(table).to_pylist()
    for one, all_at_once in zip(one_by_one, locator(table).to_pylist(), strict=True):
        for name in (schema.LAT_DEG, schema.LON_DEG, schema.CELL_ID, schema.SCENE, schema.STATUS):
            assert one[name] == all_at_once[name]
        if one[schema.STATUS] == "located":
            assert one[schema.CONFIDENCE] == pytest.approx(all_at_once[schema.CONFIDENCE], rel=1e-4)


def test_how_the_engine_was_used(checkpoint: Checkpoint) -> None:
    locator = Locator(settings(checkpoint, batch_size=3))
    locator(read_table([*random_pixels(4), None]))
    locator(read_table([None]))
    use = locator.take_use()
    assert (use.photos, use.slots, len(use.call_seconds)) == (4, 6, 2)
    assert min(use.call_seconds) > 0
    assert locator.take_use().slots == 0


class _SometimesNaN:
    """An engine whose network overflows on pictures that are all black."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.shape_HWC = engine.shape_HWC

    def __call__(self, pixels_BHWC: np.ndarray) -> NumpyAnswers:
        black_B = ~pixels_BHWC.any(axis=(1, 2, 3))
        answers = self._engine(pixels_BHWC)
        radius_km_B = np.where(black_B, np.float32(np.nan), answers.radius_km_B)
        return answers._replace(finite_B=~black_B, radius_km_B=radius_km_B)


def test_outputs_that_are_no_numbers_fail_their_photo_only(checkpoint: Checkpoint) -> None:
    locator = Locator(settings(checkpoint, batch_size=2))
    good, black = random_pixels(3), np.zeros((SIZE_PX, SIZE_PX, 3), np.uint8)
    expected = locator(read_table([good[0], None, good[1], None, good[2]]))
    locator.engine = _SometimesNaN(locator.engine)  # type: ignore[assignment]
    table = locator(read_table([good[0], None, good[1], black, good[2]]))
    assert table.column(schema.ERROR_CODE).to_pylist() == [None, "truncated", None, "model_failed", None]
    broken = table.to_pylist()[3]
    assert (broken[schema.STATUS], broken[schema.LAT_DEG], broken[schema.RADIUS_KM]) == ("failed", None, None)
    assert broken[schema.ERROR_MESSAGE]
    for name in (schema.LAT_DEG, schema.CELL_ID):
        for row in (0, 2, 4):
            assert table.column(name)[row] == expected.column(name)[row]


def test_a_bug_in_the_engine_stops_the_table(checkpoint: Checkpoint) -> None:
    locator = Locator(settings(checkpoint))

    class Broken:
        shape_HWC = (SIZE_PX, SIZE_PX, 3)

        def __call__(self, pixels_BHWC: np.ndarray) -> NumpyAnswers:
            raise RuntimeError("out of memory")

    locator.engine = Broken()  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="out of memory"):
        locator(read_table(random_pixels(1)))


def test_precision_is_applied(checkpoint: Checkpoint, locator: Locator) -> None:
    table = read_table(random_pixels(3))
    coarse = Locator(settings(checkpoint, precision="country"))(table)
    assert coarse.schema.equals(schema.PHOTOS, check_metadata=True)
    for row in coarse.to_pylist():
        assert max(cell[schema.S2_LEVEL] for cell in row[schema.LEVELS]) <= 4
        assert row[schema.RADIUS_KM] >= 575


def test_another_model_there_by_now_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(ValueError, match=r"holds tiny-.* now, not other-123: start again"):
        Locator(settings(checkpoint, model_id="other-123"))


def test_model_folder(tiny_checkpoint: Path) -> None:
    assert model_folder(str(tiny_checkpoint)) == tiny_checkpoint
    assert model_folder("bundled") == BUNDLED_MODEL


def test_engines_agree_on_real_photos(tmp_path: Path) -> None:
    """The bundled model on packaged photographs: openvino and torch in fp32 name the same cells.

    Tolerances: 1e-4 in probability, 1 km in radius; measured 2e-7 and 0.02 km.
    """
    write_demo_archive(tmp_path)
    checkpoint = Checkpoint.load(BUNDLED_MODEL)
    uris = [entry.uri for entry in storage.list_files(str(tmp_path))]
    listed = [{schema.PHOTO_ID: schema.photo_id(uri), schema.URI: uri} for uri in uris]
    reader = Reader(ReaderSettings(DecodeTarget.of(checkpoint.config.preprocessing)))
    read = reader(pa.Table.from_pylist(listed, schema=schema.MANIFEST))
    names: tuple[EngineName, EngineName] = ("torch", "openvino")
    answers = [_answers(load_engine(name, checkpoint, precision="fp32"), read) for name in names]
    assert len(answers[0].radius_km_B) == 7
    for name, torch_values, openvino_values in zip(answers[0]._fields, *answers, strict=True):
        tolerance = {"radius_km_B": 1.0}.get(name, 1e-4)
        if "index" in name:
            np.testing.assert_array_equal(torch_values, openvino_values, err_msg=name)
        else:
            np.testing.assert_allclose(torch_values, openvino_values, atol=tolerance, err_msg=name)


def _answers(engine: Engine, read: pa.Table) -> NumpyAnswers:
    pixels = [value for value in read.column(schema.PIXELS_HWC).to_pylist() if value is not None]
    flat = np.frombuffer(b"".join(pixels), np.uint8)
    return engine(flat.reshape(len(pixels), *engine.shape_HWC))


def test_pixels_reach_the_engine_however_they_lie(checkpoint: Checkpoint) -> None:
    seen: list[np.ndarray] = []

    class Watching:
        name, precision, shape_HWC = "watching", "fp32", (SIZE_PX, SIZE_PX, 3)

        def __init__(self, engine: Engine) -> None:
            self._engine = engine

        def __call__(self, pixels_BHWC: np.ndarray) -> NumpyAnswers:
            seen.extend(pixels_BHWC.copy())
            return self._engine(pixels_BHWC)

    watching = Locator(
        settings(checkpoint, batch_size=4), lambda *given, **options: Watching(load_engine(*given, **options))
    )
    pixels = random_pixels(9)
    plain = read_table([None, *pixels[:4], None, *pixels[4:]])
    index = plain.schema.get_field_index(schema.PIXELS_HWC)
    values = plain.column(index).combine_chunks()
    # A null may lie over bytes: here two photos' pixels are there, and not to be looked at.
    covered = pa.array([row in (2, 7) for row in range(plain.num_rows)])
    validity = pa.array([valid and not hidden for valid, hidden in zip(
        values.is_valid().to_pylist(), covered.to_pylist(), strict=True)])  # fmt: skip
    bits = np.packbits(validity.to_numpy(zero_copy_only=False), bitorder="little")
    _, offsets, data = values.buffers()
    hiding = pa.Array.from_buffers(pa.binary(), len(values), [pa.py_buffer(bits.tobytes()), offsets, data])
    hidden = plain.set_column(index, plain.schema.field(index), hiding)
    chunked = pa.concat_tables([plain.slice(0, 3), plain.slice(3, 5), plain.slice(8)])
    for table, expected in (
        (plain, pixels),
        (plain.slice(3, 6), pixels[2:7]),
        (chunked, pixels),
        (hidden, [p for number, p in enumerate(pixels) if number not in (1, 5)]),
    ):
        seen.clear()
        rows = watching(table)
        assert rows.num_rows == table.num_rows
        np.testing.assert_array_equal(np.stack(seen), np.stack(expected))
