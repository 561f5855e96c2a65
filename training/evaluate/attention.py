"""What each level's query looks at in a photo, as pictures.

Shapes: B batch · H levels · S scenes · Q = H · S queries · N image tokens · D width · L sequence of one attention
· A heads · E = D / A head width · W side of a square picture in pixels · C 3 colours.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from model.decoder import Attention
from model.geodecoder import GeoDecoder
from model.networks import Network
from pipeline.report.elements import Look
from training.evaluate.evaluation import normalised

_HEAT = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))
"""Dark to bright in even steps of lightness, so that it reads in grey and by any kind of colour vision: matplotlib's
inferno at 0, ¼, ½, ¾ and 1 (CC0)."""
_LEAST_OPACITY, _MOST_OPACITY = 0.25, 0.8
_GAP_PX, _CAPTION_PX = 4, 20


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """How the most confident scene's query of each level spreads its attention over the image.

    `maps_BHN`: shares, row by row of the image, that add up to 1 (to less where a backbone has a class token, whose
    share is left out); N is `side` squared. `scene_B`: the scene.
    """

    maps_BHN: NDArray[np.float32]
    side: int
    scene_B: NDArray[np.int64]


@torch.no_grad()
def attention_maps(model: GeoDecoder, pixels_BCYX: Tensor) -> AttentionMaps:
    """Return the attention of the last decoder layer to the image, the mean of its heads, for normalised pixels.

    The last layer alone, as in the paper's figures, and no rollout over the layers: the decoder never changes the
    image's tokens, so every layer looks at the same ones, and what the last layer takes from them is what the
    classifiers see next. (Inside the backbone tokens do mix: a token stands for its surroundings too.)

    The weights are computed once more from the layer's own projections, because its forward pass fuses them away.
    Raises ValueError for a backbone whose tokens are no square grid.
    """
    layer = [*model.independent_layers, *model.dependent_layers][-1]
    attention = layer.cross_attention
    assert isinstance(attention, Attention)
    seen: list[Tensor] = []

    def remember(_: nn.Module, inputs: tuple[Tensor, Tensor]) -> None:
        seen.append(attention_weights(attention, *inputs))

    was_training = model.training
    hook = attention.register_forward_pre_hook(remember)
    try:
        output = model.eval()(pixels_BCYX)
    finally:
        hook.remove()
        model.train(was_training)
    (weights_BAQN,) = seen
    levels, scenes = model.queries_HSD.shape[:2]
    mean_BQN = weights_BAQN.mean(dim=1)
    mean_BHSN = mean_BQN.reshape(len(mean_BQN), levels, scenes, -1)
    scene_B = output.scene_logits_BS.argmax(dim=1)
    maps_BHN = mean_BHSN[torch.arange(len(scene_B), device=scene_B.device), :, scene_B].float().cpu().numpy()
    side, others = _grid(maps_BHN.shape[2])
    return AttentionMaps(maps_BHN[:, :, others:], side, scene_B.cpu().numpy())


def attention_weights(attention: Attention, queries_BLD: Tensor, context_BND: Tensor) -> Tensor:
    """Return softmax(QKᵀ / √E) of an attention, BALN: what its output mixes the values by."""
    q_BALE, k_BANE = (
        x_BLD.reshape(*x_BLD.shape[:2], attention.heads, -1).transpose(1, 2)
        for x_BLD in (attention.query(queries_BLD), attention.key(context_BND))
    )
    weights_BALN: Tensor = (q_BALE @ k_BANE.transpose(2, 3) / math.sqrt(q_BALE.shape[3])).softmax(dim=3)
    return weights_BALN


def _grid(tokens: int) -> tuple[int, int]:
    """Return the side of the square of tokens, and how many tokens (0, or 1: a class token) come before it."""
    for others in (0, 1):
        side = math.isqrt(tokens - others)
        if side > 0 and side * side == tokens - others:
            return side, others
    raise ValueError(f"the backbone's {tokens} tokens are no square grid, so there is no picture of what is looked at")


def overlay(pixels_WWC: NDArray[np.uint8], map_N: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return a photo (RGB, any size) under the heat of one map, from the least looked at, dark, to the most, bright.

    A map's own least and most are the ends of its scale; an even map has no heat.
    """
    height, width = pixels_WWC.shape[:2]
    side = math.isqrt(len(map_N))
    span = float(np.ptp(map_N))
    heat_N = (map_N - map_N.min()) / span if span > 1e-6 * float(map_N.mean()) else np.zeros_like(map_N)
    small = Image.fromarray(heat_N.reshape(side, side).astype(np.float32))
    heat_WW = np.clip(np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)), 0, 1)
    steps = np.linspace(0, 1, len(_HEAT))
    colour_WWC = np.stack([np.interp(heat_WW, steps, channel) for channel in zip(*_HEAT, strict=True)], axis=2)
    opacity_WW1 = (_LEAST_OPACITY + (_MOST_OPACITY - _LEAST_OPACITY) * heat_WW)[:, :, None]
    mixed_WWC: NDArray[np.float64] = pixels_WWC * (1 - opacity_WW1) + colour_WWC * opacity_WW1
    return mixed_WWC.round().astype(np.uint8)


