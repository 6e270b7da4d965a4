"""How a linear classifier on top of an embedding is trained: any loss of class scores, made one of embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from nearfar.heads import Head
from nearfar.losses.base import Batch, Loss


class HeadLoss(Loss):
    """A loss of class scores, of the scores that a linear classifier gives embeddings of any width.

    The classifier starts at zero: without a preference, whatever the scale of the embeddings.

    Args:
        loss: the loss of scores [B, classes].
        classes: how many there are.
        dim: D, the width of the embeddings.
    """

    takes_keys: ClassVar[bool] = False

    def __init__(self, loss: Loss, *, classes: int, dim: int) -> None:
        super().__init__()
        self.loss = loss
        self.linear = nn.Linear(dim, classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def classify(self, z: Tensor) -> Tensor:
        """The class number, int64 [B], of each row of ``z`` [B, D]."""
        return self._scores(z).argmax(1)

    def head(self, classes: Sequence[str]) -> Head:
        """A copy of the classifier as it is now; ``classes`` names its outputs."""
        weight, bias = (value.detach().cpu().numpy().copy() for value in (self.linear.weight, self.linear.bias))
        return Head(weight, bias, tuple(classes))

    def adds_up(self) -> bool:
        """As the loss of scores."""
        return self.loss.adds_up()

    def combine(self, sums: Tensor) -> Tensor:
        """As the loss of scores."""
        return self.loss.combine(sums)

    def _loss(self, batch: Batch) -> Tensor:
        value: Tensor = self.loss(self._scores(batch.z), batch.labels)
        return value

    def _sums(self, batch: Batch) -> tuple[Tensor, ...]:
        return self.loss.sums(self._scores(batch.z), batch.labels).unbind()

    def _scores(self, z: Tensor) -> Tensor:
        return F.linear(z, self.linear.weight.to(z.dtype), self.linear.bias.to(z.dtype))
