"""How sure is a figure? Percentile intervals from resampled queries (Efron 1979)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from nearfar.errors import InputError

LEVEL = 0.95
_BLOCK = 1 << 22


def bootstrap_intervals(
    values: Mapping[str, npt.NDArray[np.float64]], *, samples: int = 1000, level: float = LEVEL, seed: int = 0
) -> dict[str, tuple[float, float] | None]:
    """Return the interval in which the mean of each figure lies when queries are drawn anew.

    Each sample draws as many queries as there are, with replacement; how often each was drawn are multinomial weights,
    the same for all figures, and the sample's means are one product of matrices.

    Args:
        values: each query's value by figure, [N] all; NaN for a query that a figure leaves out.
        samples: how many times to draw.
        level: how much of the samples the interval holds, its ends cutting off equal shares.
        seed: the same seed gives the same intervals.

    Returns:
        (low, high) by figure; None where no query has a value.

    Raises:
        InputError: unequal lengths, no query, a number of samples below 1, or a level outside (0, 1).
    """
    if not values:
        return {}
    lengths = {len(each) for each in values.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise InputError(f"values have {sorted(lengths)} entries, expected as many for each figure, and at least one")
    if samples < 1:
        raise InputError(f"samples is {samples}, expected at least 1")
    if not 0.0 < level < 1.0:
        raise InputError(f"level is {level}, expected between 0 and 1")
    count = lengths.pop()
    table = np.stack(list(values.values()), axis=1)  # [N, figures]
    there = ~np.isnan(table)
    columns = np.concatenate([np.where(there, table, 0.0), there], axis=1)
    generator = np.random.default_rng(seed)
    sums = np.empty((samples, columns.shape[1]))
    for start in range(0, samples, step := max(1, _BLOCK // count)):
        size = min(step, samples - start)
        draws = generator.integers(0, count, size=(size, count))
        draws += np.arange(size)[:, None] * count
        weights = np.bincount(draws.ravel(), minlength=size * count).reshape(size, count)
        sums[start : start + size] = weights.astype(np.float64) @ columns
    figures = len(values)
    totals, weight = sums[:, :figures], sums[:, figures:]
    means = np.divide(totals, weight, out=np.full(totals.shape, np.nan), where=weight > 0.0)
    tails = [(1.0 - level) / 2.0, (1.0 + level) / 2.0]
    result: dict[str, tuple[float, float] | None] = {}
    for column, name in enumerate(values):
        drawn = means[:, column][~np.isnan(means[:, column])]
        low, high = np.quantile(drawn, tails).tolist() if len(drawn) else (np.nan, np.nan)
        result[name] = (low, high) if len(drawn) else None
    return result
