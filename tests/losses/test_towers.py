"""Losses of two towers: images as rows, their captions as keys."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from losses.cases import CASES, KEYED, Case, assert_same, rows
from losses.test_losses import Largest
from torch import Tensor

from nearfar.errors import InputError
from nearfar.losses import CLIPLoss, InfoNCELoss, Loss, SigLIPLoss, of_towers, tiled, tiles

CAPTIONS = torch.tensor([4, 1, 1, 0, 7, 4, 2, 2, 2])


def towers(loss: Loss, a: Tensor, b: Tensor, y: Tensor, **options: Any) -> list[Tensor]:
    a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
    value = of_towers(loss, a, b, y, **options)
    return [value.detach(), *torch.autograd.grad(value, [a, b, *loss.parameters()], materialize_grads=True)]


def nobody(i: int, j: int) -> bool:
    return False


@pytest.fixture(params=["whole", "tiles"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "tiles":
        monkeypatch.setattr(tiled, "_SMALL", 0)
        monkeypatch.setattr(tiles, "tile_size", lambda device: 4)
    return request.param


@pytest.mark.parametrize("case", KEYED, ids=str)
def test_every_loss_with_keys_can_be_asked_both_ways(case: Case, way: str) -> None:
    loss, a, b = case.make(), rows(9), rows(9, 1)
    found = towers(loss, a, b, CAPTIONS)
    a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
    there = case.oracle(loss, a, CAPTIONS, b, CAPTIONS, nobody)
    back = case.oracle(loss, b, CAPTIONS, a, CAPTIONS, nobody)
    wanted = (there + back) / 2
    gradients = torch.autograd.grad(wanted, [a, b, *loss.parameters()], materialize_grads=True)
    assert_same(found, [wanted.detach(), *gradients])
    swapped = towers(loss, b.detach(), a.detach(), CAPTIONS)
    assert_same([swapped[0], swapped[2], swapped[1], *swapped[3:]], found)


@pytest.mark.parametrize("loss", [CLIPLoss(temperature=0.3), SigLIPLoss(scale=4.0, bias=-2.0), InfoNCELoss()], ids=repr)
def test_processes_that_gather_make_the_loss_of_the_whole_batch(loss: Loss, way: str) -> None:
    a, b, y = rows(9), rows(9, 1), CAPTIONS
    loss = loss.double()
    if isinstance(loss, InfoNCELoss):
        y = torch.arange(9)  # a mean over pairs is that of the whole where each process has as many
    whole = towers(loss, a, b, y)
    a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
    parts = [of_towers(loss, a[at : at + 3], b[at : at + 3], y[at : at + 3], everyone=(a, b, y)) for at in (0, 3, 6)]
    value = torch.stack(parts).mean()
    gradients = torch.autograd.grad(value, [a, b, *loss.parameters()])
    assert_same([value.detach(), *gradients], whole)


def test_with_one_caption_an_image_it_is_the_formula_of_the_paper() -> None:
    a, b, y, loss = rows(8), rows(8, 1), torch.arange(8), CLIPLoss().double()
    logits = loss.log_scale.exp() * a @ b.T
    wanted = (F.cross_entropy(logits, y) + F.cross_entropy(logits.T, y)) / 2
    found = of_towers(loss, a, b, y)
    assert torch.allclose(found, wanted, rtol=1e-12)
    of_scale = [torch.autograd.grad(value, loss.log_scale)[0] for value in (found, wanted)]
    assert torch.allclose(*of_scale, rtol=1e-10)


def test_copies_of_a_caption_are_no_negatives() -> None:
    # Two images under one caption: with the caption's number for a label both towers can meet without a cost between them.
    a = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]), dim=1)
    loss = CLIPLoss(temperature=0.01)
    with torch.no_grad():
        same, other = (of_towers(loss, a, a.clone(), torch.tensor(y)) for y in ([0, 0, 1], [0, 1, 2]))
    assert float(same) == pytest.approx(2 / 3 * math.log(2), rel=1e-5)  # the mean over two equal positives, outside the log
    assert torch.allclose(same, other)  # what is at one place cannot be told apart
    # Apart, they are pulled together by the one, and pushed apart by the other.
    a[1] = torch.tensor([0.6, 0.8])
    b = a.clone().requires_grad_()
    pulls = [torch.autograd.grad(of_towers(CLIPLoss(), a, b, torch.tensor(y)), b)[0] for y in ([0, 0, 1], [0, 1, 2])]
    assert float(pulls[0][1] @ a[0]) < float(pulls[1][1] @ a[0])


def test_the_scale_stops_at_a_hundred_and_comes_back() -> None:
    loss = CLIPLoss(temperature=0.01)
    assert float(loss.log_scale.detach().exp()) == pytest.approx(100.0, rel=1e-5)
    with torch.no_grad():
        loss.log_scale += 3.0
    a, y = rows(6, dtype=torch.float32), torch.arange(6)
    value = loss(a, y, rows(6, 1, dtype=torch.float32), y)
    value.backward()
    assert float(loss.log_scale.detach().exp()) == pytest.approx(100.0, rel=1e-5)
    assert loss.log_scale.grad is not None
    assert float(loss.log_scale.grad) > 0  # wrong pairs at random: the loss falls with the scale


def test_the_scale_grows_where_towers_agree() -> None:
    loss, a = CLIPLoss(), rows(40, dtype=torch.float32, dim=16)
    optimizer = torch.optim.SGD(loss.parameters(), lr=1.0)
    before = float(loss.log_scale.detach())
    for _ in range(5):
        optimizer.zero_grad()
        of_towers(loss, a, a.clone(), torch.arange(40)).backward()
        optimizer.step()
    assert float(loss.log_scale.detach()) > before


@pytest.mark.parametrize("case", [case for case in CASES if case.name in ("clip", "siglip")], ids=str)
def test_memory_grows_with_rows_and_keys(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "tile_size", lambda device: 64)
    loss = case.make(torch.float32)
    z, k = rows(900, dtype=torch.float32).requires_grad_(), rows(700, 1, dtype=torch.float32).requires_grad_()
    with Largest() as largest:
        loss(z, torch.arange(900) % 50, k, torch.arange(700) % 50).backward()
    assert largest.numel <= 2 * 4096 * z.shape[1]


def test_losses_without_keys_are_refused() -> None:
    case = next(case for case in CASES if case not in KEYED)
    with pytest.raises(InputError, match=r"cannot compare two towers: it takes no keys; use CLIPLoss \(clip\)"):
        of_towers(case.make(), rows(4), rows(4, 1), torch.arange(4))
