"""The smoother against all paths enumerated one by one, and what it must never do."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from model.world import s2
from model.world.geodesy import EARTH_RADIUS_KM, unit_vectors_N3
from pipeline.locate import context
from pipeline.locate.context import ContextSettings, Sequence, explain

BERLIN, POTSDAM, TOKYO, LIMA = (52.5, 13.4), (52.4, 13.05), (35.7, 139.7), (-12.0, -77.0)
Place = tuple[float, float]


def sequence(
    *photos: dict[Place, float],
    minutes: list[float] | None = None,
    exif: dict[int, Place] | None = None,
    cells: int = 1000,
) -> Sequence:
    """Return photos with these places' probabilities, by default one minute apart."""
    flat = [(place, probability) for photo in photos for place, probability in photo.items()]
    lat_deg, lon_deg = (np.array([place[axis] for place, _ in flat], np.float64) for axis in (0, 1))
    recorded_N2 = np.full((len(photos), 2), np.nan)
    for index, place in (exif or {}).items():
        recorded_N2[index] = place
    return Sequence(
        time_s_N=np.array(minutes if minutes is not None else range(len(photos)), np.float64) * 60,
        first_candidate=np.cumsum([0, *map(len, photos)]),
        candidate_cell_M=s2.cell_id_N(lat_deg, lon_deg, 10),
        candidate_lat_deg_M=lat_deg,
        candidate_lon_deg_M=lon_deg,
        candidate_probability_M=np.array([probability for _, probability in flat]),
        recorded_lat_deg_N=recorded_N2[:, 0],
        recorded_lon_deg_N=recorded_N2[:, 1],
        reach_km_N=np.full(len(photos), 400.0),
        cells=cells,
    )


def enumerated(photos: Sequence, settings: ContextSettings) -> np.ndarray:
    """Return (N, S + 1), each photo's probability of each place in the cells' order, by summing over all paths.

    In plain Python and by the model's definition: K cells, a prior of 1/K for each, a photo's evidence what it says of
    a cell times K, and a move's probability its closeness over the sum of closenesses over all cells.
    """
    cells, first = np.unique(photos.candidate_cell_M, return_index=True)
    unit = unit_vectors_N3(photos.candidate_lat_deg_M[first], photos.candidate_lon_deg_M[first])
    states, known = len(cells), photos.cells
    prior = [1 / known] * states + [1 - states / known]
    evidence = []
    for n in range(len(photos)):
        own = range(photos.first_candidate[n], photos.first_candidate[n + 1])
        said = {int(photos.candidate_cell_M[m]): float(photos.candidate_probability_M[m]) for m in own}
        rest = (1 - sum(said.values())) / (known - len(said))
        evidence.append([known * said.get(int(cell), rest) for cell in cells] + [known * rest])

    def moves(seconds: float) -> list[list[float]]:
        scale_km = settings.least_km + settings.speed_km_h * seconds / 3600
        cell_km = 2 * EARTH_RADIUS_KM / math.sqrt(known)

        def close(distance_km: float) -> float:
            return 1 / (1 + ((scale_km**2 + distance_km**2) / (cell_km * scale_km)) ** 2)

        # All cells, evenly spread: rings around one of them, each with its share of the sphere.
        angles = (np.arange(200_000) + 0.5) * math.pi / 200_000
        rings = np.sin(angles) / np.sin(angles).sum()
        chords = 2 * EARTH_RADIUS_KM * np.sin(angles / 2)
        around = known * float((rings / (1 + ((scale_km**2 + chords**2) / (cell_km * scale_km)) ** 2)).sum())
        apart = [[close(EARTH_RADIUS_KM * float(np.linalg.norm(a - b))) for b in unit] for a in unit]
        total = [max(sum(row), close(0) + around) for row in apart]
        move = [[apart[a][b] / max(total[a], total[b]) for b in range(states)] for a in range(states)]
        away = [1 - sum(row) for row in move]
        back = [leaving / (known - states) for leaving in away]
        chain = [[*row, leaving] for row, leaving in zip(move, away, strict=True)] + [[*back, 1 - sum(back)]]
        return [
            [(1 - settings.unrelated) * p + settings.unrelated * q for p, q in zip(row, prior, strict=True)]
            for row in chain
        ]

    chain = [moves(float(seconds)) for seconds in np.diff(photos.time_s_N)]
    found = np.zeros((len(photos), states + 1))
    for path in itertools.product(range(states + 1), repeat=len(photos)):
        probability = prior[path[0]] * math.prod(evidence[n][state] for n, state in enumerate(path))
        probability *= math.prod(chain[n][a][b] for n, (a, b) in enumerate(itertools.pairwise(path)))
        for n, state in enumerate(path):
            found[n, state] += probability
    return found / found.sum(axis=1, keepdims=True)


