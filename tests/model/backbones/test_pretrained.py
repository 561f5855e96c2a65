"""Backbones by name: their folders, the local Hugging Face cache, their preprocessing, other image sizes, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from model.backbones.backbone import Backbone, BackboneConfig
from model.backbones.pretrained import pretrained, read_preprocessing
from tests.support.backbone_folders import FAMILIES, SIZE_PX, expected_tokens, without_head


def built(folder: Path | str, size_px: int = 0) -> Backbone:
    """The backbone as a checkpoint would build it: inline, with the weights that were read."""
    found = pretrained(str(folder), size_px)
    assert found.config.name == ""
    backbone = Backbone(found.config, found.preprocessing.image_size_px)
    backbone.load_state_dict(found.weights)
    assert backbone.config == found.config
    return backbone.eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_are_those_of_the_familys_own_code(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    model = family.write(tmp_path)
    backbone = built(tmp_path)
    assert backbone.config.model_type == (family.stored_type or family.model_type)
    assert (backbone.tokens, backbone.width) == (family.tokens, family.width)
    pixels_BCHW = torch.randn(2, 3, SIZE_PX, SIZE_PX)
    with torch.no_grad():
        tokens_BND = backbone(pixels_BCHW)
    assert tokens_BND.shape == (2, family.tokens, family.width)
    torch.testing.assert_close(tokens_BND, expected_tokens(model, pixels_BCHW), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_weight_that_learns_gets_a_gradient(name: str, tmp_path: Path) -> None:
    FAMILIES[name].write(tmp_path)
    backbone = built(tmp_path).train()
    backbone(torch.randn(2, 3, SIZE_PX, SIZE_PX)).square().sum().backward()
    learning = [(name, x) for name, x in backbone.named_parameters() if x.requires_grad]
    assert learning
    assert [name for name, x in learning if x.grad is None] == []
    stored = set(backbone.state_dict())
    assert not [key for key in stored if "text" in key or "head" in key.split(".") or "classifier" in key]


@pytest.mark.parametrize("name", ["vit", "clip", "siglip", "dinov2", "dinov2 with registers", "deit"])
def test_positions_are_interpolated_as_transformers_does_it(name: str, tmp_path: Path) -> None:
    """The stored network is one for the other size; transformers makes the positions anew in each call."""
    family = FAMILIES[name]
    base = without_head(family.write(tmp_path))
    backbone = built(tmp_path, 48)
    assert backbone.tokens == family.tokens - 16 + 36
    pixels_BCHW = torch.randn(2, 3, 48, 48)
    flags = {} if "dinov2" in name else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        hidden_BND = base(pixel_values=pixels_BCHW, **flags).last_hidden_state
        expected_BND = base.post_layernorm(hidden_BND) if name == "clip" else hidden_BND
        torch.testing.assert_close(backbone(pixels_BCHW), expected_BND, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["dinov3 vit", "convnext", "swin", "swinv2", "efficientnet", "resnet", "mobilenet v2"])
def test_networks_without_positions_take_another_size_as_they_are(name: str, tmp_path: Path) -> None:
    model = FAMILIES[name].write(tmp_path)
    backbone = built(tmp_path, 64)
    pixels_BCHW = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        tokens_BND = backbone(pixels_BCHW)
    assert tokens_BND.shape == (2, backbone.tokens, backbone.width)
    torch.testing.assert_close(tokens_BND, expected_tokens(model, pixels_BCHW), rtol=1e-5, atol=1e-5)


def test_positions_that_hang_on_the_size_are_refused_in_one_line(tmp_path: Path) -> None:
    config = transformers.BeitConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, patch_size=8, image_size=32,
        use_relative_position_bias=True,
    )  # fmt: skip
    transformers.BeitModel(config).save_pretrained(tmp_path)
    assert pretrained(str(tmp_path)).preprocessing.image_size_px == 32
    with pytest.raises(ValueError, match=r"takes images of 32 px only.*leave out --image-size"):
        pretrained(str(tmp_path), 48)


def test_a_model_of_the_hub_is_found_in_the_local_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `hf download` leaves it: snapshots below models--OWNER--NAME, and the branch that points to one."""
    home = tmp_path / "hub"
    model = home / "models--somebody--tiny-clip"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("0" * 40)
    network = FAMILIES["clip"].write(model / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home))
    backbone = built("somebody/tiny-clip")
    pixels_BCHW = torch.randn(1, 3, SIZE_PX, SIZE_PX)
    with torch.no_grad():
        torch.testing.assert_close(backbone(pixels_BCHW), expected_tokens(network, pixels_BCHW), rtol=1e-5, atol=1e-6)
    assert read_preprocessing("somebody/tiny-clip").mean_rgb == pytest.approx((0.48, 0.46, 0.41))


def test_weights_of_16_bits_are_computed_with_in_32(tmp_path: Path) -> None:
    FAMILIES["vit"].write(tmp_path / "whole").to(torch.bfloat16).save_pretrained(tmp_path / "half")  # type: ignore[operator]
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    backbone = built(tmp_path / "half")
    assert {x.dtype for x in backbone.parameters()} == {torch.float32}
    unlearned = Backbone(BackboneConfig(name=str(tmp_path / "half")), SIZE_PX)
    assert {x.dtype for x in unlearned.parameters()} == {torch.float32}


