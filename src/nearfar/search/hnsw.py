"""HNSW by usearch: a graph of near vectors in layers, walked greedily (Malkov and Yashunin 2018)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from nearfar.errors import InputError
from nearfar.search.base import Engine, Entries, check_count, import_for
from nearfar.search.structures import check_graph
from nearfar.search.vectors import Floats, Ints, Metric, squared_lengths

_CHUNK = 1 << 16
"""Rows handed over together: of a memory map, no more is read at once."""


_ALONE = 4096
"""Vectors that are put in by one thread before several go on."""


class HnswEngine(Engine):
    """A graph in which every vector is linked to near ones.

    Args:
        metric: the metric of the index.
        m: links of a vector to others (twice as many in the lowest layer); more cost memory and find more.
        ef_construction: candidates kept while a vector's links are chosen; more take longer and find more.
        ef: candidates kept while searching; more take longer and find more.
        longest: for "dot", the length of the longest vector that the graph was built of; found by ``build``.
    """

    extra = "ann"
    modules = ("usearch.index",)
    adds = True

    def __init__(
        self, metric: Metric, *, m: int = 16, ef_construction: int = 128, ef: int = 96, longest: float | None = None
    ) -> None:
        self.metric = metric
        self.m = check_count("m", m, 2, 512)
        self.ef_construction, self.ef = check_count("ef_construction", ef_construction), check_count("ef", ef)
        if longest is not None and not (isinstance(longest, int | float) and 0.0 <= longest < math.inf):
            raise InputError(f"option longest is {longest!r}, expected the length of a vector; it is found by building")
        self.longest = longest
        self._index: Any = None
        self._mapped: Any = None  # the map of a file, which the index reads and does not keep open itself

    def settings(self) -> dict[str, Any]:
        settings = {"m": self.m, "ef_construction": self.ef_construction, "ef": self.ef}
        return settings if self.longest is None else settings | {"longest": self.longest}

    def library(self) -> str:
        return f"usearch {version('usearch')}"

    def build(self, entries: Entries) -> None:
        if self.metric == "dot":
            parts = range(0, len(entries.vectors), _CHUNK)
            self.longest = float(np.sqrt(max(squared_lengths(entries.vectors[at : at + _CHUNK]).max() for at in parts)))
        self._index, self._mapped = self._empty(entries.vectors.shape[1]), None
        self.add(entries, 0)

    def add(self, entries: Entries, first: int) -> None:
        if self._mapped is not None:
            # What is mapped cannot grow; the file may be gone by now, but not what is mapped.
            grown = self._empty(entries.vectors.shape[1])
            grown.load(self._index.save())
            self._index, self._mapped = grown, None
        for at in range(0, len(entries.vectors), _CHUNK):
            rows = self._placed(entries.vectors[at : at + _CHUNK], gallery=True)
            keys = np.arange(first + at, first + at + len(rows), dtype=np.uint64)
            # Into a graph that is nearly empty two threads link past each other, and parts of it are never found again.
            alone = len(rows) if len(rows) < 32 else min(len(rows), max(0, _ALONE - len(self._index)))
            for part, threads in ((slice(alone), 1), (slice(alone, len(rows)), 0)):
                if len(rows[part]):
                    self._index.add(keys[part], rows[part], threads=threads)

    def search(self, queries: Floats, k: int, only: Sequence[Any] | None = None) -> Ints:
        placed = self._placed(queries, gallery=False)
        # All that the walk has looked at is handed on: the index scores it anew, and the graph's numbers are rounded.
        count = max(k, self.ef)
        found = self._index.search(placed, count, threads=1 if len(placed) < 8 else 0)
        if len(placed) == 1:
            return np.asarray(found.keys).astype(np.int64)[None, :]
        there = np.arange(count) < np.asarray(found.counts)[:, None]
        return np.where(there, np.asarray(found.keys).astype(np.int64), -1)

    def write(self, path: Path) -> None:
        try:
            self._index.save(str(path))
        except RuntimeError as error:
            raise InputError(f"cannot write {path}: {error}; is the disk full?") from error

    def read(self, path: Path, dimensions: int, size: int) -> None:
        if self.metric == "dot" and self.longest is None:
            raise InputError(f"{path} is described wrongly: the longest vector is not named; build the index again")
        index = self._empty(dimensions)
        numbers = dimensions + (self.metric == "dot")
        try:
            # What is looked at is what is searched. By its name usearch would open the file again, and, were it gone by then,
            # close file descriptor 0, whatever that is (2.26.6).
            content = np.memmap(path, np.uint8, mode="r")
            check_graph(content, bytes(index.save()), numbers * (2 if self.metric == "cosine" else 4), size)
            index.view(content)
        except (ValueError, RuntimeError) as error:
            raise InputError(f"{path} is damaged: {error}; build the index again") from None
        self._index, self._mapped = index, content

    def _empty(self, dimensions: int) -> Any:
        (usearch,) = import_for(type(self), "hnsw")
        return usearch.Index(
            ndim=dimensions + (self.metric == "dot"),
            metric="ip" if self.metric == "cosine" else "l2sq",
            # Unit vectors lose nothing that matters by rounding, and rows half as long are fetched faster.
            dtype="f16" if self.metric == "cosine" else "f32",
            connectivity=self.m,
            expansion_add=self.ef_construction,
            expansion_search=self.ef,
        )

    def _placed(self, vectors: Floats, *, gallery: bool) -> Floats:
        """For "dot", put the vectors where the nearest is the one of greatest product; all others stay as they are.

        One more coordinate, sqrt(longest^2 - |x|^2), makes all vectors of the gallery equally long, and 0 leaves the
        products with a query as they are (Bachrach et al. 2014).
        """
        if self.metric != "dot" or self.longest is None:
            return vectors
        last = np.zeros(len(vectors))
        if gallery:
            last = np.sqrt(np.maximum(self.longest**2 - squared_lengths(vectors), 0.0))
        return np.concatenate([vectors, last[:, None].astype(np.float32)], axis=1)