ALBUMS: dict[str, Any] = {
    "a day in one town": {
        "photos": [{BERLIN: 0.4, TOKYO: 0.3}, {TOKYO: 0.5, BERLIN: 0.1}, {POTSDAM: 0.3, LIMA: 0.2}, {BERLIN: 0.2}],
        "minutes": [0, 10, 300, 305],
    },
    "a flight": {"photos": [{BERLIN: 0.8}, {BERLIN: 0.7, LIMA: 0.1}, {LIMA: 0.9}], "minutes": [0, 60, 1200]},
    "nobody knows": {"photos": [{BERLIN: 0.01}, {TOKYO: 0.02}, {LIMA: 0.01, POTSDAM: 0.01}], "minutes": [0, 1, 2]},
    "sure and apart": {"photos": [{BERLIN: 0.999}, {TOKYO: 0.999}, {BERLIN: 0.999}], "minutes": [0, 1, 2]},
}


@pytest.mark.parametrize("name", ALBUMS)
@pytest.mark.parametrize("cells", [12, 1000])
def test_it_is_the_sum_over_all_paths(name: str, cells: int) -> None:
    photos = sequence(*ALBUMS[name]["photos"], minutes=ALBUMS[name]["minutes"], cells=cells)
    settings = ContextSettings(alike_s=1e-3)  # each photo a witness of its own
    wanted = enumerated(photos, settings)
    answer = explain(photos, settings)
    cell_C, first = np.unique(photos.candidate_cell_M, return_index=True)
    best_N = wanted[:, :-1].argmax(axis=1)
    assert answer.confidence_N == pytest.approx(wanted[np.arange(len(photos)), best_N], rel=1e-6)
    assert len(cell_C) == wanted.shape[1] - 1
    # Of two alike places either may be named.
    is_clear = np.sort(wanted[:, :-1], axis=1)[:, -1] > 1.001 * np.sort(wanted[:, :-1], axis=1)[:, -2]
    assert (answer.lat_deg_N == photos.candidate_lat_deg_M[first][best_N])[is_clear].all()
    window = context._Window(photos, settings)
    mass = window._messages() * window._evidence
    assert mass / mass.sum(axis=1, keepdims=True) == pytest.approx(wanted, rel=1e-6, abs=1e-15)


def test_a_photo_alone_keeps_what_the_model_said() -> None:
    photos = sequence({BERLIN: 0.4, TOKYO: 0.3, LIMA: 0.05})
    window = context._Window(photos, ContextSettings())
    (mass,) = window._messages() * window._evidence
    assert sorted(mass) == pytest.approx([0.05, 0.25, 0.3, 0.4])  # 0.25 is none of these: it does not vanish
    answer = explain(photos, ContextSettings())
    assert np.isnan(answer.lat_deg_N).all()
    assert answer.photos_N.tolist() == [0]


