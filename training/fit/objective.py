"""A batch of photos and what is known of them → the terms that training minimises.

Shapes: N photos of the source, B batch, H levels, K cells of one level, W height and width of what comes in, S image
size in pixels, C 3 colours, D width of a teacher's features, U random numbers a view, P counts of a step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.geodecoder import GeoDecoder, GeoDecoderOutput
from model.world import geodesy
from model.world.hierarchy import Hierarchy
from training.data.augment import augment, one_view, resize
from training.data.dataset import PhotoSource, Pixels
from training.data.teacher import Teacher
from training.fit.recipe import Recipe
from training.loss import UNKNOWN, distillation_loss, levels_loss, masked_cross_entropy, nearness

_PHOTOS_TO_STANDARDISE = 2000


@dataclass(frozen=True, eq=False)
class Labels:
    """What is known of the source's photos: `level_NH` and `scene_N`, int64, -1 where unknown.

    Where photos are, and the hierarchy, are needed for smoothing by distance and to validate in kilometres; of a photo
    in none of its cells they are known, too.
    """

    level_NH: NDArray[np.int64]
    scene_N: NDArray[np.int64]
    lat_deg_N: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    lon_deg_N: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    hierarchy: Hierarchy | None = None

    @staticmethod
    def of(
        hierarchy: Hierarchy, lat_deg_N: NDArray[np.float64], lon_deg_N: NDArray[np.float64], scene_N: NDArray[np.int64]
    ) -> Labels:
        """Return the labels of photos at some positions."""
        return Labels(hierarchy.label_NH(lat_deg_N, lon_deg_N), scene_N, lat_deg_N, lon_deg_N, hierarchy)

    def known_P(self, row_B: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return how many of some photos have a label at each level, how many a scene, and how many there are."""
        levels = (self.level_NH[row_B] != UNKNOWN).sum(axis=0)
        return np.array([*levels, (self.scene_N[row_B] != UNKNOWN).sum(), len(row_B)], np.float32)


@dataclass(frozen=True, eq=False)
class TeacherView:
    """A teacher with its features standardised over training photos, so that each counts alike."""

    onnx_file: Path
    mean_D: NDArray[np.float32]
    std_D: NDArray[np.float32]

    @staticmethod
    def fitted(onnx_file: Path, source: PhotoSource, rows: NDArray[np.int64]) -> TeacherView:
        """Look at (at most 2000 of) the training photos through the teacher."""
        teacher = Teacher(onnx_file)
        batches = source.batches(rows[:_PHOTOS_TO_STANDARDISE].tolist(), 32)
        features_ND = torch.cat([teacher(_resized(pixels, teacher.size_px)) for _, pixels in batches if len(pixels)])
        return TeacherView(onnx_file, features_ND.mean(dim=0).numpy(), (features_ND.std(dim=0) + 1e-3).numpy())


