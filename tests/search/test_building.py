"""Choosing a backend, measuring what was built, and saying so."""

from __future__ import annotations

import logging
import sys
from typing import Any

import numpy as np
import pytest

from nearfar.errors import InputError
from nearfar.search import NeighborIndex, building, engines
from nearfar.search.approximate import rank_rows
from nearfar.search.exact import nearest_prepared
from nearfar.search.vectors import METRICS, Metric, unit_rows

Z = np.random.default_rng(0).normal(size=(800, 8)).astype(np.float32)
Q = np.random.default_rng(1).normal(size=(9, 8)).astype(np.float32)


def test_auto_chooses_by_size_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "EXACT_UP_TO", 700)
    small, large = NeighborIndex().fit(Z[:700]), NeighborIndex(options={"ef": 40}).fit(Z)
    assert small.built == {"backend": "exact", "reason": "up to 700 vectors exact search is fast, and there are 700"}
    assert large.built["backend"] == "hnsw"
    assert large.built["reason"] == "beyond 700 vectors a graph is faster, and there are 800"
    assert large.built["settings"]["ef"] == 40
    # An index that grows is given a graph; one that shrinks keeps it.
    assert small.add(Z[700:]).built["backend"] == "hnsw"
    assert small.remove(np.arange(200)).built["backend"] == "hnsw"
    np.testing.assert_array_equal(small.search(Q, 3)[1], NeighborIndex(backend="exact").fit(Z[200:]).search(Q, 3)[1] + 200)


def test_auto_without_the_extra_is_exact_and_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "EXACT_UP_TO", 700)
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    index = NeighborIndex().fit(Z)
    assert index.built["backend"] == "exact"
    assert 'pip install "nearfar[ann]"' in index.built["reason"]


@pytest.mark.parametrize(
    ("backend", "module", "extra"),
    [("hnsw", "usearch.index", "ann"), ("annoy", "annoy", "annoy"), ("milvus", "pymilvus", "milvus")],
)
def test_a_missing_extra_is_one_line(backend: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf'backend \'{backend}\' needs .*: pip install "nearfar\[{extra}\]"') as caught:
        NeighborIndex(backend=backend).fit(Z)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("backend", "options", "message"),
    [
        ("hnsw", {"m": 1}, "option m is 1, expected a whole number from 2 to 512"),
        ("hnsw", {"ef": 2.5}, "option ef is 2.5"),
        ("hnsw", {"ef_construction": True}, "option ef_construction is True"),
        ("annoy", {"trees": 0}, "option trees is 0"),
        ("annoy", {"search_k": "all"}, "option search_k is 'all'"),
        ("annoy", {"tree": 3}, "backend 'annoy' has no option 'tree'; did you mean 'trees'"),
        ("milvus", {"uri": "here.db"}, "option uri is 'here.db', expected http://host:port"),
        ("milvus", {"uri": "http://me:secret@host:1"}, "put them into NEARFAR_MILVUS_TOKEN"),
    ],
)
def test_options_that_cannot_be_are_refused(backend: str, options: dict[str, Any], message: str) -> None:
    index = NeighborIndex(backend="exact").fit(Z)
    index.set_params(backend=backend, options=options)
    with pytest.raises(InputError, match=message) as caught:
        index.fit(Z[:400])
    assert "secret" not in str(caught.value)
    assert len(index) == 800  # as it was


@pytest.mark.parametrize("metric", METRICS)
def test_recall_is_that_of_the_search_that_was_measured(metric: Metric) -> None:
    """A search that finds every second neighbour only has recall 1 / 2; exact search has 1, duplicates or not."""
    gallery = unit_rows(np.concatenate([Z, Z[:200]]), "gallery")

    def exact(queries: np.ndarray, k: int, exclude: np.ndarray) -> Any:
        return nearest_prepared(queries, gallery, k, metric, exclude)

    def half(queries: np.ndarray, k: int, exclude: np.ndarray) -> Any:
        scores, rows = exact(queries, 2 * k, exclude)
        keep = np.r_[0 : k // 2, k + k // 2 : 2 * k]
        return scores[:, keep], rows[:, keep]

    assert building.measure(exact, gallery, metric)["recall@10"] == 1.0
    measured = building.measure(half, gallery, metric)
    assert measured["recall@10"] == 0.5
    assert measured["sample"] == 500
    assert measured["latency_ms"] > 0
    assert measured["exact_latency_ms"] > 0
    assert building.measure(exact, gallery[:4], metric)["recall@3"] == 1.0
    assert building.measure(exact, gallery[:1], metric) == {}


def test_building_says_how_good_the_index_is(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="nearfar"):
        index = NeighborIndex(backend="hnsw").fit(Z)
    built = index.built
    assert built["rows"] == 800
    assert built["recall@10"] >= 0.98
    assert built["library"].startswith("usearch ")
    assert caplog.messages == [
        f"hnsw index of 800 vectors, built in {built['build_seconds']:.1f} s: recall@10 {built['recall@10']:.4f} for 500 of "
        f"them, {built['latency_ms']:.2f} ms a query (exact search: {built['exact_latency_ms']:.2f} ms)"
    ]
    caplog.clear()
    poor = np.random.default_rng(2).normal(size=(5000, 60))
    with caplog.at_level(logging.WARNING, logger="nearfar"):
        index = NeighborIndex(backend="annoy", options={"trees": 1, "search_k": 10}).fit(poor)
    assert index.built["recall@10"] < 0.5
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "misses many neighbours" in caplog.text
    built["recall@10"] = 2.0
    assert index.built["recall@10"] < 0.5  # a copy was given out


@pytest.mark.parametrize("metric", METRICS)
def test_proposals_are_scored_and_ordered_as_by_exact_search(metric: Metric) -> None:
    for width in (1, 8, 300):
        rng = np.random.default_rng(width)
        gallery, queries = rng.normal(size=(50, width)).astype(np.float32), rng.normal(size=(5, width)).astype(np.float32)
        gallery, queries = unit_rows(gallery, "gallery"), unit_rows(queries, "queries")
        scores, rows = nearest_prepared(queries, gallery, 50, metric)
        mixed = np.take_along_axis(rows, rng.permuted(np.tile(np.arange(50), (5, 1)), axis=1), axis=1)
        mixed = np.where(mixed % 7 == 0, -1, mixed)
        best, found = rank_rows(queries, gallery, mixed, 20, metric)
        for q in range(5):
            keep = rows[q] % 7 != 0
            np.testing.assert_array_equal(found[q], rows[q][keep][:20])
            np.testing.assert_array_equal(best[q], scores[q][keep][:20])