def test_a_place_in_no_list_keeps_its_probability() -> None:
    """Three photos that each name other far places, all unsure: the truth is probably somewhere else, as each said."""
    answer = explain(sequence({BERLIN: 0.1}, {TOKYO: 0.1}, {LIMA: 0.1}), ContextSettings())
    assert (answer.confidence_N < 0.1).all()
    # 90 % of the probability is not near any named place: the radius reaches as far as the photo's own.
    assert (answer.radius_km_N >= 400).all()


def test_the_place_may_be_in_a_neighbours_list_only() -> None:
    """The middle photo does not name Berlin at all."""
    answer = explain(sequence({BERLIN: 0.9}, {TOKYO: 0.2, LIMA: 0.1}, {BERLIN: 0.9}), ContextSettings())
    assert answer.lat_deg_N.tolist() == [BERLIN[0]] * 3
    assert answer.confidence_N[1] > 0.9


def test_time_makes_room_for_a_journey() -> None:
    munich = (48.1, 11.6)
    places: list[dict[Place, float]] = [{BERLIN: 0.6, munich: 0.01}, {munich: 0.7, BERLIN: 0.15}]
    days = [sequence(*places, minutes=[0, minutes], cells=10_000) for minutes in (1, 60 * 24 * 1.9)]
    together, apart = (explain(photos, ContextSettings()) for photos in days)
    assert together.lat_deg_N.tolist() == [BERLIN[0]] * 2
    assert apart.lat_deg_N.tolist() == [BERLIN[0], munich[0]]


def test_no_cut_is_hard() -> None:
    """Two certain photos at two ends of the Earth in one minute, by a wrong clock or a mixed folder: both stand."""
    answer = explain(sequence({BERLIN: 0.999999}, {LIMA: 0.999999}), ContextSettings())
    assert answer.lat_deg_N.tolist() == [BERLIN[0], LIMA[0]]


def test_an_anchor_pulls_its_neighbours_to_its_position() -> None:
    near_berlin = (52.51, 13.45)
    photos = sequence({TOKYO: 0.5, BERLIN: 0.2}, {TOKYO: 0.6, BERLIN: 0.1}, exif={0: near_berlin})
    answer = explain(photos, ContextSettings())
    assert (answer.lat_deg_N[1], answer.lon_deg_N[1]) == near_berlin
    assert 3 * ContextSettings().scale_km(np.array(60.0)) < answer.radius_km_N[1] < 20  # the cell's size, too
    far = explain(sequence({TOKYO: 0.6}, {TOKYO: 0.99}, exif={0: near_berlin}, minutes=[0, 2800]), ContextSettings())
    assert far.lat_deg_N[1] == TOKYO[0]


def test_an_anchor_is_not_used_for_its_own_photo() -> None:
    """Leave-one-out: with the position anywhere, or none at all, the photo's own answer is the same."""
    places: list[dict[Place, float]] = [{BERLIN: 0.3, TOKYO: 0.3}, {LIMA: 0.2, TOKYO: 0.3}, {TOKYO: 0.2, BERLIN: 0.25}]
    without = explain(sequence(*places), ContextSettings())
    for position in (BERLIN, (52.51, 13.41), (10.0, 10.0), LIMA):
        answer = explain(sequence(*places, exif={1: position}), ContextSettings())
        assert answer.lat_deg_N[1] == without.lat_deg_N[1]
        assert answer.confidence_N[1] == pytest.approx(without.confidence_N[1], rel=0.01)
    hit = explain(sequence(*places, exif={1: BERLIN}), ContextSettings())
    assert hit.lat_deg_N.tolist() == [BERLIN[0], without.lat_deg_N[1], BERLIN[0]]  # but it speaks for the others


def test_two_photos_of_one_position_vouch_for_each_other() -> None:
    answer = explain(sequence({TOKYO: 0.4}, {TOKYO: 0.4}, exif={0: LIMA, 1: LIMA}), ContextSettings())
    assert answer.lat_deg_N.tolist() == [LIMA[0]] * 2


