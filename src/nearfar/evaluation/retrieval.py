"""Retrieval figures over all pairs of queries and gallery, by tiles, without a matrix of indices.

Every figure follows from the ranks that a query's own class takes in the gallery. Let R be the number of vectors of
the query's class. Only the R best places matter for R-precision and MAP@R, so each row of a tile is cut at its R-th
best value (a selection, not a sort), and only those R values are sorted, with a flag that says which of them are right.

Ties: of equal scores the wrong ones come first. So a figure depends neither on the order of the gallery nor on luck,
and an embedding that maps all images to one point finds nothing. Scores are compared as float32 products give them.

Memory: some 100 MiB beside a copy of the gallery in order of classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from nearfar.errors import InputError
from nearfar.search.exact import check_exclude
from nearfar.search.vectors import (
    Floats,
    Ints,
    Metric,
    as_tensor,
    as_vectors,
    centre_of,
    check_metric,
    products,
    unit_rows,
)

Wide = npt.NDArray[np.float64]

_TILE = 1 << 22
"""Scores looked at together: 16 MiB of float32."""


@dataclass(frozen=True, kw_only=True)
class QueryFigures:
    """What retrieval gave for each query; NaN in all figures where the gallery has nothing of the query's class."""

    rank: Wide
    """Rank of the best vector of the query's class, from 1: [N]."""
    r_precision: Wide
    """Share of the query's class among the R best: [N]."""
    average_precision: Wide
    """Average precision at R (Musgrave, Belongie, Lim 2020): [N]."""
    precision: dict[int, Wide]
    """Share of the query's class among the k best, by k: [N]."""

    @property
    def answerable(self) -> npt.NDArray[np.bool_]:
        """Whether the gallery has a vector of the query's class: [N]."""
        return ~np.isnan(self.rank)

    def figures(self) -> dict[str, Wide]:
        """Return the figures of each query by name, [N] each; their means are those of the whole."""
        found = {f"recall@{k}": np.where(self.answerable, self.rank <= k, np.nan) for k in self.precision}
        shares = {f"precision@{k}": values for k, values in self.precision.items()}
        rest = {"map@r": self.average_precision, "r_precision": self.r_precision, "mrr": 1.0 / self.rank}
        return {**found, **shares, **rest}


def rank_queries(
    queries: Any,
    query_labels: Any,
    gallery: Any,
    gallery_labels: Any,
    *,
    metric: Metric = "cosine",
    ks: Sequence[int] = (1, 5, 10),
    exclude: Any = None,
) -> QueryFigures:
    """Rank the gallery for every query and return each query's figures.

    Args:
        queries: numbers [N, D].
        query_labels: whole numbers or strings [N].
        gallery: numbers [M, D].
        gallery_labels: [M].
        metric: "cosine", "dot" or "euclidean".
        ks: the k of recall@k and precision@k.
        exclude: a row of the gallery [N] for each query that is left out of its ranking (itself, when queries and
            gallery are one set); -1 leaves out nothing.

    Raises:
        InputError: shapes or lengths do not fit, NaN, a zero vector with cosine, a k below 1.
    """
    metric = check_metric(metric)
    gallery = as_vectors(gallery, "gallery")
    queries = as_vectors(queries, "queries", dimensions=gallery.shape[1])
    if metric == "cosine":
        queries, gallery = unit_rows(queries, "queries"), unit_rows(gallery, "gallery")
    codes, classes = _common_codes(query_labels, len(queries), gallery_labels, len(gallery))
    if not ks or any(isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1 for k in ks):
        raise InputError(f"ks is {ks!r}, expected whole numbers from 1")
    rows = None if exclude is None else check_exclude(exclude, len(queries), len(gallery))
    return _Ranking(queries, codes, gallery, classes, metric, sorted({int(k) for k in ks}), rows).run()


