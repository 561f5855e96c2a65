"""A Places365 classifier that somebody has, ONNX or a plain ResNet's weights, and the groups of its 365 categories.

Source: Zhou et al., "Places: A 10 million Image Database for Scene Recognition", TPAMI 2017. Its networks are ResNets
(He et al., CVPR 2016) whose files name layers as torchvision does; those names are all that is taken from there. The
categories are Places365's (MIT, © 2017 Bolei Zhou and MIT CSAIL); each one's group of 16 and of 3 is the one that most
photos of it have in the tables that the field publishes. (So no category is left for "man-made elements in nature".)

Shapes: B batch · S image size in pixels · P 365 categories · G groups.
"""

from __future__ import annotations

import csv
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.backbones.backbone import IMAGENET_MEAN_RGB, IMAGENET_STD_RGB, Preprocessing
from training.data.teacher import Teacher

CATEGORIES = 365
PREPROCESSING = Preprocessing(image_size_px=224, resize_px=256)
"""As its networks were trained: 256 px resized, 224 px cut out, ImageNet's mean and standard deviation."""
_TABLE = Path(__file__).parent / "places365.csv"
_NEEDED = "give a Places365 network: ONNX with 365 outputs, or the state dict of a ResNet (a .pth or .pth.tar file)"


def groups(count: int) -> NDArray[np.int64]:
    """Return the number of each category's group, of 16 or of 3: `model.geodecoder.SCENES_16` and `SCENES_3`."""
    with _TABLE.open(encoding="utf-8", newline="") as file:
        group_P = np.array([int(row[f"scene{count}"]) for row in csv.DictReader(file)], np.int64)
    assert group_P.shape == (CATEGORIES,)
    return group_P


def summed_BG(probability_BP: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Return the probability of each group: the sum of its categories'."""
    return probability_BP @ np.eye(count)[groups(count)]


class PlacesNetwork:
    """Pixels, uint8 BSSC of `PREPROCESSING`'s size → probability_BP.

    Raises ValueError for a file that is no such network, in one line that says what it is instead.
    """

    def __init__(self, file: Path) -> None:
        self._network = _onnx(file) if file.suffix == ".onnx" else _resnet(file)

    @torch.no_grad()
    def __call__(self, pixels_BSSC: NDArray[np.uint8]) -> NDArray[np.float64]:
        rgb_BCSS = torch.from_numpy(pixels_BSSC).permute(0, 3, 1, 2).float() / 255
        probability_BP: NDArray[np.float64] = self._network(rgb_BCSS).double().softmax(dim=1).numpy()
        return probability_BP


def _onnx(file: Path) -> Teacher:
    """An ONNX network's logits; what ends in a softmax already is not told apart, and would come out too unsure."""
    network = Teacher(file)
    if (network.width, network.size_px) != (CATEGORIES, PREPROCESSING.image_size_px):
        raise ValueError(f"{file} takes {network.size_px} px and has {network.width} outputs: {_NEEDED}")
    return network


def _resnet(file: Path) -> nn.Module:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ValueError(f"--network {file} cannot be read ({error.strerror or error}): {_NEEDED}") from error
    try:
        stored: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        said = " ".join(str(error).split())[:150]
        raise ValueError(f"--network {file} holds more than tensors, or is damaged ({said}): {_NEEDED}") from error
    if isinstance(stored, dict) and isinstance(stored.get("state_dict"), dict):
        stored = stored["state_dict"]
    if not isinstance(stored, dict) or not all(isinstance(x, Tensor) for x in stored.values()):
        raise ValueError(f"--network {file} is no state dict: {_NEEDED}")
    weights = {str(name).removeprefix("module."): tensor.float() for name, tensor in stored.items()}
    last = weights.get("fc.weight")
    if last is None or len(last) != CATEGORIES:
        what = "no layer fc" if last is None else f"{len(last)} outputs"
        raise ValueError(f"--network {file} has {what}: {_NEEDED}")
    blocks = [len({name.split(".")[1] for name in weights if name.startswith(f"layer{k}.")}) for k in range(1, 5)]
    network = _ResNet(blocks, is_deep="layer1.0.conv3.weight" in weights)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        said = " ".join(str(error).split())[:150]
        raise ValueError(f"--network {file} is not a plain ResNet ({said}): {_NEEDED}") from error
    return network.eval()


class _ResNet(nn.Module):
    """rgb_BCSS from 0 to 1 → logits BP; `is_deep` has three convolutions a block, as from 50 layers on."""

    def __init__(self, blocks: list[int], is_deep: bool) -> None:
        super().__init__()
        self.mean_C11: Tensor
        self.register_buffer("mean_C11", torch.tensor(IMAGENET_MEAN_RGB)[:, None, None], persistent=False)
        self.std_C11: Tensor
        self.register_buffer("std_C11", torch.tensor(IMAGENET_STD_RGB)[:, None, None], persistent=False)
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        width = 64
        for number, count in enumerate(blocks):
            narrow = 64 << number
            layer = []
            for index in range(count):
                stride = 2 if number and not index else 1
                layer.append(_Block(width, narrow, stride, is_deep))
                width = layer[-1].width
            self.add_module(f"layer{number + 1}", nn.Sequential(*layer))
        self.fc = nn.Linear(width, CATEGORIES)

    def forward(self, rgb_BCSS: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1((rgb_BCSS - self.mean_C11) / self.std_C11)))
        x = nn.functional.max_pool2d(x, 3, 2, 1)
        for number in range(1, 5):
            x = self.get_submodule(f"layer{number}")(x)
        logits_BP: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits_BP


class _Block(nn.Module):
    def __init__(self, width: int, narrow: int, stride: int, is_deep: bool) -> None:
        super().__init__()
        self.width = 4 * narrow if is_deep else narrow
        shapes = [(width, narrow, 1), (narrow, narrow, 3), (narrow, self.width, 1)]
        strides = [1, stride, 1]
        if not is_deep:
            shapes, strides = [(width, narrow, 3), (narrow, narrow, 3)], [stride, 1]
        self.convolutions = len(shapes)
        for number, ((wide, out, side_px), step) in enumerate(zip(shapes, strides, strict=True), start=1):
            self.add_module(f"conv{number}", nn.Conv2d(wide, out, side_px, step, side_px // 2, bias=False))
            self.add_module(f"bn{number}", nn.BatchNorm2d(out))
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or width != self.width:
            self.downsample = nn.Sequential(
                nn.Conv2d(width, self.width, 1, stride, bias=False), nn.BatchNorm2d(self.width)
            )

    def forward(self, x_BCYX: Tensor) -> Tensor:
        y_BCYX = x_BCYX
        for number in range(1, self.convolutions + 1):
            y_BCYX = self.get_submodule(f"bn{number}")(self.get_submodule(f"conv{number}")(y_BCYX))
            if number < self.convolutions:
                y_BCYX = y_BCYX.relu()
        same_BCYX: Tensor = self.downsample(x_BCYX)
        return (y_BCYX + same_BCYX).relu()