def test_a_wrong_position_can_be_outvoted() -> None:
    sure = {BERLIN: 0.95}
    photos = sequence(*[sure] * 6, exif={3: LIMA})
    assert explain(photos, ContextSettings(wrong_position=0.2)).lat_deg_N.tolist() == [BERLIN[0]] * 6


def test_many_positions_in_one_town_weigh_as_one_place() -> None:
    """Without a model that names it, the town would else win by the number of its states alone."""
    rng = np.random.default_rng(0)
    exif = {n: (10 + rng.uniform(0, 0.01), 10 + rng.uniform(0, 0.01)) for n in range(20)}
    minutes = [*range(20), 2000.0, 2001.0]
    photos = sequence(*[{TOKYO: 0.4}] * 22, exif=exif, minutes=minutes)
    one = sequence(*[{TOKYO: 0.4}] * 3, exif={0: (10, 10)}, minutes=[0, 1981, 1982])
    many_confidence = explain(photos, ContextSettings()).confidence_N[-1]
    assert many_confidence == pytest.approx(explain(one, ContextSettings()).confidence_N[-1], rel=0.1)


def test_a_burst_is_two_witnesses() -> None:
    doubtful, said = {TOKYO: 0.1, BERLIN: 0.02}, {BERLIN: 0.1}
    burst, walk = (
        explain(sequence(*[said] * 5, doubtful, minutes=[*minutes, 300]), ContextSettings())
        for minutes in ([240 + 0.01 * n for n in range(5)], [60.0 * n for n in range(5)])
    )
    one, two = (
        explain(sequence(*[said] * n, doubtful, minutes=[*range(238, 238 + n), 300]), ContextSettings(alike_s=1e-3))
        for n in (1, 2)
    )
    assert one.confidence_N[-1] < burst.confidence_N[-1] < 1.05 * two.confidence_N[-1]
    assert 1 - walk.confidence_N[-1] < 0.5 * (1 - burst.confidence_N[-1])


@pytest.mark.parametrize("count", [2, 7, 8, 9, 12, 31, 500])
def test_windows_cover_every_photo_once(count: int) -> None:
    kept = []
    for start, stop, keep_from, keep_to in context._windows(count, 8):
        assert start <= keep_from < keep_to <= stop <= count
        assert stop - start <= 8
        kept += range(keep_from, keep_to)
    assert kept == list(range(count))


def test_a_long_album_loses_no_digits() -> None:
    """500 photos in one window: unscaled, their product would be zero a hundred times over."""
    rng = np.random.default_rng(1)
    names = [BERLIN, TOKYO, LIMA, POTSDAM]
    photos = sequence(*[{names[i]: 0.001, names[(i + 1) % 4]: 1e-9} for i in rng.integers(0, 4, 500)])
    answer = explain(photos, ContextSettings(window=500))
    assert np.isfinite(answer.lat_deg_N).all()
    assert np.isfinite(answer.radius_km_N).all()
    assert ((answer.confidence_N > 0) & (answer.confidence_N <= 1 + 1e-9)).all()


def test_photos_without_candidates_or_all_alike_do_not_break_it() -> None:
    answer = explain(sequence({}, {BERLIN: 0.5}, exif={0: TOKYO}), ContextSettings())
    assert np.isnan(answer.lat_deg_N[0])
    assert answer.photos_N.tolist() == [0, 1]
    assert answer.lat_deg_N[1] == TOKYO[0]
    assert np.isnan(explain(sequence({}, {}, exif={0: TOKYO}), ContextSettings()).lat_deg_N).all()
    assert explain(sequence({BERLIN: 1.0}, {BERLIN: 1.0}, cells=1), ContextSettings()).confidence_N.max() <= 1.0 + 1e-9


@pytest.mark.parametrize(
    "wrong",
    [
        {"speed_km_h": -1},
        {"least_km": 0},
        {"gap_h": 0},
        {"window": 1},
        {"unrelated": 0},
        {"wrong_position": 1},
        {"alike_s": 0},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"give|window"):
        ContextSettings(**wrong)  # type: ignore[arg-type]
