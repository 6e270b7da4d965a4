"""Annoy: a forest of trees, each of which halves the vectors by random planes (Bernhardsson 2013)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from nearfar.errors import InputError
from nearfar.search.base import Engine, Entries, check_count, import_for
from nearfar.search.structures import check_forest
from nearfar.search.vectors import Floats, Ints, Metric

_METRICS = {"cosine": "angular", "dot": "dot", "euclidean": "euclidean"}
_CHUNK = 1 << 13


class AnnoyEngine(Engine):
    """A forest that is built once and then only read, by memory map.

    Args:
        metric: the metric of the index.
        trees: more cost memory and find more.
        search_k: candidates looked at for each query; more take longer and find more. None: ``trees`` times k.
    """

    extra = "annoy"
    modules = ("annoy",)

    def __init__(self, metric: Metric, *, trees: int = 10, search_k: int | None = None) -> None:
        self.metric = metric
        self.trees = check_count("trees", trees)
        self.search_k = None if search_k is None else check_count("search_k", search_k, most=1 << 30)
        self._forest: Any = None

    def settings(self) -> dict[str, Any]:
        return {"trees": self.trees, "search_k": self.search_k}

    def library(self) -> str:
        return f"annoy {version('annoy')}"

    def build(self, entries: Entries) -> None:
        forest = self._empty(entries.vectors.shape[1])
        forest.set_seed(0)
        for start in range(0, len(entries.vectors), _CHUNK):
            for row, vector in enumerate(entries.vectors[start : start + _CHUNK].tolist(), start):
                forest.add_item(row, vector)
        forest.build(self.trees, n_jobs=-1)
        self._forest = forest

    def search(self, queries: Floats, k: int, only: Sequence[Any] | None = None) -> Ints:
        find, looked_at = self._forest.get_nns_by_vector, -1 if self.search_k is None else self.search_k
        found = [find(query, k, looked_at) for query in queries.tolist()]
        keys = np.full((len(queries), k), -1, dtype=np.int64)
        for place, near in zip(keys, found, strict=True):
            place[: len(near)] = near
        return keys

    def write(self, path: Path) -> None:
        try:
            self._forest.save(str(path))
        except OSError as error:
            raise InputError(f"cannot write {path}: {error}; is the disk full?") from error

    def read(self, path: Path, dimensions: int, size: int) -> None:
        forest = self._empty(dimensions)
        try:
            check_forest(path, _METRICS[self.metric], dimensions, size)
            _take_descriptor_zero()
            forest.load(str(path))
        except FileNotFoundError:
            raise
        except (ValueError, OSError) as error:
            raise InputError(f"{path} is damaged: {error}; build the index again") from None
        if forest.get_n_items() != size:
            raise InputError(f"{path} holds {forest.get_n_items():,} vectors, expected {size:,}; build the index again")
        self._forest = forest

    def _empty(self, dimensions: int) -> Any:
        (annoy,) = import_for(type(self), "annoy")
        return annoy.AnnoyIndex(dimensions, _METRICS[self.metric])


def _take_descriptor_zero() -> None:
    """Open something as file descriptor 0 if standard input is closed.

    Annoy 1.17.3 takes 0 for "no file": a forest loaded by this descriptor would be freed as if it were no memory map, which
    ends the process.
    """
    descriptor = os.open(os.devnull, os.O_RDONLY)
    if descriptor:
        os.close(descriptor)
