"""Which photos are for training, which for validation and which for the test: by place and photographer, not by photo.

Photos that share a photographer or a place belong together, and so do photos that are linked through others; such a
group goes to one part as a whole. Otherwise neighbouring frames of one camera would be on both sides, and the test
would measure memory.

Shapes: N photos, G groups.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model import geodesy, s2
from training.labelled import LabelledPhotos

PARTS = ("train", "validation", "test")


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
    """`part_N` indexes `PARTS`; `group_N` numbers the groups that were kept whole."""

    part_N: NDArray[np.int64]
    group_N: NDArray[np.int64]

    def rows(self, part: str) -> NDArray[np.int64]:
        """Return the rows of the photos in a part."""
        return np.flatnonzero(self.part_N == PARTS.index(part))


def split_photos(photos: LabelledPhotos, config: SplitConfig) -> Split:
    """Split whole groups, in an order that hangs on the seed and the photos' names alone.

    Test and validation take groups, in that order, as long as they fit into their share, so a group with more photos
    than a share is trained on. Photos without a photographer are grouped by place only.
    """
    place_N = s2.cell_id_N(photos.lat_deg_N, photos.lon_deg_N, config.place_s2_level)
    keys_N = (
        [("place", place), ("photographer", who)] if who else [("place", place)]
        for place, who in zip(place_N.tolist(), photos.photographer_N, strict=True)
    )
    joined = ([("place", one), ("place", other)] for one, other in _neighbours(photos, place_N, config))
    group_N = np.unique(linked_groups(itertools.chain(keys_N, joined))[: len(photos)], return_inverse=True)[1]
    count_G = np.bincount(group_N)
    first_name = [""] * len(count_G)
    for name, group in sorted(zip(photos.name_N, group_N.tolist(), strict=True), reverse=True):
        first_name[group] = name
    order = sorted(
        range(len(count_G)), key=lambda g: hashlib.sha256(f"{config.seed} {first_name[g]}".encode()).digest()
    )
    part_G = np.zeros(len(count_G), np.int64)
    for part, share in (("test", config.test_share), ("validation", config.validation_share)):
        room = int(share * len(photos))
        for group in order:
            if part_G[group] == 0 and count_G[group] <= room:
                part_G[group] = PARTS.index(part)
                room -= int(count_G[group])
    return Split(part_G[group_N], group_N)


def _neighbours(photos: LabelledPhotos, place_N: NDArray[np.uint64], config: SplitConfig) -> Iterator[tuple[int, int]]:
    """Yield pairs of cells: one with a photo in it, another within a border's width of that photo."""
    for bearing_deg in range(0, 360, 45):
        lat_deg_N, lon_deg_N = geodesy.destination_point(
            photos.lat_deg_N, photos.lon_deg_N, bearing_deg, config.border_km
        )
        other_N = s2.cell_id_N(lat_deg_N, lon_deg_N, config.place_s2_level)
        across_N = other_N != place_N
        pairs = np.unique(np.stack([place_N[across_N], other_N[across_N]], axis=1), axis=0)
        yield from ((int(one), int(other)) for one, other in pairs.tolist())


def linked_groups(keys_N: Iterable[Sequence[Hashable]]) -> NDArray[np.int64]:
    """Return a group number for each item, the same for items that share a key or are linked through others."""
    leader: list[int] = []
    first_with: dict[Hashable, int] = {}

    def find(item: int) -> int:
        while leader[item] != item:
            leader[item] = leader[leader[item]]
            item = leader[item]
        return item

    for item, keys in enumerate(keys_N):
        leader.append(item)
        for key in keys:
            leader[find(item)] = find(first_with.setdefault(key, item))
    return np.unique([find(item) for item in range(len(leader))], return_inverse=True)[1].astype(np.int64)


def fingerprint(names: Iterable[str]) -> str:
    """Return 16 hex digits that name a set of photos, to tell later whether a split is the one trained with."""
    return hashlib.sha256("\n".join(sorted(names)).encode("utf-8", "surrogatepass")).hexdigest()[:16]
