from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.world import geodesy, s2
from training.data.labelled import LabelledPhotos
from training.data.split import (
    PARTS,
    Split,
    SplitConfig,
    cut_photos,
    fingerprint,
    linked_groups,
    photo_groups,
    split_photos,
)


def photos(count: int = 400, seed: int = 0) -> LabelledPhotos:
    """Towns 1° apart on a grid, each with photos of several photographers, some of whom travel."""
    random = np.random.default_rng(seed)
    town = random.integers(0, 60, count)
    traveller = random.random(count) < 0.1
    who = np.where(traveller, random.integers(0, 5, count), 100 + town * 3 + random.integers(0, 3, count))
    return LabelledPhotos(
        name_N=tuple(f"{k:04}.jpg" for k in range(count)),
        uri_N=tuple(f"/photos/{k:04}.jpg" for k in range(count)),
        lat_deg_N=(town % 10) * 1.0 + random.normal(0, 1e-4, count),
        lon_deg_N=(town // 10) * 1.0 + random.normal(0, 1e-4, count),
        photographer_N=tuple("" if w % 7 == 0 else f"p{w}" for w in who),
        scene_N=(None,) * count,
        part_N=(None,) * count,
    )


def test_no_photographer_and_no_place_is_in_two_parts() -> None:
    some = photos()
    split = split_photos(some, SplitConfig(seed=3))
    rows = {part: split.rows(part) for part in PARTS}
    assert sum(map(len, rows.values())) == len(some)
    assert len(rows["train"]) > len(rows["test"]) > len(rows["validation"]) > 0
    for one in PARTS:
        for other in PARTS[PARTS.index(one) + 1 :]:
            who = [{some.photographer_N[row] for row in rows[part]} - {""} for part in (one, other)]
            assert not who[0] & who[1]
            a, b = rows[one][:, None], rows[other][None, :]
            apart_km = geodesy.haversine_km(some.lat_deg_N[a], some.lon_deg_N[a], some.lat_deg_N[b], some.lon_deg_N[b])
            assert apart_km.min() > 50


def test_shares_are_kept_to() -> None:
    split = split_photos(photos(), SplitConfig(validation_share=0.15, test_share=0.25))
    assert len(split.rows("test")) <= 100
    assert len(split.rows("validation")) <= 60
    assert np.array_equal(np.sort(np.concatenate([split.rows(part) for part in PARTS])), np.arange(400))


def test_a_group_larger_than_a_share_is_trained_on() -> None:
    some = photos()
    same_place = replace(some, lat_deg_N=np.zeros(400), lon_deg_N=np.zeros(400))
    assert len(split_photos(same_place, SplitConfig()).rows("train")) == 400


def test_the_split_hangs_on_names_and_seed_not_on_order_or_folder() -> None:
    some = photos()
    shuffled = np.random.default_rng(1).permutation(400)
    reordered = LabelledPhotos(
        tuple(some.name_N[k] for k in shuffled),
        tuple(f"s3://elsewhere/{some.name_N[k]}" for k in shuffled),
        some.lat_deg_N[shuffled],
        some.lon_deg_N[shuffled],
        tuple(some.photographer_N[k] for k in shuffled),
        some.scene_N,
        some.part_N,
    )
    ours, theirs = split_photos(some, SplitConfig(seed=1)), split_photos(reordered, SplitConfig(seed=1))
    assert np.array_equal(ours.part_N[shuffled], theirs.part_N)
    assert not np.array_equal(ours.part_N, split_photos(some, SplitConfig(seed=2)).part_N)


def test_items_are_linked_through_others() -> None:
    group_N = linked_groups(6, np.array([2, 4, 4]), np.array([1, 0, 2]))
    assert len({group_N[k] for k in (0, 1, 2, 4)}) == 1
    assert len({group_N[0], group_N[3], group_N[5]}) == 3


def test_a_long_chain_is_one_group() -> None:
    """In an order that points every item to a later one, and in a shuffled one."""
    items = 10_000
    one_E, other_E = np.arange(items - 1), np.arange(1, items)
    assert linked_groups(items, one_E, other_E).max() == 0
    name_I = np.random.default_rng(0).permutation(items)
    assert linked_groups(items, name_I[one_E], name_I[other_E]).max() == 0
    assert linked_groups(items, name_I[one_E[1:]], name_I[other_E[1:]]).max() == 1
    assert linked_groups(3, np.array([], np.int64), np.array([], np.int64)).tolist() == [0, 1, 2]


def test_parts_that_the_table_gives_are_taken_as_they_are() -> None:
    some = photos()
    given_parts = tuple(PARTS[k % 3] for k in range(len(some)))
    split = split_photos(replace(some, part_N=given_parts), SplitConfig())
    assert [PARTS[part] for part in split.part_N] == list(given_parts)
    with pytest.raises(ValueError, match=r"gives 399 of its 400 photos a part, and none to 0007\.jpg"):
        split_photos(replace(some, part_N=(*given_parts[:7], None, *given_parts[8:])), SplitConfig())


@st.composite
def archives(draw: st.DrawFn) -> LabelledPhotos:
    """Photos about a few points, some by the antimeridian or a pole, so close that cells' borders are between them."""
    centres = draw(st.lists(st.tuples(st.floats(-89.5, 89.5), st.floats(-180, 180)), min_size=1, max_size=5))
    one = st.tuples(
        st.sampled_from(centres), st.floats(0, 360), st.floats(0, 30), st.sampled_from(["", "a", "b", "c", "d"])
    )
    rows = draw(st.lists(one, min_size=1, max_size=40))
    placed = [geodesy.destination_point(*centre, bearing, km) for centre, bearing, km, _ in rows]
    return LabelledPhotos(
        name_N=tuple(map(str, range(len(rows)))),
        uri_N=tuple(map(str, range(len(rows)))),
        lat_deg_N=np.array([lat for lat, _ in placed]),
        lon_deg_N=np.array([lon for _, lon in placed]),
        photographer_N=tuple(who for *_, who in rows),
        scene_N=(None,) * len(rows),
        part_N=(None,) * len(rows),
    )


def check_parts_are_apart(some: LabelledPhotos, split: Split, config: SplitConfig) -> None:
    """No photographer, no cell and no two photos within a border's width are in two parts; nor is a group."""
    cell_N = s2.cell_id_N(some.lat_deg_N, some.lon_deg_N, config.place_s2_level)
    for one in range(len(some)):
        for other in range(one):
            if -1 in (split.part_N[one], split.part_N[other]) or split.part_N[one] == split.part_N[other]:
                continue
            assert split.group_N[one] != split.group_N[other]
            assert cell_N[one] != cell_N[other]
            assert not some.photographer_N[one] or some.photographer_N[one] != some.photographer_N[other]
            apart_km = geodesy.haversine_km(
                some.lat_deg_N[one], some.lon_deg_N[one], some.lat_deg_N[other], some.lon_deg_N[other]
            )
            assert apart_km > 0.9 * config.border_km  # eight directions see a straight border at cos 22.5° of it


@settings(max_examples=100, deadline=None)
@given(archives(), st.integers(0, 100), st.sampled_from([1.0, 5.0]))
def test_no_group_is_ever_in_two_parts(some: LabelledPhotos, seed: int, border_km: float) -> None:
    config = SplitConfig(seed=seed, validation_share=0.3, test_share=0.3, border_km=border_km)
    whole = split_photos(some, config)
    assert set(whole.part_N.tolist()) <= {0, 1, 2}
    check_parts_are_apart(some, whole, config)
    check_parts_are_apart(some, cut_photos(some, config), config)


def test_cutting_splits_what_hangs_together_and_says_what_it_leaves_out() -> None:
    """Every photographer has been to the capital once."""
    some = photos()
    capital = np.arange(400) % 8 == 0
    lat_deg_N, lon_deg_N = np.where(capital, 50.0, some.lat_deg_N), np.where(capital, 10.0, some.lon_deg_N)
    tied = replace(some, lat_deg_N=lat_deg_N, lon_deg_N=lon_deg_N)
    config = SplitConfig(validation_share=0.15, test_share=0.25)
    giant = np.bincount(photo_groups(tied.lat_deg_N, tied.lon_deg_N, tied.photographer_N, config)).max()
    assert giant > 250
    assert len(split_photos(tied, config).rows("train")) >= giant
    split = cut_photos(tied, config)
    assert 0 < (split.part_N < 0).sum() < 150
    assert len(split.rows("test")) > 40
    assert len(split.rows("validation")) > 20
    check_parts_are_apart(tied, split, config)
    assert np.array_equal(split.part_N, cut_photos(tied, config).part_N)


def test_an_empty_region_does_not_link_two_parts() -> None:
    """Photos 0.5 km to the west and to the east of an empty cell, both within a border's width of it."""
    middle = s2.cell_id_N([48.2], [7.3], 10)
    lat_deg, lon_deg = (float(x[0]) for x in s2.centre_deg_N(middle))
    lon_deg_X = lon_deg + np.arange(-0.2, 0.2, 0.0005)
    inside = np.flatnonzero(s2.cell_id_N(np.full(len(lon_deg_X), lat_deg), lon_deg_X, 10) == middle[0])
    west, east = lon_deg_X[inside[0]] - 0.007, lon_deg_X[inside[-1]] + 0.007
    some = replace(
        photos(20),
        lat_deg_N=np.full(20, lat_deg),
        lon_deg_N=np.repeat([west, east], 10),
        photographer_N=("",) * 20,
    )
    config = SplitConfig(test_share=0.6)
    split = cut_photos(some, config, region_s2_level=10)
    check_parts_are_apart(some, split, config)
    assert (split.part_N < 0).sum() == 10


def test_fingerprints_name_sets() -> None:
    assert fingerprint(["b", "a"]) == fingerprint(["a", "b"]) != fingerprint(["a", "b", "c"])


@pytest.mark.parametrize(("validation", "test"), [(-0.1, 0.2), (0.5, 0.5), (0.0, 1.0)])
def test_shares_that_leave_nothing_are_refused(validation: float, test: float) -> None:
    with pytest.raises(ValueError, match="shares"):
        SplitConfig(validation_share=validation, test_share=test)


@pytest.mark.parametrize(("region", "place"), [(11, 10), (-1, 10)])
def test_regions_smaller_than_places_are_refused(region: int, place: int) -> None:
    with pytest.raises(ValueError, match="do not hold places"):
        cut_photos(photos(), SplitConfig(place_s2_level=place), region)