PREPROCESSORS: list[tuple[str, dict[str, Any], tuple[int, int, float, float]]] = [
    # As published: openai/clip-vit-base-patch32 today, and as it was written first; facebook/dinov2-base;
    # google/vit-base-patch16-224; facebook/convnext-tiny-224 and its 384; google/efficientnet-b7; microsoft/resnet-50.
    ("clip", {"do_center_crop": True, "crop_size": {"height": 224, "width": 224}, "size": {"shortest_edge": 224},
              "image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}, (224, 224, 0.48, 0.27)),
    ("first clip", {"crop_size": 224, "do_center_crop": True, "size": 224, "image_mean": [0.48, 0.46, 0.41],
                    "image_std": [0.27, 0.26, 0.28]}, (224, 224, 0.48, 0.27)),
    ("dinov2", {"crop_size": {"height": 224, "width": 224}, "size": {"shortest_edge": 256}, "do_center_crop": True,
                "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}, (224, 256, 0.485, 0.229)),
    ("vit", {"size": {"height": 224, "width": 224}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
     (224, 224, 0.5, 0.5)),
    ("convnext", {"crop_pct": 0.875, "size": {"shortest_edge": 224}}, (224, 256, 0.485, 0.229)),
    ("convnext 384", {"crop_pct": 0.875, "size": {"shortest_edge": 384}}, (384, 384, 0.485, 0.229)),
    ("no crop", {"crop_size": 224, "do_center_crop": False, "size": 300}, (300, 300, 0.485, 0.229)),
    ("not normalised", {"size": 224, "do_normalize": False}, (224, 224, 0.0, 1.0)),
    # (x / 127.5 - 1 - 0.5) / 0.5 and x / 255 in 0 to 255:
    ("offset", {"size": 224, "rescale_factor": 1 / 127.5, "rescale_offset": True, "image_mean": [0.5] * 3,
                "image_std": [0.5] * 3}, (224, 224, 0.75, 0.25)),
    ("not scaled", {"size": 224, "do_rescale": False, "image_mean": [127.5] * 3, "image_std": [51.0] * 3},
     (224, 224, 0.5, 0.2)),
    ("nothing", {}, (32, 37, 0.485, 0.229)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "values", "expected"), PREPROCESSORS, ids=[row[0] for row in PREPROCESSORS])
@pytest.mark.parametrize("together", [False, True])
def test_preprocessing_is_the_folders(
    name: str, values: dict[str, Any], expected: tuple[int, int, float, float], together: bool, tmp_path: Path
) -> None:
    del name
    FAMILIES["vit"].write(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    if together:
        (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": values}))
    elif values:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    found = read_preprocessing(str(tmp_path))
    assert (found.image_size_px, found.resize_px) == expected[:2]
    assert (found.mean_rgb[0], found.std_rgb[0]) == pytest.approx(expected[2:])
    larger = read_preprocessing(str(tmp_path), 2 * expected[0])
    assert (larger.image_size_px, larger.resize_px) == (2 * expected[0], 2 * expected[1])


def test_what_cannot_be_taken_is_refused_in_one_line(tmp_path: Path) -> None:
    def refusal(name: Path | str) -> str:
        with pytest.raises(ValueError, match=r".") as refused:
            pretrained(str(name))
        assert "\n" not in str(refused.value)
        return str(refused.value)

    assert "hf download somebody/nothing" in refusal("somebody/nothing")
    assert "hf download ../odd//name" in refusal("../odd//name")
    assert "is one file" in refusal(tmp_path / "network.onnx")
    assert "give the Hugging Face folder" in refusal("weights.pth")
    (tmp_path / "empty").mkdir()
    assert "not a complete Hugging Face model folder" in refusal(tmp_path / "empty")

    FAMILIES["clip"].write(tmp_path / "clip")
    weights = tmp_path / "clip" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert "damaged" in refusal(tmp_path / "clip")
    weights.unlink()
    assert "not a complete Hugging Face model folder" in refusal(tmp_path / "clip")

    FAMILIES["vit"].write(tmp_path / "other")
    weights.write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    assert "lacks" in refusal(tmp_path / "clip")  # the weights of another network: never random ones instead
    (tmp_path / "other" / "preprocessor_config.json").write_text("{")
    assert "preprocessor_config.json" in refusal(tmp_path / "other")
    (tmp_path / "other" / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 30, "width": 40}}))
    assert "not square" in refusal(tmp_path / "other")


def test_what_old_config_files_carry_along_is_not_stored(tmp_path: Path) -> None:
    """Such as the settings for making texts that every transformers configuration once had."""
    FAMILIES["clip"].write(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_config"] |= {"num_beams": 1, "bad_words_ids": None, "torch_dtype": "float32", "my_note": "x"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert not {"num_beams", "bad_words_ids", "torch_dtype", "my_note"} & set(built(tmp_path).config.overrides)


def test_code_in_a_folder_is_not_run(tmp_path: Path) -> None:
    FAMILIES["vit"].write(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "own.Config", "AutoModel": "own.Model"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text("raise SystemExit('the code of the folder was run')\n")
    assert built(tmp_path).config.model_type == "vit"
