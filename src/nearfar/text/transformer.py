"""A small transformer over tokens, trained from nothing: tokens to unit rows.

Knows numbers of tokens, of which 0 is padding; no texts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nearfar.encoders import UnitNorm
from nearfar.errors import InputError
from nearfar.text.checks import check_number
from nearfar.text.tokens import END, PAD


class TextTransformer(nn.Module):
    """Tokens int64 ``[N, L]`` to unit rows float32 ``[N, D]``.

    Embeddings of tokens and of places, blocks of self-attention and of a net with GELU, each after a layer norm
    (pre-norm: Xiong et al. 2020), the mean over the tokens of a text, a linear map, unit rows.

    Args:
        vocabulary: how many tokens there are.
        length: L, the most tokens that a text may have.
        width: of the embeddings inside.
        layers: how many blocks; 0 leaves a mean over embeddings of tokens and places.
        heads: of attention; they divide ``width``.
        dim: D.
        dropout: share of values set to zero while it learns, after the embeddings, attention and nets; and share of tokens
            exchanged for any others. Without that, words that no caption has keep random embeddings, as loud as those
            that were learned; exchanged, they learn to say little.
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        length: int = 32,
        width: int = 128,
        layers: int = 2,
        heads: int = 4,
        dim: int = 128,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        check_number("length", length, least=2, most=1024)
        check_number("width", width, least=1, most=8192)
        check_number("layers", layers, least=0, most=64)
        check_number("heads", heads, least=1, most=256)
        check_number("dim", dim, least=1, most=1 << 16)
        check_number("dropout", dropout, least=0.0, most=0.9, whole=False)
        if width % heads:
            raise InputError(f"text.heads is {heads}, which does not divide text.width, {width}; take a divisor of it")
        self.tokens = nn.Embedding(vocabulary, width, padding_idx=PAD)
        self.places = nn.Parameter(torch.empty(length, width))
        self.drop, self.dropout = nn.Dropout(dropout), dropout
        self.blocks = nn.ModuleList(_Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, dim, bias=False)
        self.unit = UnitNorm()
        with torch.no_grad():
            # Small: learned tokens grow at once, and those that no caption has stay quiet beside them, since a layer norm
            # does not make up for numbers far below its eps.
            nn.init.normal_(self.tokens.weight, std=0.001)
            self.tokens.weight[PAD] = 0.0
            nn.init.normal_(self.places, std=0.01)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens int64 ``[N, L]`` (or fewer columns) to unit rows ``[N, D]``."""
        there = tokens != PAD
        # What is padding in every row is not computed.
        longest = max(1, int(there.any(0).sum()))
        tokens, there = tokens[:, :longest], there[:, :longest]
        if self.training and self.dropout:
            others = torch.randint_like(tokens, END + 1, self.tokens.num_embeddings)
            tokens = torch.where(
                (torch.rand(tokens.shape, device=tokens.device) < self.dropout) & (tokens > END), others, tokens
            )
        x = self.drop(self.tokens(tokens) + self.places[:longest])
        for block in self.blocks:
            x = block(x, there)
        x = self.norm(x) * there[:, :, None]
        mean = x.sum(1) / there.sum(1, keepdim=True).clamp_min(1)
        z: Tensor = self.unit(self.out(mean).float())
        return z


class _Block(nn.Module):
    """Attention among the tokens of a text, then a net for each token; both are added to what came in."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm_attention, self.norm_net = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.join = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.net = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout))

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        """x ``[N, L, width]``, there bool ``[N, L]``: which are tokens, not padding."""
        count, length, width = x.shape
        parts = self.mix(self.norm_attention(x)).view(count, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(
            query, key, value, attn_mask=there[:, None, None, :], dropout_p=self.dropout if self.training else 0.0
        )
        x = x + self.join(found.transpose(1, 2).reshape(count, length, width))
        x = x + self.net(self.norm_net(x))
        return x
