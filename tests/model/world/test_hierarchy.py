import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.world import s2
from model.world.hierarchy import JSON_NAME, NO_CELL, PARQUET_NAME, Hierarchy, Level


def make_level(cell_ids: list[int], parents: list[int], **changes: Any) -> Level:
    cells = np.array(cell_ids, np.uint64)
    lat_deg, lon_deg = s2.centre_deg_N(cells)
    columns: dict[str, Any] = {
        "cell_id_K": cells,
        "s2_level_K": s2.level_of_N(cells),
        "lat_deg_K": lat_deg,
        "lon_deg_K": lon_deg,
        "spread_km_K": np.ones(len(cells)),
        "photo_count_K": np.full(len(cells), 60),
        "parent_K": parents,
    }
    return Level(**{**columns, **changes})


def cell(lat_deg: float, lon_deg: float, level: int) -> int:
    return int(s2.cell_id_N(lat_deg, lon_deg, level))


PARIS, LYON, SUVA = (48.8566, 2.3522), (45.76, 4.83), (-18.14, 178.44)


@pytest.fixture
def hierarchy() -> Hierarchy:
    """France and Fiji; below France, Paris and its own level-30 cell at one spot of Lyon; Fiji stays whole."""
    coarse = sorted([cell(*PARIS, 3), cell(*SUVA, 2)])
    fine = sorted([cell(*PARIS, 8), cell(*LYON, 30), cell(*SUVA, 2)])
    assert cell(*LYON, 3) == cell(*PARIS, 3)
    parents = [coarse.index(cell(*SUVA, 2) if x == cell(*SUVA, 2) else cell(*PARIS, 3)) for x in fine]
    return Hierarchy((make_level(coarse, [-1, -1]), make_level(fine, parents)), {"tau_min": 50})


def test_labels_say_which_cell_of_each_level_holds_a_point(hierarchy: Hierarchy) -> None:
    points = [PARIS, LYON, (LYON[0] + 0.001, LYON[1]), SUVA, (40.0, -100.0), (-90.0, 0.0), (90.0, 0.0)]
    label_NH = hierarchy.label_NH([p[0] for p in points], [p[1] for p in points])
    assert label_NH.dtype == np.int64
    cells = [[None if k < 0 else int(hierarchy.levels[h].cell_id_K[k]) for h, k in enumerate(row)] for row in label_NH]
    assert cells == [
        [cell(*PARIS, 3), cell(*PARIS, 8)],
        [cell(*PARIS, 3), cell(*LYON, 30)],
        [cell(*PARIS, 3), None],
        [cell(*SUVA, 2), cell(*SUVA, 2)],
        [None, None],
        [None, None],
        [None, None],
    ]
    assert label_NH.min() == NO_CELL


def test_labels_agree_with_a_plain_search(hierarchy: Hierarchy) -> None:
    random = np.random.default_rng(3)
    lat_deg_N, lon_deg_N = random.uniform(-90, 90, 3000), random.uniform(-180, 180, 3000)
    label_NH = hierarchy.label_NH(lat_deg_N, lon_deg_N)
    for number, level in enumerate(hierarchy.levels):
        expected = np.full(3000, -1)
        for row, (cell_id, s2_level) in enumerate(zip(level.cell_id_K, level.s2_level_K, strict=True)):
            expected[s2.cell_id_N(lat_deg_N, lon_deg_N, int(s2_level)) == cell_id] = row
        assert (label_NH[:, number] == expected).all()
        assert (expected >= 0).any()


def test_saved_and_loaded_is_the_same(hierarchy: Hierarchy, tmp_path: Path) -> None:
    hierarchy.save(tmp_path / "deep" / "folder")
    loaded = Hierarchy.load(tmp_path / "deep" / "folder")
    assert loaded.content_hash == hierarchy.content_hash
    assert loaded.class_counts == hierarchy.class_counts == (2, 3)
    assert loaded.provenance == {"tau_min": 50}
    for ours, theirs in zip(loaded.levels, hierarchy.levels, strict=True):
        for field in dataclasses.fields(Level):
            a, b = getattr(ours, field.name), getattr(theirs, field.name)
            assert a.dtype == b.dtype
            assert (a == b).all()
    assert sorted(p.name for p in (tmp_path / "deep" / "folder").iterdir()) == [JSON_NAME, PARQUET_NAME]


