"""What training minimises: cross-entropy over the levels and over the scenes, and the distance to a teacher's features.

Shapes: B batch, H levels, K cells of one level, S scenes, D width of the teacher's features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

UNKNOWN = -1


def levels_loss(logits: Sequence[Tensor], label_BH: Tensor, smoothing: float) -> Tensor:
    """Return the mean over levels of the cross-entropy (label smoothing as in the paper: 0.1).

    `logits`: BK, one for each level; `label_BH`: int64, -1 where a photo lies in none of a level's cells: such a photo
    says nothing about that level, so it counts neither in its sum nor in its mean.
    """
    terms = [masked_cross_entropy(logits_BK, label_BH[:, h], smoothing) for h, logits_BK in enumerate(logits)]
    return torch.stack(terms).mean()


def masked_cross_entropy(logits_BK: Tensor, label_B: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the mean cross-entropy of the rows whose label is not -1; 0, with a gradient of 0, if there are none."""
    total = cross_entropy(logits_BK.float(), label_B, ignore_index=UNKNOWN, reduction="sum", label_smoothing=smoothing)
    return total / (label_B != UNKNOWN).sum().clamp(min=1)


def distillation_loss(features_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """Return the mean squared distance to the teacher's features, which are to be standardised: 1 is no better than
    always saying their mean."""
    return (features_BD.float() - teacher_BD).square().mean()
