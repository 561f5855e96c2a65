"""Photos of one folder that were taken soon after each other explain each other: a hidden Markov model of their places.

The hidden place is one of all K cells of the model's finest level; a photographer moves between them as far as time
allows, most probably not far. Only the cells and camera positions that some photo of the window names are told apart;
all others are one more state, "none of these", that has all their probability. A photo alone keeps its answer exactly.

Shapes: N photos of a sequence, oldest first; M candidates of all photos; S places that are told apart (states); the
last row or column of S + 1 is none of these.

Source: Rabiner, A tutorial on hidden Markov models, 1989 (forward–backward, each step's message scaled to add up to 1).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.readout import RADIUS_PROBABILITY
from model.world import geodesy, s2

Floats = NDArray[np.float64]

_EARTH_KM = geodesy.EARTH_RADIUS_KM
_POSITION_KM = 0.3
"""A camera's own position is as likely to be further off as nearer."""
_NINE_TENTHS_WITHIN = 3.0
"""Scales: 90 % of all moves are no longer."""
_CELL_KM = 9220.0
"""The edge of an S2 cell of level 0, were it a square; each level halves it."""
_REPEATED = 0.5
"""How much of what a photo says another one of the same moment says again."""
_LEAST = 1e-12
_HOUR_S = 3600.0


@dataclass(frozen=True)
class ContextSettings:
    """How photos of one folder explain each other.

    Attributes:
        speed_km_h: half of all moves are shorter than least_km and the time between two photos at this speed.
        least_km: half of all moves between two photos of the same second are shorter.
        gap_h: photos further apart in time than this have nothing to do with each other.
        window: at most so many photos are looked at together.
        alike_s: photos so close in time show much the same, and share the model's mistakes: the more others are near,
            the less each counts as a witness; a burst of any length counts as two.
        unrelated: how often the next photo has nothing to do with this one: another photographer, a wrong clock.
        wrong_position: the share of positions written by cameras that are wrong, such as the last place with reception.
        positions: whether positions written by cameras count as evidence for the folder's other photos.
    """

    speed_km_h: float = 10.0
    least_km: float = 1.0
    gap_h: float = 48.0
    window: int = 48
    alike_s: float = 600.0
    unrelated: float = 0.01
    wrong_position: float = 0.001
    positions: bool = True

    def __post_init__(self) -> None:
        """Raise ValueError for settings that make no sense."""
        if not (self.speed_km_h >= 0 and self.least_km > 0 and self.gap_h > 0):
            raise ValueError("give a speed of at least 0, and least-km and gap-h above 0")
        if self.window < 2:
            raise ValueError(f"window {self.window}: photos explain each other from 2 on")
        if not (0 < self.unrelated < 1 and 0 < self.wrong_position < 1 and self.alike_s > 0):
            raise ValueError("give unrelated and wrong-position a share between 0 and 1, and alike-s above 0")

    def scale_km(self, apart_s: Floats) -> Floats:
        """Return the median distance between places so far apart in time."""
        return np.asarray(self.least_km + self.speed_km_h * np.abs(apart_s) / _HOUR_S)


@dataclass(frozen=True, eq=False)
class Sequence:
    """Photos of one folder in order of time, and what is known of each place.

    `candidate_*_M` are the photos' most probable cells, those of photo n from `first_candidate[n]` up to
    `first_candidate[n + 1]`; `exif_*_N` are NaN where no camera wrote a position; `reach_km_N` is the radius that
    holds 90 % of the photo's own distribution around its first candidate. `cells`: how many cells the model knows.
    """

    time_s_N: Floats
    first_candidate: NDArray[np.int64]
    candidate_cell_M: NDArray[np.uint64]
    candidate_lat_deg_M: Floats
    candidate_lon_deg_M: Floats
    candidate_probability_M: Floats
    recorded_lat_deg_N: Floats
    recorded_lon_deg_N: Floats
    reach_km_N: Floats
    cells: int

    def __len__(self) -> int:
        return len(self.time_s_N)

    def part(self, start: int, stop: int) -> Sequence:
        """Return the photos from `start` up to `stop`."""
        first, last = self.first_candidate[start], self.first_candidate[stop]
        return Sequence(
            self.time_s_N[start:stop],
            self.first_candidate[start : stop + 1] - first,
            self.candidate_cell_M[first:last],
            self.candidate_lat_deg_M[first:last],
            self.candidate_lon_deg_M[first:last],
            self.candidate_probability_M[first:last],
            self.recorded_lat_deg_N[start:stop],
            self.recorded_lon_deg_N[start:stop],
            self.reach_km_N[start:stop],
            self.cells,
        )


