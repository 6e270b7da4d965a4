"""The same sums over pairs as in ``tiled.py``, from the whole matrix: quicker where a batch is small.

Everything is plain differentiable PyTorch; results by row stand in the order of the batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from nearfar.losses.base import Batch
from nearfar.losses.tiles import Relation


class Dense:
    """Sums over the pairs of a batch of unit rows, from its B x K matrix of similarities.

    ``positives`` and ``negatives`` are how many of each a row has, ``[B]``.
    """

    def __init__(self, batch: Batch) -> None:
        self._cosine = batch.z @ batch.keys.T
        negative, own = batch.negatives(), batch.own()
        self._skip = {
            Relation.NEGATIVES: ~negative,
            Relation.POSITIVES: negative if own is None else negative | own,
            Relation.OTHERS: torch.zeros_like(negative) if own is None else own,
        }
        self.negatives = negative.sum(1)
        self.positives = len(batch.keys) - self._skip[Relation.POSITIVES].sum(1)

    def logsumexp(self, relation: Relation, temperature: float) -> Tensor:
        """See :meth:`nearfar.losses.tiled.Tiled.logsumexp`."""
        return masked_logsumexp(self._cosine / temperature, self._skip[relation])

    def positive_sums(self) -> Tensor:
        """See :meth:`nearfar.losses.tiled.Tiled.positive_sums`."""
        return self._cosine.masked_fill(self._skip[Relation.POSITIVES], 0.0).sum(1)

    def positive_softplus(self, against: Tensor, temperature: float) -> Tensor:
        """See :meth:`nearfar.losses.tiled.Tiled.positive_softplus`."""
        terms = F.softplus(against[:, None] - self._cosine / temperature, threshold=50.0)
        return terms.masked_fill(self._skip[Relation.POSITIVES], 0.0).sum()

    def pair_sum(
        self,
        relation: Relation,
        function: Callable[..., Tensor],
        *parameters: Tensor,
        by_row: Tensor | None = None,
    ) -> Tensor:
        """See :meth:`nearfar.losses.tiled.Tiled.pair_sum`."""
        row = () if by_row is None else (by_row[:, None],)
        return function(self._cosine, *row, *parameters).masked_fill(self._skip[relation], 0.0).sum((-2, -1))


def masked_logsumexp(scores: Tensor, skip: Tensor) -> Tensor:
    """Log-sum-exp of each row without the entries to skip; minus infinity, with zero gradient, where none is left."""
    empty = skip.all(1)
    # A row of equal numbers in place of one that is all minus infinity, whose gradient would be NaN.
    hidden = scores.masked_fill(skip, -torch.inf).masked_fill(empty[:, None], 0.0)
    if not scores.shape[1]:
        return scores.sum(1) - torch.inf
    return torch.logsumexp(hidden, 1).masked_fill(empty, -torch.inf)
