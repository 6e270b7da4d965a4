"""Exact search against a loop in float64: the same scores, bit for bit, and the same rows, whatever the tiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from neighbours import points, slow

from nearfar.errors import InputError
from nearfar.search import arithmetic, exact, nearest
from nearfar.search.arithmetic import Reals
from nearfar.search.exact import nearest_prepared
from nearfar.search.vectors import METRICS, unit_rows

TILES = {"as shipped": {}, "small": {"_TILE": 500, "_CHUNK": 100, "_WIDE_CHUNK": 64}, "odd": {"_TILE": 3000, "_CHUNK": 37}}


@pytest.fixture(params=["torch", "numpy"])
def arithmetic_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of the arithmetic: as where PyTorch is loaded, and as where it is not."""
    for module in (arithmetic, exact):
        monkeypatch.setattr(module, "has_torch", lambda: request.param == "torch")
    return str(request.param)


@pytest.mark.usefixtures("arithmetic_by")
@pytest.mark.parametrize("tiles", TILES)
@pytest.mark.parametrize("kind", ["normal", "duplicates", "collapsed", "integers", "one point", "far away"])
@pytest.mark.parametrize("metric", METRICS)
def test_equals_the_slow_loop(metric: str, kind: str, tiles: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TILES[tiles].items():
        monkeypatch.setattr(exact, name, value)
    for width in (1, 2, 17):
        gallery, queries = points(kind, 300, width, 0), points(kind, 20, width, 1)
        for k, exclude in ((1, None), (7, np.random.default_rng(2).integers(-1, 300, size=20)), (250, None)):
            scores, rows = nearest(queries, gallery, k, metric=metric, exclude=exclude)
            expected = slow(queries, gallery, k, metric, exclude)
            np.testing.assert_array_equal(scores, expected[0])
            np.testing.assert_array_equal(rows, expected[1])
            assert scores.dtype == np.float32
            assert rows.dtype == np.int64


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(2, 60),
    width=st.integers(1, 3),
    metric=st.sampled_from(METRICS),
    tile=st.integers(1, 300),
)
def test_ties_of_small_integers_go_to_the_lowest_row(seed: int, rows: int, width: int, metric: str, tile: int) -> None:
    generator = np.random.default_rng(seed)
    gallery = generator.integers(1, 4, size=(rows, width)).astype(np.float32)
    queries = generator.integers(1, 4, size=(5, width)).astype(np.float32)
    k = int(generator.integers(1, rows + 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "_TILE", tile)
        patch.setattr(exact, "_CHUNK", max(1, tile // 7))
        found = nearest(queries, gallery, k, metric=metric)
    for result, expected in zip(found, slow(queries, gallery, k, metric), strict=True):
        np.testing.assert_array_equal(result, expected)


@pytest.mark.usefixtures("arithmetic_by")
def test_more_duplicates_than_candidates_are_settled_exactly() -> None:
    """100 copies of the query's nearest point, spread over the gallery, and k in the midst of them."""
    generator = np.random.default_rng(0)
    gallery = generator.normal(size=(3000, 24)).astype(np.float32)
    copies = np.sort(generator.permutation(3000)[:100])
    gallery[copies] = gallery[copies[0]]
    scores, rows = nearest(gallery[copies[:1]], gallery, 30, metric="euclidean")
    np.testing.assert_array_equal(rows[0], copies[:30])
    assert (scores == 0.0).all()


def test_rounding_of_the_float32_product_does_not_reach_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors as large as theory admits are put into the products: the result must not change."""
    gallery, queries = points("collapsed", 400, 16, 0), points("collapsed", 30, 16, 1)
    expected = {metric: slow(queries, gallery, 9, metric) for metric in METRICS}
    plain = exact.products
    generator = np.random.default_rng(0)

    def shaken(a: Reals, b: Reals, bias: Reals | None = None) -> Reals:
        tile = plain(a, b, bias)
        if tile.dtype == np.float64:
            return tile
        reach = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
        return tile + (16 * 2.0**-24 * reach * generator.uniform(-1.0, 1.0, tile.shape)).astype(np.float32)

    monkeypatch.setattr(exact, "products", shaken)
    for metric in METRICS:
        for result, true in zip(nearest(queries, gallery, 9, metric=metric), expected[metric], strict=True):
            np.testing.assert_array_equal(result, true)


def test_tiles_stay_within_their_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "_TILE", 10_000)
    monkeypatch.setattr(exact, "_CHUNK", 1_000)
    sizes = []
    plain = exact.products

    def watched(a: Reals, b: Reals, bias: Reals | None = None) -> Reals:
        sizes.append(len(a) * len(b))
        return plain(a, b, bias)

    monkeypatch.setattr(exact, "products", watched)
    nearest(points("normal", 500, 8, 0), points("normal", 5000, 8, 1), 5)
    assert max(sizes) <= 10_000
    assert sum(sizes) == 500 * 5000


@pytest.mark.parametrize("metric", METRICS)
def test_a_read_only_map_gives_what_the_array_gives(tmp_path: Path, metric: str) -> None:
    gallery, queries = points("normal", 200, 5, 0), points("normal", 9, 5, 1)
    np.save(tmp_path / "g.npy", gallery)
    mapped = np.load(tmp_path / "g.npy", mmap_mode="r")
    for a, b in zip(nearest(queries, mapped, 4, metric=metric), nearest(queries, gallery, 4, metric=metric), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("tiles", TILES)
@pytest.mark.parametrize("kind", ["normal", "duplicates", "collapsed"])
@pytest.mark.parametrize("metric", METRICS)
def test_some_rows_of_a_gallery_give_what_a_gallery_of_these_rows_gives(
    metric: str, kind: str, tiles: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in TILES[tiles].items():
        monkeypatch.setattr(exact, name, value)
    gallery, queries = unit_rows(points(kind, 300, 6, 0), "g"), unit_rows(points(kind, 20, 6, 1), "q")
    generator = np.random.default_rng(3)
    for size, k in ((1, 1), (40, 7), (299, 12), (300, 12)):
        rows = np.sort(generator.permutation(300)[:size])
        scores, found = nearest_prepared(queries, gallery, k, metric, rows=rows)
        expected = slow(queries, gallery[rows], k, metric)
        np.testing.assert_array_equal(scores, expected[0])
        np.testing.assert_array_equal(found, rows[expected[1]])
        if size > 1:
            exclude = generator.integers(-1, 300, size=20)  # some of them are not among the rows
            scores, found = nearest_prepared(queries, gallery, k - 1, metric, exclude, rows=rows)
            place = np.array([np.flatnonzero(rows == row)[0] if row in rows else -1 for row in exclude])
            expected = slow(queries, gallery[rows], k - 1, metric, place)
            np.testing.assert_array_equal(scores, expected[0])
            np.testing.assert_array_equal(found, rows[expected[1]])


@pytest.mark.usefixtures("arithmetic_by")
def test_the_largest_of_each_row_are_found_in_groups_and_in_the_rest() -> None:
    generator = np.random.default_rng(0)
    for width in (1, 7, 64, 1000, 1003):
        tile = generator.random((12, width), dtype=np.float32)
        for k in {1, min(3, width), min(100, width), width}:
            values, columns = arithmetic.largest(tile, k)
            np.testing.assert_array_equal(np.take_along_axis(tile, columns, axis=1), values)
            np.testing.assert_array_equal(np.sort(values, axis=1), np.sort(tile, axis=1)[:, width - k :])
            assert all(len(set(row)) == k for row in columns.tolist())


@pytest.mark.parametrize("metric", METRICS)
def test_many_queries_are_searched_the_same_without_pytorch(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bulk with PyTorch, by the plain way without it: bit for bit."""
    gallery, queries = unit_rows(points("normal", 9000, 12, 0), "g"), unit_rows(points("normal", 100, 12, 1), "q")
    gallery[100:200] = gallery[:100]
    exclude = np.arange(-1, 99)
    bulk = nearest(queries, gallery, 12, metric=metric, exclude=exclude)
    for module in (arithmetic, exact):
        monkeypatch.setattr(module, "has_torch", lambda: False)
    for plain, expected in zip(nearest(queries, gallery, 12, metric=metric, exclude=exclude), bulk, strict=True):
        np.testing.assert_array_equal(plain, expected)


def test_what_does_not_fit_is_refused_in_one_line() -> None:
    gallery, queries = points("normal", 10, 4, 0), points("normal", 3, 4, 1)
    for arguments, message in [
        ((queries[:, :3], gallery, 2), "queries has 3 features, but gallery is expecting 4"),
        ((queries, gallery, 0), "k is 0, expected 1 to 10"),
        ((queries, gallery, 11), "k is 11, expected 1 to 10"),
        ((queries, gallery[:0], 1), "gallery is empty"),
        ((queries * 0.0, gallery, 1), "queries row 0 is all zeros"),
        ((queries, np.concatenate([gallery, gallery[:1] * 0.0]), 1), "gallery row 10 is all zeros"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            nearest(*arguments)
        assert "\n" not in str(caught.value)
    for exclude, message in [
        ([0, 1], r"exclude has shape \(2,\)"),
        ([0, 1, 10], "exclude names a row outside 0 to 9"),
        ([0.0, 1.0, 2.0], "whole numbers"),
    ]:
        with pytest.raises(InputError, match=message):
            nearest(queries, gallery, 1, exclude=exclude)
    with pytest.raises(InputError, match="k is 10, expected 1 to 9"):
        nearest(queries, gallery, 10, exclude=[0, 1, 2])