class Objective(nn.Module):
    """Photos and their labels → the weighted terms to minimise, as sums over the given counts: they add up over parts.

    With a teacher, the mean of the backbone's tokens also learns to say, through a linear layer that is thrown away,
    what the teacher says of the same view; photos without any label take part in that alone.
    """

    def __init__(self, model: GeoDecoder, recipe: Recipe, labels: Labels, teacher: TeacherView | None = None) -> None:
        super().__init__()
        self.model, self.recipe = model, recipe
        self.labels = labels
        self._teacher = Teacher(teacher.onnx_file) if teacher else None
        self.imitate = nn.Linear(model.backbone.width, len(teacher.mean_D)) if teacher else None
        if teacher:
            self.register_buffer("teacher_mean_D", torch.tensor(teacher.mean_D), persistent=False)
            self.register_buffer("teacher_std_D", torch.tensor(teacher.std_D), persistent=False)
        preprocessing = model.config.preprocessing
        self.register_buffer("mean_C11", torch.tensor(preprocessing.mean_rgb)[:, None, None], persistent=False)
        self.register_buffer("std_C11", torch.tensor(preprocessing.std_rgb)[:, None, None], persistent=False)
        if recipe.level_weights and len(recipe.level_weights) != len(model.class_counts):
            raise ValueError(f"give {len(model.class_counts)} level_weights, one a level, or none")
        if recipe.smoothing_km:
            assert labels.hierarchy is not None
            for h, level in enumerate(labels.hierarchy.levels):
                cell_K3 = geodesy.unit_vectors_N3(level.lat_deg_K, level.lon_deg_K).astype(np.float32)
                self.register_buffer(f"cell_{h}_K3", torch.from_numpy(cell_K3), persistent=False)
        for parameter in model.backbone.parameters() if recipe.is_frozen else ():
            parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> Objective:
        """Switch to training or not; a frozen backbone keeps its statistics and is never in training."""
        super().train(mode)
        if self.recipe.is_frozen:
            self.model.backbone.eval()
        return self

    def forward(
        self, inputs: Tensor, row_B: NDArray[np.int64], random_BU: Tensor, count_P: Tensor, early: bool = False
    ) -> dict[str, Tensor]:
        """Return the terms of uint8 photos BHWC in random crops of one of their views, or of tokens BND of all views.

        `count_P`: of the whole step, as `Labels.known_P`.
        """
        recipe, size_px = self.recipe, self.model.config.preprocessing.image_size_px
        if recipe.early_size_px is not None and early:
            size_px = recipe.early_size_px
        view_px = max(size_px, self._teacher.size_px) if self._teacher else size_px
        rgb_BCSS = (
            None
            if inputs.is_floating_point()
            else augment(one_view(inputs, random_BU), view_px, recipe.augment, random_BU)
        )
        label_BH, scene_B = self._known(row_B, inputs.device)
        routed_B = scene_B if recipe.routing == "labelled" else None
        with self._autocast(inputs.device):
            if rgb_BCSS is None:
                tokens_BND = inputs.float()
                output = self.model.forward_views(tokens_BND, routed_B)
            else:
                tokens_BND = self.model.backbone(self._normalised(resize(rgb_BCSS, size_px)))
                output = self.model.forward_tokens(tokens_BND, routed_B)
        near = (
            [
                nearness(self._positions(row_B), self.get_buffer(f"cell_{h}_K3"), recipe.smoothing_km)
                for h in range(len(output.logits))
            ]
            if recipe.smoothing_km
            else None
        )
        weights, added_up = recipe.level_weights or None, recipe.levels == "sum"
        levels = levels_loss(output.logits, label_BH, recipe.label_smoothing, count_P[:-2], weights, near, added_up)
        scene = masked_cross_entropy(output.scene_logits_BS, scene_B, 0.0, count_P[-2])
        terms = {"levels": levels, "scene": recipe.scene_weight * scene}
        if self._teacher is not None and self.imitate is not None and rgb_BCSS is not None:
            seen_BD = self._teacher(resize(rgb_BCSS, self._teacher.size_px).cpu()).to(rgb_BCSS.device)
            seen_BD = (seen_BD - self.get_buffer("teacher_mean_D")) / self.get_buffer("teacher_std_D")
            distance = distillation_loss(self.imitate(tokens_BND.float().mean(dim=1)), seen_BD, count_P[-1])
            terms["teacher"] = recipe.distillation_weight * distance
        return terms

    @torch.no_grad()
    def tokens(self, pixels_BHWC: Tensor) -> Tensor:
        """Return the backbone's tokens BND of uint8 photos, decoded as when serving; N counts those of all views."""
        size_px = pixels_BHWC.shape[2]
        rgb_VCSS = pixels_BHWC.reshape(-1, size_px, size_px, 3).permute(0, 3, 1, 2).float() / 255
        with self._autocast(pixels_BHWC.device):
            tokens_VND: Tensor = self.model.backbone(self._normalised(rgb_VCSS))
        return tokens_VND.reshape(len(pixels_BHWC), -1, tokens_VND.shape[2])

    @torch.no_grad()
    def validate(self, inputs: Tensor) -> GeoDecoderOutput:
        """Return what the network says of uint8 photos, decoded as when serving, or of their tokens."""
        tokens_BND = inputs.float() if inputs.is_floating_point() else self.tokens(inputs)
        with self._autocast(inputs.device):
            output: GeoDecoderOutput = self.model.forward_views(tokens_BND)
        return output

    def _normalised(self, rgb_BCSS: Tensor) -> Tensor:
        normalised_BCSS = (rgb_BCSS - self.get_buffer("mean_C11")) / self.get_buffer("std_C11")
        return normalised_BCSS.contiguous(memory_format=torch.channels_last)

    def _known(self, row_B: NDArray[np.int64], device: torch.device) -> tuple[Tensor, Tensor]:
        unknown_B = row_B < 0  # a photo that was made up, because a worker had none: it has no label
        label_BH = np.where(unknown_B[:, None], UNKNOWN, self.labels.level_NH[row_B])
        scene_B = np.where(unknown_B, UNKNOWN, self.labels.scene_N[row_B])
        return torch.from_numpy(label_BH).to(device), torch.from_numpy(scene_B).to(device)

    def _positions(self, row_B: NDArray[np.int64]) -> Tensor:
        position_B3 = geodesy.unit_vectors_N3(self.labels.lat_deg_N[row_B], self.labels.lon_deg_N[row_B])
        return torch.from_numpy(position_B3.astype(np.float32)).to(self.get_buffer("mean_C11").device)

    def _autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16")


def _resized(pixels_BHWC: Pixels, size_px: int) -> Tensor:
    width_px = pixels_BHWC.shape[2]
    views_VWWC = pixels_BHWC.reshape(-1, width_px, width_px, 3)
    return resize(torch.from_numpy(views_VWWC).permute(0, 3, 1, 2).float() / 255, size_px)
