from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
from torch import nn

from model.geodecoder import SCENES_16, GeoDecoder, GeoDecoderConfig, bundled, paper_swin_b, small, tiny

COUNTS = (5, 9, 14)


def make(seed: int = 0) -> GeoDecoder:
    torch.manual_seed(seed)
    return GeoDecoder(tiny(), COUNTS).eval()


def test_shapes_and_batch_independence() -> None:
    model = make()
    pixels_BCYX = torch.randn(5, 3, 32, 32)
    output = model(pixels_BCYX)
    assert [tuple(logits.shape) for logits in output.logits] == [(5, count) for count in COUNTS]
    assert output.scene_logits_BS.shape == (5, 3)
    for row in range(5):
        alone = model(pixels_BCYX[row : row + 1])
        torch.testing.assert_close(alone.scene_logits_BS[0], output.scene_logits_BS[row], rtol=1e-4, atol=1e-5)
        for one_BK, all_BK in zip(alone.logits, output.logits, strict=True):
            torch.testing.assert_close(one_BK[0], all_BK[row], rtol=1e-4, atol=1e-5)


def test_whole_decoder_against_loops_over_photos_and_hierarchies() -> None:
    """Queries, layers' order, final norm, scene choice and classifiers; the layers have their own reference."""
    model = make().double()
    with torch.no_grad():
        for layer in (*model.independent_layers, *model.dependent_layers):
            layer.cross_attention.out.weight *= 30.0  # so that photos differ enough to choose different scenes
    tokens_BND = torch.randn(6, 7, model.backbone.width).double()
    output = model.forward_tokens(tokens_BND)
    seen = set()
    for b in range(6):
        tokens_1ND = model.token_norm(model.projection(tokens_BND[b : b + 1]))
        x_1HSD = model.queries_HSD[None]
        for layer in model.independent_layers:
            x_1HSD = layer(x_1HSD, tokens_1ND)
        for layer in model.dependent_layers:
            x_1HSD = layer(x_1HSD, tokens_1ND)
        x_HSD = model.norm(x_1HSD)[0]
        confidence = [
            sum(x_HSD[h, s, 0].item() for h in range(len(COUNTS))) / len(COUNTS) for s in range(len(tiny().scenes))
        ]
        torch.testing.assert_close(output.scene_logits_BS[b], torch.tensor(confidence).double())
        scene = confidence.index(max(confidence))
        seen.add(scene)
        for h, classifier in enumerate(model.classifiers):
            assert isinstance(classifier, nn.Linear)
            expected_K = classifier.weight @ x_HSD[h, scene] + classifier.bias
            torch.testing.assert_close(output.logits[h][b], expected_K)
    assert len(seen) > 1, "the photos did not choose different scenes"


def test_labelled_routing_takes_the_label_where_there_is_one() -> None:
    model = make()
    pixels_BCYX = torch.randn(4, 3, 32, 32)
    predicted = model(pixels_BCYX)
    best_B = predicted.scene_logits_BS.argmax(dim=1)
    other_B = (best_B + 1) % 3
    label_B = torch.stack([other_B[0], best_B[1], torch.tensor(-1), other_B[3]])
    labelled = model(pixels_BCYX, label_B)
    for level in range(len(COUNTS)):
        same = [torch.allclose(predicted.logits[level][b], labelled.logits[level][b]) for b in range(4)]
        assert same == [False, True, True, False]
    torch.testing.assert_close(labelled.scene_logits_BS, predicted.scene_logits_BS)


@pytest.mark.parametrize("route", ["predicted", "labelled"])
def test_gradient_reaches_every_parameter(route: str) -> None:
    model = make().train()
    scene_B = torch.tensor([0, 1, 2, 1])
    output = model(torch.randn(4, 3, 32, 32), scene_B if route == "labelled" else None)
    loss = nn.functional.cross_entropy(output.scene_logits_BS, scene_B)
    for logits_BK in output.logits:
        loss = loss + nn.functional.cross_entropy(logits_BK, torch.zeros(4, dtype=torch.int64))
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    # A key's bias in the Hugging Face backbone cannot matter (softmax removes it), so its gradient is rounding.
    silent = [n for n, g in gradients.items() if g is not None and not g.abs().max() > 0 and "k_proj.bias" not in n]
    assert silent == []


