"""The steps of exact search that cost time, on arrays: by PyTorch where the process has loaded it, else by NumPy.

PyTorch's are faster and use every core. But to import it takes seconds and hundreds of megabytes, which a process that only
searches need not pay. What is found does not depend on it: the steps give candidates with a bound on their error, and each
is scored anew (``nearfar.search.scoring``).
"""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from nearfar.cores import cores
from nearfar.search.vectors import Ints, group_size

Reals = npt.NDArray[np.floating[Any]]


def has_torch() -> bool:
    """Whether this process has loaded PyTorch."""
    return "torch" in sys.modules


def threads() -> int:
    """How many threads to spread work over: as many as PyTorch computes with, or the cores that this process may use."""
    if has_torch():
        import torch

        return torch.get_num_threads()
    most = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores(), int(most)) if most.isdecimal() and int(most) else cores()


def products(a: Reals, b: Reals, bias: Reals | None = None) -> Reals:
    """Return ``a @ b.T + bias``: a [M, D], b [N, D], bias [N] or None, all of one type, which the result has: [M, N]."""
    if has_torch():
        from nearfar.search import tensors

        own = None if bias is None else tensors.as_tensor(bias)
        of_torch: Reals = tensors.products(tensors.as_tensor(a), tensors.as_tensor(b), own).numpy()
        return of_torch
    tile: Reals = a @ b.T
    if bias is not None:
        tile += bias
    return tile


def squares(vectors: Reals) -> Reals:
    """Squared lengths of the rows of ``vectors`` [N, D], in their own type: [N]."""
    if has_torch():
        import torch

        from nearfar.search.tensors import as_tensor

        wide = as_tensor(vectors)
        found: Reals = torch.linalg.vecdot(wide, wide).numpy()
        return found
    plain: Reals = np.einsum("nd,nd->n", vectors, vectors)
    return plain


def reached(tile: Reals, least: Reals) -> tuple[Ints, Ints]:
    """Return the rows and columns of ``tile`` [N, M] that are at least ``least`` [N], in order of rows."""
    if has_torch():
        from nearfar.search.tensors import as_tensor

        rows, columns = (as_tensor(tile) >= as_tensor(least)[:, None]).nonzero(as_tuple=True)
        return rows.numpy(), columns.numpy()
    at, across = np.nonzero(tile >= least[:, None])
    return at, across


def largest(tile: Reals, k: int) -> tuple[Reals, Ints]:
    """Return the ``k`` largest values of each row of ``tile`` [N, M] and their columns, both [N, k], in no order.

    The k largest lie in the k groups of columns with the largest maxima, since each of the other groups has k values
    before it; maxima are found at the speed of memory.
    """
    if has_torch():
        from nearfar.search import tensors

        best, where = tensors.largest(tensors.as_tensor(tile), k)
        return best.numpy(), where.numpy()
    count, width = tile.shape
    size = group_size(width, k)
    if size == 1:
        return _top(tile, k)
    groups = width // size
    head = tile[:, : groups * size].reshape(count, size, groups)  # group j: the columns j, j + groups, j + 2 groups, ...
    _, chosen = _top(head.max(axis=1), k)
    inside = (np.arange(size)[:, None] * groups + chosen[:, None, :]).reshape(count, size * k)
    rest = np.broadcast_to(np.arange(groups * size, width), (count, width - groups * size))
    columns = np.concatenate([inside, rest], axis=1)
    values, at = _top(np.take_along_axis(tile, columns, axis=1), k)
    return values, np.take_along_axis(columns, at, axis=1)


def _top(tile: Reals, k: int) -> tuple[Reals, Ints]:
    width = tile.shape[1]
    at: Ints = np.argpartition(tile, width - k, axis=1)[:, width - k :]
    return np.take_along_axis(tile, at, axis=1), at
