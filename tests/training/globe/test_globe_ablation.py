"""The paper's ablations in a short form: what holds by a wide margin, and that tables say what happened."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from training.globe import globe_ablation
from training.globe.globe_ablation import LONG_TAILED, ROWS, Conditions, Trained, World
from training.globe.globe_study import FINEST, PRODUCT

FULL = next(iter(ROWS))
SHORT = Conditions(
    globe=dataclasses.replace(LONG_TAILED, climates=6, countries=3, towns=4),
    photos=800,
    validation=100,
    test=600,
    tau_min=1,
    tau_max=(300, 150, 80, 40, 20, 10, 5),
    batch_size=32,
    most_epochs=7,
    early_epochs=4,
)


@pytest.fixture(scope="module")
def short() -> dict[str, Trained]:
    torch.set_num_threads(1)
    return {name: globe_ablation.study(name, 1, SHORT) for name in (FULL, "1 level")}


def test_seven_levels_are_far_better_than_one_and_the_product_than_the_finest(
    short: dict[str, Trained],
) -> None:
    full, one = short[FULL].answers, short["1 level"].answers
    world = World.of(SHORT, 1)
    always = world.constants()["always the commonest town or country"]
    assert full[PRODUCT].country > one[PRODUCT].country + 0.1
    assert full[PRODUCT].country > full[FINEST].country + 0.03
    assert full[PRODUCT].country > always.country + 0.1
    assert full[PRODUCT].country < world.optima()[1].country + 0.02
    assert one[PRODUCT] == one[FINEST]


def test_the_table_says_which_way_it_went_in_the_paper_and_here(short: dict[str, Trained]) -> None:
    lines = globe_ablation.table(list(short.values()), SHORT).splitlines()
    (row,) = [line for line in lines if line.startswith("1 level")]
    gain = short["1 level"].answers[PRODUCT].country - short[FULL].answers[PRODUCT].country
    assert row.split()[2:] == [
        *(f"{100 * value:.1f}" for value in dataclasses.astuple(short["1 level"].answers[PRODUCT])[:3]),
        f"{100 * gain:+.1f}",
        f"{100 * short['1 level'].early_country:.1f}",
        *(f"{100 * value:.1f}" for value in dataclasses.astuple(short["1 level"].answers[PRODUCT])[3:5]),
        str(short["1 level"].steps),
        "worse",
        "worse",
    ]


def test_a_training_ends_when_the_validation_likelihood_does_not_improve_and_keeps_its_best() -> None:
    """At a rate so low that it learns nothing patience ends it; else, here, the last epoch does."""
    hasty = dataclasses.replace(SHORT, photos=200, validation=60, test=60, learning_rate=1e-9, most_epochs=20)
    stopped = globe_ablation.study(FULL, 0, hasty)
    assert stopped.converged
    assert stopped.epochs <= 20 - hasty.patience
    assert stopped.steps == stopped.epochs * 7  # 200 photos in batches of 32
    unfinished = globe_ablation.study(FULL, 0, dataclasses.replace(hasty, learning_rate=5e-3, most_epochs=1))
    assert not unfinished.converged
    assert unfinished.steps == 7


def test_the_same_study_gives_the_same_result_and_another_seed_another() -> None:
    tiny = dataclasses.replace(SHORT, photos=120, validation=40, test=60, most_epochs=1, early_epochs=1)
    one, again, other = (dataclasses.replace(globe_ablation.study(FULL, seed, tiny), seconds=0.0) for seed in (0, 0, 1))
    assert one == again
    assert one.answers != other.answers


@pytest.mark.parametrize("name", ["1 scene: no scenes told apart", "6 scenes: each split at random"])
def test_networks_are_told_as_many_scenes_as_they_have(name: str) -> None:
    tiny = dataclasses.replace(SHORT, photos=120, validation=40, test=60, most_epochs=1)
    assert np.isnan(globe_ablation.study(name, 0, tiny).scene)


def test_every_row_changes_one_thing() -> None:
    full, *others = [dataclasses.asdict(row.variant) for row in ROWS.values()]
    for other in others:
        changed = {name for name in full if other[name] != full[name]}
        same_depth = sum(other[x] for x in LAYERS) == sum(full[x] for x in LAYERS)
        assert len(changed) == 1 or (changed == set(LAYERS) and same_depth)


LAYERS = ("independent_layers", "dependent_layers")


def test_answers_are_judged_apart_for_rare_towns() -> None:
    world = World.of(SHORT, 0)
    photos_T = np.bincount(world.training.town_N, minlength=world.globe.towns)
    assert np.array_equal(world.rare_T, photos_T < 10)
    is_rare_M = world.rare_T[world.test.town_N]
    assert 0.1 < is_rare_M.mean() < 0.9
    only_rare = np.where(is_rare_M, world.test.town_N, -1)
    right = world.right(only_rare, np.where(is_rare_M, world.globe.country_T[world.test.town_N], -1))
    assert (right.town_rare, right.town_common, right.country_rare, right.country_common) == (1, 0, 1, 0)
    assert right.town == right.country == pytest.approx(is_rare_M.mean())
    most_town, most_country = world.optima()
    assert most_town.town == most_country.town
    assert most_country.country == pytest.approx(world.globe.optimum(world.globe.country_T), abs=0.06)


def test_an_unknown_row_and_conditions_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no row 'none'.*'3 levels'"):
        globe_ablation.study("none", 0, SHORT)
    with pytest.raises(ValueError, match="at least 1 photo"):
        Conditions(photos=0)
    with pytest.raises(ValueError, match="seven thresholds, not 2"):
        Conditions(tau_max=(20, 10))
