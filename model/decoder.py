"""The two kinds of decoder layers of GeoDecoder (Clark et al., CVPR 2023, arXiv 2303.04249, section 3.2).

Shapes: B batch · H hierarchies (levels) · S scenes · Q = H · S queries · N image tokens · D width
· F feed-forward width · L sequence of one attention · A heads · E = D / A head width.

Both are pre-norm (normalise, transform, add), unlike the post-norm original of DETR: deep pre-norm stacks train from
random initialisation without warm-up tricks. GeoDecoder therefore normalises once more after the last layer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  (its usual name)
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention from queries_BLD to context_BMD → BLD; the queries' batch may be 1 beside a larger one.

    Keys have no bias: it shifts all scores of a query alike, so softmax removes it and no gradient would reach it.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        assert width % heads == 0
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, queries_BLD: Tensor, context_BMD: Tensor) -> Tensor:
        q_BALE = self._split(self.query(queries_BLD))
        k_BAME = self._split(self.key(context_BMD))
        v_BAME = self._split(self.value(context_BMD))
        # A batch of 1 stands for the same queries before every image; SDPA's fused kernels don't broadcast.
        q_BALE = q_BALE.expand(k_BAME.shape[0], -1, -1, -1)
        dropout = self.dropout if self.training else 0.0
        mixed_BALE = F.scaled_dot_product_attention(q_BALE, k_BAME, v_BAME, dropout_p=dropout)
        mixed: Tensor = self.out(mixed_BALE.transpose(1, 2).flatten(2))
        return mixed

    def _split(self, x_BLD: Tensor) -> Tensor:
        batch, length, width = x_BLD.shape
        return x_BLD.reshape(batch, length, self.heads, width // self.heads).transpose(1, 2)


class FeedForward(nn.Module):
    """The usual two linear maps with GELU between, shared by every query: x_BLD → BLD."""

    def __init__(self, width: int, hidden_width: int, dropout: float) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden_width)
        self.down = nn.Linear(hidden_width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BLD: Tensor) -> Tensor:
        y: Tensor = self.down(self.dropout(F.gelu(self.up(x_BLD))))
        return y


class GroupedFeedForward(nn.Module):
    """One feed-forward per hierarchy, as two batched matrix products over the hierarchy axis: x_BHSD → BHSD."""

    def __init__(self, groups: int, width: int, hidden_width: int, dropout: float) -> None:
        super().__init__()
        self.up_HDF = nn.Parameter(torch.empty(groups, width, hidden_width))
        self.up_bias_HF = nn.Parameter(torch.empty(groups, hidden_width))
        self.down_HFD = nn.Parameter(torch.empty(groups, hidden_width, width))
        self.down_bias_HD = nn.Parameter(torch.empty(groups, width))
        self.dropout = nn.Dropout(dropout)
        # nn.Linear's own initialisation: uniform within 1 / sqrt(inputs), for weights and biases.
        for inputs, parameters in (
            (width, (self.up_HDF, self.up_bias_HF)),
            (hidden_width, (self.down_HFD, self.down_bias_HD)),
        ):
            for parameter in parameters:
                nn.init.uniform_(parameter, -(inputs**-0.5), inputs**-0.5)

    def forward(self, x_BHSD: Tensor) -> Tensor:
        batch, groups, scenes, width = x_BHSD.shape
        # The batch joins the rows of each product: a broadcast matmul would copy the weights once per photo.
        x_HRD = x_BHSD.transpose(0, 1).reshape(groups, -1, width)
        hidden_HRF = self.dropout(F.gelu(x_HRD @ self.up_HDF + self.up_bias_HF[:, None]))
        y_HRD: Tensor = hidden_HRF @ self.down_HFD + self.down_bias_HD[:, None]
        return y_HRD.reshape(groups, batch, scenes, width).transpose(0, 1)


class IndependentLayer(nn.Module):
    """Hierarchy-independent layer: every query attends to all Q queries, then to the image; one feed-forward.

    queries_BHSD (or 1HSD, the same for every photo), tokens_BND → queries_BHSD.
    """

    def __init__(self, width: int, heads: int, hidden_width: int, dropout: float) -> None:
        super().__init__()
        self.self_norm = nn.LayerNorm(width)
        self.self_attention = Attention(width, heads, dropout)
        self.cross_norm = nn.LayerNorm(width)
        self.cross_attention = Attention(width, heads, dropout)
        self.feed_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, hidden_width, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries_BHSD: Tensor, tokens_BND: Tensor) -> Tensor:
        x_BQD: Tensor = queries_BHSD.flatten(1, 2)
        normed_BQD = self.self_norm(x_BQD)
        x_BQD = x_BQD + self.dropout(self.self_attention(normed_BQD, normed_BQD))
        x_BQD = x_BQD + self.dropout(self.cross_attention(self.cross_norm(x_BQD), tokens_BND))
        x_BQD = x_BQD + self.dropout(self.feed_forward(self.feed_norm(x_BQD)))
        return x_BQD.reshape(-1, *queries_BHSD.shape[1:])


class DependentLayer(nn.Module):
    """Hierarchy-dependent layer: a query attends only to its own hierarchy's S queries, then to the image; every
    hierarchy has its own feed-forward. The attentions' weights are shared by the hierarchies.

    queries_BHSD (or 1HSD, the same for every photo), tokens_BND → queries_BHSD.
    """

    def __init__(self, hierarchies: int, width: int, heads: int, hidden_width: int, dropout: float) -> None:
        super().__init__()
        self.self_norm = nn.LayerNorm(width)
        self.self_attention = Attention(width, heads, dropout)
        self.cross_norm = nn.LayerNorm(width)
        self.cross_attention = Attention(width, heads, dropout)
        self.feed_norm = nn.LayerNorm(width)
        self.feed_forward = GroupedFeedForward(hierarchies, width, hidden_width, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries_BHSD: Tensor, tokens_BND: Tensor) -> Tensor:
        groups_GSD = queries_BHSD.flatten(0, 1)  # G = B · H: one attention problem per photo and hierarchy
        normed_GSD = self.self_norm(groups_GSD)
        groups_GSD = groups_GSD + self.dropout(self.self_attention(normed_GSD, normed_GSD))
        x_BQD: Tensor = groups_GSD.reshape(queries_BHSD.shape).flatten(1, 2)
        x_BQD = x_BQD + self.dropout(self.cross_attention(self.cross_norm(x_BQD), tokens_BND))
        x_BHSD: Tensor = x_BQD.reshape(-1, *queries_BHSD.shape[1:])
        y_BHSD: Tensor = self.feed_forward(self.feed_norm(x_BHSD))
        y_BHSD = self.dropout(y_BHSD)
        return x_BHSD + y_BHSD
