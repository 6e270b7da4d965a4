"""The arithmetic of search, by PyTorch and by NumPy, against float64."""

from __future__ import annotations

import os

import numpy as np
import pytest

from nearfar.search import arithmetic

BOTH = pytest.mark.parametrize("by", ["torch", "numpy"])


@BOTH
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_products_and_squares_are_those_of_float64(by: str, dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "has_torch", lambda: by == "torch")
    random = np.random.default_rng(0)
    for m, n, d in ((1, 1, 1), (1, 50, 64), (33, 7, 2), (64, 300, 65)):
        a, b, c = random.normal(size=(m, d)), random.normal(size=(n, d)), random.normal(size=n)
        a, b, c = (one.astype(dtype) for one in (a, b, c))
        b.flags.writeable = False  # as what is mapped into memory
        unit = np.finfo(dtype).eps / 2
        for bias in (None, c):
            found = arithmetic.products(a, b, bias)
            wide = [one.astype(np.longdouble) for one in (a, b, c)]
            exact = wide[0] @ wide[1].T + (0.0 if bias is None else wide[2])
            # The bound that exact search relies on.
            reach = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1) + np.abs(c)
            assert found.dtype == dtype
            assert (np.abs(found - exact) <= (d + 1) * unit * reach).all()
        lengths = arithmetic.squares(b)
        assert lengths.dtype == dtype
        np.testing.assert_allclose(lengths, (wide[1] ** 2).sum(axis=1).astype(np.float64), rtol=(d + 1) * unit)


@BOTH
def test_what_reaches_its_row_s_limit_is_found_in_order(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "has_torch", lambda: by == "torch")
    tile = np.random.default_rng(0).integers(0, 5, (6, 40)).astype(np.float64)
    least = np.array([0.0, 1.0, 3.0, 4.0, 5.0, 2.0])
    rows, columns = arithmetic.reached(tile, least)
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == [
        (row, column) for row in range(6) for column in range(40) if tile[row, column] >= least[row]
    ]


def test_without_pytorch_threads_are_the_cores_or_as_many_as_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "has_torch", lambda: False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(7)), raising=False)
    for asked, expected in (("", 7), ("3", 3), ("9", 7), ("0", 7), ("many", 7)):
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
        assert arithmetic.threads() == expected