def test_the_hash_names_the_content_and_nothing_else(hierarchy: Hierarchy) -> None:
    assert Hierarchy(hierarchy.levels, {"other": 1}).content_hash == hierarchy.content_hash
    moved = dataclasses.replace(hierarchy.levels[1], lat_deg_K=hierarchy.levels[1].lat_deg_K + 1e-9)
    assert Hierarchy((hierarchy.levels[0], moved)).content_hash != hierarchy.content_hash


@pytest.mark.parametrize("name", [JSON_NAME, PARQUET_NAME])
def test_a_missing_file_is_named(hierarchy: Hierarchy, tmp_path: Path, name: str) -> None:
    hierarchy.save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=name):
        Hierarchy.load(tmp_path)


@pytest.mark.parametrize("name", [JSON_NAME, PARQUET_NAME])
@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "other"])
def test_a_damaged_file_is_named(hierarchy: Hierarchy, tmp_path: Path, name: str, damage: str) -> None:
    hierarchy.save(tmp_path)
    content = (tmp_path / name).read_bytes()
    other = Hierarchy((dataclasses.replace(hierarchy.levels[0], photo_count_K=[77, 78]),)).to_files()[name]
    damaged = {
        "empty": b"",
        "cut": content[: len(content) // 2],
        "flipped": bytes(b ^ 0xFF for b in content[:200]) + content[200:],
        "other": other,
    }
    (tmp_path / name).write_bytes(damaged[damage])
    with pytest.raises(ValueError, match="hierarchy"):
        Hierarchy.load(tmp_path)


def test_another_format_version_is_refused(hierarchy: Hierarchy, tmp_path: Path) -> None:
    hierarchy.save(tmp_path)
    description = json.loads((tmp_path / JSON_NAME).read_text())
    (tmp_path / JSON_NAME).write_text(json.dumps({**description, "version": 99}))
    with pytest.raises(ValueError, match="version 1"):
        Hierarchy.load(tmp_path)


@pytest.mark.parametrize(
    ("cells", "changes", "message"),
    [
        ([], {}, "one row or more"),
        ([cell(*PARIS, 5), cell(*PARIS, 6)], {}, "overlap"),
        ([cell(*PARIS, 5), cell(*PARIS, 5)], {}, "overlap"),
        (sorted([cell(*PARIS, 5), cell(*SUVA, 5)], reverse=True), {}, "ascending"),
        ([2], {}, "not S2 cell ids"),
        ([cell(*PARIS, 5)], {"s2_level_K": [6]}, "S2 levels"),
        ([cell(*PARIS, 5)], {"lat_deg_K": [np.nan]}, "not on Earth"),
        ([cell(*PARIS, 5)], {"lon_deg_K": [181.0]}, "not on Earth"),
        ([cell(*PARIS, 5)], {"spread_km_K": [np.inf]}, "spread"),
        ([cell(*PARIS, 5)], {"photo_count_K": [-1]}, "count"),
        ([cell(*PARIS, 5)], {"lat_deg_K": [1.0, 2.0]}, "equally long"),
    ],
)
def test_levels_that_make_no_sense_are_refused(cells: list[int], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_level(cells, [-1] * len(cells), **changes)


@pytest.mark.parametrize("parents", [[0], [-1], [1]])
def test_a_cell_outside_its_parent_is_refused(parents: list[int]) -> None:
    coarse = make_level(sorted([cell(*LYON, 6), cell(*SUVA, 6)]), [-1, -1])
    with pytest.raises(ValueError, match="parent"):
        Hierarchy((coarse, make_level([cell(*PARIS, 7)], parents)))


def test_a_parent_above_the_coarsest_level_is_refused() -> None:
    with pytest.raises(ValueError, match="coarsest"):
        Hierarchy((make_level([cell(*PARIS, 7)], [0]),))
    with pytest.raises(ValueError, match="at least one level"):
        Hierarchy(())


def test_arrays_cannot_be_changed(hierarchy: Hierarchy) -> None:
    with pytest.raises(ValueError, match="read-only"):
        hierarchy.levels[0].lat_deg_K[0] = 0
