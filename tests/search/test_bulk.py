"""Search in bulk: by bfloat16, by float32 and by cells it finds what the loop in float64 finds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from neighbours import points, slow

from nearfar.errors import InputError
from nearfar.search import bulk, cells, exact, leading, tensors, tiles
from nearfar.search.bulk import find_candidates
from nearfar.search.cells import make_cells
from nearfar.search.exact import nearest, nearest_prepared
from nearfar.search.scoring import Gallery, from_keys, score_pairs, sort_keys, spread_places
from nearfar.search.vectors import METRICS, centre_of, unit_rows

ROWS, QUERIES = 1003, 70  # no multiple of a group; a block and some


def clouds(rows: int, width: int, seed: int, spread: float) -> np.ndarray:
    """Vectors in five tight clouds, in order of clouds."""
    generator = np.random.default_rng(seed)
    centres = 3.0 * np.random.default_rng(99).normal(size=(5, width))
    return (centres[np.arange(rows) * 5 // rows] + spread * generator.normal(size=(rows, width))).astype(np.float32)


def data(kind: str) -> tuple[np.ndarray, np.ndarray]:
    if kind == "clouds":
        return clouds(ROWS, 8, 0, 0.05), clouds(QUERIES, 8, 1, 0.3)
    if kind == "lengths":  # from 1e-6 to 1e6
        scale = 10.0 ** np.random.default_rng(5).integers(-6, 7, size=(ROWS, 1))
        return (points("normal", ROWS, 8, 0) * scale).astype(np.float32), points("normal", QUERIES, 8, 1)
    if kind == "tiny":  # products are below the smallest normal float32
        return points("normal", ROWS, 8, 0) * np.float32(1e-20), points("normal", QUERIES, 8, 1) * np.float32(1e-20)
    return points(kind, ROWS, 8, 0), points(kind, QUERIES, 8, 1)


@pytest.fixture(params=["bfloat16", "float32", "leading", "cells"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make small searches go in bulk, each way, through several chunks."""
    for module, name, value in [
        (exact, "_MANY_ROWS", 500),
        (exact, "_MANY_QUERIES", 1),
        (exact, "_SOME_QUERIES", 1),
        (exact, "_CELL_QUERIES", 1 if request.param == "cells" else 10**9),
        (cells, "_ROWS", 100),
        (bulk, "_CHUNK", 384),
        (bulk, "_SMALL_CHUNK", 384),
        (bulk, "_SAMPLE", 200),
        (bulk, "_PIECE_ROWS", 128),
        (bulk, "_PIECE_QUERIES", 32),
        # Leading coordinates, two or three of eight, also where they leave everything.
        (bulk, "_TO_TRY", 0 if request.param == "leading" else 10**9),
        (bulk, "_WORTH", 1.0),
        (bulk, "_MULTIPLE", 4),
        (bulk, "_LEAST_LEADING", 1),
        (bulk, "_SLAB", 100),
    ]:
        monkeypatch.setattr(module, name, value)
    if request.param in ("float32", "leading"):
        monkeypatch.setattr(tensors, "has_narrow_products", lambda: False)
    return str(request.param)


