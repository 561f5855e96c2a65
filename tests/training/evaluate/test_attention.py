import dataclasses
import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from model.decoder import Attention
from model.geodecoder import GeoDecoder, tiny
from training.evaluate.attention import attention_maps, attention_weights, contact_sheet, in_words, overlay

CLASSES = (5, 7, 9)


def network(**settings: Any) -> GeoDecoder:
    torch.manual_seed(1)
    model = GeoDecoder(dataclasses.replace(tiny(), **settings), CLASSES).eval()
    with torch.no_grad():  # as drawn, attention is nearly even; trained networks look at something
        for layer in (*model.independent_layers, *model.dependent_layers):
            layer.cross_attention.query.weight.mul_(8)
    return model


def photos(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def test_mixing_the_values_by_the_weights_is_what_the_attention_does() -> None:
    torch.manual_seed(0)
    attention = Attention(24, 4, 0.0).eval()
    queries_BLD, context_BND = torch.randn(2, 6, 24), 3 * torch.randn(2, 16, 24)
    weights_BALN = attention_weights(attention, queries_BLD, context_BND)
    values_BANE = attention.value(context_BND).reshape(2, 16, 4, 6).transpose(1, 2)
    mixed_BLD = attention.out((weights_BALN @ values_BANE).transpose(1, 2).reshape(2, 6, 24))
    assert torch.allclose(mixed_BLD, attention(queries_BLD, context_BND), atol=1e-5)
    assert weights_BALN.shape == (2, 4, 6, 16)
    assert weights_BALN.max() > 2 / 16  # else an even mix would pass as well


@pytest.mark.parametrize("layers", [(1, 1), (2, 0), (0, 2)])
def test_maps_are_the_last_layers_for_the_chosen_scenes_queries(layers: tuple[int, int]) -> None:
    """Against the network itself: the last attention, given these maps for its weights, must give the same logits."""
    model = network(independent_layers=layers[0], dependent_layers=layers[1], heads=1)
    pixels_BCYX = photos()
    maps = attention_maps(model, pixels_BCYX)
    output = model(pixels_BCYX)
    assert maps.maps_BHN.shape == (2, len(CLASSES), 16)
    assert maps.side == 4
    assert maps.scene_B.tolist() == output.scene_logits_BS.argmax(dim=1).tolist()
    assert np.allclose(maps.maps_BHN.sum(axis=2), 1, atol=1e-5)

    def from_maps(module: nn.Module, inputs: tuple[Tensor, Tensor], result: Tensor) -> Tensor:
        """The layer's result, with the chosen scene's queries mixed by the maps (one head, so the mean is the map)."""
        assert isinstance(module, Attention)
        _, context_BND = inputs
        mixed_BHD = module.out(torch.from_numpy(maps.maps_BHN) @ module.value(context_BND))
        replaced_BHSD = result.reshape(2, len(CLASSES), 3, -1).clone()
        replaced_BHSD[torch.arange(2), :, torch.from_numpy(maps.scene_B)] = mixed_BHD
        seen.append((replaced_BHSD.flatten(1, 2) - result).abs().max().item())
        return replaced_BHSD.flatten(1, 2)

    seen: list[float] = []
    last = [*model.independent_layers, *model.dependent_layers][-1]
    with last.cross_attention.register_forward_hook(from_maps):
        again = model(pixels_BCYX)
    assert len(seen) == 1
    assert seen[0] < 1e-5
    for mine, its in zip(again.logits, output.logits, strict=True):
        assert torch.allclose(mine, its, atol=1e-4)


def test_looking_leaves_the_network_as_it_was() -> None:
    model = network().train()
    before = model.state_dict()
    attention_maps(model, photos())
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())


class Tokens(nn.Module):
    """A backbone that only makes a number of tokens."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens_ND = nn.Parameter(torch.randn(tokens, 32))

    def forward(self, pixels_BCYX: Tensor) -> Tensor:
        return self.tokens_ND.expand(len(pixels_BCYX), -1, -1)


def test_a_class_token_is_left_out_and_what_is_no_square_is_refused() -> None:
    model = network()
    model.backbone = Tokens(17)  # type: ignore[assignment]
    maps = attention_maps(model, photos())
    assert maps.side == 4
    assert maps.maps_BHN.shape[2] == 16
    assert (maps.maps_BHN.sum(axis=2) < 1).all()
    model.backbone = Tokens(15)  # type: ignore[assignment]
    with pytest.raises(ValueError, match="15 tokens are no square grid"):
        attention_maps(model, photos())


def test_heat_is_where_the_map_is_and_nowhere_in_an_even_one() -> None:
    grey = np.full((40, 40, 3), 128, np.uint8)
    map_N = np.full(16, 0.02, np.float32)
    map_N[1 * 4 + 2] = 0.7  # the second row, the third column
    light_WW = overlay(grey, map_N).mean(axis=2)
    row, column = np.unravel_index(light_WW.argmax(), light_WW.shape)
    assert (row // 10, column // 10) == (1, 2)
    assert light_WW[35, 5] < 128 < light_WW[15, 25]
    assert np.ptp(overlay(grey, np.full(16, 1 / 16, np.float32))) <= 2


def test_the_overlay_is_smooth() -> None:
    map_N = np.zeros(16, np.float32)
    map_N[5] = 1
    steps = np.abs(np.diff(overlay(np.zeros((80, 80, 3), np.uint8), map_N).astype(int), axis=0))
    assert steps.max() < 40


@pytest.mark.parametrize("encoding", ["PNG", "JPEG"])
def test_a_contact_sheet_has_the_photo_and_a_panel_for_each_level(encoding: Any) -> None:
    pixels_WWC = np.random.default_rng(0).integers(0, 255, (32, 32, 3)).astype(np.uint8)
    sheet = Image.open(io.BytesIO(contact_sheet(pixels_WWC, np.eye(3, 16, dtype=np.float32), encoding=encoding)))
    assert sheet.format == encoding
    assert sheet.width == 4 * 32 + 3 * 4
    if encoding == "PNG":
        assert np.array_equal(np.asarray(sheet)[-32:, :32], pixels_WWC)
        assert np.array_equal(np.asarray(sheet)[-32:, 72:104], overlay(pixels_WWC, np.eye(3, 16, dtype=np.float32)[1]))


@pytest.mark.parametrize(
    ("token", "words"), [(0, "upper left"), (5, "upper middle"), (14, "middle"), (35, "lower right")]
)
def test_a_map_in_words(token: int, words: str) -> None:
    map_N = np.full(36, 0.02, np.float32)
    map_N[token] = 0.3
    if token == 5:
        map_N = np.roll(map_N, -2)  # the upper row's fourth of six
    assert in_words(map_N) == f"{words}, 10.8 times the even share"
    assert math.isclose(0.3 * 36, 10.8)
