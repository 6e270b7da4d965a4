"""Retrieval figures over all pairs of queries and gallery, by tiles, without a matrix of indices.

Every figure follows from the places that the wrong vectors take among the right ones, those of the query's own class.
Let R be the number of the right ones. Only what comes into the first R places (or k) matters. For a good embedding
that are few wrong ones, and a threshold that keeps them and hardly more is found from maxima of groups of columns. So
in a row of a tile the right scores are sorted, all others are only compared.

Ties: of equal scores the wrong ones come first. So a figure depends neither on the order of the gallery nor on luck,
and an embedding that maps all images to one point finds nothing. Scores are compared as float32 products give them.

Memory: some 60 MiB beside a copy of the gallery in order of classes.
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
    packed,
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
        keys = as_tensor(self.gallery)
        if metric == "euclidean":
            self.bias = -torch.linalg.vecdot(keys, keys)
        self.keys = packed(keys)
        # A group's maximum stands for the group, so there must be more groups than places of interest.
        widest = max(int(self.relevant.max()) // 2, ks[-1])
        self.group = 1 << min(6, max(0, (len(keys) // (widest + 1)).bit_length() - 1))
        self.harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, 2 * len(keys) + 2))])
        self.rank = np.full(len(queries), np.nan)
        self.r_precision, self.average = self.rank.copy(), self.rank.copy()
        self.precision = {k: self.rank.copy() for k in ks}

    def run(self) -> QueryFigures:
        # Queries of classes of like size are done together, since a tile is cut at the largest R in it.
        order = np.lexsort((self.codes, self.relevant))
        order = order[self.relevant[order] > 0]
        workers = max(1, torch.get_num_threads())
        step = max(workers, min(_TILE // len(self.gallery), 1 << 15) // workers * workers)
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
        right = self._take_right(rows, scores)
        wrong = self._best_wrong(scores, right, max(0, min(self.ks[-1], scores.shape[1]) - int(relevant.min())))
        ahead, places = [], []  # of each query: right ones before each wrong one, and the places of the wrong ones
        for at, (count, own) in enumerate(zip(relevant.tolist(), wrong, strict=True)):
            best = right[at, count - 1]
            self.rank[rows[at]] = 1.0 + np.count_nonzero(own >= best)
            own = np.sort(own)[::-1][: max(count, self.ks[-1])]
            before = count - np.searchsorted(right[at, :count], own, side="right")
            ahead.append(before)
            places.append(before + np.arange(1, len(own) + 1))
        misses = np.array([np.searchsorted(own, count, side="right") for own, count in zip(places, relevant, strict=True)])
        self.r_precision[rows] = 1.0 - misses / relevant
        self.average[rows] = self._average_precision([own[:b] for own, b in zip(ahead, misses, strict=True)], relevant, misses)
        for k in self.ks:
            wrong_ones = np.array([np.searchsorted(own, k, side="right") for own in places])
            self.precision[k][rows] = np.minimum(relevant, k - wrong_ones) / k

    def _take_right(self, rows: Ints, scores: Floats) -> Floats:
        """Move the scores of each query's own class out of ``scores``: sorted, best last, filled up with inf."""
        sizes = self.end[rows] - self.start[rows]
        right = np.full((len(rows), int(sizes.max())), np.inf, dtype=np.float32)
        edges = np.flatnonzero(np.diff(self.codes[rows])) + 1
        for first, last in zip([0, *edges.tolist()], [*edges.tolist(), len(rows)], strict=True):
            columns = slice(self.start[rows[first]], self.end[rows[first]])
            right[first:last, : sizes[first]] = scores[first:last, columns]
            scores[first:last, columns] = -np.inf
        right[np.isneginf(right)] = np.inf  # what is excluded
        right.sort(axis=1)
        return right

    def _best_wrong(self, scores: Floats, right: Floats, more: int) -> list[Floats]:
        """Return the wrong scores that take one of the first R + ``more`` places, for each query.

        Args:
            scores: [n, M], the right ones at -inf.
            right: [n, R], best last.
            more: places of interest beyond the R of any query.

        If the s lowest right ones fall below a threshold that s + ``more`` wrong ones reach, then what reaches it fills all
        places of interest. The right score that has s right ones below it is such a threshold if s + ``more`` groups have
        a maximum that reaches it; the greatest such s leaves the fewest.
        """
        count, size = len(scores), self.group
        groups = scores.shape[1] // size
        head, rest = scores[:, : groups * size].reshape(count, size, groups), scores[:, groups * size :]
        highest = np.concatenate([head.max(axis=1), rest], axis=1)
        ordered = np.sort(highest, axis=1)[:, ::-1]
        steps = max(1, min(right.shape[1], ordered.shape[1] - more + 1))
        below = 1 + (ordered[:, more : more + steps - 1] >= right[:, 1:steps]).sum(axis=1)
        least = right[np.arange(count), below - 1]
        if more:
            first = ordered[:, min(more, ordered.shape[1]) - 1]
            least = np.where(below > 1, least, np.minimum(least, first))
        least = np.maximum(least, np.finfo(np.float32).min)
        owner, group = np.nonzero(highest >= least[:, None])
        inner = group < groups
        inside = head[owner[inner], :, group[inner]]
        hit, column = np.nonzero(inside >= least[owner[inner], None])
        owners = np.concatenate([owner[inner][hit], owner[~inner]])
        values = np.concatenate([inside[hit, column], rest[owner[~inner], group[~inner] - groups]])
        values = values[np.argsort(owners.astype(np.uint16), kind="stable")]  # of short numbers by radix
        return np.split(values, np.cumsum(np.bincount(owners, minlength=count))[:-1])

    def _average_precision(self, ahead: list[Ints], relevant: Ints, misses: Ints) -> Wide:
        """Sum j / (j + i) over the right ones, the j-th of which has i wrong ones before it, within R places: [n].

        Between two wrong ones i is the same, and the sum of 1 - i / (j + i) is a difference of harmonic numbers.

        Args:
            ahead: right ones before the i-th wrong one, for each query those within R places.
            relevant: R [n].
            misses: wrong ones within R places [n].
        """
        zero = np.zeros(1, dtype=np.int64)
        starts = np.concatenate([part for own in ahead for part in (zero, own)])
        firsts = np.cumsum(misses + 1) - misses - 1  # where each query begins in starts
        ends = np.append(starts[1:], 0)
        ends[firsts + misses] = relevant - misses
        passed = np.arange(len(starts)) - np.repeat(firsts, misses + 1)
        spans = (ends - starts) - passed * (self.harmonic[ends + passed] - self.harmonic[starts + passed])
        total: Wide = np.add.reduceat(spans, firsts)
        return total / relevant
