"""From logits to answers, inside the exported graph: probabilities, place, radius, scene.

Shapes: B batch · H levels · K cells of one level (of the finest where nothing else is said) · S scenes · T top cells
· 4 named radii · 3 coordinates of a unit vector · G groups of cells (countries).

Everything here is fp32 whatever the network's precision is, and free of matrix products: OpenVINO's CPU plugin, asked
for bf16, keeps in fp32 what follows the last matrix product (`Graph::EnforceInferencePrecision`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.geodecoder import GeoDecoderOutput
from model.world.geodesy import EARTH_RADIUS_KM, unit_vectors_N3
from model.world.hierarchy import Hierarchy

STREET_KM = 1.0
CITY_KM = 25.0
REGION_KM = 200.0
COUNTRY_KM = 750.0
PRECISION_RADII_KM = (STREET_KM, CITY_KM, REGION_KM, COUNTRY_KM)
"""The radii of `mass_within_B4`, in its order; the thresholds of the field's benchmarks."""

RADIUS_PROBABILITY = 0.9
"""How many of all photos lie within the radius; how much of a photo's probability that takes is fitted (`Reading`)."""
TOP_CELLS = 5
BISECTIONS = 20
"""Halvings of the greatest possible radius, some 20,000 km: leaves 20 m."""

PointRule = Literal["auto", "best-cell", "least-distance"]
"""Where the point is: at the finest level's most probable cell; at the cell from which the photo is least far away on
average; or (auto) at the most probable cell where the 25 km around it hold half, else where it is least far away."""
AUTO: PointRule = "auto"
BEST_CELL: PointRule = "best-cell"
Combination = Literal["product", "sum"]
"""How levels come together: each one's probabilities times its parents' (GeoDecoder); or the finest level's alone,
summed into the coarser ones (a gallery of places)."""
MEDIAN_STEPS = 8
_HALF = 0.5
_LEAST = 1e-30
"""In place of the logarithm of nothing."""
_SHORTEST_CHORD = 0.003
"""Some 20 km: a nearer cell weighs no more, or the first cell that the median comes upon would hold it."""

Array = TypeVar("Array")


@dataclass(frozen=True, eq=False)
class Reading:
    """How logits are read: all that is fitted after training, on photos that the network has not seen.

    What is served of each level is (1 − ε) p + ε π: p what the network and the prior say together, π the prior alone.

    Attributes:
        temperatures: one positive number a level, coarse → fine, that its logits are divided by.
        prior: π, the probability of each cell of each level before anything is seen; None where a model has no prior.
        prior_share: ε, one number from 0 to 1 a level; 1 where the network says nothing that its prior does not.
        radius_mass: the radius is the smallest one that holds this much of the finest level's probability.
        combination: how the levels' probabilities come together.
        point: where the point is; radius and mass within radii are around it.

    Raises:
        ValueError: numbers that are none of these, or not one a level.
    """

    temperatures: tuple[float, ...]
    prior: tuple[NDArray[np.float64], ...] | None = None
    prior_share: tuple[float, ...] = ()
    radius_mass: float = RADIUS_PROBABILITY
    combination: Combination = "product"
    point: PointRule = AUTO

    def __post_init__(self) -> None:
        levels = len(self.temperatures)
        if not levels or not all(0 < t < math.inf for t in self.temperatures):
            raise ValueError(f"every level needs a positive temperature, not {list(self.temperatures)}")
        if not self.prior_share:
            object.__setattr__(self, "prior_share", (0.0,) * levels)
        if len(self.prior_share) != levels or not all(0 <= share <= 1 for share in self.prior_share):
            raise ValueError(f"{levels} levels need as many shares from 0 to 1, not {list(self.prior_share)}")
        if self.prior is None and any(self.prior_share):
            raise ValueError("a share of the prior needs a prior")
        if self.prior is not None and len(self.prior) != levels:
            raise ValueError(f"{levels} levels need as many priors, not {len(self.prior)}")
        if not 0 < self.radius_mass <= 1:
            raise ValueError(
                f"the radius must hold a share of the probability above 0 and up to 1, not {self.radius_mass}"
            )

    @classmethod
    def plain(cls, levels: int, point: PointRule = AUTO) -> Reading:
        """Return the reading that takes logits as they are."""
        return cls((1.0,) * levels, point=point)

    @property
    def is_prior(self) -> bool:
        """Whether the network has no say at all: every answer is the prior."""
        return min(self.prior_share) == 1


