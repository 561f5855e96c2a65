"""Which photos are for training, which for validation and which for the test: by place and photographer, not by photo.

Photos that share a photographer or a place belong together, and so do photos that are linked through others; such a
group goes to one part as a whole. Otherwise neighbouring frames of one camera would be on both sides, and the test
would measure memory.

Shapes: N photos, G groups, P places, R regions, I items, E links between two of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.world import geodesy, s2
from training.data.labelled import PARTS as PARTS
from training.data.labelled import LabelledPhotos


@dataclass(frozen=True)
class SplitConfig:
    """How to split. Photos are at one place in one S2 cell (level 10: about 10 km), and across its border within
    `border_km` of each other. Raises ValueError for shares that are no shares."""

    seed: int = 0
    validation_share: float = 0.1
    test_share: float = 0.2
    place_s2_level: int = 10
    border_km: float = 1.0

    def __post_init__(self) -> None:
        if min(self.validation_share, self.test_share) < 0 or self.validation_share + self.test_share >= 1:
            raise ValueError(
                f"the shares of validation ({self.validation_share}) and test ({self.test_share}) must not be negative "
                "and must leave photos to train on"
            )


@dataclass(frozen=True, eq=False)
class Split:
    """`part_N` indexes `PARTS`, −1 for photos in none; `group_N` numbers the groups, kept whole unless the table itself
    says the parts."""

    part_N: NDArray[np.int64]
    group_N: NDArray[np.int64]

    def rows(self, part: str) -> NDArray[np.int64]:
        """Return the rows of the photos in a part."""
        return np.flatnonzero(self.part_N == PARTS.index(part))


def split_photos(photos: LabelledPhotos, config: SplitConfig) -> Split:
    """Return the parts that the table gives, or else split whole groups by the seed and the photos' names alone.

    Given parts are trusted: nobody checks that they keep groups whole (a rendered archive may share its towns between
    parts and mean it). Otherwise test and validation take groups, in that order, as long as they fit into their share,
    so a group with more photos than a share is trained on. Photos without a photographer are grouped by place only.
    Raises ValueError where the table gives parts to some photos only.
    """
    group_N = photo_groups(photos.lat_deg_N, photos.lon_deg_N, photos.photographer_N, config)
    given = [part for part in photos.part_N if part is not None]
    if not given:
        return Split(_whole_groups(photos.name_N, group_N, config)[group_N], group_N)
    if len(given) < len(photos):
        name = photos.name_N[photos.part_N.index(None)]
        raise ValueError(
            f"the table gives {len(given)} of its {len(photos)} photos a part, and none to {name}: "
            "give every row a part, or leave the column out"
        )
    number = {part: k for k, part in enumerate(PARTS)}
    return Split(np.array([number[part] for part in given], np.int64), group_N)


def cut_photos(photos: LabelledPhotos, config: SplitConfig, region_s2_level: int = 7) -> Split:
    """Split by regions and photographers and leave out the photos that would link two parts (part −1).

    For collections in which nearly everything hangs together, because photographers travel: `split_photos` would have
    to train on all of it. Regions (S2 level 7: about 70 km) go to parts by the seed alone, photographers to the part
    that has most of their photos. What a photographer took in another part's region is left out, and so is what lies
    within a border's width of one. No group of what is left is in two parts. Raises ValueError for regions that do not
    hold whole places.
    """
    if not 0 <= region_s2_level <= config.place_s2_level:
        raise ValueError(f"regions of S2 level {region_s2_level} do not hold places of level {config.place_s2_level}")
    cell_N = s2.cell_id_N(photos.lat_deg_N, photos.lon_deg_N, region_s2_level)
    cell_R, region_N = np.unique(cell_N, return_inverse=True)
    part_R = _shared_out([s2.token(cell) for cell in cell_R.tolist()], np.bincount(region_N), config)
    part_N = part_R[region_N]

    away_N = np.zeros(len(photos), np.bool_)
    who_N = _numbered(photos.photographer_N)
    known_N = who_N >= 0
    taken = np.zeros((int(who_N.max(initial=-1)) + 1, len(PARTS)), np.int64)
    np.add.at(taken, (who_N[known_N], part_N[known_N]), 1)
    away_N[known_N] = taken.argmax(axis=1)[who_N[known_N]] != part_N[known_N]

    part_of = dict(zip(cell_R.tolist(), part_R.tolist(), strict=True))
    for other_N in _reached(photos.lat_deg_N, photos.lon_deg_N, region_s2_level, config.border_km):
        across = np.flatnonzero(other_N != cell_N)
        for row, cell in zip(across.tolist(), other_N[across].tolist(), strict=True):
            away_N[row] |= part_of.get(cell, 0) != part_N[row]  # an empty region is train's, else it could link two
    group_N = np.full(len(photos), -1, np.int64)
    kept = np.flatnonzero(~away_N)
    kept_who = [photos.photographer_N[row] for row in kept.tolist()]
    group_N[kept] = photo_groups(photos.lat_deg_N[kept], photos.lon_deg_N[kept], kept_who, config)
    return Split(np.where(away_N, -1, part_N), group_N)


def _whole_groups(name_N: Sequence[str], group_N: NDArray[np.int64], config: SplitConfig) -> NDArray[np.int64]:
    """Return the part of each group."""
    first_name: dict[int, str] = {}
    for name, group in zip(name_N, group_N.tolist(), strict=True):
        if name < first_name.setdefault(group, name):
            first_name[group] = name
    count_G = np.bincount(group_N)
    return _shared_out([first_name[group] for group in range(len(count_G))], count_G, config)


def _shared_out(name_G: Sequence[str], count_G: NDArray[np.int64], config: SplitConfig) -> NDArray[np.int64]:
    """Return the part of each of some heaps of photos, in an order that hangs on the seed and the heaps' names."""
    order = sorted(range(len(count_G)), key=lambda g: hashlib.sha256(f"{config.seed} {name_G[g]}".encode()).digest())
    part_G = np.zeros(len(count_G), np.int64)
    for part, share in (("test", config.test_share), ("validation", config.validation_share)):
        room = int(share * count_G.sum())
        for group in order:
            if part_G[group] == 0 and count_G[group] <= room:
                part_G[group] = PARTS.index(part)
                room -= int(count_G[group])
    return part_G


