"""All figures of an embedding as one tree, the content of ``metrics.json``."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nearfar.classify import Vote, check_vote, probabilities, similarities, winners
from nearfar.errors import InputError
from nearfar.evaluation.bootstrap import LEVEL, bootstrap_intervals
from nearfar.evaluation.classification import classification_figures, confusion_matrix, recall_by_probability
from nearfar.evaluation.clustering import clustering_figures
from nearfar.evaluation.geometry import geometry_figures
from nearfar.evaluation.retrieval import rank_queries, summarize
from nearfar.evaluation.verification import draw_pairs, pair_distances, verification_figures
from nearfar.search.exact import nearest_prepared
from nearfar.search.vectors import Floats, Ints, Metric, as_vectors, check_k, check_metric, unit_rows

Wide = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

_CONFUSION_CLASSES = 200
"""Class-by-class matrices of more classes than this would swell the file and tell nobody anything."""

_PART_FIGURES = ("recall@1", "map@r")
"""Of retrieval, that are given for parts of the queries too."""


def evaluate_embeddings(
    gallery: Any,
    gallery_labels: Any,
    queries: Any,
    query_labels: Any,
    *,
    classes: Sequence[str],
    metric: Metric = "cosine",
    k: int = 10,
    vote: Vote = "majority",
    same_set: bool = False,
    threshold: float | None = None,
    validation: tuple[Any, Any] | None = None,
    seed: int = 0,
    bootstrap: int = 1000,
    parts: Mapping[str, Flags] | None = None,
) -> dict[str, Any]:
    """Judge an embedding by the neighbours that ``queries`` have in ``gallery``, and by how the queries lie in space.

    Args:
        gallery: numbers [M, D].
        gallery_labels: numbers of ``classes`` [M].
        queries: numbers [N, D].
        query_labels: numbers of ``classes`` [N]; a class may be missing on either side.
        classes: the names of the classes.
        metric: by which neighbours are near.
        k: how many neighbours vote; where there are fewer, all of them (the tree says how many).
        vote: how they vote, see ``nearfar.classify.winners``.
        same_set: ``queries`` is ``gallery``; every query is left out of its own neighbours.
        threshold: the distance below which a pair counts as the same; None chooses it on ``validation``.
        validation: vectors [V, D] and labels [V] of rows that are not judged (and better not trained on), on which the
            best threshold of verification is chosen.
        seed: of pairs, K-means, samples and intervals.
        bootstrap: how many samples the intervals are drawn from; 0 leaves them out.
        parts: see ``search_figures``.

    Returns:
        The tree that ``docs/evaluation.md`` describes; every number in it is finite, None stands for "undefined".

    Raises:
        InputError: shapes, lengths or labels do not fit, NaN, a zero vector with cosine, or a k below 1.
    """
    metric, vote, names = check_metric(metric), check_vote(vote), [str(name) for name in classes]
    gallery = as_vectors(gallery, "gallery")
    queries = as_vectors(queries, "queries", dimensions=gallery.shape[1])
    known = _labels(gallery_labels, "gallery_labels", len(gallery), len(names))
    truth = _labels(query_labels, "query_labels", len(queries), len(names))
    if same_set and (gallery.shape != queries.shape or not np.array_equal(known, truth)):
        raise InputError(
            f"same_set is given, but gallery has {len(gallery):,} rows, queries has {len(queries):,}, "
            f"or their labels differ; expected one and the same set"
        )
    if metric == "cosine":
        gallery, queries = unit_rows(gallery, "gallery"), unit_rows(queries, "queries")
    exclude = np.arange(len(queries)) if same_set else None
    there = len(gallery) - int(same_set)
    if there < 1:
        raise InputError("gallery and queries are one and the same vector, which leaves no neighbour; expected more")
    k = min(check_k(k, max(there, k)), there)

    started = time.perf_counter()
    found = search_figures(
        gallery,
        known,
        queries,
        truth,
        names=names,
        metric=metric,
        k=k,
        vote=vote,
        exclude=exclude,
        seed=seed,
        bootstrap=bootstrap,
        parts=parts,
    )
    figures: dict[str, Any] = {
        "classification": found["classification"],
        "retrieval": found["retrieval"],
        "clustering": clustering_figures(queries, truth, seed=seed),
        "verification": _verification(queries, truth, metric, threshold, validation, len(names), seed),
        "geometry": _geometry(queries, truth, len(names), seed),
        "timing": {
            **found["timing"],
            "evaluation_seconds": time.perf_counter() - started,
        },
        "data": {
            "gallery": len(gallery),
            "queries": len(queries),
            "dimensions": gallery.shape[1],
            "classes": names,
            "metric": metric,
            "same_set": same_set,
            "seed": seed,
        },
        "confidence": found["confidence"],
        **({} if parts is None else {"parts": found["parts"]}),
    }
    return finite(figures)


def search_figures(
    gallery: Floats,
    known: Ints,
    queries: Floats,
    truth: Ints,
    *,
    names: list[str],
    metric: Metric,
    k: int,
    vote: Vote,
    exclude: Ints | None = None,
    seed: int = 0,
    bootstrap: int = 1000,
    parts: Mapping[str, Flags] | None = None,
) -> dict[str, Any]:
    """Figures of what ``queries`` find in ``gallery`` alone: of the vote, and of the ranking.

    Args:
        gallery: [M, D], with "cosine" at unit length.
        known: numbers of ``names`` [M].
        queries: [N, D], likewise.
        truth: numbers of ``names`` [N].
        names: of the classes.
        metric: by which neighbours are near.
        k: how many vote, at most as many as can be found.
        vote: see ``nearfar.classify.winners``.
        exclude: a row of the gallery for each query that it does not find, its own [N]; -1 leaves out nothing.
        seed: of the intervals.
        bootstrap: how many samples they are drawn from; 0 leaves them out.
        parts: queries by name [N], whose figures are also given apart.

    Returns:
        ``classification, retrieval, timing, confidence`` as in the whole tree; and by the names of ``parts`` how many
        ``queries`` there are, and their ``accuracy, one_nn_accuracy, recall@1, map@r`` (None where there is no query).
    """
    started = time.perf_counter()
    scores, rows = nearest_prepared(queries, gallery, k, metric, exclude)
    seconds = time.perf_counter() - started
    classification, judged = _classification(known[rows], similarities(scores, metric), truth, names, vote)
    retrieval, ranked = _retrieval(queries, truth, gallery, known, metric, exclude, names)
    own = {**judged, **{name: ranked[name] for name in _PART_FIGURES}}
    return {
        "classification": classification,
        "retrieval": retrieval,
        "timing": {"search_seconds": seconds, "queries_per_second": len(queries) / seconds},
        "confidence": _confidence({"classification": judged, "retrieval": ranked}, bootstrap, seed),
        "parts": {
            name: {"queries": int(flags.sum()), **{figure: _mean(values[flags]) for figure, values in own.items()}}
            for name, flags in (parts or {}).items()
        },
    }


def finite(tree: Any) -> Any:
    """Return ``tree`` for JSON: NumPy's numbers and arrays as Python's, and None for what is not finite."""
    if isinstance(tree, Mapping):
        return {str(key): finite(value) for key, value in tree.items()}
    if isinstance(tree, np.ndarray):
        return finite(tree.tolist())
    if isinstance(tree, list | tuple):
        return [finite(value) for value in tree]
    if isinstance(tree, np.generic):
        return finite(tree.item())
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def _labels(labels: Any, name: str, count: int, classes: int) -> Ints:
    array = np.asarray(labels)
    if array.shape != (count,) or array.dtype.kind not in "iu":
        raise InputError(f"{name} has shape {array.shape} and dtype {array.dtype}, expected {count:,} whole numbers of classes")
    if array.min() < 0 or array.max() >= classes:
        raise InputError(f"{name} holds {array.min()} to {array.max()}, expected numbers of the {classes} classes")
    return array.astype(np.int64)


def _classification(
    codes: Ints, similarity: Wide, truth: Ints, names: list[str], vote: Vote
) -> tuple[dict[str, Any], dict[str, Wide]]:
    """Figures of the vote of the neighbours' classes ``codes`` [N, k]; and each query's own, for the intervals."""
    predicted = winners(codes, similarity, vote)
    figures = classification_figures(truth, predicted, len(names))
    by_class = figures.pop("by_class")
    right, first = predicted == truth, codes[:, 0] == truth
    per_class = {
        name: {"queries": int(count), **{what: float(by_class[what][at]) for what in ("precision", "recall", "f1")}}
        for at, (name, count) in enumerate(zip(names, by_class["queries"], strict=True))
    }
    matrix = confusion_matrix(truth, predicted, len(names)) if len(names) <= _CONFUSION_CLASSES else None
    tree = {
        **figures,
        "one_nn_accuracy": float(first.mean()),
        "k": codes.shape[1],
        "vote": vote,
        "recall_by_probability": _recall_by_probability(codes, similarity, truth, len(names), vote),
        "per_class": per_class,
        "confusion": matrix,
    }
    return tree, {"accuracy": right.astype(np.float64), "one_nn_accuracy": first.astype(np.float64)}


def _recall_by_probability(codes: Ints, similarity: Wide, truth: Ints, classes: int, vote: Vote) -> dict[str, float]:
    """Do the queries by parts: probabilities of many classes for many queries are a large matrix."""
    totals: dict[str, float] = {}
    for start in range(0, len(codes), step := max(1, (1 << 22) // classes)):
        part = slice(start, start + step)
        chances = probabilities(codes[part], similarity[part], classes, vote)
        for k, share in recall_by_probability(chances, truth[part]).items():
            totals[k] = totals.get(k, 0.0) + share * len(chances)
    return {k: total / len(codes) for k, total in totals.items()}


def _retrieval(
    queries: Floats, truth: Ints, gallery: Floats, known: Ints, metric: Metric, exclude: Ints | None, names: list[str]
) -> tuple[dict[str, Any], dict[str, Wide]]:
    ranked = rank_queries(queries, truth, gallery, known, metric=metric, exclude=exclude)
    own = ranked.figures()
    micro, macro, by_class = summarize(own, truth)
    tree = {
        **micro,
        "macro": macro,
        "per_class": {names[code]: figures for code, figures in by_class.items()},
        "left_out": int((~ranked.answerable).sum()),
    }
    return tree, own


def _verification(
    queries: Floats,
    truth: Ints,
    metric: Metric,
    threshold: float | None,
    validation: tuple[Any, Any] | None,
    classes: int,
    seed: int,
) -> dict[str, Any]:
    held: tuple[Wide, Flags] | None = None
    if validation is not None:
        vectors = as_vectors(validation[0], "validation", dimensions=queries.shape[1])
        labels = _labels(validation[1], "validation labels", len(vectors), classes)
        drawn = draw_pairs(labels, seed=seed)
        if len(drawn.a):
            held = pair_distances(vectors, drawn, metric=metric), drawn.same
    pairs = draw_pairs(truth, seed=seed)
    if not len(pairs.a):
        return {"accuracy": None, "auroc": None, "eer": None, "threshold": threshold, "pairs": 0}
    distances = pair_distances(queries, pairs, metric=metric)
    return verification_figures(distances, pairs.same, threshold=threshold, validation=held)


def _geometry(queries: Floats, truth: Ints, classes: int, seed: int) -> dict[str, Any]:
    figures = geometry_figures(queries, truth, classes, seed=seed)
    if classes > _CONFUSION_CLASSES:
        figures["matrix"] = None
    return figures


def _confidence(own: dict[str, dict[str, Wide]], samples: int, seed: int) -> dict[str, Any]:
    """Intervals of the means of each query's ``own`` values, by section and figure as in the tree."""
    tree: dict[str, Any] = {"level": LEVEL, "samples": samples}
    if samples == 0:
        return tree
    flat = {f"{section} {name}": values for section, group in own.items() for name, values in group.items()}
    intervals = bootstrap_intervals(flat, samples=samples, seed=seed)
    return tree | {section: {name: intervals[f"{section} {name}"] for name in group} for section, group in own.items()}


def _mean(values: Wide) -> float | None:
    """The mean of those of ``values`` that are no NaN; None where there are none."""
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else None
