"""A map of random points, and an index that it is of; no run is trained."""

from __future__ import annotations

import numpy as np

from nearfar.explore.store import SPLITS, Map, row_marks
from nearfar.search import NeighborIndex

MODEL = "0123456789abcdef" * 4


def random_index(rows: int = 40, *, metric: str = "cosine", seed: int = 0) -> NeighborIndex:
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(rows, 6)).astype(np.float32)
    index = NeighborIndex(metric, "exact").fit(vectors, random.integers(0, 3, rows), ids=np.arange(rows) * 2)
    index._model_hash = MODEL
    index._names = {"images": [f"image {row}" for row in range(rows)]}
    return index


def random_map(index: NeighborIndex, *, queries: int = 10, k: int = 4, seed: int = 0) -> Map:
    random, gallery = np.random.default_rng(seed), len(index)
    count = gallery + queries
    own = np.arange(count)[:, None]
    return Map(
        bound_to={"model": MODEL, "content": "x"},
        method="t-SNE",
        metric=index.metric,
        classes=["a", "<b>b</b>", "c"],
        source="images",
        names=[f"image {row}" for row in range(count)],
        splits=np.where(own[:, 0] < gallery, 0, SPLITS.index("test")).astype(np.int8),
        labels=random.integers(0, 3, count).astype(np.int32),
        predictions=random.integers(0, 3, count).astype(np.int32),
        probability=random.random(count).astype(np.float32),
        suspicion=random.random(count).astype(np.float32),
        xy=random.random((count, 2)).astype(np.float32),
        ids=np.concatenate([index.ids, np.full(queries, -1)]),
        marks=np.concatenate([row_marks(index.ids, np.asarray(index.vectors)), np.zeros(queries, np.uint64)]),
        neighbors=((own + np.arange(1, k + 1)) % gallery).astype(np.int32),
        scores=random.random((count, k)).astype(np.float32),
    )