@dataclass(frozen=True, eq=False)
class Explained:
    """Each photo's place in the light of the others: NaN and 0 photos where there was none to lean on.

    `confidence_N` is the probability of the place's cell, `radius_km_N` holds 90 % around the point, `photos_N` counts
    the other photos that were looked at. A photo's own camera position plays no part in its own answer, so that
    the two can be compared.
    """

    lat_deg_N: Floats
    lon_deg_N: Floats
    radius_km_N: Floats
    confidence_N: Floats
    photos_N: NDArray[np.int32]


def explain(photos: Sequence, settings: ContextSettings) -> Explained:
    """Return each photo's place given the whole sequence; a long one is looked at in overlapping windows."""
    count = len(photos)
    columns = [np.full(count, np.nan) for _ in range(4)]
    photos_N = np.zeros(count, np.int32)
    for start, stop, keep_from, keep_to in _windows(count, settings.window):
        if stop - start > 1:
            answer = _Window(photos.part(start, stop), settings).answer()
            for column, values in zip(columns, answer, strict=True):
                column[keep_from:keep_to] = values[keep_from - start : keep_to - start]
            photos_N[keep_from:keep_to] = stop - start - 1
    has_answer = np.diff(photos.first_candidate) > 0
    lat, lon, radius, confidence = (np.where(has_answer, column, np.nan) for column in columns)
    return Explained(lat, lon, radius, confidence, np.where(has_answer, photos_N, 0).astype(np.int32))


