"""Random views of photos for training: a crop resized to the model's size, perhaps mirrored, its colours changed.

Shapes: B batch, C 3 colours, H, W size of what comes in, S size of what goes out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate


@dataclass(frozen=True)
class AugmentConfig:
    """How strongly. `least_area`: the smallest part of the photo that a crop may show; `colour`: brightness, contrast
    and saturation change by up to this factor either way. Raises ValueError for values that make no sense."""

    least_area: float = 0.35
    most_stretch: float = 4 / 3
    mirror: bool = True
    colour: float = 0.3

    def __post_init__(self) -> None:
        if not (0 < self.least_area <= 1 <= self.most_stretch and 0 <= self.colour < 1):
            raise ValueError(f"need 0 < least_area <= 1 <= most_stretch and 0 <= colour < 1, not {self}")


def augment(pixels_BHWC: Tensor, size_px: int, config: AugmentConfig, random: torch.Generator) -> Tensor:
    """Return random views of uint8 photos, RGB from 0 to 1, BCSS float32; one generator state, one set of views."""
    photos_BCHW = pixels_BHWC.permute(0, 3, 1, 2).float() / 255
    views = [_random_view(photo_CHW, size_px, config, random) for photo_CHW in photos_BCHW]
    return _change_colours(torch.stack(views), config.colour, random)


def resize(rgb_BCHW: Tensor, size_px: int) -> Tensor:
    """Return photos resized to BCSS; smoothed when they shrink, as the serving decode does it."""
    if rgb_BCHW.shape[2:] == (size_px, size_px):
        return rgb_BCHW
    return interpolate(rgb_BCHW, (size_px, size_px), mode="bilinear", antialias=True).clamp(0, 1)


def _random_view(photo_CHW: Tensor, size_px: int, config: AugmentConfig, random: torch.Generator) -> Tensor:
    height, width = photo_CHW.shape[1:]
    area, stretch, down, right, mirror = torch.rand(5, generator=random).tolist()
    side = math.sqrt(config.least_area + area * (1 - config.least_area))
    aspect = config.most_stretch ** (stretch - 0.5)
    crop_height = max(1, min(height, round(height * side / aspect)))
    crop_width = max(1, min(width, round(width * side * aspect)))
    top, left = int(down * (height - crop_height + 1)), int(right * (width - crop_width + 1))
    view_CHW = photo_CHW[:, top : top + crop_height, left : left + crop_width]
    if config.mirror and mirror < 0.5:
        view_CHW = view_CHW.flip(2)
    return resize(view_CHW[None], size_px)[0]


def _change_colours(rgb_BCSS: Tensor, strength: float, random: torch.Generator) -> Tensor:
    factor = 1 + strength * (2 * torch.rand(3, len(rgb_BCSS), 1, 1, 1, generator=random) - 1)
    brightness, contrast, saturation = factor
    rgb_BCSS = rgb_BCSS * brightness
    mean = rgb_BCSS.mean(dim=(1, 2, 3), keepdim=True)
    rgb_BCSS = mean + (rgb_BCSS - mean) * contrast
    grey = rgb_BCSS.mean(dim=1, keepdim=True)
    changed: Tensor = (grey + (rgb_BCSS - grey) * saturation).clamp(0, 1)
    return changed