def test_a_few_steps_learn_four_photos() -> None:
    model = make().train()
    pixels_BCYX = torch.randn(4, 3, 32, 32)
    target_B = torch.tensor([0, 1, 2, 3])
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        output = model(pixels_BCYX)
        loss = torch.stack([nn.functional.cross_entropy(logits_BK, target_B) for logits_BK in output.logits]).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_presets() -> None:
    paper = paper_swin_b()
    assert len(paper.scenes) == 16
    assert paper.preprocessing.image_size_px == 224
    assert paper.independent_layers + paper.dependent_layers == 8
    assert bundled(SCENES_16).scenes == SCENES_16
    for preset in (paper, small(), bundled(), tiny()):
        assert GeoDecoderConfig.from_json(json.loads(json.dumps(preset.to_json()))) == preset


def test_bundled_fits_its_budget() -> None:
    model = GeoDecoder(bundled(), (100, 200, 400))
    size_bytes = 4 * sum(tensor.numel() for tensor in model.state_dict().values())
    assert size_bytes < 20_000_000  # the shipped file may have 30 MB
    assert model.backbone(torch.zeros(1, 3, 192, 192)).shape == (1, 36, 1280)


def test_built_config_is_inline_and_complete() -> None:
    model = make()
    config = GeoDecoderConfig.from_json(json.loads(json.dumps(model.config.to_json())))
    again = GeoDecoder(config, COUNTS)
    again.load_state_dict(model.state_dict())
    assert again.config == model.config


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("width",), 25, r"heads \(4\) must divide width \(25\)"),
        (("width",), "24", "model.width must be a whole number"),
        (("heads",), True, "model.heads must be a whole number"),
        (("heads",), 0, "must divide"),
        (("dropout",), 1.0, "dropout"),
        (("dropout",), "much", "dropout must be a number"),
        (("independent_layers",), -1, "negative"),
        (("scenes",), [], "scenes"),
        (("scenes",), ["a", "a"], "scenes"),
        (("scenes",), [1], "list of names"),
        (("scenes",), "abc", "must be a list"),
        (("feed_forward_width",), 0, "feed_forward_width"),
        (("backbone",), "swin", "model.backbone must be a JSON object"),
        (("backbone", "model_type"), "", "either model_type"),
        (("backbone", "surprise"), 1, "model.backbone has an unknown key 'surprise'"),
        (("preprocessing", "mean_rgb"), [0.5, 0.5], "three numbers"),
        (("preprocessing", "std_rgb"), [0.5, 0.5, "x"], "must be a number"),
        (("preprocessing", "image_size_px"), 4000, "image_size_px"),
        (("surprise",), 1, "model has an unknown key 'surprise'"),
    ],
)
def test_from_json_refuses(path: tuple[str, ...], value: Any, message: str) -> None:
    values = json.loads(json.dumps(tiny().to_json()))
    place = values
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ValueError, match=message):
        GeoDecoderConfig.from_json(values)


def test_from_json_refuses_missing_keys_and_other_things() -> None:
    values = tiny().to_json()
    del values["width"]
    with pytest.raises(ValueError, match="lacks the key 'width'"):
        GeoDecoderConfig.from_json(values)
    with pytest.raises(ValueError, match="must be a JSON object"):
        GeoDecoderConfig.from_json([])


def test_a_level_without_cells_is_refused() -> None:
    with pytest.raises(ValueError, match="every level"):
        GeoDecoder(tiny(), (3, 0))
    with pytest.raises(ValueError, match="every level"):
        GeoDecoder(tiny(), ())


def test_backbone_of_the_same_width_needs_no_projection() -> None:
    config = dataclasses.replace(tiny(), width=32)
    assert isinstance(GeoDecoder(config, COUNTS).projection, nn.Identity)