def _numbered(photographer_N: Sequence[str]) -> NDArray[np.int64]:
    """Return a number for each photo's photographer, from 0; −1 for nobody."""
    number: dict[str, int] = {}
    return np.array([number.setdefault(who, len(number)) if who else -1 for who in photographer_N], np.int64)


def photo_groups(
    lat_deg_N: NDArray[np.float64], lon_deg_N: NDArray[np.float64], photographer_N: Sequence[str], config: SplitConfig
) -> NDArray[np.int64]:
    """Return a group number for each photo, from 0: the same for photos of one photographer ("" is nobody) or place,
    and for those linked through others."""
    cell_N = s2.cell_id_N(lat_deg_N, lon_deg_N, config.place_s2_level)
    across_E = _across_borders(lat_deg_N, lon_deg_N, cell_N, config)
    cell_P, place = np.unique(np.concatenate([cell_N, across_E.ravel()]), return_inverse=True)
    place_N, link_E = place[: len(cell_N)], place[len(cell_N) :].reshape(-1, 2)
    who_N = _numbered(photographer_N)
    known_N = who_N >= 0
    one_E = np.concatenate([link_E[:, 0], place_N[known_N]])
    other_E = np.concatenate([link_E[:, 1], len(cell_P) + who_N[known_N]])
    group_I = linked_groups(len(cell_P) + int(who_N.max(initial=-1)) + 1, one_E, other_E)
    return np.unique(group_I[place_N], return_inverse=True)[1].astype(np.int64)


def _reached(
    lat_deg_N: NDArray[np.float64], lon_deg_N: NDArray[np.float64], s2_level: int, distance_km: float
) -> Iterator[NDArray[np.uint64]]:
    """Yield the cells at a distance from the photos, in eight directions, one after the other."""
    for bearing_deg in range(0, 360, 45):
        yield s2.cell_id_N(*geodesy.destination_point(lat_deg_N, lon_deg_N, bearing_deg, distance_km), s2_level)


def _across_borders(
    lat_deg_N: NDArray[np.float64], lon_deg_N: NDArray[np.float64], cell_N: NDArray[np.uint64], config: SplitConfig
) -> NDArray[np.uint64]:
    """Return pairs of cells, one row each: one with a photo in it, another within a border's width of that photo."""
    pairs = [np.empty((0, 2), np.uint64)]
    for other_N in _reached(lat_deg_N, lon_deg_N, config.place_s2_level, config.border_km):
        across_N = other_N != cell_N
        pairs.append(np.unique(np.stack([cell_N[across_N], other_N[across_N]], axis=1), axis=0))
    return np.concatenate(pairs)


def linked_groups(items: int, one_E: NDArray[np.integer[Any]], other_E: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Return a group number for each of `items`, the same for items that a link joins, or several links in a row.

    Each round hooks every group to its lowest neighbour and then points all members at the new leader: some rounds of
    numpy, where a union-find in Python would take a step for each link.
    """
    leader_I = np.arange(items)
    while True:
        one_E, other_E = leader_I[one_E], leader_I[other_E]
        apart_E = one_E != other_E
        if not apart_E.any():
            return np.unique(leader_I, return_inverse=True)[1].astype(np.int64)
        one_E, other_E = one_E[apart_E], other_E[apart_E]
        np.minimum.at(leader_I, np.maximum(one_E, other_E), np.minimum(one_E, other_E))
        while not np.array_equal(above_I := leader_I[leader_I], leader_I):
            leader_I = above_I


def fingerprint(names: Iterable[str]) -> str:
    """Return 16 hex digits that name a set of photos, to tell later whether a split is the one trained with."""
    return hashlib.sha256("\n".join(sorted(names)).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def part_record(photos: LabelledPhotos, split: Split, part: str) -> dict[str, int | str]:
    """Return what a model remembers of a part of its photos: how many, and the set's fingerprint."""
    names = [photos.name_N[row] for row in split.rows(part)]
    return {"photos": len(names), "fingerprint": fingerprint(names)}
