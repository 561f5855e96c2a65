from __future__ import annotations

import socket
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from model.backbones.backbone import Backbone, BackboneConfig, Preprocessing

SWIN = {"embed_dim": 8, "depths": [2, 1], "num_heads": [2, 2], "window_size": 4}
VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "patch_size": 8,
}
DINOV2 = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8}
MOBILENET = {"depth_multiplier": 0.25}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}


@pytest.mark.parametrize(
    ("model_type", "overrides", "tokens", "width"),
    [
        ("swin", SWIN, 16, 16),
        ("vit", VIT, 1 + 16, 16),
        ("dinov2", DINOV2, 1 + 16, 16),
        ("mobilenet_v2", MOBILENET, 1, 1280),
        ("resnet", RESNET, 16, 16),
    ],
)
def test_families_give_tokens_and_use_every_parameter(
    model_type: str, overrides: dict[str, Any], tokens: int, width: int
) -> None:
    backbone = Backbone(BackboneConfig(model_type, overrides), image_size_px=32)
    tokens_BND = backbone(torch.randn(2, 3, 32, 32))
    assert tokens_BND.shape == (2, tokens, width)
    assert backbone.width == width
    tokens_BND.square().sum().backward()
    assert [name for name, parameter in backbone.named_parameters() if parameter.grad is None] == []


def test_convolutional_grid_is_flattened_row_by_row() -> None:
    backbone = Backbone(BackboneConfig("resnet", RESNET), image_size_px=32).eval()
    pixels_BCHW = torch.randn(1, 3, 32, 32)
    grid_BDHW = backbone.model(pixel_values=pixels_BCHW).last_hidden_state
    torch.testing.assert_close(backbone(pixels_BCHW)[0, 1], grid_BDHW[0, :, 0, 1])


def test_measuring_the_width_leaves_batch_statistics_untouched() -> None:
    backbone = Backbone(BackboneConfig("mobilenet_v2", MOBILENET), image_size_px=32)
    counts = [int(value) for name, value in backbone.named_buffers() if name.endswith("num_batches_tracked")]
    assert counts
    assert set(counts) == {0}
    assert backbone.training


@pytest.mark.parametrize(("model_type", "overrides"), [("swin", SWIN), ("dinov2", DINOV2), ("mobilenet_v2", MOBILENET)])
def test_inline_form_builds_the_same_network(model_type: str, overrides: dict[str, Any]) -> None:
    first = Backbone(BackboneConfig(model_type, overrides), image_size_px=32).eval()
    second = Backbone(first.config, image_size_px=32).eval()
    second.load_state_dict(first.state_dict())
    pixels_BCHW = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(first(pixels_BCHW), second(pixels_BCHW), rtol=0, atol=0)
    assert second.config == first.config


def test_pretrained_folder_gives_its_weights_and_an_inline_form(tmp_path: Path) -> None:
    original = Backbone(BackboneConfig("swin", SWIN), image_size_px=32).eval()
    original.model.save_pretrained(tmp_path)
    loaded = Backbone(BackboneConfig(name=str(tmp_path), pretrained=True), image_size_px=32).eval()
    pixels_BCHW = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(original(pixels_BCHW), loaded(pixels_BCHW), rtol=0, atol=0)
    assert loaded.config.name == ""
    assert loaded.config.model_type == "swin"


@pytest.mark.parametrize("pretrained", [True, False])
def test_a_name_that_is_not_here_says_what_to_type_and_asks_no_network(
    pretrained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> NoReturn:
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    name = "microsoft/swin-base-that-nobody-has"
    with pytest.raises(ValueError, match=f"hf download {name}"):
        Backbone(BackboneConfig(name=name, pretrained=pretrained), image_size_px=224)


def test_wrong_descriptions_are_one_clear_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="either model_type"):
        BackboneConfig()
    with pytest.raises(ValueError, match="either model_type"):
        BackboneConfig(model_type="swin", name="microsoft/swin")
    with pytest.raises(ValueError, match="no pretrained weights"):
        BackboneConfig(model_type="swin", pretrained=True)
    with pytest.raises(ValueError, match="no backbone of type swine"):
        Backbone(BackboneConfig("swine"), 32)
    with pytest.raises(ValueError, match="no setting windw_size"):
        Backbone(BackboneConfig("swin", {"windw_size": 4}), 32)
    with pytest.raises(ValueError, match="backbone swin"):
        Backbone(BackboneConfig("swin", {"depths": "two"}), 32)
    with pytest.raises(ValueError, match="not a complete Hugging Face model folder"):
        Backbone(BackboneConfig(name=str(tmp_path)), 32)
    with pytest.raises(ValueError, match="does not accept 32 px"):
        Backbone(BackboneConfig("vit", {**VIT, "image_size": 64}), 32)


def test_preprocessing_refuses_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="image_size_px"):
        Preprocessing(image_size_px=224, resize_px=200)
    with pytest.raises(ValueError, match="std_rgb positive"):
        Preprocessing(image_size_px=32, resize_px=32, std_rgb=(1.0, 0.0, 1.0))
    with pytest.raises(ValueError, match="finite"):
        Preprocessing(image_size_px=32, resize_px=32, mean_rgb=(1.0, float("nan"), 1.0))
