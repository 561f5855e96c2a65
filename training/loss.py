"""What training minimises: cross-entropy over the levels and over the scenes, and the distance to a teacher's features.

Every term is a sum over photos divided by a count that the caller may give: when a step is spread over workers or
micro-batches, the counts are the whole step's, and the parts' terms add up to what one worker would have computed.

Shapes: B batch, H levels, K cells of one level, S scenes, D width of the teacher's features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax

from model.world import geodesy

UNKNOWN = -1


def levels_loss(
    logits: Sequence[Tensor],
    label_BH: Tensor,
    smoothing: float,
    count_H: Tensor | None = None,
    weight_H: Sequence[float] | None = None,
    near: Sequence[Tensor] | None = None,
    added_up: bool = False,
) -> Tensor:
    """Return the (weighted) mean over levels of the cross-entropy with label smoothing (the paper's: 0.1).

    Args:
        logits: BK, one for each level.
        label_BH: int64, -1 where a photo lies in none of a level's cells: such a photo says nothing about that level,
            so it counts neither in its sum nor in its mean.
        count_H: how many photos each level's mean is over; those known here if not given.
        weight_H: how much each level counts; alike if not given.
        near: BK for each level, what to smooth towards; all cells alike if not given. See `nearness`.
        added_up: return the levels' (weighted) sum, as in the paper, in place of their mean.
    """
    weights = weight_H or (1.0,) * len(logits)
    terms = [
        weight
        * masked_cross_entropy(
            logits_BK,
            label_BH[:, h],
            smoothing,
            None if count_H is None else count_H[h],
            None if near is None else near[h],
        )
        for h, (logits_BK, weight) in enumerate(zip(logits, weights, strict=True))
    ]
    total = torch.stack(terms).sum()
    return total if added_up else total / sum(weights)


def masked_cross_entropy(
    logits_BK: Tensor,
    label_B: Tensor,
    smoothing: float = 0.0,
    count: Tensor | None = None,
    near_BK: Tensor | None = None,
) -> Tensor:
    """Return the mean cross-entropy of the rows whose label is not -1; 0, with a gradient of 0, if there are none."""
    known_B = label_B != UNKNOWN
    if near_BK is None:
        total = cross_entropy(
            logits_BK.float(), label_B, ignore_index=UNKNOWN, reduction="sum", label_smoothing=smoothing
        )
    else:
        sharp = cross_entropy(logits_BK.float(), label_B, ignore_index=UNKNOWN, reduction="sum")
        soft_B = -(near_BK * log_softmax(logits_BK.float(), dim=1)).sum(dim=1)
        total = (1 - smoothing) * sharp + smoothing * torch.where(known_B, soft_B, 0).sum()
    return total / (known_B.sum() if count is None else count).clamp(min=1)


def nearness(position_B3: Tensor, cell_K3: Tensor, scale_km: float) -> Tensor:
    """Return BK, each photo's shares of the cells by distance: softmax(-distance / scale).

    Positions are unit vectors. Source: haversine label smoothing, Haas et al., PIGEON, CVPR 2024, section 3.2.
    """
    chord_BK = (2 - 2 * position_B3 @ cell_K3.T).clamp(0, 4).sqrt()
    distance_km_BK = 2 * geodesy.EARTH_RADIUS_KM * torch.asin((chord_BK / 2).clamp(max=1))
    return torch.softmax(-distance_km_BK / scale_km, dim=1)


def distillation_loss(features_BD: Tensor, teacher_BD: Tensor, count: Tensor | None = None) -> Tensor:
    """Return the mean squared distance to the teacher's features, which are to be standardised: 1 is no better than
    always saying their mean. `count`: how many photos the mean is over; those given here if not said."""
    total = (features_BD.float() - teacher_BD).square().mean(dim=1).sum()
    return total / (torch.tensor(len(features_BD)) if count is None else count).clamp(min=1)