KINDS = ["normal", "duplicates", "collapsed", "integers", "one point", "far away", "clouds", "lengths", "tiny"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", METRICS)
def test_equals_the_slow_loop(metric: str, kind: str, way: str) -> None:
    gallery, queries = data(kind)
    if metric == "cosine":
        gallery, queries = unit_rows(gallery, "g"), unit_rows(queries, "q")
    for k, exclude in ((1, None), (10, np.random.default_rng(2).integers(-1, ROWS, size=QUERIES)), (30, np.arange(QUERIES))):
        scores, rows = nearest_prepared(queries, gallery, k, metric, exclude)
        expected = slow(queries, gallery, k, metric, exclude)
        np.testing.assert_array_equal(scores, expected[0])
        np.testing.assert_array_equal(rows, expected[1])


@pytest.mark.parametrize("metric", METRICS)
def test_some_rows_and_rows_not_yet_of_unit_length(metric: str, way: str) -> None:
    gallery, queries = data("clouds")
    rows = np.flatnonzero(np.arange(ROWS) % 4 > 0)
    exclude = np.random.default_rng(3).integers(-1, ROWS, size=QUERIES)
    unit = unit_rows(queries, "q") if metric == "cosine" else queries
    scores, found = nearest_prepared(unit, gallery, 9, metric, exclude, scale=metric == "cosine", rows=rows)
    place = np.full(ROWS + 1, -1)  # the last is for what excludes nothing
    place[rows] = np.arange(len(rows))
    expected = slow(queries, gallery[rows], 9, metric, place[exclude])
    np.testing.assert_array_equal(scores, expected[0])
    np.testing.assert_array_equal(found, rows[expected[1]])


@pytest.mark.parametrize("metric", METRICS)
def test_each_of_the_nearest_is_a_candidate_though_products_err_as_much_as_they_may(
    metric: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error that a sum in float32 may have at most, in the worst direction, and rounding to the type of the result."""
    generator = torch.Generator().manual_seed(0)
    count = 0

    def shaken(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        nonlocal count
        count += 1
        wide, other = a.double(), b.double()
        more = torch.zeros(len(b), dtype=torch.float64) if bias is None else bias.double()
        reach = wide.abs() @ other.abs().T + more.abs()
        sign = torch.randint(0, 2, reach.shape, generator=generator) * 2 - 1
        return (wide @ other.T + more + sign * a.shape[1] * 2.0**-24 * reach).to(a.dtype)

    monkeypatch.setattr(tiles, "narrow_products", shaken)
    monkeypatch.setattr(tiles, "products", shaken)
    monkeypatch.setattr(bulk, "products", shaken)
    monkeypatch.setattr(leading, "products", shaken)
    gallery, queries = data("clouds")
    if metric == "cosine":
        gallery, queries = unit_rows(gallery, "g"), unit_rows(queries, "q")
    scores, rows = nearest_prepared(queries, gallery, 10, metric)
    expected = slow(queries, gallery, 10, metric)
    np.testing.assert_array_equal(scores, expected[0])
    np.testing.assert_array_equal(rows, expected[1])
    assert count > 3


def test_bfloat16_settles_most_queries_and_the_rest_is_named() -> None:
    """Queries inside a cloud of 200 copies have too many candidates; the others have few, all of the best among them."""
    gallery, queries = points("normal", 4000, 16, 0), points("normal", 100, 16, 1)
    gallery[1000:1200] = gallery[1000]
    queries[7], queries[50] = gallery[1000] + 1e-4, gallery[1000]
    for narrow in (True, False):
        found = find_candidates(queries, Gallery(gallery), 10, "euclidean", None, narrow=narrow, centre=centre_of(gallery))
        np.testing.assert_array_equal(found.unsettled, [7, 50])
        best = slow(queries, gallery, 10, "euclidean")[1]
        for query in set(range(100)) - {7, 50}:
            candidates = found.places[found.owners == query]
            assert set(best[query]) <= set(candidates.tolist())
            assert len(set(candidates.tolist())) == len(candidates) <= 64


def test_bfloat16_and_cells_together_lose_nothing() -> None:
    gallery, queries = clouds(3000, 8, 0, 0.3), clouds(100, 8, 1, 0.3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "_ROWS", 300)
        made = make_cells(queries, Gallery(gallery), "euclidean")
    assert made is not None
    zero = np.zeros(8, dtype=np.float32)
    found = find_candidates(queries, Gallery(gallery), 5, "euclidean", None, narrow=True, centre=zero, cells=made)
    assert len(found.unsettled) < 10
    best = slow(queries, gallery, 5, "euclidean")[1]
    for query in set(range(100)) - set(found.unsettled.tolist()):
        assert set(best[query]) <= set(found.places[found.owners == query].tolist())


def families(rows: int, seed: int) -> np.ndarray:
    """Unit vectors of 64 numbers in 50 families that differ within in few directions."""
    fixed, generator = np.random.default_rng(99), np.random.default_rng(seed)
    centres, axes = fixed.normal(size=(50, 64)), fixed.normal(size=(6, 64))
    made = centres[generator.integers(50, size=rows)] + 0.3 * generator.normal(size=(rows, 6)) @ axes
    return unit_rows(made.astype(np.float32), "z")


@pytest.mark.parametrize("kind", ["families", "noise"])
def test_leading_coordinates_are_used_where_they_rule_out_nearly_all(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs: list[int] = []
    chunks = 0
    reached, ahead = bulk._Ahead._piece, bulk._Search._look_ahead

    def piece(*parts: Any) -> Any:
        found = reached(*parts)
        pairs.append(len(found[0]))
        return found

    def look(*parts: Any, **more: Any) -> None:
        nonlocal chunks
        chunks += 1
        ahead(*parts, **more)

    monkeypatch.setattr(bulk._Ahead, "_piece", piece)
    monkeypatch.setattr(bulk._Search, "_look_ahead", look)
    monkeypatch.setattr(bulk, "_CHUNK", 4096)
    rows, queries = 20_000, 300
    if kind == "families":
        gallery, asked = families(rows, 0), families(queries, 1)
    else:
        gallery, asked = (unit_rows(points("normal", count, 64, seed), "z") for count, seed in ((rows, 0), (queries, 1)))
    zero = np.zeros(64, dtype=np.float32)
    found = find_candidates(asked, Gallery(gallery), 10, "cosine", None, narrow=False, centre=zero)
    assert (chunks > 0) == (kind == "families")
    assert sum(pairs) < 0.002 * rows * queries
    assert len(found.unsettled) == 0
    best = slow(asked, gallery, 10, "cosine")[1]
    for query in range(queries):
        assert set(best[query]) <= set(found.places[found.owners == query].tolist())


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["normal", "clouds", "lengths", "tiny", "tiny gallery", "far away"])
def test_bounds_by_leading_coordinates_hold(kind: str, metric: str) -> None:
    """Oracle: similarities in float64."""
    gallery, queries = data(kind.removesuffix(" gallery"))
    if kind == "tiny gallery":
        queries = data("normal")[1]
    if metric == "cosine":
        gallery, queries = unit_rows(gallery, "g"), unit_rows(queries, "q")
    centre = centre_of(gallery) if metric != "cosine" else np.zeros(8, dtype=np.float32)
    made = tiles.Tiles(8, metric, narrow=False, moved=bool(centre.any()))
    part, block = made.part(gallery, centre, group=1), made.block(queries, np.arange(QUERIES), centre)
    axes = leading.leading_axes(part.keys[:, :8])
    wide, other = gallery.astype(np.float64), queries.astype(np.float64)
    true = wide @ other.T
    if metric == "euclidean":
        true = -0.5 * np.square(wide[:, None] - other).sum(axis=2)
    error = made.error(part, block, block.constant)
    for kept in (1, 3, 7):
        way = leading.Leading(axes[:, :kept].contiguous(), made.columns)
        above = way.keys(part).double() @ way.weights(block).double().T
        bound = above.numpy() + block.constant + way.slack(part, block) + error
        assert (bound >= true).all()


def test_bfloat16_gives_up_early_where_it_is_too_coarse() -> None:
    gallery, queries = unit_rows(points("collapsed", 4000, 16, 0), "g"), unit_rows(points("collapsed", 100, 16, 1), "q")
    zero = np.zeros(16, dtype=np.float32)
    found = find_candidates(queries, Gallery(gallery), 10, "cosine", None, narrow=True, centre=zero)
    np.testing.assert_array_equal(found.unsettled, np.arange(100))


def test_cells_hold_every_vector_once_within_their_radius() -> None:
    gallery, queries = clouds(2000, 8, 0, 0.05), clouds(300, 8, 1, 0.05)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "_ROWS", 250)
        made = make_cells(queries, Gallery(gallery), "euclidean")
        assert made is not None
        assert make_cells(queries, Gallery(points("normal", 2000, 8, 0)), "euclidean") is None
        assert make_cells(queries, Gallery(np.ones((2000, 8), dtype=np.float32)), "euclidean") is None
    np.testing.assert_array_equal(np.sort(made.order), np.arange(2000))
    assert made.bounds[0] == 0
    assert made.bounds[-1] == 2000
    apart = np.linalg.norm(queries[:, None].astype(np.float64) - made.centres, axis=2)
    np.testing.assert_array_equal(made.home, apart.argmin(axis=1))
    for start, end, centre, radius in zip(made.bounds[:-1], made.bounds[1:], made.centres, made.radii, strict=True):
        lengths = np.linalg.norm(gallery[made.order[start:end]].astype(np.float64) - centre, axis=1)
        assert lengths.max() <= radius <= lengths.max() * 1.001
    assert make_cells(queries, Gallery(gallery), "euclidean") is None  # too few rows for two cells


def test_a_row_of_zeros_is_named_by_its_own_number(way: str) -> None:
    gallery, queries = data("clouds")
    gallery[777] = 0.0
    with pytest.raises(InputError, match="gallery row 777 is all zeros"):
        nearest(queries, gallery, 3)
    with pytest.raises(InputError, match="gallery row 777 is all zeros"):
        Gallery(gallery, scale=True).at(np.array([3, 777, 4]))


def test_spread_places_are_distinct_and_from_all_over() -> None:
    for count, size in [(10, 3), (1000, 700), (1000, 1000), (5, 9), (10**7, 2048)]:
        places = spread_places(count, size)
        assert len(places) == min(count, size)
        assert (np.diff(places) > 0).all()
        assert places[0] >= 0
        assert places[-1] < count
        assert places[-1] >= count - -(-count // size) - 1
        np.testing.assert_array_equal(places, spread_places(count, size))


def test_keys_sort_by_score_then_place_and_give_both_back() -> None:
    generator = np.random.default_rng(0)
    scores = generator.choice(np.array([-np.inf, -1e30, -1.5, -1e-40, -0.0, 0.0, 1e-40, 0.25, 7.0, np.inf]), size=500)
    scores = scores.astype(np.float32)
    places = generator.permutation(2**32 - 1 - np.arange(500))
    for metric, wanted in (("dot", np.lexsort((places, -scores))), ("euclidean", np.lexsort((places, np.abs(scores))))):
        given = np.abs(scores) if metric == "euclidean" else scores
        keys = sort_keys(given, places, metric)
        np.testing.assert_array_equal(np.argsort(keys), wanted)
        back, places_back = from_keys(keys, metric)
        np.testing.assert_array_equal(back, given)
        np.testing.assert_array_equal(places_back, places)


def test_scores_of_pairs_do_not_depend_on_their_company() -> None:
    gallery, queries = points("normal", 900, 33, 0), points("normal", 40, 33, 1)
    owners = np.random.default_rng(0).integers(40, size=9000)
    places = np.random.default_rng(1).integers(900, size=9000)
    for metric in ("dot", "euclidean"):
        together = score_pairs(queries, Gallery(gallery), owners, places, metric)
        alone = [score_pairs(queries, Gallery(gallery), owners[i : i + 1], places[i : i + 1], metric)[0] for i in range(200)]
        np.testing.assert_array_equal(together[:200], alone)
        wide = gallery[places].astype(np.float64), queries[owners].astype(np.float64)
        expected = (wide[0] * wide[1]).sum(1) if metric == "dot" else np.sqrt(((wide[0] - wide[1]) ** 2).sum(1))
        np.testing.assert_array_equal(together, expected.astype(np.float32))
