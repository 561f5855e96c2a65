"""Both decoder layers against a reference that loops over photos, heads and queries in float64 numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from model.decoder import Attention, DependentLayer, FeedForward, GroupedFeedForward, IndependentLayer

Vector = NDArray[np.float64]

B, H, S, N, D, HEADS, F = 3, 2, 4, 5, 8, 2, 12


def _np(tensor: torch.Tensor) -> Vector:
    return tensor.detach().double().numpy()


def linear(layer: nn.Linear, x_D: Vector) -> Vector:
    y = _np(layer.weight) @ x_D
    return y if layer.bias is None else y + _np(layer.bias)


def norm(layer: nn.LayerNorm, x_D: Vector) -> Vector:
    return (x_D - x_D.mean()) / np.sqrt(x_D.var() + layer.eps) * _np(layer.weight) + _np(layer.bias)


def gelu(x_D: Vector) -> Vector:
    return np.array([0.5 * x * (1.0 + math.erf(x / math.sqrt(2.0))) for x in x_D])


def attend(attention: Attention, query_D: Vector, context: list[Vector]) -> Vector:
    q, keys = linear(attention.query, query_D), [linear(attention.key, c) for c in context]
    values = [linear(attention.value, c) for c in context]
    width = len(q) // attention.heads
    mixed = np.zeros_like(q)
    for head in range(attention.heads):
        part = slice(head * width, (head + 1) * width)
        scores = np.array([q[part] @ key[part] / math.sqrt(width) for key in keys])
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        for weight, value in zip(weights, values, strict=True):
            mixed[part] += weight * value[part]
    return linear(attention.out, mixed)


def reference(layer: IndependentLayer | DependentLayer, queries_BHSD: Vector, tokens_BND: Vector) -> Vector:
    result = np.zeros_like(queries_BHSD)
    for b in range(B):
        tokens = list(tokens_BND[b])
        for h in range(H):
            for s in range(S):
                x = queries_BHSD[b, h, s]
                if isinstance(layer, IndependentLayer):
                    peers = [queries_BHSD[b, i, j] for i in range(H) for j in range(S)]
                else:
                    peers = [queries_BHSD[b, h, j] for j in range(S)]
                normed = [norm(layer.self_norm, peer) for peer in peers]
                x = x + attend(layer.self_attention, norm(layer.self_norm, x), normed)
                x = x + attend(layer.cross_attention, norm(layer.cross_norm, x), tokens)
                y = norm(layer.feed_norm, x)
                feed = layer.feed_forward
                if isinstance(feed, FeedForward):
                    y = linear(feed.down, gelu(linear(feed.up, y)))
                else:
                    assert isinstance(feed, GroupedFeedForward)
                    hidden = gelu(y @ _np(feed.up_HDF)[h] + _np(feed.up_bias_HF)[h])
                    y = hidden @ _np(feed.down_HFD)[h] + _np(feed.down_bias_HD)[h]
                result[b, h, s] = x + y
    return result


def make(kind: str, dropout: float = 0.0) -> IndependentLayer | DependentLayer:
    torch.manual_seed(1)
    layer = IndependentLayer(D, HEADS, F, dropout) if kind == "independent" else DependentLayer(H, D, HEADS, F, dropout)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)  # norms too, which start at 1 and 0
    return layer


@pytest.mark.parametrize("kind", ["independent", "dependent"])
def test_layer_is_what_the_loops_compute(kind: str) -> None:
    layer = make(kind).double().eval()
    queries_BHSD, tokens_BND = torch.randn(B, H, S, D).double(), torch.randn(B, N, D).double()
    expected = reference(layer, queries_BHSD.numpy(), tokens_BND.numpy())
    np.testing.assert_allclose(_np(layer(queries_BHSD, tokens_BND)), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["independent", "dependent"])
def test_only_independent_queries_see_other_hierarchies(kind: str) -> None:
    layer = make(kind).eval()
    queries_BHSD, tokens_BND = torch.randn(B, H, S, D), torch.randn(B, N, D)
    changed_BHSD = queries_BHSD.clone()
    changed_BHSD[:, 0, 0] = torch.randn(B, D)  # not a constant added: the norms would remove it
    difference = (layer(queries_BHSD, tokens_BND) - layer(changed_BHSD, tokens_BND)).abs().amax(dim=(0, 3))
    assert (difference[0] > 1e-3).all(), "every scene of the changed hierarchy must see it"
    assert bool((difference[1] > 1e-3).all()) == (kind == "independent")
    assert bool((difference[1] == 0).all()) == (kind == "dependent")


@pytest.mark.parametrize("kind", ["independent", "dependent"])
def test_dropout_only_while_training(kind: str) -> None:
    layer = make(kind, dropout=0.5)
    queries_BHSD, tokens_BND = torch.randn(B, H, S, D), torch.randn(B, N, D)
    assert not torch.equal(layer(queries_BHSD, tokens_BND), layer(queries_BHSD, tokens_BND))
    layer.eval()
    assert torch.equal(layer(queries_BHSD, tokens_BND), layer(queries_BHSD, tokens_BND))


def test_grouped_feed_forward_starts_like_linear_layers() -> None:
    torch.manual_seed(0)
    feed = GroupedFeedForward(3, 64, 256, 0.0)
    bound = 64**-0.5
    assert feed.up_HDF.abs().max() <= bound
    assert feed.up_HDF.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert feed.down_HFD.abs().max() <= 256**-0.5
