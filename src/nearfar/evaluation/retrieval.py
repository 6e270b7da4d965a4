"""Retrieval figures over all pairs of queries and gallery, by tiles, without a matrix of indices (see `ranking`).

Ties: of equal scores the wrong ones come first. So a figure depends neither on the order of the gallery nor on luck,
and an embedding that maps all images to one point finds nothing. Scores are compared as float32 products give them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nearfar.errors import InputError
from nearfar.evaluation.ranking import Ranking
from nearfar.search.exact import check_exclude
from nearfar.search.vectors import Ints, Metric, as_vectors, check_metric, unit_rows

Wide = npt.NDArray[np.float64]


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
    found = Ranking(queries, codes, gallery, classes, metric, sorted({int(k) for k in ks}), rows).run()
    return QueryFigures(
        rank=found.rank, r_precision=found.r_precision, average_precision=found.average, precision=found.precision
    )


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