class Answers(NamedTuple, Generic[Array]):
    """What is known about each photo of a batch; of torch tensors in the graph, of numpy arrays from an engine.

    A level's probabilities add up to 1. `level_*` is each level's own best cell, so a coarser best need not contain a
    finer one. The point is the mean of a cell of the finest level: of its best, `top_index_BT[:, 0]`, unless the point
    is to be elsewhere (`PointRule`).
    """

    level_index_BH: Array
    """int64, row of the best cell in each level, coarse → fine."""
    level_probability_BH: Array
    """float32, the probability of that cell."""
    top_index_BT: Array
    """int64, rows of the finest level's best cells, best first; T is 5, or fewer if there are fewer cells."""
    top_probability_BT: Array
    """float32, their probabilities."""
    point_index_B: Array
    """int64, row of the finest level's cell whose mean is the point."""
    point_probability_B: Array
    """float32, the probability of that cell."""
    scene_index_B: Array
    """int64, the most confident scene."""
    scene_probability_B: Array
    """float32, its probability among the scenes."""
    radius_km_B: Array
    """float32, the smallest radius around the point that holds `Reading.radius_mass` of the finest level's probability:
    fitted so that it holds 90 % of all photos."""
    mass_within_B4: Array
    """float32, the probability within 1, 25, 200 and 750 km of the point."""
    group_probability_BG: Array
    """float32, the probability of each group of the finest level's cells, to a millionth; adds up to 1."""
    information_bits_B: Array
    """float32, how much the photo said: the finest level's Kullback-Leibler divergence from the prior; NaN without."""
    finite_B: Array
    """bool, whether all of the network's outputs were finite numbers; where false, nothing else means anything."""


