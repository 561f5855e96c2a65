"""Random views of photos for training: turned, cropped to the model's size, perhaps mirrored, their colours changed.

A view hangs on its draw's number alone, not on the batch or the worker that it falls to. All views of a batch are made
by two matrix products, on whatever device the photos are.

Shapes: B batch, C 3 colours, H, W size of what comes in, S size of what goes out, U random numbers a view.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

RANDOM_NUMBERS = 10


@dataclass(frozen=True)
class AugmentConfig:
    """How much views differ from photos.

    Attributes:
        least_area: the smallest part of the photo that a crop shows.
        most_area: the largest part; crops of one size have both alike.
        most_stretch: a crop is at most so many times wider, for its height, than the view.
        mirror: half of the views are mirror images.
        colour: brightness, contrast and saturation change by up to this factor either way.
        hue: hues turn by up to this part of the colour circle either way.
        rotation_deg: photos are turned by up to so many degrees either way; corners that nothing is in are black.

    Raises:
        ValueError: values that make no sense.
    """

    least_area: float = 0.35
    most_area: float = 1.0
    most_stretch: float = 4 / 3
    mirror: bool = True
    colour: float = 0.3
    hue: float = 0.0
    rotation_deg: float = 0.0

    def __post_init__(self) -> None:
        if not (0 < self.least_area <= self.most_area <= 1 <= self.most_stretch and 0 <= self.colour < 1):
            raise ValueError(
                f"need 0 < least_area <= most_area <= 1 <= most_stretch and 0 <= colour < 1, not {self}: "
                "change these recipe.augment settings"
            )
        if not (0 <= self.hue <= 0.5 and 0 <= self.rotation_deg <= 180):
            raise ValueError(
                f"need 0 <= hue <= 0.5 and 0 <= rotation_deg <= 180, not {self.hue:g} and {self.rotation_deg:g}: "
                "change these recipe.augment settings"
            )


def random_numbers(seed: int, draw_B: NDArray[np.int64]) -> Tensor:
    """Return random_BU from 0 to 1, float32: a function of the seed and each draw's number (SplitMix64)."""
    with np.errstate(over="ignore"):
        stream = _mix(np.uint64(seed) + np.uint64(0x9E3779B97F4A7C15))
        each_U = np.arange(1, RANDOM_NUMBERS + 1, dtype=np.uint64)
        counter_BU = draw_B.astype(np.uint64)[:, None] * np.uint64(RANDOM_NUMBERS) + each_U
        bits_BU = _mix(stream + counter_BU * np.uint64(0x9E3779B97F4A7C15))
    return torch.from_numpy((bits_BU >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24))


def one_view(pixels_BHWC: Tensor, random_BU: Tensor) -> Tensor:
    """Return one of each photo's square views, BWWC, which lie one below the other; each is as likely.

    The number that says whether a view is mirrored says this too, by its finer digits: with one more number a draw, all
    trainings would draw other views than before.
    """
    width = pixels_BHWC.shape[2]
    views = pixels_BHWC.shape[1] // width
    if views == 1:
        return pixels_BHWC
    view_B = ((2 * random_BU[:, 4] % 1) * views).long()
    each_BVWWC = pixels_BHWC.reshape(-1, views, width, width, 3)
    return each_BVWWC[torch.arange(len(view_B), device=view_B.device), view_B]


def augment(pixels_BHWC: Tensor, size_px: int, config: AugmentConfig, random_BU: Tensor) -> Tensor:
    """Return views of uint8 photos, RGB from 0 to 1, BCSS float32; the same random numbers make the same views."""
    rgb_BCHW = pixels_BHWC.permute(0, 3, 1, 2).float() / 255
    if config.rotation_deg:
        rgb_BCHW = _turn(rgb_BCHW, config.rotation_deg * (2 * random_BU[:, 8] - 1))
    height, width = rgb_BCHW.shape[2:]
    area_B, stretch_B, down_B, right_B, mirror_B = random_BU[:, :5].unbind(1)
    side_B = (config.least_area + area_B * (config.most_area - config.least_area)).sqrt()
    aspect_B = config.most_stretch ** (stretch_B - 0.5)
    crop_height_B = (height * side_B / aspect_B).clamp(1, height)
    crop_width_B = (width * side_B * aspect_B).clamp(1, width)
    rows_BSH = _resampling(down_B * (height - crop_height_B), crop_height_B, height, size_px)
    columns_BSW = _resampling(right_B * (width - crop_width_B), crop_width_B, width, size_px)
    if config.mirror:
        columns_BSW = torch.where((mirror_B < 0.5)[:, None, None], columns_BSW.flip(1), columns_BSW)
    views_BCSS = rows_BSH[:, None] @ rgb_BCHW @ columns_BSW[:, None].transpose(2, 3)
    views_BCSS = _change_colours(views_BCSS, 1 + config.colour * (2 * random_BU[:, 5:8] - 1)).clamp(0, 1)
    return _turn_hues(views_BCSS, config.hue * (2 * random_BU[:, 9] - 1)) if config.hue else views_BCSS


