"""Neighbours by the slow loop, and kinds of points that make search hard."""

from __future__ import annotations

import numpy as np

from nearfar.search.vectors import unit_rows


def slow(
    queries: np.ndarray, gallery: np.ndarray, k: int, metric: str, exclude: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Every pair by itself in float64, rounded to float32, ordered by (score, row)."""
    if metric == "cosine":
        queries, gallery = unit_rows(queries, "q"), unit_rows(gallery, "g")
    wide = gallery.astype(np.float64)
    each = (((a - wide) ** 2).sum(-1) if metric == "euclidean" else (a * wide).sum(-1) for a in queries.astype(np.float64))
    scores = np.array([*each]).reshape(len(queries), len(gallery))
    if metric == "euclidean":
        scores = np.sqrt(scores)
    if metric == "cosine":
        scores = np.clip(scores, -1.0, 1.0)
    scores = scores.astype(np.float32)
    if exclude is not None:
        there = np.flatnonzero(exclude >= 0)
        scores[there, exclude[there]] = np.inf if metric == "euclidean" else -np.inf
    order = np.argsort(scores if metric == "euclidean" else -scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), order


def points(kind: str, rows: int, width: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    made = {
        "normal": lambda: generator.normal(size=(rows, width)),
        "duplicates": lambda: np.random.default_rng(9).normal(size=(5, width))[generator.integers(5, size=rows)],
        "collapsed": lambda: np.ones((1, width)) + 1e-7 * generator.normal(size=(rows, width)),
        "integers": lambda: generator.integers(1, 3, size=(rows, width)),
        "one point": lambda: np.full((rows, width), 0.3),
        "far away": lambda: 1000.0 + generator.normal(size=(rows, width)),
    }
    return made[kind]().astype(np.float32)