def summarize(
    figures: dict[str, Wide], labels: npt.NDArray[Any]
) -> tuple[dict[str, float | None], dict[str, float | None], dict[Any, dict[str, float | None]]]:
    """Average each query's ``figures`` ([N] each, NaN left out) over queries with ``labels`` [N].

    Returns:
        The means over queries (micro), the means over classes of the classes' means (macro), and the means by class;
        None where there is no query.
    """
    classes, codes = np.unique(labels, return_inverse=True)
    micro: dict[str, float | None] = {}
    macro: dict[str, float | None] = {}
    by_class: dict[Any, dict[str, float | None]] = {label: {} for label in classes.tolist()}
    for name, values in figures.items():
        there = ~np.isnan(values)
        counts = np.bincount(codes[there], minlength=len(classes))
        sums = np.bincount(codes[there], weights=values[there], minlength=len(classes))
        means = sums[counts > 0] / counts[counts > 0]
        micro[name] = float(values[there].mean()) if there.any() else None
        macro[name] = float(means.mean()) if len(means) else None
        for label, total, count in zip(classes.tolist(), sums, counts, strict=True):
            by_class[label][name] = float(total / count) if count else None
    return micro, macro, by_class


def _common_codes(query_labels: Any, queries: int, gallery_labels: Any, rows: int) -> tuple[Ints, Ints]:
    """Number the classes of both sides together: the codes of the queries [N] and of the gallery [M]."""
    sides = []
    for labels, name, count in ((query_labels, "query_labels", queries), (gallery_labels, "gallery_labels", rows)):
        array = np.asarray(labels)
        if array.shape != (count,):
            raise InputError(f"{name} has shape {array.shape}, expected ({count},), one label for each vector")
        sides.append(array)
    if (sides[0].dtype.kind in "UO") != (sides[1].dtype.kind in "UO"):
        raise InputError(f"query_labels are {sides[0].dtype}, gallery_labels are {sides[1].dtype}; expected one kind")
    codes = np.unique(np.concatenate(sides), return_inverse=True)[1].astype(np.int64)
    return codes[:queries], codes[queries:]


