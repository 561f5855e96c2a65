"""How to train: every choice that decides what comes out, the optimizer, and the learning rate's way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from training.data.augment import AugmentConfig

_LEAST_RATE_FACTOR = 0.02


@dataclass(frozen=True)
class Recipe:
    """How to train. The same recipe and photos give the same network on any number of workers, but for rounding,
    dropout and batch normalisation, which see each worker's share of a batch.

    Where defaults differ from the paper's, training/README.md says why; `training.fit.presets` has the paper's own.

    Attributes:
        preset: whose settings stand where none is given: the paper's; a probe's, which trains the decoder on a frozen
            backbone; those of fine-tuning a model. It is a name alone: `jobs.train` puts the settings in.
        epochs: each of as many draws as there are photos.
        batch_size: photos a step, over all workers and micro-batches together.
        accumulate: micro-batches that each worker splits its share of a step into, for less memory.
        optimizer: adamw, or sgd with momentum 0.9 as in the paper (there with learning_rate 0.01, weight_decay 1e-4).
        decay_all: biases, norms and scales decay, too.
        schedule: after the warm-up either a cosine down to zero, or a `step_factor` every `step_epochs`.
        backbone_rate: the backbone's learning rate is so many times the others'; 0 freezes it.
        average: decay of a moving average of the weights, which is then what is validated and kept; 0 for none.
        precision: bf16 runs the network under autocast; weights and optimizer stay fp32.
        levels: whether the loss has the levels' mean, so that it is as large for any number of them, or their sum.
        label_smoothing: the share of each label that goes to the other cells (0.1 in the paper).
        smoothing_km: if positive, that share goes to cells by distance, falling by e every so many km.
        level_weights: how much each level counts, coarse → fine; alike if not given.
        scene_weight: of the scenes' cross-entropy, over photos whose scene is known.
        routing: whose queries are classified in training: those of the scene that is labelled (predicted where no label
            is known), or always of the predicted one, as in the published code.
        distillation_weight: of the distance to a teacher's features, if there is a teacher.
        balance: 0 draws photos alike (each once an epoch), 1 the coarsest level's cells alike; see `balanced_weights`.
        most_gradient: longer gradients are cut to this norm; 0 cuts none.
        patience: training ends after so many epochs in which validation photos became no likelier; 0 never ends it.
            The best epoch's weights are kept either way. It is off by default, because a learning rate that falls to
            zero gains most at the end, and few validation photos waver from epoch to epoch.
        early_size_px: image size for the first `early_share` of the way: faster, for networks that take any size.
        max_failed_fraction: training stops if more of an epoch's draws than this could not be read or decoded.
    """

    preset: Literal["none", "paper", "probe", "finetune"] = "none"
    epochs: int = 30
    batch_size: int = 32
    accumulate: int = 1
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    decay_all: bool = False
    schedule: Literal["cosine", "step"] = "cosine"
    warm_up_share: float = 0.05
    step_epochs: float = 5.0
    step_factor: float = 0.5
    backbone_rate: float = 1.0
    average: float = 0.0
    precision: Literal["fp32", "bf16"] = "fp32"
    levels: Literal["mean", "sum"] = "mean"
    label_smoothing: float = 0.1
    smoothing_km: float = 0.0
    level_weights: tuple[float, ...] = ()
    scene_weight: float = 0.5
    routing: Literal["labelled", "predicted"] = "predicted"
    distillation_weight: float = 2.0
    balance: float = 0.5
    most_gradient: float = 5.0
    patience: int = 0
    early_size_px: int | None = None
    early_share: float = 0.6
    max_failed_fraction: float = 0.02
    seed: int = 0
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2 or self.accumulate < 1 or not self.learning_rate > 0:
            raise ValueError(
                "training needs at least 1 epoch, 2 photos a batch, 1 micro-batch and a positive learning rate"
            )
        if not (0 <= self.label_smoothing < 1 and 0 <= self.average < 1 and 0 <= self.warm_up_share < 1):
            raise ValueError("label_smoothing, average and warm_up_share must be at least 0 and below 1")
        if min(self.backbone_rate, self.smoothing_km, self.scene_weight, self.balance, self.weight_decay) < 0:
            raise ValueError("backbone_rate, smoothing_km, scene_weight, balance and weight_decay must not be negative")
        if self.step_epochs <= 0 or not 0 < self.step_factor <= 1:
            raise ValueError("step_epochs must be positive and step_factor above 0, at most 1")
        if self.most_gradient < 0 or self.patience < 0:
            raise ValueError("most_gradient and patience must not be negative: give 0 for no limit")
        if self.level_weights and (min(self.level_weights) < 0 or sum(self.level_weights) <= 0):
            raise ValueError("level_weights must not be negative, and one of them positive")

    @property
    def is_frozen(self) -> bool:
        """Whether the backbone stays as it is."""
        return self.backbone_rate == 0

    def rate_factor(self, done: float) -> float:
        """Return what the learning rate is multiplied by after a share of the way, from 0 to 1."""
        if done < self.warm_up_share:
            return _LEAST_RATE_FACTOR + (1 - _LEAST_RATE_FACTOR) * done / self.warm_up_share
        if self.schedule == "step":
            return float(self.step_factor ** math.floor(done * self.epochs / self.step_epochs))
        return 0.5 + 0.5 * math.cos(math.pi * (done - self.warm_up_share) / (1 - self.warm_up_share))

    def make_optimizer(self, module: nn.Module, backbone: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer of `module`'s trainable parameters; biases, norms and scales decay if `decay_all`.

        Each group's `rate` is what its learning rate is multiplied by, beside the schedule.
        """
        of_backbone = {id(parameter) for parameter in backbone.parameters()}
        groups = []
        for rate, parameters in (
            (self.backbone_rate, [p for p in module.parameters() if id(p) in of_backbone and p.requires_grad]),
            (1.0, [p for p in module.parameters() if id(p) not in of_backbone and p.requires_grad]),
        ):
            groups += _decaying_and_not(parameters, rate, self.weight_decay, self.decay_all)
        if self.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=self.learning_rate, momentum=0.9)
        return torch.optim.AdamW(groups, lr=self.learning_rate)

    def set_rate(self, optimizer: torch.optim.Optimizer, done: float) -> float:
        """Set the learning rates for a share of the way, from 0 to 1; return that of the parts beside the backbone."""
        rate = self.learning_rate * self.rate_factor(done)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        return rate


def _decaying_and_not(
    parameters: Sequence[nn.Parameter], rate: float, weight_decay: float, decay_all: bool
) -> list[dict[str, object]]:
    vectors_decay = weight_decay if decay_all else 0.0
    groups: list[dict[str, object]] = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay, "rate": rate},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": vectors_decay, "rate": rate},
    ]
    return [group for group in groups if group["params"]]