def resize(rgb_BCHW: Tensor, size_px: int) -> Tensor:
    """Return photos resized to BCSS; smoothed when they shrink, as the serving decode does it."""
    if rgb_BCHW.shape[2:] == (size_px, size_px):
        return rgb_BCHW
    return interpolate(rgb_BCHW, (size_px, size_px), mode="bilinear", antialias=True).clamp(0, 1)


def _resampling(start_B: Tensor, length_B: Tensor, pixels: int, size_px: int) -> Tensor:
    """Return BSP, what each of S new pixels takes of the P old ones: a triangle as wide as a new pixel, or one old."""
    scale_B11 = (length_B / size_px)[:, None, None]
    new_S = torch.arange(size_px, device=start_B.device) + 0.5
    old_P = torch.arange(pixels, device=start_B.device) + 0.5
    centre_BS1 = start_B[:, None, None] + new_S[:, None] * scale_B11
    weight_BSP = (1 - (old_P - centre_BS1).abs() / scale_B11.clamp(min=1)).clamp(min=0)
    inside_B1P = (old_P > start_B[:, None, None]) & (old_P < (start_B + length_B)[:, None, None])
    weight_BSP = torch.where(inside_B1P, weight_BSP, 0)
    return weight_BSP / weight_BSP.sum(dim=2, keepdim=True).clamp(min=1e-6)


def _change_colours(rgb_BCSS: Tensor, factor_B3: Tensor) -> Tensor:
    brightness, contrast, saturation = factor_B3.t()[:, :, None, None, None]
    rgb_BCSS = rgb_BCSS * brightness
    mean = rgb_BCSS.mean(dim=(1, 2, 3), keepdim=True)
    rgb_BCSS = mean + (rgb_BCSS - mean) * contrast
    grey = rgb_BCSS.mean(dim=1, keepdim=True)
    changed: Tensor = grey + (rgb_BCSS - grey) * saturation
    return changed


def _turn(rgb_BCHW: Tensor, angle_deg_B: Tensor) -> Tensor:
    """Return photos turned about their middle, bilinearly, as large as they were; black where nothing was."""
    angle_B = torch.deg2rad(angle_deg_B)
    cos_B, sin_B = angle_B.cos(), angle_B.sin()
    height, width = rgb_BCHW.shape[2:]
    zero_B = torch.zeros_like(cos_B)
    # The grid goes from -1 to 1 along either side, however long it is.
    rows_B23 = torch.stack([cos_B, -sin_B * height / width, zero_B, sin_B * width / height, cos_B, zero_B], dim=1)
    grid_BHW2 = affine_grid(rows_B23.reshape(-1, 2, 3), list(rgb_BCHW.shape), align_corners=False)
    return grid_sample(rgb_BCHW, grid_BHW2, mode="bilinear", padding_mode="zeros", align_corners=False)


def _turn_hues(rgb_BCSS: Tensor, share_B: Tensor) -> Tensor:
    """Return photos whose hues (HSV's) have turned by shares of the circle; greys, lightest and darkest stay."""
    most_BSS, least_BSS = rgb_BCSS.amax(dim=1), rgb_BCSS.amin(dim=1)
    chroma_BSS = most_BSS - least_BSS
    red_BSS, green_BSS, blue_BSS = rgb_BCSS.unbind(dim=1)
    safe_BSS = chroma_BSS.clamp(min=1e-6)
    of_red_BSS = (green_BSS - blue_BSS) / safe_BSS
    of_green_BSS = (blue_BSS - red_BSS) / safe_BSS + 2
    of_blue_BSS = (red_BSS - green_BSS) / safe_BSS + 4
    hue_BSS = torch.where(
        most_BSS == red_BSS, of_red_BSS, torch.where(most_BSS == green_BSS, of_green_BSS, of_blue_BSS)
    )
    turned_BSS = hue_BSS + 6 * share_B[:, None, None]
    channels = []
    for sextant in (5, 3, 1):  # of red, green and blue: where on the circle each begins to fall
        way_BSS = (sextant + turned_BSS) % 6
        channels.append(most_BSS - chroma_BSS * torch.minimum(way_BSS, 4 - way_BSS).clamp(0, 1))
    return torch.stack(channels, dim=1)


def _mix(bits: NDArray[np.uint64] | np.uint64) -> NDArray[np.uint64]:
    mixed = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))
