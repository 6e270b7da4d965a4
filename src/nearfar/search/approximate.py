"""Search with an approximate engine: it proposes, and every proposal is scored as exact search would score it.

What an engine cannot do is done here, once for all: vectors added since it was built are searched exactly and merged,
those removed are dropped from what it proposes, labels and exclusions are applied to more proposals than needed, and a
query for which too few are left is searched exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nearfar.search.base import Engine, Entries
from nearfar.search.exact import nearest_prepared
from nearfar.search.filters import Only
from nearfar.search.scoring import Gallery, score_pairs
from nearfar.search.storage import StoredEngine
from nearfar.search.vectors import Floats, Ints, Metric

_QUERIES = 1 << 12
"""Queries gone through together."""
_FEW = 20_000
"""Rows of a filter up to which they are searched exactly at once: it takes a millisecond, and a graph is sure of none."""
_SHARE = 0.1
"""Beyond this share of the gallery, proposing is no faster than comparing with all, and less sure."""
_STALE = 0.2
"""Share of vectors added or removed that an engine could not take in, from which on it is built anew."""


class Known:
    """An engine, and what it knows of the index: the key of each row.

    Args:
        name: of the engine.
        engine: built or read.
        keys: int64 [N], the engine's key of each row, -1 for rows that it does not know, which are the last ones.
        given: how many keys have been given out; none is given twice.
    """

    def __init__(self, name: str, engine: Engine, keys: Ints, given: int) -> None:
        self.name, self.engine, self.keys, self.given = name, engine, keys, given
        pending = keys < 0
        self.first_pending = int(np.argmax(pending)) if pending.any() else len(keys)
        # Keys that the engine may propose although their rows are gone.
        self.dead = 0 if engine.removes else given - self.first_pending
        self._rows: Ints | None = None

    @property
    def plain(self) -> bool:
        """Keys are row numbers, as after building."""
        return self.given == len(self.keys) == self.first_pending

    @property
    def stale(self) -> bool:
        """So much has changed since the engine was built that building it anew pays."""
        return self.dead + len(self.keys) - self.first_pending > max(1000, _STALE * len(self.keys))

    def with_added(self, entries: Entries) -> Known:
        """Return what is known once ``entries`` stand behind the rows there are."""
        count, first = len(entries.ids), self.given
        if not self.engine.adds:
            return self._changed(np.concatenate([self.keys, np.full(count, -1)]))
        self.given += count  # first: should the engine fail halfway, these keys are spent
        self.engine.add(entries, first)
        return self._changed(np.concatenate([self.keys, np.arange(first, first + count)]))

    def without(self, keep: npt.NDArray[np.bool_]) -> Known:
        """Return what is known once only the rows ``keep`` [N] are left."""
        if self.engine.removes:
            gone = self.keys[~keep]
            self.engine.remove(gone[gone >= 0])
        return self._changed(self.keys[keep])

    def rows_of(self, keys: Ints) -> Ints:
        """Return the row of each key, of any shape; -1 for -1 and for keys whose rows are gone."""
        if self.plain:
            return np.where(keys < self.given, keys, -1)  # a server may hold what another index added
        if self._rows is None:
            self._rows = np.full(self.given + 1, -1, dtype=np.int64)  # the last is that of no key
            known = self.keys[: self.first_pending]
            self._rows[known] = np.arange(len(known))
        return self._rows[np.where((keys < 0) | (keys >= self.given), self.given, keys)]

    def stored(self) -> StoredEngine:
        """Return what a folder keeps of this."""
        keys = None if self.plain else self.keys
        return StoredEngine(self.name, self.engine.settings(), keys, self.given, write=self.engine.write)

    def _changed(self, keys: Ints) -> Known:
        return Known(self.name, self.engine, keys, self.given)


def nearest_proposed(
    known: Known,
    queries: Floats,
    gallery: Floats,
    k: int,
    metric: Metric,
    exclude: Ints | None = None,
    only: Only | None = None,
) -> tuple[Floats, Ints]:
    """Return the ``k`` best rows of ``gallery`` for each query among those that an engine proposes.

    Args:
        known: the engine.
        queries: float32 [N, D], checked; of unit length with "cosine".
        gallery: float32 [M, D], likewise.
        k: how many; there must be so many rows that the filter and ``exclude`` leave.
        metric: as everywhere.
        exclude: row [N] that is no neighbour of the query, -1 for none.
        only: rows that may be found, or None for all.

    Returns:
        ``scores`` float32 [N, k], best first, and ``rows`` int64 [N, k], in the order and with the scores of exact
        search.
    """
    gallery = np.asarray(gallery)  # a plain view of what is mapped, which is quicker to pick rows from
    fetch = _to_fetch(known, len(gallery), k + (exclude is not None), only)
    if fetch is None:
        return nearest_prepared(queries, gallery, k, metric, exclude, rows=None if only is None else only.rows)
    scores = np.empty((len(queries), k), dtype=np.float32)
    rows = np.empty((len(queries), k), dtype=np.int64)
    allowed: npt.NDArray[np.bool_] | None = None
    if only is not None:
        allowed = np.zeros(len(gallery), dtype=bool)
        allowed[only.rows] = True
    for start in range(0, len(queries), _QUERIES):
        part = slice(start, start + _QUERIES)
        some, excluded = queries[part], None if exclude is None else exclude[part]
        found = _proposals(known, some, gallery, fetch, k, metric, excluded, only)
        there = found >= 0
        if excluded is not None:
            there &= found != excluded[:, None]
        if allowed is not None:
            there &= allowed[found]
        best = rank_rows(some, gallery, np.where(there, found, -1), min(k, found.shape[1]), metric)
        short = np.flatnonzero(there.sum(axis=1) < k)
        if len(short) < len(some):
            scores[part, : best[0].shape[1]], rows[part, : best[1].shape[1]] = best
        if len(short):
            own = None if excluded is None else excluded[short]
            scores[start + short], rows[start + short] = nearest_prepared(
                some[short], gallery, k, metric, own, rows=None if only is None else only.rows
            )
    return scores, rows


def rank_rows(queries: Floats, gallery: Floats, rows: Ints, k: int, metric: Metric) -> tuple[Floats, Ints]:
    """Return the ``k`` best of ``rows`` [N, C] (-1: none) for each query by (score, row), scored as exact search does."""
    owners = np.repeat(np.arange(len(rows)), rows.shape[1])
    scores = score_pairs(queries, Gallery(gallery), owners, rows.ravel(), metric).reshape(rows.shape)
    scores[rows < 0] = np.inf if metric == "euclidean" else -np.inf
    order = np.lexsort((rows, scores if metric == "euclidean" else -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


def _to_fetch(known: Known, rows: int, needed: int, only: Only | None) -> int | None:
    """Return how many proposals to ask for so that some ``needed`` are left, or None to search exactly at once."""
    if only is not None and len(only.rows) <= _FEW:
        return None
    there = known.first_pending
    share = there / (there + known.dead) if there else 0.0
    natively = only is not None and known.engine.filters
    if only is not None and not natively:
        share *= len(only.rows) / rows
    fetch = needed if share == 1.0 else math.ceil(1.5 * needed / max(share, 1e-9)) + 8
    found_in = len(only.rows) if only is not None and natively else rows
    return None if fetch > _SHARE * found_in else fetch


def _proposals(
    known: Known,
    queries: Floats,
    gallery: Floats,
    fetch: int,
    k: int,
    metric: Metric,
    exclude: Ints | None,
    only: Only | None,
) -> Ints:
    """Return rows [N, C] that may be near, -1 for none: what the engine proposes, and the best of what it does not know."""
    labels: Sequence[Any] | None = only.labels if only is not None and known.engine.filters else None
    found = known.rows_of(known.engine.search(queries, fetch, labels))
    start = known.first_pending
    pending = np.arange(start, len(gallery)) if only is None else only.rows[np.searchsorted(only.rows, start) :]
    if not len(pending):
        return found
    most = min(k + (exclude is not None), len(pending))
    _, later = nearest_prepared(queries, gallery, most, metric, rows=pending)
    return np.concatenate([found, later], axis=1)