def contact_sheet(
    pixels_WWC: NDArray[np.uint8],
    maps_HN: NDArray[np.float32],
    captions_H: Sequence[str] = (),
    encoding: Literal["PNG", "JPEG"] = "PNG",
) -> bytes:
    """Return an encoded picture of a photo and, to the right of it, its overlay for each level, coarse → fine.

    `captions_H`: what stands above each overlay; "level 0" and so on if not given.
    """
    captions = ["photo", *(captions_H or [f"level {h}" for h in range(len(maps_HN))])]
    panels = [pixels_WWC, *(overlay(pixels_WWC, map_N) for map_N in maps_HN)]
    height, width = pixels_WWC.shape[:2]
    sheet = Image.new("RGB", ((width + _GAP_PX) * len(panels) - _GAP_PX, height + _CAPTION_PX), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for number, (panel_WWC, caption) in enumerate(zip(panels, captions, strict=True)):
        left = number * (width + _GAP_PX)
        draw.text((left + 2, 2), caption, fill="black", font=font)
        sheet.paste(Image.fromarray(panel_WWC), (left, _CAPTION_PX))
    encoded = io.BytesIO()
    sheet.save(encoded, encoding, quality=85)
    return encoded.getvalue()


def look(model: Network, pixels_HWC: NDArray[np.uint8], name: str, facts: str) -> Look:
    """Return what `model` looks at in one photo at its size; `facts` is completed by the scene it takes it for.

    Of several views the first is shown. Raises ValueError for a model that has no queries to look with.
    """
    if not isinstance(model, GeoDecoder):
        raise ValueError("this model has no queries, so there is nothing that they look at: leave attention out")
    preprocessing = model.config.preprocessing
    if preprocessing.views > 1:
        pixels_HWC = pixels_HWC[: preprocessing.image_size_px]
        facts = f"{facts}; the first of its {preprocessing.views} squares"
    maps = attention_maps(model, normalised(model, pixels_HWC[None]))
    scene = model.config.scenes[maps.scene_B[0]]
    sheet = contact_sheet(pixels_HWC, maps.maps_BHN[0], encoding="JPEG")
    return Look(name, f"{facts}; taken for the scene “{scene}”", sheet, [in_words(map_N) for map_N in maps.maps_BHN[0]])


def in_words(map_N: NDArray[np.float32]) -> str:
    """Return where a map is brightest and by how much, for those who don't see it: "upper left, 2.1 times the even
    share"."""
    side = math.isqrt(len(map_N))
    row, column = divmod(int(map_N.argmax()), side)
    down, across = (min(3 * place // side, 2) for place in (row, column))
    words = ("upper", "middle", "lower")[down], ("left", "middle", "right")[across]
    return f"{' '.join(dict.fromkeys(words))}, {map_N.max() * len(map_N):.1f} times the even share"
