"""Losses of explicit pairs, and of all pairs of a batch: they must agree."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from losses.cases import assert_same, labels, rows

from nearfar.errors import InputError
from nearfar.losses import LOSSES, ContrastiveLoss, CosineMSELoss, tiles

PAIRED = [
    ContrastiveLoss(margin=1.2),
    ContrastiveLoss(margin=2.5, weight=1.0),
    ContrastiveLoss(margin=1.5, distance="squared"),
    CosineMSELoss(),
]
EACH = pytest.mark.parametrize("loss", PAIRED, ids=repr)


def test_these_are_all() -> None:
    assert {type(loss) for loss in PAIRED} == {home for home in LOSSES.values() if home.takes_pairs}


def test_contrastive_of_known_pairs() -> None:
    a, b = torch.zeros(4, 2), torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.3, 0.4], [0.0, 0.0]])
    same = torch.tensor([True, True, False, False])
    # d = 5, 0.5, 0.5, 0 and margin 1: 25, 0.25, 0.25 and 1, halved.
    assert ContrastiveLoss(margin=1.0).pairs(a, b, same).item() == pytest.approx((25 + 0.25 + 0.25 + 1) / 4 / 2)
    # h = 25, 0.25, 0.25, 0 and margin 1: 25, 0.25, 0.75 and 1, halved.
    squared = ContrastiveLoss(margin=1.0, distance="squared")
    assert squared.pairs(a, b, same).item() == pytest.approx((25 + 0.25 + 0.75 + 1) / 4 / 2)


def test_cosine_mse_of_known_pairs() -> None:
    a = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0], [0.0, 0.0]])
    b = torch.tensor([[5.0, 0.0], [1.0, 0.0], [-2.0, -2.0], [1.0, 0.0]])
    found = CosineMSELoss().pairs(a, b, torch.tensor([True, True, False, False]))
    assert found.item() == pytest.approx((0 + 1 + 1 + 0) / 4, abs=1e-6)


def test_cosine_mse_is_that_of_pytorch_where_rows_have_a_length() -> None:
    a, b, same = 3 * rows(20), 0.2 * rows(20, 1), labels(20, classes=2).bool()
    theirs = torch.nn.functional.mse_loss(torch.nn.functional.cosine_similarity(a, b, eps=1e-7), same.double())
    assert CosineMSELoss().pairs(a, b, same).item() == pytest.approx(theirs.item(), rel=1e-12)


@EACH
def test_a_batch_is_all_its_pairs(loss: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "tile_size", lambda device: 4)
    z, y = (1.3 * rows(11)).requires_grad_(), labels(11)
    first, second = torch.triu_indices(11, 11, 1)
    by_pairs = loss.pairs(z[first], z[second], y[first] == y[second])
    whole = loss(z, y)
    assert whole.item() == pytest.approx(by_pairs.item(), rel=1e-12)
    assert_same([torch.autograd.grad(whole, z)[0]], [torch.autograd.grad(by_pairs, z)[0]])


@EACH
def test_equal_rows_have_a_gradient_that_is_a_number(loss: Any) -> None:
    a = rows(4).requires_grad_()
    same = torch.tensor([True, False, True, False])
    (gradient,) = torch.autograd.grad(loss.pairs(a, a.detach().clone(), same), a)
    assert gradient.abs().max() < 1e-12
    z = rows(1).expand(6, -1).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(z, torch.arange(6) % 2), z)
    assert gradient.abs().max() < 1e-12


@EACH
def test_rows_of_zeros(loss: Any) -> None:
    z = torch.zeros(4, 3, requires_grad=True)
    value = loss(z, torch.tensor([0, 0, 1, 1]))
    (gradient,) = torch.autograd.grad(value, z)
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()


@EACH
def test_no_pairs_are_a_loss_of_zero(loss: Any) -> None:
    a = torch.zeros(0, 3, requires_grad=True)
    value = loss.pairs(a, a, torch.zeros(0, dtype=torch.bool))
    value.backward()
    assert value == 0


@EACH
def test_bad_pairs(loss: Any) -> None:
    a, b, same = rows(5), rows(5, 1), torch.ones(5, dtype=torch.bool)
    for arguments, message in (
        ((a, b[:4], same), r"a has shape \(5, 6\), b has \(4, 6\)"),
        ((a, b, same[:4]), r"same has shape \(4,\), there are 5 pairs"),
        ((a, b, same.long()), r"same is int64; .*same.bool\(\)"),
        ((a, b * float("nan"), same), "b has NaN or infinity in 5 of 5 rows"),
        ((a, b.to("meta"), same), "b on meta"),
    ):
        with pytest.raises(InputError, match=message):
            loss.pairs(*arguments)


@pytest.mark.parametrize("apart", [1e-6, 1e-3, 1e-1])
@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_distances_of_near_rows_far_from_the_origin_keep_their_digits(apart: float, shift: float) -> None:
    # Every row has a twin of another class close by: products alone would lose the direction between the two.
    base = rows(300, dim=8)
    z = torch.cat((base, base + apart * rows(300, 1, dim=8))).float() + shift
    y = torch.arange(600) % 300 * 2 + (torch.arange(600) >= 300)
    loss = ContrastiveLoss(margin=0.3)
    narrow, wide = z.clone().requires_grad_(), z.double().requires_grad_()
    value, oracle = loss(narrow, y), loss(wide, y)
    first, second = torch.triu_indices(600, 600, 1)
    slow = loss.pairs(wide[first], wide[second], y[first] == y[second])
    assert oracle.item() == pytest.approx(slow.item(), rel=1e-9)
    assert value.item() == pytest.approx(slow.item(), rel=1e-5)
    assert_same([torch.autograd.grad(oracle, wide)[0]], [torch.autograd.grad(slow, wide)[0]], tolerance=1e-8)
    assert_same([torch.autograd.grad(value, narrow)[0]], [torch.autograd.grad(loss(wide, y), wide)[0]], tolerance=1e-5)


def test_cosine_mse_near_its_optimum_is_not_negative() -> None:
    z, y = torch.eye(8)[torch.arange(400) % 8], torch.arange(400) % 8
    assert 0 <= CosineMSELoss()(z, y).item() < 1e-9
