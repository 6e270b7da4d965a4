"""Labels checked and ordered by class, and the streams of random numbers: what all samplers and splits stand on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearfar.errors import InputError, did_you_mean

Rows = NDArray[np.int64]
Flags = NDArray[np.bool_]

ORDER, PARTNERS, SPLIT, CAPTIONS = range(4)  # streams of random numbers: what is drawn for one never moves the others


class ByClass:
    """The labelled rows, ordered by class: rows[starts[c] : starts[c] + counts[c]] are those of class numbers[c]."""

    def __init__(self, labels: ArrayLike) -> None:
        values = check_vector("labels", labels)
        if values.size and values.min() < -1:
            row = int(values.argmin())
            raise InputError(f"labels holds {values[row]} in row {row}; expected class numbers, or -1 for unlabelled")
        labelled = np.flatnonzero(values >= 0)
        if not labelled.size:
            raise InputError("labels has no labelled row; this needs labels (plain shuffling does not)")
        self.n = len(values)
        self.numbers, codes, self.counts = np.unique(values[labelled], return_inverse=True, return_counts=True)
        # NumPy sorts 16-bit integers by radix, ten times faster than wider ones.
        self.codes = codes.astype(np.int16 if len(self.numbers) <= np.iinfo(np.int16).max else np.int64)
        self.labelled = labelled
        self.rows = labelled[np.argsort(self.codes, kind="stable")]
        self.starts = np.cumsum(self.counts) - self.counts

    def require_two(self, purpose: str, names: Sequence[str] | None) -> None:
        if len(self.numbers) < 2:
            raise InputError(f"labels has one class only ({name_class(self.numbers[0], names)}); {purpose} need at least two")

    def shuffled(self, random: np.random.Generator) -> Rows:
        """As ``rows``, in random order within each class."""
        order = random.permutation(len(self.labelled))
        return self.labelled[order[np.argsort(self.codes[order], kind="stable")]]

    def stratify(self, random: np.random.Generator) -> tuple[Rows, Rows, Rows, NDArray[np.float64]]:
        """Rows by class in random order; each one's rank in its class, its class's size, and a priority in [0, 1).

        The rows of lowest priority hold each class in proportion to within one image: systematic sampling with a random
        start for each class.
        """
        rows = self.shuffled(random)
        rank = np.arange(len(rows)) - np.repeat(self.starts, self.counts)
        count = np.repeat(self.counts, self.counts)
        start = np.repeat(random.random(len(self.numbers)), self.counts)
        return rows, rank, count, (rank + start) / count


def stream(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def check_vector(what: str, values: ArrayLike) -> Rows:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise InputError(f"{what} has shape {array.shape} and type {array.dtype}; expected a vector of integers")
    return array.astype(np.int64, copy=False)


def check_integer(what: str, value: int, *, least: int) -> int:
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer) or value < least:
        raise InputError(f"{what} is {value!r}; expected a whole number of at least {least}")
    return int(value)


def check_choice(what: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise InputError(f"{what} is {value!r}{did_you_mean(str(value), known)}")
    return value


def name_class(number: int, names: Sequence[str] | None) -> str:
    return f"class {names[number]!r}" if names is not None else f"class {number}"


def describe_classes(numbers: Rows, names: Sequence[str] | None) -> str:
    """ "class 'a' has", or "class 'a' and 3 more have", for the start of a message."""
    first = name_class(int(numbers[0]), names)
    return f"{first} has" if len(numbers) == 1 else f"{first} and {len(numbers) - 1:,} more have"
