"""The training loop, in one process: photos, labels and a network in, the trained network out.

Shapes: N photos of the store, B batch, H levels, S image size in pixels, C 3 colours, D width of a teacher's features.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.geodecoder import GeoDecoder
from training.augment import AugmentConfig, augment, resize
from training.dataset import PhotoStore, Pixels, balanced_weights
from training.loss import distillation_loss, levels_loss, masked_cross_entropy
from training.teacher import Teacher

log = logging.getLogger(__name__)

_LOG_EVERY_S = 60.0
_PHOTOS_TO_STANDARDISE = 2000


@dataclass(frozen=True)
class LoopConfig:
    """How to train.

    `epochs` (each of as many draws as there are photos) or `minutes` end training, whichever is first; the learning
    rate warms up and falls along a cosine to zero at that end. `early_size_px`, if given, is the image size for the
    first `early_share` of the way: faster, but only for networks that take any size.
    """

    epochs: int = 30
    minutes: float | None = None
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warm_up_share: float = 0.05
    early_size_px: int | None = None
    early_share: float = 0.6
    label_smoothing: float = 0.1
    scene_weight: float = 0.5
    distillation_weight: float = 2.0
    balance: float = 0.5
    most_gradient: float = 5.0
    seed: int = 0
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2 or not self.learning_rate > 0:
            raise ValueError("training needs at least 1 epoch, 2 photos a batch and a positive learning rate")
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"minutes must be positive, not {self.minutes}")


@dataclass(frozen=True, eq=False)
class Labels:
    """What is known of the store's photos: `level_NH` and `scene_N`, int64, -1 where unknown."""

    level_NH: NDArray[np.int64]
    scene_N: NDArray[np.int64]


@dataclass(frozen=True)
class Progress:
    """How far training came, and its mean losses over the last minute."""

    draws: int
    epochs: float
    minutes: float
    losses: dict[str, float]


def train(
    model: GeoDecoder,
    store: PhotoStore,
    labels: Labels,
    rows: NDArray[np.int64],
    config: LoopConfig,
    teacher: Teacher | None = None,
) -> Progress:
    """Train `model` in place on the given rows of the store, and leave it in eval mode.

    With a teacher, the mean of the backbone's tokens also learns to say, through a linear layer that is thrown away,
    what the teacher says of the same view; photos without any label take part in that alone. The same seed gives the
    same network, unless `minutes` ended the run. Raises ValueError if training diverges, and as the store does.
    """
    torch.manual_seed(config.seed)
    random = torch.Generator().manual_seed(config.seed)
    objective = _Objective(model, config, _TeacherView(teacher, store, rows) if teacher else None)
    optimizer = _optimizer(objective, config)
    start, logged, draws = time.monotonic(), time.monotonic(), 0
    recent: dict[str, list[float]] = {}
    losses: dict[str, float] = {}
    objective.train()
    for row_B, pixels_BHWC in _endless_batches(store, rows, labels, config, random):
        done = max(draws / (config.epochs * len(rows)), _minutes_since(start) / (config.minutes or math.inf))
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _rate_factor(done, config.warm_up_share)
        terms = objective(torch.from_numpy(pixels_BHWC), labels, row_B, done, random)
        total = torch.stack(list(terms.values())).sum()
        if not bool(total.isfinite()):
            raise ValueError(f"training diverged after {draws} photos: lower the learning rate {config.learning_rate}")
        optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(objective.parameters(), config.most_gradient)
        optimizer.step()
        draws += len(row_B)
        for name, term in terms.items():
            recent.setdefault(name, []).append(float(term.detach()))
        if time.monotonic() - logged > _LOG_EVERY_S:
            losses, recent, logged = _means(recent), {}, time.monotonic()
            log.info("%3.0f %% after %d photos, %.0f min: %s", 100 * done, draws, _minutes_since(start), losses)
    model.eval()
    return Progress(draws, round(draws / len(rows), 1), round(_minutes_since(start), 1), _means(recent) or losses)


