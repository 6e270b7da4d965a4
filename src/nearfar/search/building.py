"""Building an approximate index, and saying how good it is: its recall against exact search, and what a query costs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from nearfar.search.approximate import Known, nearest_proposed
from nearfar.search.base import Entries, make_engine
from nearfar.search.engines import ENGINES, Choice
from nearfar.search.exact import nearest_prepared
from nearfar.search.vectors import Floats, Ints, Metric

NEIGHBOURS = 10
"""Recall is measured at this many neighbours, or at as many as there are."""
LOW_RECALL = 0.9
"""Recall that is worth a warning."""
_SAMPLE = 500
_TIMED = 50
_LOG = logging.getLogger(__name__)

Search = Callable[[Floats, int, Ints], tuple[Floats, Ints]]
"""Queries [N, D], k, and the row that each query excludes [N], to scores and rows [N, k]."""


def build(entries: Entries, metric: Metric, choice: Choice, options: Mapping[str, Any]) -> tuple[Known | None, dict[str, Any]]:
    """Build the engine that was chosen, and measure it.

    Returns:
        The engine, None for exact search; and a report: ``backend`` and ``reason``, and of an engine ``library``,
        ``settings``, ``rows``, ``build_seconds`` and what ``measure`` returns.

    Raises:
        InputError: an option cannot be, or a library is missing.
    """
    report: dict[str, Any] = {"backend": choice.backend, "reason": choice.reason}
    if choice.backend == "exact":
        return None, report
    engine = make_engine(ENGINES[choice.backend], choice.backend, metric, options)
    count, start = len(entries.vectors), time.perf_counter()
    engine.build(entries)
    seconds = time.perf_counter() - start
    known = Known(choice.backend, engine, np.arange(count), count)

    def search(queries: Floats, k: int, exclude: Ints) -> tuple[Floats, Ints]:
        return nearest_proposed(known, queries, entries.vectors, k, metric, exclude)

    measured = measure(search, entries.vectors, metric)
    report |= {"library": engine.library(), "settings": engine.settings(), "rows": count}
    report |= {"build_seconds": round(seconds, 3)} | measured
    _say(report)
    return known, report


def measure(search: Search, gallery: Floats, metric: Metric) -> dict[str, Any]:
    """Compare ``search`` with exact search, for a sample of gallery vectors, each left out of its own search.

    Returns:
        ``recall@10`` (share of what was found that is as near as the 10th neighbour, so that ties do not count as
        misses; ``recall@k`` where there are only k neighbours), ``sample`` (how many vectors), and ``latency_ms`` and
        ``exact_latency_ms`` (median of one query alone). A gallery of one vector has none of them.
    """
    if len(gallery) < 2:
        return {}
    k = min(NEIGHBOURS, len(gallery) - 1)
    rows = np.sort(np.random.default_rng(0).choice(len(gallery), min(_SAMPLE, len(gallery)), replace=False))
    queries = np.ascontiguousarray(gallery[rows])
    found, _ = search(queries, k, rows)
    last = nearest_prepared(queries, gallery, k, metric, rows)[0][:, -1:]
    hit = found <= last if metric == "euclidean" else found >= last
    return {
        f"recall@{k}": round(float(hit.mean()), 4),
        "sample": len(rows),
        "latency_ms": _median_ms(search, queries, rows, k),
        "exact_latency_ms": _median_ms(lambda q, n, own: nearest_prepared(q, gallery, n, metric, own), queries, rows, k),
    }


def _median_ms(search: Search, queries: Floats, rows: Ints, k: int) -> float:
    times = []
    for at in range(min(_TIMED, len(queries))):
        start = time.perf_counter()
        search(queries[at : at + 1], k, rows[at : at + 1])
        times.append(time.perf_counter() - start)
    return round(1000 * float(np.median(times)), 4)


def _say(report: Mapping[str, Any]) -> None:
    text = f"{report['backend']} index of {report['rows']:,} vectors, built in {report['build_seconds']:.1f} s"
    recalls = [name for name in report if name.startswith("recall@")]
    for name in recalls:
        text += (
            f": {name} {report[name]:.4f} for {report['sample']} of them, "
            f"{report['latency_ms']:.2f} ms a query (exact search: {report['exact_latency_ms']:.2f} ms)"
        )
    _LOG.info("%s", text)
    if any(report[name] < LOW_RECALL for name in recalls):
        _LOG.warning(f"{report['backend']} misses many neighbours here; take higher settings, or backend 'exact'")
