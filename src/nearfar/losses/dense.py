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
        self._same = batch.labels[:, None] == batch.key_labels[None, :]
        self._own = batch.own()
        same = self._same.sum(1)
        self.negatives = len(batch.keys) - same
        self.positives = same if self._own is None else same - 1

    def _skip(self, relation: Relation) -> Tensor:
        """Bool [B, K], true where a pair does not count."""
        if relation is Relation.NEGATIVES:
            return self._same
        if relation is Relation.OTHERS:
            return torch.zeros_like(self._same) if self._own is None else self._own
        return ~self._same if self._own is None else ~self._same | self._own

    def logsumexp(self, relation: Relation, temperature: float) -> Tensor:
        """See :meth:`nearfar.losses.tiled.Tiled.logsumexp`."""
        return masked_logsumexp(self._cosine / temperature, self._skip(relation))

    def positive_sums(self) -> Tensor:
        """See :meth:`nearfar.losses.tiled.Tiled.positive_sums`."""
        return self._cosine.masked_fill(self._skip(Relation.POSITIVES), 0.0).sum(1)

    def positive_softplus(self, against: Tensor, temperature: float) -> Tensor:
        """See :meth:`nearfar.losses.tiled.Tiled.positive_softplus`."""
        terms = F.softplus(against[:, None] - self._cosine / temperature, threshold=50.0)
        return terms.masked_fill(self._skip(Relation.POSITIVES), 0.0).sum()

    def pair_sum(
        self,
        relation: Relation,
        function: Callable[..., Tensor],
        *parameters: Tensor,
        by_row: Tensor | None = None,
    ) -> Tensor:
        """See :meth:`nearfar.losses.tiled.Tiled.pair_sum`."""
        row = () if by_row is None else (by_row[:, None],)
        return function(self._cosine, *row, *parameters).masked_fill(self._skip(relation), 0.0).sum((-2, -1))


def masked_logsumexp(scores: Tensor, skip: Tensor) -> Tensor:
    """Log-sum-exp of each row without the entries to skip; minus infinity, with zero gradient, where none is left."""
    if not scores.shape[1]:
        return scores.sum(1) - torch.inf
    # Finite, so that a row that is hidden altogether has no NaN for a gradient; next to any score its power is 0.
    hidden = scores.masked_fill(skip, torch.finfo(scores.dtype).min)
    return torch.logsumexp(hidden, 1).masked_fill(skip.all(1), -torch.inf)
