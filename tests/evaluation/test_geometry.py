from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from nearfar.errors import InputError
from nearfar.evaluation import geometry
from nearfar.evaluation.geometry import alignment, directions, effective_rank, geometry_figures, uniformity

GENERATOR = np.random.default_rng(0)
LABELS = np.array([0, 0, 0, 1, 1, 3, 3, 3, 3, 4, 0, 1])
Z = (3.0 * GENERATOR.normal(size=(12, 4))).astype(np.float32)


def test_figures_as_a_loop_over_all_pairs() -> None:
    unit = Z.astype(np.float64) / np.linalg.norm(Z.astype(np.float64), axis=1)[:, None]
    pairs = list(itertools.permutations(range(12), 2))
    cosine = {pair: float(unit[pair[0]] @ unit[pair[1]]) for pair in pairs}
    same = [pair for pair in pairs if LABELS[pair[0]] == LABELS[pair[1]]]
    figures = geometry_figures(Z, LABELS, 5)
    assert figures["within"] == pytest.approx(np.mean([cosine[p] for p in same]), abs=1e-6)
    assert figures["between"] == pytest.approx(np.mean([cosine[p] for p in pairs if p not in same]), abs=1e-6)
    gaps = {p: float(((unit[p[0]] - unit[p[1]]) ** 2).sum()) for p in pairs}
    assert figures["alignment"] == pytest.approx(np.mean([gaps[p] for p in same]), abs=1e-6)
    assert figures["uniformity"] == pytest.approx(math.log(np.mean([math.exp(-2 * gaps[p]) for p in pairs])), abs=1e-6)
    for i, j in itertools.product(range(5), repeat=2):
        values = [cosine[p] for p in pairs if (LABELS[p[0]], LABELS[p[1]]) == (i, j)]
        expected = pytest.approx(np.mean(values), abs=1e-6) if values else None
        assert figures["matrix"][i][j] == expected
    assert figures["matrix"][4][4] is None  # one row: no pair
    assert figures["matrix"][2][0] is None  # no row


def test_effective_rank_as_from_singular_values() -> None:
    for shape in ((50, 6), (5, 9)):
        z = GENERATOR.normal(size=shape).astype(np.float32)
        values = np.linalg.svd(z.astype(np.float64), compute_uv=False)
        shares = values / values.sum()
        assert effective_rank(z) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    assert effective_rank(np.eye(7, dtype=np.float32)) == pytest.approx(7.0)
    assert effective_rank(np.ones((30, 5), dtype=np.float32)) == pytest.approx(1.0)
    assert effective_rank(np.zeros((4, 3), dtype=np.float32)) == 0.0


def test_uniformity_by_tiles_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    unit = directions(GENERATOR.normal(size=(101, 8)).astype(np.float32))
    whole = uniformity(unit)
    assert whole is not None
    monkeypatch.setattr(geometry, "_TILE", 700)
    assert uniformity(unit) == pytest.approx(whole, abs=1e-6)
    assert uniformity(unit, t=0.5) == pytest.approx(
        math.log(np.mean([math.exp(-0.5 * ((a - b) ** 2).sum()) for a, b in itertools.combinations(unit, 2)])), abs=1e-5
    )
    assert uniformity(unit[:1]) is None
    assert uniformity(np.repeat(unit[:1], 5, axis=0)) == pytest.approx(0.0, abs=1e-5)


def test_uniformity_of_many_rows_takes_a_seeded_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geometry, "UNIFORMITY_SAMPLE", 50)
    z, labels = GENERATOR.normal(size=(400, 8)), np.zeros(400, dtype=np.int64)
    one = geometry_figures(z, labels, 1, seed=4)["uniformity"]
    assert one == geometry_figures(z, labels, 1, seed=4)["uniformity"]
    assert one == pytest.approx(uniformity(directions(z.astype(np.float32))), abs=0.2)


def test_a_collapsed_class_and_rows_of_zeros() -> None:
    z = np.array([[1.0, 0.0]] * 3 + [[0.0, 2.0]] * 3 + [[0.0, 0.0]])
    figures = geometry_figures(z, np.array([0, 0, 0, 1, 1, 1, 2]), 3)
    assert figures["within"] == pytest.approx(1.0)
    assert figures["between"] == 0.0
    assert figures["alignment"] == 0.0
    assert alignment(directions(np.eye(3, dtype=np.float32)), np.arange(3)) is None
    np.testing.assert_array_equal(directions(z.astype(np.float32))[-2:], [[0.0, 1.0], [0.0, 0.0]])


def test_wrong_input_is_refused() -> None:
    with pytest.raises(InputError, match="labels has shape"):
        geometry_figures(Z, LABELS[:3], 5)
    with pytest.raises(InputError, match="labels holds 0 to 4, expected numbers of 4 classes"):
        geometry_figures(Z, LABELS, 4)