def _windows(count: int, length: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (start, stop, keep from, keep to): what is kept has an eighth of a window beside it, where there is one."""
    margin = length // 8
    start = 0
    while True:
        stop = min(start + length, count)
        yield start, stop, start + margin if start else 0, stop if stop == count else stop - margin
        if stop == count:
            return
        start += length - 2 * margin


class _Window:
    """The states of some photos, what each photo says of them, and the chain that links the photos."""

    def __init__(self, photos: Sequence, settings: ContextSettings) -> None:
        self._photos, self._settings = photos, settings
        count = len(photos)
        photo_M = np.repeat(np.arange(count), np.diff(photos.first_candidate))
        cell_C, first_C, cell_M = np.unique(photos.candidate_cell_M, return_index=True, return_inverse=True)
        self._cells = cells = len(cell_C)
        is_anchor_N = np.isfinite(photos.recorded_lat_deg_N) & settings.positions
        recorded_N2 = np.stack([photos.recorded_lat_deg_N, photos.recorded_lon_deg_N], axis=1)
        # As complex numbers, since NumPy finds distinct rows a hundred times slower.
        _, first_A, anchor_N = np.unique(recorded_N2[is_anchor_N] @ [1, 1j], return_index=True, return_inverse=True)
        anchor_A2 = recorded_N2[is_anchor_N][first_A]
        self._anchor_N = np.full(count, -1)
        """The state of each photo's own camera position, or -1."""
        self._anchor_N[is_anchor_N] = cells + anchor_N.ravel()

        lat_deg_S = np.concatenate([photos.candidate_lat_deg_M[first_C], anchor_A2[:, 0]])
        lon_deg_S = np.concatenate([photos.candidate_lon_deg_M[first_C], anchor_A2[:, 1]])
        self._lat_deg_S, self._lon_deg_S = lat_deg_S, lon_deg_S
        unit_S3 = geodesy.unit_vectors_N3(lat_deg_S, lon_deg_S)
        # Chords, not arcs: they need no inverse sine, and 3 % of difference at 5000 km mean nothing here.
        self._apart_km_SS = _EARTH_KM * np.sqrt(np.maximum(2 - 2 * unit_S3 @ unit_S3.T, 0.0))
        self._place_S = self._places(cell_C, anchor_A2)
        """States of one place, a cell and the positions in it, have the same number."""
        sharing_S = np.bincount(self._place_S)[self._place_S]
        self._weight_S = 1.0 / sharing_S
        """The states' share of the K cells, so that a place does not weigh more for having several states."""
        self._spread_km_S = np.concatenate([_spread_km(cell_C), np.zeros(len(anchor_A2))])
        self._known = max(float(photos.cells), self._weight_S.sum() + 1.0)

        listed_NC = np.zeros((count, cells))
        np.add.at(listed_NC, (photo_M, cell_M.ravel()), photos.candidate_probability_M)
        is_listed_NC = np.zeros((count, cells), bool)
        is_listed_NC[photo_M, cell_M.ravel()] = True
        self._evidence = self._evidence_of(listed_NC, is_listed_NC)

    def _places(self, cell_C: NDArray[np.uint64], anchor_A2: Floats) -> NDArray[np.int64]:
        """Return the number of each state's place: for a camera's position that of the cell around it, if one is."""
        cells = len(cell_C)
        places = np.arange(cells + len(anchor_A2))
        if not len(anchor_A2):
            return places
        leaf_A = s2.leaf_id_N(anchor_A2[:, 0], anchor_A2[:, 1])
        if cells:
            inside_AC = (s2.range_min_N(cell_C) <= leaf_A[:, None]) & (leaf_A[:, None] <= s2.range_max_N(cell_C))
            places[cells:] = np.where(inside_AC.any(axis=1), inside_AC.argmax(axis=1), places[cells:])
        # Positions in a cell that nobody names: we can't know its size, and take what is near for one.
        near_km = 2 * _EARTH_KM / np.sqrt(self._photos.cells)
        for state in range(cells, len(places)):
            if places[state] == state:
                is_near = self._apart_km_SS[state] <= near_km
                is_near[:cells] = False
                is_near &= places == np.arange(len(places))
                places[is_near & (np.arange(len(places)) > state)] = state
        return np.unique(places, return_inverse=True)[1].reshape(-1)

    def _evidence_of(self, listed_NC: Floats, is_listed_NC: NDArray[np.bool_]) -> Floats:
        """Return (N, S + 1): how much likelier each photo is at a place than at a place drawn from all K cells.

        The cells have about as many training photos each (that is how the hierarchy is cut), so that what the model
        says of a cell, times K, is that ratio. What the listed cells leave over is spread evenly over all others.
        """
        count, cells = listed_NC.shape
        others_N = np.maximum(self._known - is_listed_NC.sum(axis=1), 1.0)
        left_N = np.maximum(1.0 - listed_NC.sum(axis=1), 0.0) / others_N
        silent_N = ~is_listed_NC.any(axis=1)  # a photo that only has a camera's position says nothing else
        base_N = np.where(silent_N, 1 / self._known, np.maximum(left_N, _LEAST / self._known))
        by_cell_NC = np.where(is_listed_NC, np.maximum(listed_NC, _LEAST), base_N[:, None])
        by_state = np.empty((count, len(self._lat_deg_S) + 1))
        by_state[:] = base_N[:, None]
        by_state[:, :cells] = by_cell_NC
        for state in range(cells, len(self._lat_deg_S)):
            (same,) = np.nonzero(self._place_S[:cells] == self._place_S[state])
            if len(same):
                by_state[:, state] = by_cell_NC[:, same[0]]
        return np.asarray(by_state * self._known)

    def answer(self) -> tuple[Floats, Floats, Floats, Floats]:
        """Return each photo's latitude, longitude, radius in km and confidence."""
        states = len(self._lat_deg_S)
        mass = self._without_own_position(self._messages() * self._evidence)
        mass /= mass.sum(axis=1, keepdims=True)
        places = int(self._place_S.max()) + 1
        by_place = np.zeros((len(mass), places))
        np.add.at(by_place.T, self._place_S, mass[:, :states].T)
        best_place_N = by_place.argmax(axis=1)
        best_N = np.where(self._place_S == best_place_N[:, None], mass[:, :states], -1.0).argmax(axis=1)
        confidence_N = by_place[np.arange(len(mass)), best_place_N]
        return self._lat_deg_S[best_N], self._lon_deg_S[best_N], self._radius_km(mass, best_N), confidence_N

    def _messages(self) -> Floats:
        """Return (N, S + 1): the probability of each place by what comes before and after a photo."""
        evidence, count = self._testimony(), len(self._photos)
        prior = np.append(self._weight_S, self._known - self._weight_S.sum()) / self._known
        chain = self._transitions(self._settings.scale_km(np.diff(self._photos.time_s_N)))
        before = np.empty_like(evidence)
        after = np.ones_like(evidence)
        before[0] = prior
        for n in range(1, count):
            message = (before[n - 1] * evidence[n - 1]) @ chain[n - 1]
            before[n] = message / message.sum()
        for n in range(count - 2, -1, -1):
            message = chain[n] @ (after[n + 1] * evidence[n + 1])
            after[n] = message / message.max()
        return before * after

    def _transitions(self, scale_km_T: Floats) -> Floats:
        """Return (T, S + 1, S + 1): the probability of going from one place (rows) to another between two photos.

        Student's distribution in the plane, s² / (s² + d²)² / π a unit of area: half of all moves are shorter than the
        scale s, one of a hundred is longer than ten. A cell gets that times its area, as if all had the same, but at
        most all there is: whoever moves less than a cell stays in it.

        Whoever knows nothing of where they are knows as little afterwards: the matrices keep the prior. So a state
        more, such as a position that one photo has, tells nothing by being there.
        """
        states, known = len(self._weight_S), self._known
        prior = np.append(self._weight_S, known - self._weight_S.sum()) / known
        scale_T, cell_km = scale_km_T[:, None, None], 2 * _EARTH_KM / np.sqrt(known)
        close_TSS = 1 / (1 + ((scale_T**2 + self._apart_km_SS**2) / (cell_km * scale_T)) ** 2)
        # Its sum over all K cells, as if evenly spread over the sphere: an integral; and the cell itself.
        ratio_T = scale_km_T / cell_km
        furthest_T = (scale_km_T**2 + 4 * _EARTH_KM**2) / (cell_km * scale_km_T)
        evenly_T = 1 / (1 + ratio_T**2) + ratio_T * (np.arctan(furthest_T) - np.arctan(ratio_T))
        total_TS = np.maximum(close_TSS @ self._weight_S, evenly_T[:, None])
        matrix = np.empty((len(scale_km_T), states + 1, states + 1))
        inner = matrix[:, :states, :states]
        np.maximum(total_TS[:, :, None], total_TS[:, None, :], out=inner)
        np.divide(close_TSS, inner, out=inner)
        inner *= self._weight_S
        away_TS = np.maximum(1 - inner.sum(axis=2), 0.0)
        matrix[:, :states, states] = away_TS
        matrix[:, states, :states] = self._weight_S * away_TS / (known - self._weight_S.sum())
        matrix[:, states, states] = np.maximum(1 - matrix[:, states, :states].sum(axis=1), 0.0)
        matrix *= 1 - self._settings.unrelated
        matrix += self._settings.unrelated * prior
        return matrix

    def _testimony(self) -> Floats:
        """Return (N, S + 1): what each photo tells the others: its camera's position, else what the model says."""
        apart_s_NN = np.abs(self._photos.time_s_N[:, None] - self._photos.time_s_N)
        others_N = np.exp(-apart_s_NN / self._settings.alike_s).sum(axis=1) - 1
        witnesses_N = 1 / (1 + _REPEATED * others_N)
        evidence = self._evidence ** witnesses_N[:, None]
        wrong = self._settings.wrong_position / self._known
        for n in np.flatnonzero(self._anchor_N >= 0):
            at_position = 1 / (1 + (self._apart_km_SS[self._anchor_N[n]] / _POSITION_KM) ** 2) ** 2
            at_position[: self._cells] = 0.0  # nobody was in the very middle of a cell
            evidence[n] = np.append(np.maximum(at_position, wrong), wrong)
        return np.asarray(evidence / evidence.max(axis=1, keepdims=True))

    def _without_own_position(self, mass: Floats) -> Floats:
        """Return `mass` less the state of a photo's own camera position, unless another photo has the very same."""
        used = np.bincount(self._anchor_N[self._anchor_N >= 0], minlength=len(self._lat_deg_S))
        for n in np.flatnonzero(self._anchor_N >= 0):
            own = self._anchor_N[n]
            if used[own] == 1:
                same = np.flatnonzero(self._place_S == self._place_S[own])
                if len(same) > 1:  # its share of the place goes to the others there
                    mass[n, same] *= len(same) / (len(same) - 1)
                else:
                    mass[n, -1] += mass[n, own]
                mass[n, own] = 0.0
        return mass

    def _radius_km(self, mass: Floats, best_N: NDArray[np.int64]) -> Floats:
        """Return the smallest radius around each photo's point that holds 90 % of its states' probability.

        A cell reaches as far as its size, a camera's position as far as 90 % of all moves from it until the photo was
        taken. Where "none of these" has more than the other 10 %, it is as if the photo's own radius were drawn around
        its own best cell, seen from here.
        """
        photos, states = self._photos, len(self._lat_deg_S)
        reach = geodesy.haversine_km(
            self._lat_deg_S[best_N][:, None], self._lon_deg_S[best_N][:, None], self._lat_deg_S, self._lon_deg_S
        )
        reach = reach + self._spread_km_S
        apart_s = np.abs(photos.time_s_N[:, None] - photos.time_s_N)
        for state in np.unique(self._anchor_N[self._anchor_N >= 0]):
            nearest_s = apart_s[:, self._anchor_N == state].min(axis=1)
            reach[:, state] += _NINE_TENTHS_WITHIN * self._settings.scale_km(nearest_s)
        order = reach.argsort(axis=1)
        held = np.take_along_axis(mass[:, :states], order, axis=1).cumsum(axis=1) >= RADIUS_PROBABILITY
        radius = np.take_along_axis(reach, order, axis=1)[np.arange(len(mass)), held.argmax(axis=1)]
        own = np.minimum(photos.first_candidate[:-1], max(len(photos.candidate_cell_M) - 1, 0))
        if not len(photos.candidate_cell_M):
            return np.asarray(radius)
        from_own = geodesy.haversine_km(
            photos.candidate_lat_deg_M[own],
            photos.candidate_lon_deg_M[own],
            self._lat_deg_S[best_N],
            self._lon_deg_S[best_N],
        )
        return np.where(held.any(axis=1), radius, from_own + photos.reach_km_N)


def _spread_km(cell_C: NDArray[np.uint64]) -> Floats:
    """Return about how far a cell's points lie from its middle: half its diagonal."""
    return np.asarray(_CELL_KM / 2.0 ** s2.level_of_N(cell_C) / np.sqrt(2))
