"""What search and evaluation know about vectors: the three metrics, checked input, lengths and a centre.

Nothing here knows of images, labels or files, nor of PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from nearfar.errors import InputError, did_you_mean

Metric = Literal["cosine", "dot", "euclidean"]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

METRICS: tuple[str, ...] = get_args(Metric)

LARGEST = 1e15
"""Squares of larger float32 values come near the largest float32 there is, and distances would be infinite."""

_BLOCK = 1 << 22
"""Values looked at together where an array is checked or scaled by parts: 16 MiB of float32."""


def check_metric(metric: object) -> Metric:
    """Return ``metric`` if it is one of ``METRICS``.

    Raises:
        InputError: it is not; the nearest names are suggested.
    """
    if metric not in METRICS:
        raise InputError(f"metric is {metric!r}{did_you_mean(str(metric), METRICS)}")
    return cast("Metric", metric)


def check_k(k: object, rows: int, name: str = "k") -> int:
    """Return ``k`` as an int if it is a whole number from 1 to ``rows``, the neighbours there are.

    Raises:
        InputError: it is not.
    """
    if isinstance(k, bool) or not isinstance(k, int | np.integer):
        raise InputError(f"{name} is {k!r}, expected a whole number of neighbours")
    if not 1 <= k <= rows:
        raise InputError(f"{name} is {k}, expected 1 to {rows:,}, the number of vectors that can be found")
    return int(k)


def as_vectors(values: Any, name: str, *, dimensions: int | None = None, owner: str = "gallery") -> Floats:
    """Return ``values`` as a float32 array [N, D] in row order, copied only where that is needed.

    Args:
        values: numbers of shape [N, D] with N, D >= 1: a NumPy array or map, a CPU tensor, nested lists, a data frame.
        name: what an error calls them.
        dimensions: the D they must have, or None.
        owner: who it is that has this D, for the error.

    Raises:
        InputError: not numbers, not two axes, empty, another D, or NaN, infinite or larger than 1e15 (row named).
    """
    if hasattr(values, "toarray") and hasattr(values, "nnz"):
        raise InputError(f"{name} is sparse, expected a dense array; sparse input is not supported, call .toarray()")
    array = values if isinstance(values, np.ndarray) else np.asarray(values)
    if array.dtype.kind == "c":
        raise InputError(f"{name} holds complex numbers. Complex data not supported; expected real numbers")
    if array.ndim != 2:
        raise InputError(
            f"{name} has shape {array.shape}, expected [N, D]. Reshape your data: "
            f"values.reshape(1, -1) for one vector, values.reshape(-1, 1) for vectors of one number"
        )
    if array.shape[0] == 0 or array.shape[1] == 0:
        empty = "0 sample(s)" if array.shape[0] == 0 else "0 feature(s)"
        raise InputError(f"{name} is empty: {empty} (shape={array.shape}) while a minimum of 1 is required.")
    if dimensions is not None and array.shape[1] != dimensions:
        raise InputError(
            f"{name} has {array.shape[1]} features, but {owner} is expecting {dimensions} features as input; "
            f"embed both with the same model"
        )
    if array.dtype.kind not in "biuf":
        try:
            array = array.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise InputError(f"{name} has dtype {array.dtype}, expected numbers ({error})") from None
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, dtype=np.float32)
    for start, block in blocks(array):
        if not np.abs(block).max() <= LARGEST:
            row = start + int(np.flatnonzero(~(np.abs(block).max(axis=1) <= LARGEST))[0])
            raise InputError(f"{name} row {row:,} holds NaN, infinity or a value beyond 1e15, expected finite numbers")
    return array


def unit_rows(vectors: Floats, name: str, first: int = 0) -> Floats:
    """Return the rows of ``vectors`` [N, D] divided by their Euclidean length; those of unit length stay as they are.

    The length is taken in float64, and each row's result depends on that row alone. An error counts rows from ``first``.

    Raises:
        InputError: a row has length zero, so that its cosine with anything is undefined.
    """
    unit: Floats | None = None
    for start, block in blocks(vectors):
        lengths = np.sqrt(squared_lengths(block))
        if lengths.min() == 0.0:
            row = first + start + int(np.argmin(lengths))
            raise InputError(
                f"{name} row {row:,} is all zeros, and its cosine is undefined; leave such rows out, or use metric='euclidean'"
            )
        # A unit row in float32 is off by some 1e-8; to divide once more would only stir its last bits.
        if unit is None and np.abs(lengths - 1.0).max() > 1e-7:
            unit = np.array(vectors)
        if unit is not None:
            part = unit[start : start + len(block)]
            scale = np.where(np.abs(lengths - 1.0) > 1e-7, lengths, 1.0)
            np.divide(part, scale[:, None], out=part, casting="same_kind")
    return vectors if unit is None else unit


def squared_lengths(vectors: Floats) -> npt.NDArray[np.float64]:
    """Squared Euclidean length of each row of ``vectors`` [N, D], summed in float64 in one fixed order: [N]."""
    wide = vectors.astype(np.float64)
    wide *= wide
    return wide.sum(axis=1)


def centre_of(vectors: Floats) -> Floats:
    """Return a point [D] near the mean of ``vectors`` [N, D]: subtracted from them, it keeps distances and makes
    vectors short, so that float32 products lose little to cancellation.

    It is a multiple of a power of two near their spread: so few bits that the subtraction is mostly exact.
    """
    mean = vectors.mean(axis=0, dtype=np.float64)
    spread = float(vectors.std(axis=0, dtype=np.float64).max())
    if spread < 1e-30:
        return vectors[0].copy()
    grid = 2.0 ** round(math.log2(spread))
    return (np.round(mean / grid) * grid).astype(np.float32)


def group_size(width: int, k: int) -> int:
    """How many of ``width`` columns to put into a group, of which only maxima are compared, where the ``k`` largest are wanted.

    The work is about width / size + k size comparisons. 1 where groups would spare none.
    """
    return 1 << max(0, round(math.log2(math.sqrt(width / k)))) if width > 8 * k else 1


def blocks(array: Floats) -> Iterator[tuple[int, Floats]]:
    """Yield (first row, rows) through ``array`` [N, D] by parts of some 16 MiB."""
    step = max(1, _BLOCK // array.shape[1])
    for start in range(0, len(array), step):
        yield start, array[start : start + step]
