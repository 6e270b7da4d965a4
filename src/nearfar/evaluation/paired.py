"""By how much does one model do better than another, when both answer the same queries?"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nearfar.errors import InputError
from nearfar.evaluation.bootstrap import LEVEL

Wide = npt.NDArray[np.float64]

_BLOCK = 1 << 22


class PairedDifference(NamedTuple):
    """The mean of one model's values less another's, over the seeds that both have and all queries."""

    mean: float
    low: float
    high: float
    by_seed: tuple[float, ...]  # the mean over the queries, seed by seed


def paired_differences(
    values: Mapping[str, npt.ArrayLike], *, samples: int = 2000, level: float = LEVEL, seed: int = 0
) -> dict[tuple[str, str], PairedDifference]:
    """Compare every two models, query by query and seed by seed, with a percentile interval of the mean difference.

    What could have come out otherwise are the queries and the trainings. Each sample therefore draws both anew, with
    replacement and apart from each other: queries, the same for all models, and seeds, the same for both models of a pair
    (the pigeonhole bootstrap, Owen 2007). With one seed only the queries are drawn, and the interval says nothing of how
    another training would end.

    Args:
        values: by model, each query's value in each training [S, N], row s trained with the same seed and images for all
            models; a row of NaN where a model has no such training.
        samples: how many times to draw.
        level: how much of the samples the interval holds, its ends cutting off equal shares.
        seed: the same seed gives the same intervals.

    Returns:
        By (first, second), in the order of ``values``: positive where the first does better. Pairs without a common seed
        are left out.

    Raises:
        InputError: shapes differ or are empty, a row is NaN in part, a number of samples below 1, a level outside (0, 1).
    """
    tables = {name: np.asarray(table, dtype=np.float64) for name, table in values.items()}
    shapes = {table.shape for table in tables.values()}
    if not tables or len(shapes) != 1 or len(next(iter(shapes))) != 2 or 0 in next(iter(shapes)):
        raise InputError(f"values have the shapes {sorted(shapes)}, expected the same [seeds, queries] for every model")
    if samples < 1:
        raise InputError(f"samples is {samples}, expected at least 1")
    if not 0.0 < level < 1.0:
        raise InputError(f"level is {level}, expected between 0 and 1")
    names, stacked = list(tables), np.stack(list(tables.values()))  # [models, S, N]
    missing = np.isnan(stacked)
    there = ~np.isnan(stacked[:, :, 0])  # [models, S]
    if (missing != ~there[:, :, None]).any():
        raise InputError("values has a row that is NaN in part; a training has a value for every query, or none at all")
    generator = np.random.default_rng(seed)
    drawn = _means_of_draws(np.where(missing, 0.0, stacked), samples, generator)  # [samples, models, S]
    means = np.where(missing, 0.0, stacked).mean(axis=2)
    tails = [(1.0 - level) / 2.0, (1.0 + level) / 2.0]
    found = {}
    for a, b in itertools.combinations(range(len(names)), 2):
        common = np.flatnonzero(there[a] & there[b])
        if not len(common):
            continue
        by_seed = means[a, common] - means[b, common]
        gaps = drawn[:, a, common] - drawn[:, b, common]  # [samples, common]
        chosen = generator.integers(0, len(common), size=gaps.shape)
        low, high = np.quantile(np.take_along_axis(gaps, chosen, axis=1).mean(axis=1), tails).tolist()
        mean = float(by_seed.mean())
        # Where all draws are equal, rounding must not put the mean outside.
        found[names[a], names[b]] = PairedDifference(mean, min(low, mean), max(high, mean), tuple(by_seed.tolist()))
    return found


def _means_of_draws(values: npt.NDArray[np.float64], samples: int, generator: np.random.Generator) -> Wide:
    """The mean of ``values`` [models, S, N] over each draw of N queries: [samples, models, S]."""
    models, seeds, count = values.shape
    columns = values.reshape(models * seeds, count).T
    means = np.empty((samples, models * seeds))
    for start in range(0, samples, step := max(1, _BLOCK // count)):
        size = min(step, samples - start)
        draws = generator.integers(0, count, size=(size, count))
        draws += np.arange(size)[:, None] * count
        weights = np.bincount(draws.ravel(), minlength=size * count).reshape(size, count)
        means[start : start + size] = weights.astype(np.float64) @ columns / count
    return means.reshape(samples, models, seeds)
