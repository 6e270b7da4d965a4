"""A gallery looked at by places, and the score of a pair: in float64, in one order of summation, rounded to float32."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nearfar.search.arithmetic import threads
from nearfar.search.vectors import Floats, Ints, Metric, unit_rows

_BLOCK = 1 << 18
"""Values scored together: 2 MiB as float64. Fewer, and threads wait for each other more than they do."""


@dataclass(frozen=True)
class Gallery:
    """The vectors that a search may find. A place is a number among these, a row one of the whole array."""

    vectors: Floats
    """All of them: [M, D]."""
    only: Ints | None = None
    """The rows that may be found, ascending; None for all."""
    scale: bool = False
    """Whether rows are divided by their lengths before they are compared."""

    def __len__(self) -> int:
        return len(self.vectors) if self.only is None else len(self.only)

    @property
    def dimensions(self) -> int:
        """D."""
        return self.vectors.shape[1]

    def between(self, start: int, end: int) -> Floats:
        """Return the vectors at the places ``start`` to ``end``: [n, D]."""
        if self.only is None:
            found = self.vectors[start:end]
        else:
            rows = self.only[start:end]
            # Rows without a gap, such as all that were there before others came, need not be copied.
            together = len(rows) > 0 and rows[-1] - rows[0] == len(rows) - 1
            found = self.vectors[rows[0] : rows[-1] + 1] if together else self.vectors[rows]
        return unit_rows(found, "gallery", start) if self.scale else found

    def at(self, places: Ints) -> Floats:
        """Return the vectors at ``places`` [n]: [n, D]."""
        rows = places if self.only is None else self.only[places]
        found = self.vectors[rows]
        if not self.scale:
            return found
        for empty in np.flatnonzero(~found.any(axis=1))[:1]:
            unit_rows(found[empty : empty + 1], "gallery", int(rows[empty]))  # which says what is wrong with that row
        return unit_rows(found, "gallery")

    def places_of(self, rows: Ints) -> Ints:
        """Return the place of each of ``rows`` [n], -1 where it is not to be found."""
        if self.only is None:
            return rows
        at = np.minimum(np.searchsorted(self.only, rows), len(self.only) - 1)
        return np.where(self.only[at] == rows, at, -1)


def spread_places(count: int, size: int) -> Ints:
    """Return ``size`` of ``count`` places (all, if fewer), ascending, from all over; the same at every call.

    One from each of so many equal stretches at random, since a gallery may be periodic.
    """
    size = min(size, count)
    edges = np.arange(size + 1) * count // size
    shifts = np.random.default_rng(0).random(size)
    return edges[:-1] + (shifts * np.diff(edges)).astype(np.int64)


def score_pairs(queries: Floats, gallery: Gallery, owners: Ints, places: Ints, metric: Metric) -> Floats:
    """Score pairs of a query and a place one by one: [m].

    Products of float32 are exact in float64, and their sum has one order; so a pair's score depends on nothing else.

    Args:
        queries: [N, D], in unit rows with "cosine".
        gallery: what ``places`` are in.
        owners: numbers of queries [m].
        places: [m].
        metric: "cosine", "dot" or "euclidean".
    """
    scores = np.empty(len(owners), dtype=np.float32)
    step = max(1, _BLOCK // gallery.dimensions)

    def some(first: int) -> None:
        part = slice(first, first + step)
        wide = queries[owners[part]].astype(np.float64)
        other = gallery.at(places[part])
        if metric == "euclidean":
            wide -= other
            wide *= wide
            scores[part] = np.sqrt(wide.sum(axis=1))
        else:
            wide *= other
            total = wide.sum(axis=1)
            scores[part] = np.clip(total, -1.0, 1.0) if metric == "cosine" else total

    starts = range(0, len(owners), step)
    workers = min(threads(), len(starts) // 8)  # to start threads takes as long as a few pieces
    if workers < 2:
        for first in starts:
            some(first)
    else:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(some, starts))
    return scores


def sort_keys(scores: Floats, places: Ints, metric: Metric) -> Ints:
    """Return one whole number for each (score, place) that is smaller where the vector is nearer, then the place lower.

    As integers in two's complement, floats keep their order once the negative ones are turned around.
    """
    bits = (scores if metric == "euclidean" else -scores).view(np.int32)
    turned = np.where(bits < 0, np.int32(-(2**31)) - bits, bits)
    return (turned.astype(np.int64) << 32) | places


def from_keys(keys: Ints, metric: Metric) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Return the scores and places of ``sort_keys``."""
    turned = (keys >> 32).astype(np.int32)
    bits = np.where(turned < 0, np.int32(-(2**31)) - turned, turned)
    scores = bits.view(np.float32)
    # Minus zero becomes zero.
    return (scores if metric == "euclidean" else -scores) + np.float32(0.0), keys & 0xFFFFFFFF
