"""The whole of GeoDecoder's head, written again as the paper tells it: one photo and one query at a time.

Nothing is shared with model/: the loops below read parameters by their names and work in float64. Compared with the
model on random weights and several shapes: outputs, the scene chosen, the product over levels, and every gradient, also
by finite differences.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from model.geodecoder import GeoDecoder, GeoDecoderConfig, tiny
from model.readout import Reading, ReadOut
from model.world.hierarchy import Hierarchy
from training.hierarchy import PartitionConfig, build_hierarchy


@dataclass(frozen=True)
class Shape:
    levels: int
    scenes: int
    tokens: int
    photos: int
    width: int
    heads: int
    hidden: int
    independent: int
    dependent: int


SHAPES = [
    Shape(levels=1, scenes=1, tokens=1, photos=2, width=4, heads=1, hidden=6, independent=1, dependent=0),
    Shape(levels=3, scenes=2, tokens=4, photos=3, width=8, heads=2, hidden=12, independent=1, dependent=1),
    Shape(levels=2, scenes=3, tokens=5, photos=2, width=6, heads=3, hidden=5, independent=0, dependent=2),
    Shape(levels=3, scenes=4, tokens=3, photos=2, width=8, heads=4, hidden=8, independent=2, dependent=1),
]


def world(levels: int) -> Hierarchy:
    random = np.random.default_rng(levels)
    lat_deg_N, lon_deg_N = np.degrees(np.arcsin(random.uniform(-1, 1, 150))), random.uniform(-180, 180, 150)
    return build_hierarchy(lat_deg_N, lon_deg_N, PartitionConfig(0, (60, 25, 10)[:levels]))


def make(shape: Shape, hierarchy: Hierarchy) -> GeoDecoder:
    config: GeoDecoderConfig = replace(
        tiny(),
        scenes=tuple(f"scene {s}" for s in range(shape.scenes)),
        width=shape.width,
        heads=shape.heads,
        feed_forward_width=shape.hidden,
        independent_layers=shape.independent,
        dependent_layers=shape.dependent,
    )
    torch.manual_seed(3)
    model = GeoDecoder(config, hierarchy.class_counts).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.7)  # norms too, which start at 1 and 0
    return model


def matrix(weight: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
    rows = [(row * x).sum() for row in weight]
    return torch.stack(rows if bias is None else [row + bias[i] for i, row in enumerate(rows)])


def normalised(p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    mean = x.sum() / len(x)
    variance = ((x - mean) ** 2).sum() / len(x)
    return (x - mean) / (variance + 1e-5) ** 0.5 * p[f"{name}.weight"] + p[f"{name}.bias"]


def attended(p: dict[str, Tensor], name: str, x: Tensor, context: list[Tensor], heads: int) -> Tensor:
    query = matrix(p[f"{name}.query.weight"], x, p[f"{name}.query.bias"])
    keys = [matrix(p[f"{name}.key.weight"], c) for c in context]
    values = [matrix(p[f"{name}.value.weight"], c, p[f"{name}.value.bias"]) for c in context]
    size = len(x) // heads
    mixed = []
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        weights = [torch.exp((query[own] * key[own]).sum() / math.sqrt(size)) for key in keys]
        total = torch.stack(weights).sum()
        mixed.append(torch.stack([w / total * v[own] for w, v in zip(weights, values, strict=True)]).sum(dim=0))
    return matrix(p[f"{name}.out.weight"], torch.cat(mixed), p[f"{name}.out.bias"])


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def layer(
    p: dict[str, Tensor], name: str, queries: list[list[Tensor]], tokens: list[Tensor], heads: int, dependent: bool
) -> list[list[Tensor]]:
    """`queries[h][s]` of one photo → the same after one layer."""
    result = []
    for h, of_level in enumerate(queries):
        peers = of_level if dependent else [query for level in queries for query in level]
        row = []
        for x in of_level:
            seen = [normalised(p, f"{name}.self_norm", peer) for peer in peers]
            x = x + attended(p, f"{name}.self_attention", normalised(p, f"{name}.self_norm", x), seen, heads)
            x = x + attended(p, f"{name}.cross_attention", normalised(p, f"{name}.cross_norm", x), tokens, heads)
            y = normalised(p, f"{name}.feed_norm", x)
            feed = f"{name}.feed_forward"
            if dependent:
                hidden = gelu(matrix(p[f"{feed}.up_HDF"][h].T, y, p[f"{feed}.up_bias_HF"][h]))
                y = matrix(p[f"{feed}.down_HFD"][h].T, hidden, p[f"{feed}.down_bias_HD"][h])
            else:
                hidden = gelu(matrix(p[f"{feed}.up.weight"], y, p[f"{feed}.up.bias"]))
                y = matrix(p[f"{feed}.down.weight"], hidden, p[f"{feed}.down.bias"])
            row.append(x + y)
        result.append(row)
    return result


def told_by_loops(
    shape: Shape, p: dict[str, Tensor], tokens_BND: Tensor, scene_B: list[int]
) -> tuple[list[list[Tensor]], list[Tensor], list[int]]:
    """Return ([photo][level] logits, [photo] scene logits, [photo] chosen scene); `scene_B` -1 is the predicted one."""
    logits, scene_logits, chosen = [], [], []
    for tokens_ND, wanted in zip(tokens_BND, scene_B, strict=True):
        tokens = []
        for token in tokens_ND:
            if "projection.weight" in p:
                token = matrix(p["projection.weight"], token, p["projection.bias"])
            tokens.append(normalised(p, "token_norm", token))
        queries = [[p["queries_HSD"][h, s] for s in range(shape.scenes)] for h in range(shape.levels)]
        for number in range(shape.independent):
            queries = layer(p, f"independent_layers.{number}", queries, tokens, shape.heads, dependent=False)
        for number in range(shape.dependent):
            queries = layer(p, f"dependent_layers.{number}", queries, tokens, shape.heads, dependent=True)
        queries = [[normalised(p, "norm", query) for query in level] for level in queries]
        confidence = [torch.stack([queries[h][s][0] for h in range(shape.levels)]).mean() for s in range(shape.scenes)]
        best = max(range(shape.scenes), key=lambda s: confidence[s].item())
        scene = wanted if wanted >= 0 else best
        chosen.append(scene)
        scene_logits.append(torch.stack(confidence))
        logits.append(
            [
                matrix(p[f"classifiers.{h}.weight"], queries[h][scene], p[f"classifiers.{h}.bias"])
                for h in range(shape.levels)
            ]
        )
    return logits, scene_logits, chosen


def loss_of(logits: list[list[Tensor]], scene_logits: list[Tensor]) -> Tensor:
    """Something that hangs on every output, each in its own way."""
    total = torch.zeros((), dtype=torch.float64)
    for b, levels in enumerate(logits):
        for h, one in enumerate(levels):
            total = total - torch.log_softmax(one, dim=0)[(3 * b + h) % len(one)]
        total = total - torch.log_softmax(scene_logits[b], dim=0)[b % len(scene_logits[b])]
    return total


def head_parameters(model: GeoDecoder) -> dict[str, Tensor]:
    return {name: x for name, x in model.named_parameters() if not name.startswith("backbone.")}


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape.levels}x{shape.scenes}")
@pytest.mark.parametrize("routing", ["predicted", "labelled"])
def test_the_model_is_what_the_loops_tell(shape: Shape, routing: str) -> None:
    hierarchy = world(shape.levels)
    model = make(shape, hierarchy)
    tokens_BND = torch.randn(shape.photos, shape.tokens, model.backbone.width, dtype=torch.float64)
    scene_B = [-1 if routing == "predicted" else b % shape.scenes for b in range(shape.photos)]
    parameters = head_parameters(model)
    again = {name: x.detach().clone().requires_grad_() for name, x in parameters.items()}
    logits, scene_logits, chosen = told_by_loops(shape, again, tokens_BND, scene_B)
    output = model.forward_tokens(tokens_BND, None if routing == "predicted" else torch.tensor(scene_B))

    torch.testing.assert_close(output.scene_logits_BS, torch.stack(scene_logits), rtol=1e-9, atol=1e-10)
    if routing == "predicted":
        assert output.scene_logits_BS.argmax(dim=1).tolist() == chosen
    for h in range(shape.levels):
        expected_BK = torch.stack([levels[h] for levels in logits])
        torch.testing.assert_close(output.logits[h], expected_BK, rtol=1e-9, atol=1e-10)

    theirs = torch.autograd.grad(loss_of(logits, scene_logits), list(again.values()), allow_unused=True)
    per_photo = [[level[b] for level in output.logits] for b in range(shape.photos)]
    ours = torch.autograd.grad(
        loss_of(per_photo, list(output.scene_logits_BS)), list(parameters.values()), allow_unused=True
    )
    for name, mine, other in zip(parameters, ours, theirs, strict=True):
        mine = torch.zeros_like(parameters[name]) if mine is None else mine
        other = torch.zeros_like(parameters[name]) if other is None else other
        torch.testing.assert_close(mine, other, rtol=1e-7, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


def test_gradients_are_those_of_finite_differences() -> None:
    shape = SHAPES[1]
    model = make(shape, world(shape.levels))
    tokens_BND = torch.randn(shape.photos, shape.tokens, model.backbone.width, dtype=torch.float64)
    scene_B = torch.tensor([b % shape.scenes for b in range(shape.photos)])

    def loss() -> Tensor:
        output = model.forward_tokens(tokens_BND, scene_B)
        return loss_of(
            [[level[b] for level in output.logits] for b in range(shape.photos)], list(output.scene_logits_BS)
        )

    parameters = head_parameters(model)
    gradients = torch.autograd.grad(loss(), list(parameters.values()))
    random = np.random.default_rng(0)
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        index = int(random.integers(parameter.numel()))
        with torch.no_grad():
            flat = parameter.view(-1)
            kept, step = float(flat[index]), 1e-5
            flat[index] = kept + step
            above = float(loss())
            flat[index] = kept - step
            below = float(loss())
            flat[index] = kept
        measured = (above - below) / (2 * step)
        assert float(gradient.view(-1)[index]) == pytest.approx(measured, rel=1e-5, abs=1e-7), name


def test_the_product_is_that_of_each_cell_with_all_that_hold_it() -> None:
    hierarchy = world(3)
    torch.manual_seed(5)
    logits = tuple(torch.randn(4, count) * 2 for count in hierarchy.class_counts)
    temperatures = (1.3, 0.8, 2.0)
    joints = ReadOut(hierarchy, Reading(temperatures)).log_probabilities(logits)
    moved = 0
    for b in range(4):
        alone = [
            [math.exp(x / t) for x in level[b].double().tolist()] for level, t in zip(logits, temperatures, strict=True)
        ]
        share = [[x / sum(level) for x in level] for level in alone]
        for h, level in enumerate(hierarchy.levels):
            product = []
            for cell in range(len(level.cell_id_K)):
                value, row = 1.0, cell
                for up in range(h, -1, -1):
                    value *= share[up][row]
                    row = int(hierarchy.levels[up].parent_K[row])
                product.append(value)
            told = [value / sum(product) for value in product]
            np.testing.assert_allclose(joints[h][b].exp().numpy(), told, rtol=2e-4, atol=1e-7)
            assert int(joints[h][b].argmax()) == max(range(len(product)), key=product.__getitem__)
        moved += max(range(len(product)), key=product.__getitem__) != int(logits[-1][b].argmax())
    assert moved, "the product changed no answer, so nothing was tested"
