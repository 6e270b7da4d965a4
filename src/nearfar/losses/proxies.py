"""Losses that compare each row with the classes rather than with other rows."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from nearfar.errors import InputError
from nearfar.losses.base import Batch, Loss, number


class CrossEntropyLoss(Loss):
    """Cross-entropy of class scores: mean over rows of  -log softmax(z_i)[label_i].

    ``z`` is class scores ``[B, classes]``, as the last layer of a classifier gives them.

    Args:
        label_smoothing: the part of the target that is spread evenly over all classes (Szegedy et al. 2016).
    """

    scores: ClassVar[bool] = True
    takes_keys: ClassVar[bool] = False

    def __init__(self, *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = number("label_smoothing", label_smoothing, low=0.0, high=0.999, usual="0 to 0.2 is usual")

    def _loss(self, batch: Batch) -> Tensor:
        check_classes(batch.labels, batch.z.shape[1], f"z has {batch.z.shape[1]} columns, one a class")
        return F.cross_entropy(batch.z, batch.labels, label_smoothing=self.label_smoothing)


def check_classes(labels: Tensor, classes: int, why: str) -> None:
    """Check that labels are numbers of classes, 0..classes-1."""
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        wrong = low if low < 0 else high
        raise InputError(f"labels has {wrong}; {why}, so labels must lie in 0..{classes - 1}")
