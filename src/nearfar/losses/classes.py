"""Sums over the rows of each class: what a row's positives add up to, without looking at any pair."""

from __future__ import annotations

import torch
from torch import Tensor

from nearfar.losses.base import Batch


def class_members(batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Number the classes of the keys.

    Returns:
        The classes' labels, the class of each key ``[K]``, that of each row ``[B]``, and whether the keys know it ``[B]``
        (where they do not, the number of the row means nothing).
    """
    classes, of_keys = torch.unique(batch.key_labels, return_inverse=True)
    if batch.symmetric:
        return classes, of_keys, of_keys, torch.ones_like(of_keys, dtype=torch.bool)
    of_rows = torch.searchsorted(classes, batch.labels).clamp_(max=max(len(classes) - 1, 0))
    known = classes[of_rows] == batch.labels if len(classes) else torch.zeros_like(of_rows, dtype=torch.bool)
    return classes, of_keys, of_rows, known


def class_sums(rows: Tensor, classes: Tensor, count: int, weights: Tensor | None = None) -> Tensor:
    """Sum the rows of each class, ``[count, D]``, with a weight for each row if given."""
    # Thousands of rows added one by one lose digits in float32; for few rows a class wide sums are not worth it.
    wide = torch.float64 if len(rows) > 64 * count else rows.dtype
    sums = torch.zeros(count, rows.shape[1], dtype=wide, device=rows.device)
    for span in chunks(len(rows)):
        part = rows[span].to(wide)
        if weights is not None:
            part = part * weights[span, None]
        sums.index_add_(0, classes[span], part)
    return sums.to(rows.dtype)


def chunks(count: int, size: int = 1024) -> list[slice]:
    """Cut a long range, so that what is made of its rows stays small."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