class ReadOut(nn.Module):
    """Logits → `Answers`, as a `Reading` says.

    By the product, each level's logits, divided by its temperature, are added to the logarithm of the prior: of each
    cell within its parent, since the levels are multiplied. From coarse to fine, a cell's log-probability is added to
    its parent's joint one, and the sum is normalised to a distribution over that level's cells. Normalising multiplies
    a photo's finer levels by one number, so it changes no argmax; it makes each level's numbers probabilities.
    (Hierarchy guarantees every finer cell a parent.) A network that says nothing, the same logit for every cell, leaves
    the prior. By the sum, the finest level's softmax is added up in the coarser cells.

    A cell counts as inside a radius when its mean's great-circle distance from the point plus its spread is within it:
    the radius covers the cells, not just their centres.

    Args:
        group_K: the group, from 0, of each of the finest level's cells; all are in one if not given.

    Raises:
        ValueError: a reading for another number of levels or cells.
    """

    def __init__(self, hierarchy: Hierarchy, reading: Reading, group_K: NDArray[np.int64] | None = None) -> None:
        super().__init__()
        levels = hierarchy.levels
        if len(reading.temperatures) != len(levels):
            raise ValueError(f"{len(levels)} levels need as many temperatures, not {list(reading.temperatures)}")
        self.reading = reading
        for number, level in enumerate(levels[1:], start=1):
            self.register_buffer(f"parent_{number}_K", torch.from_numpy(level.parent_K.astype(np.int64)))
            # A parent's cells lie side by side: their sum is what the running sum grows by.
            end_P = np.searchsorted(level.parent_K, np.arange(len(levels[number - 1])), side="right")
            self.register_buffer(f"child_end_{number}_P", torch.from_numpy(end_P.astype(np.int64)))
        if reading.prior is not None:
            if tuple(map(len, reading.prior)) != hierarchy.class_counts:
                raise ValueError("the prior has other cells than the hierarchy")
            for number, prior_K in enumerate(reading.prior):
                within_K = prior_K / reading.prior[number - 1][levels[number].parent_K] if number else prior_K
                self.register_buffer(f"prior_{number}_K", torch.from_numpy(prior_K).float())
                self.register_buffer(f"log_within_{number}_K", torch.from_numpy(np.log(within_K)).float())
        finest = levels[-1]
        unit_K3 = unit_vectors_N3(finest.lat_deg_K, finest.lon_deg_K)
        self.unit_K3: Tensor
        self.register_buffer("unit_K3", torch.from_numpy(np.asarray(unit_K3)).float())
        self.spread_rad_K: Tensor
        self.register_buffer("spread_rad_K", torch.from_numpy(finest.spread_km_K / EARTH_RADIUS_KM).float())
        self.top_cells = min(TOP_CELLS, len(finest.cell_id_K))
        group_K = np.zeros(len(finest), np.int64) if group_K is None else group_K
        assert group_K.shape == (len(finest),), f"{len(finest)} cells can't have {group_K.shape} groups"
        # A group is what the running sum over the cells, sorted by group, grows by from its first cell to its last:
        # adding at an index, the plain way, is an operation that not every runtime has.
        self.by_group_K: Tensor
        self.register_buffer("by_group_K", torch.from_numpy(np.argsort(group_K, kind="stable")))
        self.group_end_G: Tensor
        self.register_buffer("group_end_G", torch.from_numpy(np.cumsum(np.bincount(group_K))))

    def forward(self, output: GeoDecoderOutput) -> Answers[Tensor]:
        joints = self.log_probabilities(output.logits)
        best = [joint_BK.max(dim=1) for joint_BK in joints]
        probability_BK = joints[-1].exp()
        top_log_BT, top_index_BT = joints[-1].topk(self.top_cells, dim=1)
        scene_probability_B, scene_index_B = output.scene_logits_BS.float().softmax(dim=1).max(dim=1)
        point_index_B = self.point_index(probability_BK, top_index_BT)
        reach_rad_BK = self._distance_rad(self._unit_B3(point_index_B)) + self.spread_rad_K
        finite_B = output.scene_logits_BS.float().sum(dim=1).isfinite()
        for logits_BK in output.logits:
            # The sum is finite only if every term is; it is one number a photo to look at instead of K.
            finite_B = finite_B & logits_BK.float().sum(dim=1).isfinite()
        return Answers(
            level_index_BH=torch.stack([level.indices for level in best], dim=1),
            level_probability_BH=torch.stack([level.values for level in best], dim=1).exp(),
            top_index_BT=top_index_BT,
            top_probability_BT=top_log_BT.exp(),
            point_index_B=point_index_B,
            point_probability_B=probability_BK.gather(1, point_index_B[:, None])[:, 0],
            scene_index_B=scene_index_B,
            scene_probability_B=scene_probability_B,
            radius_km_B=_radius_rad(probability_BK, reach_rad_BK, self.reading.radius_mass) * EARTH_RADIUS_KM,
            mass_within_B4=torch.stack(
                [_mass_within(probability_BK, reach_rad_BK, km / EARTH_RADIUS_KM) for km in PRECISION_RADII_KM], dim=1
            ),
            group_probability_BG=_sums(probability_BK.index_select(1, self.by_group_K), self.group_end_G),
            information_bits_B=self._information_bits_B(probability_BK, joints[-1]),
            finite_B=finite_B,
        )

    def log_probabilities(self, logits: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The log-probabilities BK that are served of each level, coarse → fine."""
        network = self._by_sum(logits) if self.reading.combination == "sum" else self._by_product(logits)
        return tuple(
            self._mixed(log_BK, number, share)
            for number, (log_BK, share) in enumerate(zip(network, self.reading.prior_share, strict=True))
        )

    def _by_product(self, logits: tuple[Tensor, ...]) -> list[Tensor]:
        joints: list[Tensor] = []
        for number, (logits_BK, temperature) in enumerate(zip(logits, self.reading.temperatures, strict=True)):
            log_BK = logits_BK.float() / temperature
            if self.reading.prior is not None:
                log_BK = log_BK + self.get_buffer(f"log_within_{number}_K")
            if joints:
                log_BK = log_BK + joints[-1].index_select(1, self.get_buffer(f"parent_{number}_K"))
            joints.append(log_BK.log_softmax(dim=1))
        return joints

    def _by_sum(self, logits: tuple[Tensor, ...]) -> list[Tensor]:
        probability_BK = (logits[-1].float() / self.reading.temperatures[-1]).softmax(dim=1)
        levels = [probability_BK]
        for number in range(len(self.reading.temperatures) - 1, 0, -1):
            levels.append(_sums(levels[-1], self.get_buffer(f"child_end_{number}_P")))
        return [level.clamp(min=_LEAST).log() for level in reversed(levels)]

    def _mixed(self, log_BK: Tensor, number: int, share: float) -> Tensor:
        if not share:
            return log_BK
        prior_K = self.get_buffer(f"prior_{number}_K")
        return ((1.0 - share) * log_BK.exp() + share * prior_K).log()

    def _information_bits_B(self, probability_BK: Tensor, log_BK: Tensor) -> Tensor:
        if self.reading.prior is None:
            return torch.full_like(probability_BK[:, 0], math.nan)
        prior_K = self.get_buffer(f"prior_{len(self.reading.temperatures) - 1}_K")
        return ((probability_BK * (log_BK - prior_K.log())).sum(dim=1) / math.log(2.0)).clamp(min=0.0)

    def point_index(self, probability_BK: Tensor, top_index_BT: Tensor) -> Tensor:
        """point_index_B: the row of the finest level's cell whose mean is the point.

        For the least expected great-circle distance not all K cells are tried, which would take B × K × K distances,
        but the top ones, whose order settles ties, and the one nearest to the median of the distribution.
        """
        best_B = point_B = top_index_BT[:, 0]
        if self.reading.point == BEST_CELL:
            return point_B
        least_B = self._expected_rad(probability_BK, point_B)
        median_B = _chord_squared(self.unit_K3, self._median_B3(probability_BK)).argmin(dim=1)
        for candidate_B in (*top_index_BT.unbind(dim=1)[1:], median_B):
            expected_B = self._expected_rad(probability_BK, candidate_B)
            is_less_B = expected_B < least_B
            point_B, least_B = candidate_B.where(is_less_B, point_B), expected_B.where(is_less_B, least_B)
        if self.reading.point != AUTO:
            return point_B
        reach_rad_BK = self._distance_rad(self._unit_B3(best_B)) + self.spread_rad_K
        is_sure_B = _mass_within(probability_BK, reach_rad_BK, CITY_KM / EARTH_RADIUS_KM) >= _HALF
        return best_B.where(is_sure_B, point_B)

    def _expected_rad(self, probability_BK: Tensor, point_B: Tensor) -> Tensor:
        return (probability_BK * self._distance_rad(self._unit_B3(point_B))).sum(dim=1)

    def _median_B3(self, probability_BK: Tensor) -> Tensor:
        """Unit vectors near to the least expected chord, by Weiszfeld's iteration put back onto the sphere.

        Each step is the mean of all cells, weighed by the inverse of their distance. Chords in place of angles have no
        trouble with antipodes; where both have their least is nearly the same. Source: Weiszfeld 1937.
        """
        weight_BK = probability_BK
        for step in range(MEDIAN_STEPS + 1):
            mean_B3 = torch.stack([(weight_BK * self.unit_K3[None, :, axis]).sum(dim=1) for axis in range(3)], dim=1)
            median_B3 = mean_B3 / (mean_B3 * mean_B3).sum(dim=1, keepdim=True).sqrt().clamp(min=1e-12)
            if step < MEDIAN_STEPS:
                chord_BK = _chord_squared(self.unit_K3, median_B3).clamp(min=_SHORTEST_CHORD**2).sqrt()
                weight_BK = probability_BK / chord_BK
        return median_B3

    def _unit_B3(self, index_B: Tensor) -> Tensor:
        return self.unit_K3.index_select(0, index_B)

    def _distance_rad(self, point_B3: Tensor) -> Tensor:
        """distance_rad_BK: the angle between each point and the mean of each of the finest level's cells.

        The angle comes from the chord, whose differences keep their precision at short distances in fp32, where the
        arc cosine of a dot product is off by two kilometres.
        """
        return 2.0 * (_chord_squared(self.unit_K3, point_B3).sqrt() / 2.0).clamp(max=1.0).asin()


def _chord_squared(unit_K3: Tensor, point_B3: Tensor) -> Tensor:
    """chord_squared_BK, axis by axis: B × K × 3 numbers are never held."""
    chord_squared_BK = torch.zeros((), dtype=torch.float32, device=unit_K3.device)
    for axis in range(3):
        difference_BK = unit_K3[None, :, axis] - point_B3[:, axis, None]
        chord_squared_BK = chord_squared_BK + difference_BK * difference_BK
    return chord_squared_BK


def _mass_within(probability_BK: Tensor, reach_rad_BK: Tensor, radius_rad: Tensor | float) -> Tensor:
    return probability_BK.where(reach_rad_BK <= radius_rad, 0.0).sum(dim=1)


def _sums(values_BK: Tensor, end_P: Tensor) -> Tensor:
    """The sums of neighbouring columns, each ending before a column of `end_P`; to a millionth of the whole."""
    sum_BK = torch.cat([torch.zeros_like(values_BK[:, :1]), values_BK.cumsum(dim=1)], dim=1)
    end_BP = sum_BK.index_select(1, end_P)
    return torch.cat([end_BP[:, :1], end_BP[:, 1:] - end_BP[:, :-1]], dim=1).clamp(min=0.0)


def _radius_rad(probability_BK: Tensor, reach_rad_BK: Tensor, mass: float) -> Tensor:
    """The smallest angle that holds so much probability, by bisection: few runtimes sort K cells quickly."""
    high_B = reach_rad_BK.amax(dim=1)
    low_B = torch.zeros_like(high_B)
    for _ in range(BISECTIONS):
        middle_B = (low_B + high_B) / 2.0
        enough_B = _mass_within(probability_BK, reach_rad_BK, middle_B[:, None]) >= mass
        low_B, high_B = low_B.where(enough_B, middle_B), middle_B.where(enough_B, high_B)
    return high_B