class _Ranking:
    """The arrays of one evaluation: the gallery in order of classes, so that a class is one range of columns."""

    def __init__(
        self,
        queries: Floats,
        codes: Ints,
        gallery: Floats,
        classes: Ints,
        metric: Metric,
        ks: list[int],
        exclude: Ints | None,
    ) -> None:
        order = np.argsort(classes, kind="stable")
        self.gallery, self.metric, self.ks = gallery[order], metric, ks
        highest = int(max(codes.max(), classes.max())) + 1
        bounds = np.searchsorted(classes[order], np.arange(highest + 1))
        self.start, self.end = bounds[codes], bounds[codes + 1]  # the columns of each query's class
        self.relevant = self.end - self.start
        self.excluded = np.full(len(queries), -1)
        if exclude is not None:
            place = np.empty(len(order), dtype=np.int64)
            place[order] = np.arange(len(order))
            self.excluded = np.where(exclude >= 0, place[exclude], -1)
            self.relevant = self.relevant - ((self.excluded >= self.start) & (self.excluded < self.end))
        self.queries, self.codes = queries, codes
        self.bias = None
        if metric == "euclidean":
            centre = centre_of(self.gallery)
            self.gallery, self.queries = self.gallery - centre, queries - centre
        self.keys = as_tensor(self.gallery)
        if metric == "euclidean":
            self.bias = -torch.linalg.vecdot(self.keys, self.keys)
        self.rank = np.full(len(queries), np.nan)
        self.r_precision, self.average = self.rank.copy(), self.rank.copy()
        self.precision = {k: self.rank.copy() for k in ks}

    def run(self) -> QueryFigures:
        # Queries of classes of like size are done together, since a tile is cut at the largest R in it.
        order = np.lexsort((self.codes, self.relevant))
        order = order[self.relevant[order] > 0]
        workers = max(1, torch.get_num_threads())
        step = max(workers, _TILE // len(self.gallery) // workers * workers)
        with ThreadPoolExecutor(workers) as pool:
            for first in range(0, len(order), step):
                rows = order[first : first + step]
                part = as_tensor(self.queries[rows])
                tile = products(2.0 * part if self.bias is not None else part, self.keys, self.bias).numpy()
                share = -(-len(rows) // workers)
                list(
                    pool.map(
                        lambda at, rows=rows, tile=tile, share=share: self._rank(rows[at : at + share], tile[at : at + share]),
                        range(0, len(rows), share),
                    )
                )
        return QueryFigures(
            rank=self.rank, r_precision=self.r_precision, average_precision=self.average, precision=self.precision
        )

    def _rank(self, rows: Ints, scores: Floats) -> None:
        """Find the figures of the queries ``rows`` [n] from their ``scores`` [n, M], which are used up."""
        relevant = self.relevant[rows]
        left_out = np.flatnonzero(self.excluded[rows] >= 0)
        scores[left_out, self.excluded[rows[left_out]]] = -np.inf
        width = min(max(int(relevant.max()), self.ks[-1]), scores.shape[1])
        right = self._take_right(rows, scores, width)  # [n, width], best first
        # What is left in scores is wrong, or -inf.
        scores.partition(scores.shape[1] - width, axis=1)
        wrong = np.sort(scores[:, scores.shape[1] - width :], axis=1)  # [n, width], best last
        hits = _merge(right, wrong)
        places = np.arange(1, width + 1)
        counts = np.cumsum(hits, axis=1, dtype=np.int32)
        within = places <= relevant[:, None]
        self.r_precision[rows] = np.take_along_axis(counts, relevant[:, None] - 1, axis=1)[:, 0] / relevant
        self.average[rows] = np.where(hits & within, counts / places, 0.0).sum(axis=1) / relevant
        for k in self.ks:
            self.precision[k][rows] = counts[:, min(k, width) - 1] / k
        first = np.argmax(hits, axis=1) + 1.0
        for at in np.flatnonzero(counts[:, -1] == 0):  # the best of its class lies beyond the places looked at
            first[at] = 1 + np.count_nonzero(scores[at] >= right[at, 0])
        self.rank[rows] = first

    def _take_right(self, rows: Ints, scores: Floats, width: int) -> Floats:
        """Move the scores of each query's own class out of ``scores``: sorted, best first, filled up with -inf."""
        sizes = self.end[rows] - self.start[rows]
        right = np.full((len(rows), max(width, int(sizes.max()))), -np.inf, dtype=np.float32)
        edges = np.flatnonzero(np.diff(self.codes[rows])) + 1
        for first, last in zip([0, *edges.tolist()], [*edges.tolist(), len(rows)], strict=True):
            columns = slice(self.start[rows[first]], self.end[rows[first]])
            right[first:last, : sizes[first]] = scores[first:last, columns]
            scores[first:last, columns] = -np.inf
        right.sort(axis=1)
        return right[:, ::-1][:, :width]


def _merge(right: Floats, wrong: Floats) -> npt.NDArray[np.bool_]:
    """Say which of the ``width`` best of both are right, best first: [n, width].

    Args:
        right: scores of the right ones [n, width], best first.
        wrong: scores of the wrong ones [n, width], best last; of equal scores they come first.

    The j-th right one belongs to the best if it exceeds the wrong one that would otherwise have the place: the first
    step of Batcher's bitonic merge (1968) makes the selection. What remains is to sort it together with its flags.
    """
    is_right = right > wrong
    bits = np.where(is_right, right, wrong).view(np.int32)
    # As integers in two's complement, floats keep their order once the negative ones are turned around. The sign
    # of zero goes: both zeros are equal as scores.
    keys = np.where(bits < 0, np.int32(-(2**31)) - bits, bits).astype(np.int64)
    keys = keys * 2 + ~is_right
    keys.sort(axis=1)
    return (keys[:, ::-1] & 1) == 0
