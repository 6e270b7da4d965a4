"""What search computes with PyTorch: the fastest float32 and bfloat16 products, and the largest numbers of each row.

Whatever imports this imports PyTorch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nearfar.search.vectors import group_size


def as_tensor(array: npt.NDArray[Any]) -> Tensor:
    """Return a tensor on the memory of ``array``, for reading only."""
    _accept_read_only_arrays()
    return torch.from_numpy(array)


@cache
def _accept_read_only_arrays() -> None:
    """Let PyTorch say, unheard, what it says once: that a read-only array could be written to. We only read."""
    array = np.zeros(1, dtype=np.float32)
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.from_numpy(array)


def products(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``a @ b.T + bias``: a [M, D], b [N, D], bias [N] or None; float32 gives float32 [M, N].

    oneDNN's kernel is used where the build of PyTorch has it: on AMD processors it is more than twice as fast as the
    one behind ``torch.mm`` and as exact (float32 throughout), and it is never slower elsewhere by much.
    """
    fast = _onednn_linear()
    if fast is not None and a.dtype == torch.float32:
        return fast(a, b, bias, "none", [], "")
    return a @ b.T if bias is None else torch.addmm(bias, a, b.T)


def narrow_products(a: Tensor, b: Tensor, bias: Tensor) -> Tensor:
    """Return ``a @ b.T + bias`` of bfloat16 a [M, D] and b [N, D] and float32 bias [N], rounded once, to bfloat16 [M, N].

    Sums are taken in float32. Where not ``has_narrow_products``, so is everything else: as exact, but not fast.
    """
    fast = _onednn_narrow_linear()
    if fast is not None:
        return fast(a, b, bias, "none", [], "")
    return torch.addmm(bias, a.float(), b.float().T).bfloat16()


def has_narrow_products() -> bool:
    """Whether this processor multiplies bfloat16 in hardware, and PyTorch then adds a float32 bias before it rounds."""
    return _onednn_narrow_linear() is not None


@cache
def _onednn_narrow_linear() -> Callable[..., Tensor] | None:
    # No public name says what the processor can do; without these the slower way is taken.
    able = any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    linear = _onednn_linear()
    if not able or linear is None:
        return None
    one = torch.tensor([[-1.0, 0.0]], dtype=torch.bfloat16)
    tiny = linear(one, one.abs(), torch.tensor([1.0 + 2.0**-20]), "none", [], "")
    return linear if bool(tiny == 2.0**-20) else None


@cache
def _onednn_linear() -> Callable[..., Tensor] | None:
    """Return oneDNN's linear layer if this build of PyTorch has it and it multiplies in full float32, else None."""
    try:
        linear: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise.default
        ones = torch.full((2, 3), 1.0 + 2.0**-20)
        exact = torch.full((2, 2), 3.0 * (1.0 + 2.0**-20))
        return linear if torch.equal(linear(ones, torch.ones(2, 3), None, "none", [], ""), exact) else None
    except (AttributeError, RuntimeError):
        return None


def largest(tile: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the ``k`` largest values of each row of ``tile`` [N, M] and their columns, both [N, k], in no order.

    ``topk`` over whole rows is slow. The k largest lie in the k groups of columns with the largest maxima, since each
    of the other groups has k values before it; maxima are found at the speed of memory.
    """
    count, width = tile.shape
    size = group_size(width, k)
    if size == 1:
        return tile.topk(k, dim=1, sorted=False)
    groups = width // size
    # Group j holds the columns j, j + groups, j + 2 groups, ...: a maximum over an outer axis runs vector by vector.
    head = tile[:, : groups * size].unflatten(1, (size, groups))
    _, chosen = head.amax(dim=1).topk(k, dim=1, sorted=False)
    values = head.gather(2, chosen[:, None, :].expand(count, size, k)).reshape(count, size * k)
    rest = tile[:, groups * size :]
    best, at = torch.cat([values, rest], dim=1).topk(k, dim=1, sorted=False)
    inside = torch.where(at < size * k, at, torch.zeros_like(at))
    columns = torch.div(inside, k, rounding_mode="floor") * groups + chosen.gather(1, inside % k)
    return best, torch.where(at < size * k, columns, at - size * k + groups * size)
