"""The same queries judged against several galleries: clean and full, of last year and of this, of each site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nearfar.errors import InputError
from nearfar.evaluation.retrieval import QueryFigures, rank_queries, summarize
from nearfar.search.vectors import Metric, as_vectors, check_metric, unit_rows


def rank_in_galleries(
    queries: Any,
    query_labels: Any,
    galleries: Mapping[str, tuple[Any, Any]],
    *,
    metric: Metric = "cosine",
    ks: Sequence[int] = (1, 5, 10),
    exclude: Mapping[str, Any] | None = None,
) -> dict[str, QueryFigures]:
    """Rank each gallery for every query, see ``rank_queries``.

    Args:
        queries: numbers [N, D].
        query_labels: whole numbers or strings [N].
        galleries: vectors [M, D] and labels [M] by the gallery's name.
        metric: "cosine", "dot" or "euclidean".
        ks: the k of recall@k and precision@k.
        exclude: by the gallery's name, a row of it [N] for each query that is left out (itself), or -1.

    Returns:
        The figures of each query, by the gallery's name.

    Raises:
        InputError: there is no gallery, ``exclude`` names another one, or as ``rank_queries``, naming the gallery.
    """
    if not galleries:
        raise InputError("galleries is empty, expected at least one name with vectors and labels")
    unknown = sorted(set(exclude or ()) - set(galleries))
    if unknown:
        raise InputError(f"exclude names the gallery {unknown[0]!r}, expected one of {', '.join(map(repr, galleries))}")
    metric = check_metric(metric)
    queries = as_vectors(queries, "queries")
    if metric == "cosine":
        queries = unit_rows(queries, "queries")  # once for all: unit rows stay as they are
    found: dict[str, QueryFigures] = {}
    for name, (vectors, labels) in galleries.items():
        own = None if exclude is None else exclude.get(name)
        try:
            found[name] = rank_queries(queries, query_labels, vectors, labels, metric=metric, ks=ks, exclude=own)
        except InputError as error:
            raise InputError(f"gallery {name!r}: {error}") from None
    return found


def gallery_figures(ranked: Mapping[str, QueryFigures], query_labels: Any) -> dict[str, dict[str, Any]]:
    """Average what ``rank_in_galleries`` found.

    A query without anything of its class in a gallery counts in none of that gallery's figures. So beside the figures of each
    gallery stand, as ``common``, those over the queries that all galleries can answer: only these compare galleries.

    Args:
        ranked: the figures of each query, by the gallery's name.
        query_labels: [N].

    Returns:
        By the gallery's name: the means over queries, ``macro`` (over classes), ``left_out`` (queries without an answer) and
        ``common`` (the means over the queries that have an answer in every gallery, and how many these are).
    """
    labels = np.asarray(query_labels)
    answered = np.logical_and.reduce([one.answerable for one in ranked.values()])
    tree: dict[str, dict[str, Any]] = {}
    for name, one in ranked.items():
        figures = one.figures()
        micro, macro, _ = summarize(figures, labels)
        common, _, _ = summarize({what: values[answered] for what, values in figures.items()}, labels[answered])
        tree[name] = {
            **micro,
            "macro": macro,
            "left_out": int((~one.answerable).sum()),
            "common": {"queries": int(answered.sum()), **common},
        }
    return tree