class _TeacherView(nn.Module):
    """The teacher with its features standardised over the training photos, so that each counts alike."""

    def __init__(self, teacher: Teacher, store: PhotoStore, rows: NDArray[np.int64]) -> None:
        super().__init__()
        self.teacher = teacher
        batches = store.batches(rows[:_PHOTOS_TO_STANDARDISE].tolist(), 32)
        features_ND = torch.cat([teacher(resize(_rgb(pixels), teacher.size_px)) for _, pixels in batches])
        self.mean_D, self.std_D = features_ND.mean(dim=0), features_ND.std(dim=0) + 1e-3

    def forward(self, rgb_BCSS: Tensor) -> Tensor:
        return (self.teacher(resize(rgb_BCSS, self.teacher.size_px)) - self.mean_D) / self.std_D


class _Objective(nn.Module):
    """Photos and their labels → the terms to minimise, weighted."""

    def __init__(self, model: GeoDecoder, config: LoopConfig, teacher: _TeacherView | None) -> None:
        super().__init__()
        self.model, self.config, self.teacher = model, config, teacher
        self.imitate = nn.Linear(model.backbone.width, teacher.teacher.width) if teacher else None
        preprocessing = model.config.preprocessing
        self.mean_C11 = torch.tensor(preprocessing.mean_rgb)[:, None, None]
        self.std_C11 = torch.tensor(preprocessing.std_rgb)[:, None, None]

    def forward(
        self, pixels_BHWC: Tensor, labels: Labels, row_B: NDArray[np.int64], done: float, random: torch.Generator
    ) -> dict[str, Tensor]:
        config, size_px = self.config, self.model.config.preprocessing.image_size_px
        if config.early_size_px is not None and done < config.early_share:
            size_px = config.early_size_px
        view_px = max(size_px, self.teacher.teacher.size_px) if self.teacher else size_px
        rgb_BCSS = augment(pixels_BHWC, view_px, config.augment, random)
        normalised_BCSS = (resize(rgb_BCSS, size_px) - self.mean_C11) / self.std_C11
        tokens_BND = self.model.backbone(normalised_BCSS.contiguous(memory_format=torch.channels_last))
        output = self.model.forward_tokens(tokens_BND)
        label_BH, scene_B = torch.from_numpy(labels.level_NH[row_B]), torch.from_numpy(labels.scene_N[row_B])
        terms = {
            "levels": levels_loss(output.logits, label_BH, config.label_smoothing),
            "scene": config.scene_weight * masked_cross_entropy(output.scene_logits_BS, scene_B),
        }
        if self.teacher is not None and self.imitate is not None:
            distance = distillation_loss(self.imitate(tokens_BND.mean(dim=1)), self.teacher(rgb_BCSS))
            terms["teacher"] = config.distillation_weight * distance
        return terms


def _endless_batches(
    store: PhotoStore, rows: NDArray[np.int64], labels: Labels, config: LoopConfig, random: torch.Generator
) -> Iterator[tuple[NDArray[np.int64], Pixels]]:
    """Yield batches of two photos or more (batch normalisation needs two), drawn with replacement, for ever."""
    weight_N = torch.from_numpy(balanced_weights(labels.level_NH[rows, 0], config.balance))
    while True:
        drawn = rows[torch.multinomial(weight_N, max(len(rows), 2), replacement=True, generator=random).numpy()]
        for row_B, pixels_BHWC in store.batches(drawn.tolist(), config.batch_size):
            if len(row_B) >= 2:
                yield row_B, pixels_BHWC


def _optimizer(objective: nn.Module, config: LoopConfig) -> torch.optim.Optimizer:
    """AdamW; biases, norms and scales do not decay."""
    parameters = [p for p in objective.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate)


def _rate_factor(done: float, warm_up_share: float) -> float:
    if done < warm_up_share:
        return 0.02 + 0.98 * done / warm_up_share
    return 0.5 + 0.5 * math.cos(math.pi * (done - warm_up_share) / (1 - warm_up_share))


def _rgb(pixels_BHWC: Pixels) -> Tensor:
    return torch.from_numpy(pixels_BHWC).permute(0, 3, 1, 2).float() / 255


def _means(values: dict[str, list[float]]) -> dict[str, float]:
    return {name: round(float(np.mean(numbers)), 3) for name, numbers in values.items()}


def _minutes_since(start: float) -> float:
    return (time.monotonic() - start) / 60
