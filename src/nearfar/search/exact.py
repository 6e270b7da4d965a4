"""Exact nearest neighbours: candidates by products of matrices, with a bound on their error, and each scored anew.

Pure functions on arrays; nothing here knows of labels, files or images. What is found, scores and order alike, depends
neither on the tiles nor on the way it was found: candidates are scored one by one, in float64 with one fixed order of
summation, rounded to float32, and ordered by (score, row).

Many queries in a large gallery are done in bulk (``nearfar.search.bulk``): candidates by bfloat16, where the processor
has it, and by float32 for queries of which bfloat16 leaves too many. Few queries, small galleries, large k, a process
that has not loaded PyTorch, and what bulk search leaves over, go this way:

1. The score of every pair is found by float32 matrix products, a tile of queries by a chunk of the gallery at a time.
   Of each group of some 32 columns the largest is taken. The best k lie within the k groups of largest maxima, so
   only these are looked into. The k best and a few more are kept for each query, and scored anew.
2. A query is certain when even the greatest possible rounding error could not lift a vector that was not kept above
   its k-th neighbour. The others (near duplicates, collapsed embeddings) go through the gallery again in float64,
   where every vector that may still belong to the best k is scored anew.

Memory beside the result: a tile of 16 MiB and its like, one chunk of the gallery (as float64 in step 2), and 24 bytes
for each of the (k + max(8, k / 4)) candidates of a query. Clusters, looked for where many queries meet up to two million
vectors, take 17 bytes a vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nearfar.errors import InputError
from nearfar.search.arithmetic import Reals, has_torch, largest, products, reached, squares
from nearfar.search.scoring import Gallery, from_keys, score_pairs, sort_keys, spread_places
from nearfar.search.vectors import (
    Floats,
    Ints,
    Metric,
    as_vectors,
    centre_of,
    check_k,
    check_metric,
    squared_lengths,
    unit_rows,
)

if TYPE_CHECKING:
    from nearfar.search.bulk import Candidates

Wide = npt.NDArray[np.float64]

_TILE = 1 << 22
"""Scores computed together: 16 MiB of float32, which shared caches hold."""
_CHUNK = 1 << 16
"""Rows of the gallery gone through together."""
_WIDE_CHUNK = 1 << 13
"""The same in float64, where a query is looked at again."""
_MANY_QUERIES, _MANY_ROWS, _FEW = 64, 1 << 13, 256
"""From how many queries and rows on, and up to which k, a search is done in bulk."""
_CELL_QUERIES, _CELL_ROWS = 2000, 1 << 21
"""From how many queries on clusters are looked for, and in how many rows at most: the gallery is gone through for it."""
_WIDE, _SOME_QUERIES = 512, 512
"""From how many numbers a vector is wide, and below how many queries there are only some: float32 gains nothing in bulk."""
_BULK = 1 << 16
"""Queries done in bulk together: their candidates are kept at one time."""
_UNIT = 2.0**-24
"""The unit roundoff of float32."""


class Lengths(NamedTuple):
    """What a search by distances or products needs of the whole gallery beside its vectors; for one that is searched often."""

    centre: Floats | None  # [D], which is subtracted from the vectors first; None: nothing is
    squares: Floats  # squared lengths of the vectors less the centre: [M]
    longest: float  # no length of these is greater


def nearest(queries: Any, gallery: Any, k: int, *, metric: Metric = "cosine", exclude: Any = None) -> tuple[Floats, Ints]:
    """Return the ``k`` nearest rows of ``gallery`` for each query, exactly.

    Args:
        queries: numbers [N, D].
        gallery: numbers [M, D]; a float32 memory map is read chunk by chunk and never as a whole.
        k: how many neighbours, 1 to M (M - 1 with ``exclude``).
        metric: "cosine", "dot" (both: greater is nearer) or "euclidean" (a distance: smaller is nearer).
        exclude: row numbers of the gallery [N]; that row is never a neighbour of that query. -1 excludes nothing.

    Returns:
        ``scores`` float32 [N, k], the nearest first, and ``rows`` int64 [N, k]. Equal scores are in order of rows,
        also where they compete for the last place. Cosines are products of rows scaled to unit length in float32.

    Raises:
        InputError: empty or unequal shapes, NaN, a zero vector with cosine, a k that cannot be had.
    """
    metric = check_metric(metric)
    gallery = as_vectors(gallery, "gallery")
    queries = as_vectors(queries, "queries", dimensions=gallery.shape[1])
    if metric == "cosine":
        queries = unit_rows(queries, "queries")
    rows = None if exclude is None else check_exclude(exclude, len(queries), len(gallery))
    k = check_k(k, neighbours_to_find(len(gallery), rows))
    return nearest_prepared(queries, gallery, k, metric, rows, scale=metric == "cosine")


def check_exclude(exclude: Any, queries: int, rows: int) -> Ints:
    """Return ``exclude`` as int64 [queries], each -1 (none) or a row below ``rows``.

    Raises:
        InputError: another shape, not whole numbers, or no such row.
    """
    array = np.asarray(exclude)
    if array.shape != (queries,) or array.dtype.kind not in "iu":
        raise InputError(
            f"exclude has shape {array.shape} and dtype {array.dtype}, expected whole numbers of shape ({queries},), "
            f"one for each query"
        )
    if array.size and (array.min() < -1 or array.max() >= rows):
        raise InputError(f"exclude names a row outside 0 to {rows - 1:,} (or -1 for none)")
    return array.astype(np.int64)


def neighbours_to_find(rows: int, exclude: Ints | None) -> int:
    """Return how many neighbours every query has: all ``rows``, or one less when a query excludes one."""
    return rows - int(exclude is not None and bool((exclude >= 0).any()))


def nearest_prepared(
    queries: Floats,
    gallery: Floats,
    k: int,
    metric: Metric,
    exclude: Ints | None = None,
    *,
    scale: bool = False,
    rows: Ints | None = None,
    lengths: Callable[[], Lengths] | None = None,
) -> tuple[Floats, Ints]:
    """Do the work of ``nearest`` on checked arrays.

    With "cosine" the queries have unit length already, and the gallery too unless ``scale`` asks to divide its rows.
    ``rows`` [m], distinct and ascending, are the only rows of the gallery that are found; they are copied chunk by
    chunk. ``k`` must be at most their number, less one where a query excludes one of them. ``lengths`` gives what
    `lengths_of` found of the whole gallery; it is asked for where few queries make it worth while.
    """
    places = Gallery(gallery, rows, scale)
    if exclude is not None:
        exclude = places.places_of(exclude)
    if len(queries) >= _MANY_QUERIES and len(places) >= _MANY_ROWS and k <= _FEW and has_torch():
        scores, found = _in_bulk(queries, places, k, metric, exclude)
    else:
        known = lengths() if lengths is not None and rows is None and metric != "cosine" else None
        scores, found = _Search(queries, places, k, metric, exclude, known).run()
    return scores, found if rows is None else rows[found]


def lengths_of(gallery: Floats, metric: Metric) -> Lengths:
    """Measure a gallery [M, D] for `nearest_prepared`, chunk by chunk; "dot" or "euclidean"."""
    search = _Search(gallery[:0], Gallery(gallery), 1, metric, None)
    found = np.empty(len(gallery), dtype=np.float32)
    for start in range(0, len(gallery), _CHUNK):
        found[start : start + _CHUNK] = search.measured(search.keys_from(start))
    return Lengths(search.centre, found, search.longest)


def _in_bulk(queries: Floats, gallery: Gallery, k: int, metric: Metric, exclude: Ints | None) -> tuple[Floats, Ints]:
    """Find the k nearest by candidates in bfloat16; in float32 where these were too many; one by one where still so.

    Cells leave so few products to be made that to score the candidates of bfloat16 would cost more than float32 does.
    With neither cells nor bfloat16 wide vectors and some hundreds of queries gain nothing in bulk.
    """
    from nearfar.search.bulk import find_candidates
    from nearfar.search.cells import make_cells
    from nearfar.search.tensors import has_narrow_products

    scores = np.empty((len(queries), k), dtype=np.float32)
    places = np.empty((len(queries), k), dtype=np.int64)
    centre = _bulk_centre(gallery, metric)
    clustered = len(queries) >= _CELL_QUERIES and len(gallery) <= _CELL_ROWS
    cells = make_cells(queries, gallery, metric) if clustered else None
    ways: tuple[bool, ...] = (True, False) if cells is None and has_narrow_products() else (False,)
    if cells is None and not has_narrow_products() and (gallery.dimensions >= _WIDE or len(queries) < _SOME_QUERIES):
        ways = ()
    for first in range(0, len(queries), _BULK):
        left = np.arange(first, min(first + _BULK, len(queries)))
        for narrow in ways:
            if len(left) < _MANY_QUERIES:
                break
            some, own = queries[left], None if exclude is None else exclude[left]
            near = None if cells is None else cells._replace(home=cells.home[left])
            found = find_candidates(some, gallery, k, metric, own, narrow=narrow, centre=centre, cells=near)
            settled = np.delete(left, found.unsettled)
            scores[settled], places[settled] = _best_of(some, gallery, k, metric, found)
            left = left[found.unsettled]
        if len(left):
            own = None if exclude is None else exclude[left]
            scores[left], places[left] = _Search(queries[left], gallery, k, metric, own).run()
    return scores, places


def _bulk_centre(gallery: Gallery, metric: Metric) -> Floats:
    """Return the point [D] to move vectors by: their middle, or zero where similarities gain little by it."""
    sample = gallery.at(spread_places(len(gallery), 1024))
    if metric != "euclidean" and _about_origin(sample):
        return np.zeros(gallery.dimensions, dtype=np.float32)
    return centre_of(sample)


def _about_origin(vectors: Floats) -> bool:
    """Whether their middle is so near the origin, for their lengths, that to move it there would gain little."""
    mean = vectors.mean(axis=0, dtype=np.float64)
    return bool(mean @ mean < 0.5 * squared_lengths(vectors).mean())


def _best_of(queries: Floats, gallery: Gallery, k: int, metric: Metric, found: Candidates) -> tuple[Floats, Ints]:
    """Return the k best of the candidates of each settled query, by (score, place): [n, k] both."""
    order = np.argsort(found.owners.astype(np.uint16), kind="stable")  # of short numbers by radix
    owners, candidates = found.owners[order], found.places[order]
    keys = sort_keys(score_pairs(queries, gallery, owners, candidates, metric), candidates, metric)
    counts = np.delete(np.bincount(owners, minlength=len(queries)), found.unsettled)
    if not len(counts):
        return np.empty((0, k), dtype=np.float32), np.empty((0, k), dtype=np.int64)
    table = np.full((len(counts), counts.max()), np.iinfo(np.int64).max)
    table[np.arange(table.shape[1]) < counts[:, None]] = keys
    table.sort(axis=1)
    return from_keys(table[:, :k], metric)


class _Search:
    """One search: its arrays, and the bound on what float32 products may be wrong by.

    Inside, "similarity" is greater for nearer vectors: the product q.g, or 2 q.g - |g|^2, which orders a query's
    vectors as its distances do, since d^2 = |q|^2 - similarity. For distances a centre c is subtracted from both
    sides first, so that little is lost to cancellation where all vectors lie far from the origin.
    """

    def __init__(
        self,
        queries: Floats,
        gallery: Gallery,
        k: int,
        metric: Metric,
        exclude: Ints | None,
        known: Lengths | None = None,
    ) -> None:
        self.queries, self.gallery, self.k, self.metric, self.exclude = queries, gallery, k, metric, exclude
        self.distances = metric == "euclidean"
        self.kept = min(k + max(8, k // 4), len(gallery))
        self.known = known
        if known is not None:
            self.centre, self.longest = known.centre, known.longest
        else:
            self.centre = self._middle() if self.distances else None
            self.longest = 1.0 if metric == "cosine" else 0.0

    def run(self) -> tuple[Floats, Ints]:
        approximate, places = self.candidates()
        scores, places = self.rank(approximate, places)
        doubtful = self.doubtful(approximate, scores)
        if len(doubtful):
            scores[doubtful], places[doubtful] = self.again(doubtful, scores[doubtful, -1])
        return scores, places

    def _middle(self) -> Floats | None:
        """A point [D] to move vectors by; None where they lie about the origin, and a copy of all would gain nothing."""
        some = self.gallery.between(0, 256)
        return None if _about_origin(some) else centre_of(some)

    def candidates(self) -> tuple[Wide, Ints]:
        """Step 1: similarities [N, kept] as float32 products give them, in no order, and their rows."""
        count, kept = len(self.queries), self.kept
        best: Reals = np.full((count, kept), -math.inf, dtype=np.float32)
        rows = np.zeros((count, kept), dtype=np.int64)
        for start in range(0, len(self.gallery), _CHUNK):
            keys, bias = self.keys_from(start), None
            if self.metric != "cosine":
                lengths = self.measured(keys) if self.known is None else self.known.squares[start : start + _CHUNK]
                bias = -lengths if self.distances else None
            for first in range(0, count, step := max(1, _TILE // len(keys))):
                part = slice(first, min(first + step, count))
                queries = self._moved(self.queries[part])
                tile = products(2.0 * queries if self.distances else queries, keys, bias)
                self._blank(tile, part, start)
                values, columns = largest(tile, min(kept, len(keys)))
                columns += start
                if start:
                    columns = np.concatenate([rows[part], columns], axis=1)
                    values, order = largest(np.concatenate([best[part], values], axis=1), kept)
                    columns = np.take_along_axis(columns, order, axis=1)
                best[part, : values.shape[1]], rows[part, : values.shape[1]] = values, columns
        return best.astype(np.float64), rows

    def keys_from(self, start: int) -> Floats:
        """A chunk of the gallery, less the centre: [n, D]."""
        return self._moved(self.gallery.between(start, start + _CHUNK))

    def measured(self, keys: Floats) -> Reals:
        """The squared lengths [n] of a chunk; notes how long its longest can be."""
        lengths = squares(keys)
        self.longest = max(self.longest, math.sqrt(float(lengths.max()) * (1.0 + keys.shape[1] * _UNIT)))
        return lengths

    def rank(self, approximate: Wide, places: Ints) -> tuple[Floats, Ints]:
        """The k best [N, k] of the candidates by (score, place), scored anew."""
        owners = np.repeat(np.arange(len(places)), places.shape[1])
        scores = score_pairs(self.queries, self.gallery, owners, places.ravel(), self.metric).reshape(places.shape)
        scores[np.isneginf(approximate)] = math.inf if self.distances else -math.inf
        keys = sort_keys(scores, places, self.metric)
        keys.sort(axis=1)
        return from_keys(keys[:, : self.k], self.metric)

    def doubtful(self, approximate: Wide, scores: Floats) -> Ints:
        """Step 2, whom it concerns: queries for which a vector that was not kept might be among the best k.

        A product of D terms summed in any order in float32 is off by at most D u |q| |g| with u = 2^-24 (Higham 2002,
        section 3.1), and so is |g|^2; subtracting the centre and rounding add a few u more.
        """
        if self.kept == len(self.gallery):
            return np.empty(0, dtype=np.int64)
        lengths = np.concatenate(
            [squared_lengths(self._moved(self.queries[at : at + _CHUNK])) for at in range(0, len(scores), _CHUNK)]
        )
        terms, last = self.gallery.dimensions + 8, scores[:, -1].astype(np.float64)
        if self.distances:
            slack = terms * _UNIT * (np.sqrt(lengths) + self.longest) ** 2  # (|q| + |g|)^2 > 2 |q| |g| + |g|^2
            needed = lengths - (last * (1.0 + 2.0 * _UNIT)) ** 2
        else:
            slack = terms * _UNIT * np.sqrt(lengths) * self.longest
            needed = last - np.abs(last) * 2.0 * _UNIT
        return np.flatnonzero(approximate.min(axis=1) + slack >= needed)

    def again(self, which: Ints, last: Floats) -> tuple[Floats, Ints]:
        """Step 2: the k best [n, k] of the queries ``which``, given a score ``last`` [n] that k vectors reach."""
        scores = np.empty((len(which), self.k), dtype=np.float32)
        rows = np.empty((len(which), self.k), dtype=np.int64)
        step = max(1, _TILE // 2 // _WIDE_CHUNK)
        for first in range(0, len(which), step):
            part = slice(first, first + step)
            scores[part], rows[part] = self._thorough(which[part], last[part])
        return scores, rows

    def _thorough(self, which: Ints, last: Floats) -> tuple[Floats, Ints]:
        """Go through the gallery in order of rows. A later row must beat, not only reach, the k best found so far."""
        count, sign = len(which), -1.0 if self.distances else 1.0
        keys = np.full((count, self.k), -math.inf, dtype=np.float32)  # scores, greater is nearer
        rows = np.full((count, self.k), -1, dtype=np.int64)
        queries = self._moved_wide(self.queries[which])
        lengths = np.einsum("nd,nd->n", queries, queries)
        twice = 2.0 * queries if self.distances else queries
        floor = sign * last.astype(np.float64)
        slack = 4.0 * (self.gallery.dimensions + 8) * 2.0**-53
        start, width = 0, min(1024, _WIDE_CHUNK)  # the first part yields every row of a tie, so it is small
        while start < len(self.gallery):
            chunk = self._moved_wide(self.gallery.between(start, start + width))
            own = np.einsum("nd,nd->n", chunk, chunk)
            found = products(twice, chunk, -own if self.distances else None)
            reach = np.sqrt(lengths) + math.sqrt(own.max())
            bound = self._bound(floor, keys[:, -1], lengths) - slack * reach**2 - 1e-44
            self._blank(found, which, start)
            at, columns = reached(found, bound)
            if len(at):
                self._merge(keys, rows, which, at, columns + start, sign)
            start, width = start + width, min(2 * width, _WIDE_CHUNK)
        return (keys * np.float32(sign)).astype(np.float32), rows

    def _bound(self, floor: Wide, last: Floats, lengths: Wide) -> Wide:
        """Return the similarity [n] that a row must reach to be looked at.

        It must round to ``floor`` at least, and, where k rows are known already, to more than the ``last`` of them.
        """
        full = np.isfinite(last)
        known = np.where(full, last, 0.0).astype(np.float32)
        above = np.nextafter(known, np.float32(math.inf)).astype(np.float64)
        to_beat = (known.astype(np.float64) + above) / 2.0
        lowest = floor - np.abs(floor) * 2.0 * _UNIT
        key = np.where(full, np.maximum(to_beat, lowest), lowest)
        if self.metric == "cosine":
            return np.where(full & (last >= 1.0), math.inf, key)
        if not self.distances:
            return key
        # key is minus a distance; nothing is nearer than distance 0.
        return np.where(full & (last >= 0.0), math.inf, lengths - np.minimum(key, 0.0) ** 2)

    def _merge(self, keys: Floats, rows: Ints, which: Ints, at: Ints, found: Ints, sign: float) -> None:
        """Put the pairs (query ``at``, row ``found``) in their places among the k best so far."""
        fresh = score_pairs(self.queries, self.gallery, which[at], found, self.metric)
        touched = np.unique(at)
        owner = np.concatenate([np.repeat(touched, self.k), at])
        key = np.concatenate([keys[touched].ravel(), np.float32(sign) * fresh])
        row = np.concatenate([rows[touched].ravel(), found])
        order = np.lexsort((row, -key, owner))
        starts = np.searchsorted(owner[order], touched)
        best = order[starts[:, None] + np.arange(self.k)]
        keys[touched], rows[touched] = key[best], row[best]

    def _blank(self, tile: Reals, part: slice | Ints, start: int) -> None:
        """Give the excluded rows of a tile [n, M], which begins at row ``start``, the lowest similarity."""
        if self.exclude is None:
            return
        columns = self.exclude[part] - start
        at = np.flatnonzero((columns >= 0) & (columns < tile.shape[1]))
        tile[at, columns[at]] = -math.inf

    def _moved(self, vectors: Floats) -> Floats:
        return vectors if self.centre is None else vectors - self.centre

    def _moved_wide(self, vectors: Floats) -> Wide:
        wide = vectors.astype(np.float64)
        return wide if self.centre is None else wide - self.centre
