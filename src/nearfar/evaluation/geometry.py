"""How an embedding lies in space: classes near and far, directions in use, evenness on the sphere.

All but ``effective_rank`` look at directions: rows scaled to unit length (a row of zeros stays zero, and has cosine 0
with everything). Means over pairs come from sums of classes, never from a matrix of all pairs.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from nearfar.errors import InputError
from nearfar.evaluation.clustering import class_sums
from nearfar.search.tensors import as_tensor, products
from nearfar.search.vectors import Floats, as_vectors, blocks, squared_lengths

Codes = npt.NDArray[np.int64]
Wide = npt.NDArray[np.float64]

UNIFORMITY_SAMPLE = 20_000
_TILE = 1 << 22


def geometry_figures(vectors: Any, labels: Codes, classes: int, *, seed: int = 0) -> dict[str, Any]:
    """Describe how ``vectors`` [N, D] with ``labels`` [N], numbers from 0 to ``classes`` - 1, lie in space.

    Returns:
        ``within`` and ``between`` (mean cosine over pairs of different rows of one class, and of two), ``matrix``
        (class by class), ``effective_rank``, ``alignment``, ``uniformity`` (of at most 20,000 rows, drawn by ``seed``);
        None where there is no such pair.

    Raises:
        InputError: shapes do not fit, NaN, or a label that is no class.
    """
    points = as_vectors(vectors, "vectors")
    labels = np.asarray(labels)
    if labels.shape != (len(points),):
        raise InputError(f"labels has shape {labels.shape}, vectors has {len(points):,} rows")
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(f"labels holds {labels.min()} to {labels.max()}, expected numbers of {classes} classes")
    unit = directions(points)
    sample = np.arange(len(unit))
    if len(unit) > UNIFORMITY_SAMPLE:
        sample = np.random.default_rng(seed).permutation(len(unit))[:UNIFORMITY_SAMPLE]
    sums, pairs = cosine_sums(unit, labels, classes)
    diagonal = np.eye(classes, dtype=bool)
    within = _mean(sums[diagonal].sum(), pairs[diagonal].sum())
    means = np.divide(sums, pairs, out=np.full(sums.shape, np.nan), where=pairs > 0)
    return {
        "within": within,
        "between": _mean(sums[~diagonal].sum(), pairs[~diagonal].sum()),
        "effective_rank": effective_rank(points),
        "alignment": alignment(unit, labels),
        "uniformity": uniformity(unit[sample]),
        "matrix": [[None if math.isnan(value) else value for value in row] for row in means.tolist()],
    }


def directions(vectors: Floats) -> Floats:
    """Return the rows of ``vectors`` [N, D] at unit length, zeros left as they are."""
    result = np.array(vectors)
    for start, block in blocks(vectors):
        lengths = np.sqrt(squared_lengths(block))
        result[start : start + len(block)] = block / np.where(lengths > 0.0, lengths, 1.0)[:, None]
    return result


def cosine_sums(unit: Floats, labels: Codes, classes: int) -> tuple[Wide, Wide]:
    """Sum the products of all ordered pairs of different rows, class by class.

    Args:
        unit: [N, D]; with rows of unit length the products are cosines.
        labels: [N].
        classes: how many there are.

    Returns:
        The sums and the numbers of pairs, both [classes, classes], pairs of a row with itself left out.
    """
    totals = class_sums(unit, labels, classes)  # [classes, D]: the sum over pairs is the product of the sums
    counts = np.bincount(labels, minlength=classes).astype(np.float64)
    own = np.bincount(labels, weights=_squares(unit), minlength=classes)
    return totals @ totals.T - np.diag(own), np.outer(counts, counts) - np.diag(counts)


def effective_rank(vectors: Floats) -> float:
    """exp of the entropy of the singular values as shares of their sum (Roy, Vetterli 2007): 1 to min(N, D).

    The matrix is taken as it is, not centred. All zeros have rank 0.
    """
    wide_gram = np.zeros((vectors.shape[1], vectors.shape[1]))
    if len(vectors) < vectors.shape[1]:
        wide = vectors.astype(np.float64)
        wide_gram = wide @ wide.T
    else:
        for _, block in blocks(vectors):
            wide = block.astype(np.float64)
            wide_gram += wide.T @ wide
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(wide_gram), 0.0))
    # Squaring the singular values costs half of the digits: what lies below is rounding, not rank.
    values = values[values > values.max() * math.sqrt(len(values) * 2.0**-52)]
    if len(values) == 0:
        return 0.0
    shares = values / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def alignment(unit: Floats, labels: Codes) -> float | None:
    """Mean squared distance of pairs of one class (Wang, Isola 2020, with exponent 2): 0 to 4, smaller is nearer.

    Args:
        unit: [N, D].
        labels: [N].

    Returns:
        None where no class has two rows.
    """
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    totals = class_sums(unit, codes, len(counts))
    squares = np.bincount(codes, weights=_squares(unit))
    # The sum of |a - b|^2 over all ordered pairs of a class of n is 2 n sum |a|^2 - 2 |sum a|^2.
    gaps = 2.0 * (counts * squares - (totals * totals).sum(axis=1)).sum()
    return _mean(max(float(gaps), 0.0), float((counts * (counts - 1)).sum()))


def uniformity(unit: Floats, t: float = 2.0) -> float | None:
    """Log of the mean of exp(-t |a - b|^2) over all pairs of different rows (Wang, Isola 2020): -4t to 0, smaller is
    more even.

    Args:
        unit: [N, D]; needs time N^2 and memory for a tile.
        t: the paper's parameter.

    Returns:
        None for a single row.
    """
    count = len(unit)
    if count < 2:
        return None
    rows = as_tensor(unit)
    half = torch.linalg.vecdot(rows, rows)
    total = 0.0
    for start in range(0, count, step := max(1, _TILE // count)):
        # Pairs are unordered: from the diagonal block on, each is met once.
        part = rows[start : start + step]
        tile = products(2.0 * t * part, rows[start:], -t * half[start:])
        tile -= t * half[start : start + step, None]
        tile.clamp_(max=0.0).exp_()
        size = len(part)
        square = tile[:, :size]
        total += float(tile[:, size:].sum(dtype=torch.float64))
        total += float(square.triu(diagonal=1).sum(dtype=torch.float64))
    return math.log(total / (count * (count - 1) / 2.0)) if total > 0.0 else None


def _squares(vectors: Floats) -> Wide:
    return np.concatenate([squared_lengths(block) for _, block in blocks(vectors)])


def _mean(total: float, count: float) -> float | None:
    return float(total / count) if count > 0 else None
