"""A linear classifier on top of an embedding: what a run keeps of it, and what it says.

Knows embeddings and class names; never images or encoders, nor how it is trained (`nearfar.training.headloss`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nearfar.errors import InputError
from nearfar.files import hash_file
from nearfar.tensorfile import load_arrays, save_arrays

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


def save_head(path: Path, head: Head) -> str:
    """Write ``head`` to ``path`` as safetensors with its class names in the header; returns the file's hash."""
    save_arrays(path, {"weight": head.weight, "bias": head.bias}, {"classes": list(head.classes)})
    return hash_file(path)


def load_head(path: Path, digest: str) -> Head:
    """Read what `save_head` wrote.

    Raises:
        InputError: the file is missing, damaged, or not the one with the hash ``digest``.
    """
    arrays, header = load_arrays(path)
    if hash_file(path) != digest:
        raise InputError(f"{path} does not belong to this run: its hash differs; copy the run folder again")
    classes, weight, bias = header.get("classes"), arrays.get("weight"), arrays.get("bias")
    if isinstance(classes, list) and weight is not None and bias is not None:
        named = all(isinstance(name, str) for name in classes)
        if named and weight.ndim == 2 and bias.shape == weight.shape[:1] == (len(classes),):
            return Head(weight.astype(np.float32), bias.astype(np.float32), tuple(classes))
    raise InputError(f"{path} is damaged: its weights and its class names do not fit together")
