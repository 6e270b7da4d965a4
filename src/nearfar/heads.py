"""A linear classifier on top of an embedding: how it is trained, what a run keeps of it, and what it says.

Knows embeddings and class names; never images or encoders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nearfar.checkpoint import load_tensors, save_tensors
from nearfar.errors import InputError
from nearfar.files import hash_file
from nearfar.losses.base import Batch, Loss

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Head:
    """A trained linear classifier: scores are z W^T + b, the class is the one of the greatest score."""

    weight: Floats  # [P, D]
    bias: Floats  # [P]
    classes: tuple[str, ...]  # P names

    def predict(self, z: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """The place in ``classes`` that each row of ``z`` [N, D] belongs to, [N]; of equal scores, the first.

        Raises:
            InputError: the head was trained on embeddings of another width.
        """
        if z.ndim != 2 or z.shape[1] != self.weight.shape[1]:
            raise InputError(f"z has shape {list(z.shape)}, the head takes [N, {self.weight.shape[1]}]")
        found: npt.NDArray[np.int64] = (z @ self.weight.T + self.bias).argmax(axis=1).astype(np.int64)
        return found


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

    def _loss(self, batch: Batch) -> Tensor:
        value: Tensor = self.loss(self._scores(batch.z), batch.labels)
        return value

    def _scores(self, z: Tensor) -> Tensor:
        return F.linear(z, self.linear.weight.to(z.dtype), self.linear.bias.to(z.dtype))


def save_head(path: Path, head: Head) -> str:
    """Write ``head`` to ``path`` as safetensors with its class names in the header; returns the file's hash."""
    tensors = {"weight": torch.from_numpy(head.weight), "bias": torch.from_numpy(head.bias)}
    save_tensors(path, tensors, {"classes": list(head.classes)})
    return hash_file(path)


def load_head(path: Path, digest: str) -> Head:
    """Read what `save_head` wrote.

    Raises:
        InputError: the file is missing, damaged, or not the one with the hash ``digest``.
    """
    tensors, header = load_tensors(path)
    if hash_file(path) != digest:
        raise InputError(f"{path} does not belong to this run: its hash differs; copy the run folder again")
    classes, weight, bias = header.get("classes"), tensors.get("weight"), tensors.get("bias")
    if isinstance(classes, list) and weight is not None and bias is not None:
        named = all(isinstance(name, str) for name in classes)
        if named and weight.ndim == 2 and bias.shape == weight.shape[:1] == (len(classes),):
            return Head(weight.float().numpy(), bias.float().numpy(), tuple(classes))
    raise InputError(f"{path} is damaged: its weights and its class names do not fit together")
