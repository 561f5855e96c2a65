import numpy as np
import pytest

from model import geodesy
from training.labelled import LabelledPhotos
from training.split import PARTS, SplitConfig, fingerprint, linked_groups, split_photos


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
    same_place = LabelledPhotos(
        some.name_N, some.uri_N, np.zeros(400), np.zeros(400), some.photographer_N, some.scene_N
    )
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
    )
    ours, theirs = split_photos(some, SplitConfig(seed=1)), split_photos(reordered, SplitConfig(seed=1))
    assert np.array_equal(ours.part_N[shuffled], theirs.part_N)
    assert not np.array_equal(ours.part_N, split_photos(some, SplitConfig(seed=2)).part_N)


def test_items_are_linked_through_others() -> None:
    group_N = linked_groups([["a"], ["b"], ["c", "b"], ["d"], ["a", "c"], []])
    assert len({group_N[k] for k in (0, 1, 2, 4)}) == 1
    assert len({group_N[0], group_N[3], group_N[5]}) == 3


def test_fingerprints_name_sets() -> None:
    assert fingerprint(["b", "a"]) == fingerprint(["a", "b"]) != fingerprint(["a", "b", "c"])


@pytest.mark.parametrize(("validation", "test"), [(-0.1, 0.2), (0.5, 0.5), (0.0, 1.0)])
def test_shares_that_leave_nothing_are_refused(validation: float, test: float) -> None:
    with pytest.raises(ValueError, match="shares"):
        SplitConfig(validation_share=validation, test_share=test)
