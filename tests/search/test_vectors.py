from __future__ import annotations

import numpy as np
import pytest
import torch

from nearfar.errors import InputError
from nearfar.search import tensors, vectors
from nearfar.search.tensors import as_tensor, products
from nearfar.search.vectors import as_vectors, centre_of, check_k, check_metric, unit_rows


def test_vectors_are_float32_in_row_order_and_copied_only_where_needed() -> None:
    given = np.ones((3, 2), dtype=np.float32)
    assert as_vectors(given, "X") is given
    for other in ([[1, 2], [3, 4]], np.ones((2, 3)).T, torch.ones(2, 2), np.ones((2, 2), dtype=bool)):
        result = as_vectors(other, "X")
        assert result.dtype == np.float32
        assert result.flags.c_contiguous
        np.testing.assert_array_equal(result, np.asarray(other, dtype=np.float32))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((0, 3)), r"X is empty: 0 sample\(s\)"),
        (np.zeros((3, 0)), r"X is empty: 0 feature\(s\)"),
        (np.zeros(3), r"X has shape \(3,\), expected \[N, D\]"),
        (np.zeros((2, 2, 2)), "expected \\[N, D\\]"),
        (np.zeros((2, 2), dtype=complex), "complex"),
        (np.array([["a", "b"]]), "expected numbers"),
        (np.array([[1.0, 2.0], [3.0, np.nan]]), "X row 1 holds NaN"),
        (np.array([[1.0, 2.0], [3.0, np.inf], [np.nan, 0.0]]), "X row 1 holds NaN, infinity"),
        (np.array([[1e300, 2.0]]), "X row 0 holds NaN, infinity or a value beyond 1e15"),
        (np.array([[1e16, 2.0]]), "beyond 1e15"),
    ],
)
def test_values_that_are_no_vectors_are_refused(values: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        as_vectors(values, "X")


def test_another_length_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="queries has 3 features, but gallery is expecting 4 features"):
        as_vectors(np.zeros((1, 3)), "queries", dimensions=4)


def test_the_bad_row_is_named_also_in_a_later_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "_BLOCK", 8)
    values = np.ones((100, 4), dtype=np.float32)
    values[77, 2] = np.nan
    with pytest.raises(InputError, match="row 77"):
        as_vectors(values, "X")
    values[77] = 0.0
    with pytest.raises(InputError, match=r"X row 77 is all zeros.*metric='euclidean'"):
        unit_rows(values, "X")


def test_unit_rows_have_length_one_and_do_not_depend_on_their_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    values = (np.random.default_rng(0).normal(size=(50, 7)) * np.logspace(-5, 5, 50)[:, None]).astype(np.float32)
    result = unit_rows(values, "X")
    exact = values.astype(np.float64) / np.linalg.norm(values.astype(np.float64), axis=1)[:, None]
    np.testing.assert_allclose(result, exact, rtol=1e-7)
    np.testing.assert_array_equal(unit_rows(result, "X"), result)
    monkeypatch.setattr(vectors, "_BLOCK", 14)
    np.testing.assert_array_equal(unit_rows(values, "X"), result)
    np.testing.assert_array_equal(np.concatenate([unit_rows(values[i : i + 1], "X") for i in range(50)]), result)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("fast", [True, False])
def test_products_agree_with_float64(bias: bool, dtype: torch.dtype, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fast:
        monkeypatch.setattr(tensors, "_onednn_linear", lambda: None)
    generator = torch.Generator().manual_seed(0)
    for m, n, d in ((1, 1, 1), (1, 50, 64), (33, 7, 2), (64, 300, 65)):
        a, b = torch.randn(m, d, generator=generator), torch.randn(n, d, generator=generator)
        c = torch.randn(n, generator=generator)
        result = products(a.to(dtype), b.to(dtype), c.to(dtype) if bias else None)
        exact = a.double() @ b.double().T + (c.double() if bias else 0.0)
        assert result.dtype == dtype
        # The bound that exact search relies on: (D + 1) u (|a| |b| + |c|) for float32.
        reach = a.double().norm(dim=1)[:, None] * b.double().norm(dim=1) + c.abs().double()
        assert ((result.double() - exact).abs() <= (d + 1) * 2.0**-24 * reach).all()


def test_a_build_without_the_fast_product_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors._onednn_linear.cache_clear()
    monkeypatch.setattr(tensors.torch, "ops", object())
    try:
        assert tensors._onednn_linear() is None
    finally:
        tensors._onednn_linear.cache_clear()


def test_a_read_only_array_becomes_a_tensor_without_a_warning() -> None:
    array = np.arange(4, dtype=np.float32)
    array.flags.writeable = False
    assert as_tensor(array).tolist() == [0.0, 1.0, 2.0, 3.0]


def test_the_centre_is_near_the_mean_and_keeps_small_integers_exact() -> None:
    generator = np.random.default_rng(1)
    far = (1000.0 + generator.normal(size=(200, 3))).astype(np.float32)
    assert np.abs(far - centre_of(far)).max() < 6.0
    whole = generator.integers(-3, 4, size=(50, 2)).astype(np.float32)
    assert (centre_of(whole) == np.round(centre_of(whole))).all()
    np.testing.assert_array_equal(centre_of(np.full((4, 2), 7.25, dtype=np.float32)), [7.25, 7.25])


def test_metric_and_k_are_checked() -> None:
    assert check_metric("dot") == "dot"
    with pytest.raises(InputError, match="metric is 'cosin'; did you mean 'cosine'"):
        check_metric("cosin")
    assert check_k(np.int64(3), 3) == 3
    for k in (0, 4, -1):
        with pytest.raises(InputError, match=f"k is {k}, expected 1 to 3"):
            check_k(k, 3)
    for strange in (2.5, "2", True, None):
        with pytest.raises(InputError, match="expected a whole number"):
            check_k(strange, 3)
