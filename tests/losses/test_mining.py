"""Mined triplets against loops over all of them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from losses.cases import labels, rows
from losses.loops import relations
from torch import Tensor

from nearfar.errors import InputError
from nearfar.losses import (
    TripletLoss,
    distance_weighted_triplets,
    easy_positive_triplets,
    hard_triplets,
    semi_hard_triplets,
)

MINERS = [hard_triplets, semi_hard_triplets, easy_positive_triplets, distance_weighted_triplets]


def slow(miner: Any, z: Tensor, y: Tensor, k: Tensor, ky: Tensor, own: Any) -> set[tuple[int, int, int]]:
    positives, negatives = relations(y, ky, own)
    found = set()
    for i in range(len(z)):
        d = [float(torch.linalg.vector_norm(z[i] - k[j])) for j in range(len(k))]
        if not positives[i] or not negatives[i]:
            continue
        nearest = min(negatives[i], key=lambda j: d[j])
        if miner is hard_triplets:
            found.add((i, max(positives[i], key=lambda j: d[j]), nearest))
        elif miner is easy_positive_triplets:
            found.add((i, min(positives[i], key=lambda j: d[j]), nearest))
        else:
            for p in positives[i]:
                farther = [n for n in negatives[i] if d[n] > d[p]]
                if farther:
                    found.add((i, p, min(farther, key=lambda j: d[j])))
    return found


@pytest.mark.parametrize("miner", MINERS[:3])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 99), count=st.integers(1, 14), classes=st.integers(1, 5), more=st.integers(0, 6))
def test_as_the_loop(miner: Any, seed: int, count: int, classes: int, more: int) -> None:
    z, y = rows(count, seed), labels(count, seed, classes)
    triplets = miner(z, y)
    assert len({part.shape for part in triplets}) == 1
    assert set(zip(*(part.tolist() for part in triplets), strict=True)) == slow(miner, z, y, z, y, lambda i, j: i == j)
    k, ky = torch.cat((rows(more, 200), z)), torch.cat((labels(more, 200), y))
    triplets = miner(z, y, k, ky, key_offset=more)
    found = set(zip(*(part.tolist() for part in triplets), strict=True))
    assert found == slow(miner, z, y, k, ky, lambda i, j: j == i + more)


def test_distance_weighted_draws_as_its_density_says() -> None:
    # One anchor, one positive, three negatives in eight dimensions; the chances are those of the paper's formula.
    angles = torch.tensor([0.0, 0.1, 0.3, 0.9, 1.2], dtype=torch.float64)
    z = torch.zeros(5, 8, dtype=torch.float64)
    z[:, 0], z[:, 1] = angles.cos(), angles.sin()
    y = torch.tensor([0, 0, 1, 2, 3])

    def chance(d: float) -> float:
        d = max(d, 0.5)
        return 1 / (d ** (8 - 2) * (1 - d * d / 4) ** ((8 - 3) / 2))

    chances = torch.tensor([chance(2 * math.sin(a / 2)) for a in angles[2:].tolist()])
    generator = torch.Generator().manual_seed(0)
    drawn = torch.zeros(3)
    for _ in range(2000):
        anchors, positives, negatives = distance_weighted_triplets(z, y, generator=generator)
        assert anchors.tolist() == [0, 1]
        assert positives.tolist() == [1, 0]
        drawn[int(negatives[0]) - 2] += 1
    chances /= chances.sum()
    # Five standard deviations of a count.
    assert ((drawn - 2000 * chances).abs() < 5 * (2000 * chances * (1 - chances)).sqrt() + 1).all()


def test_far_negatives_are_drawn_only_where_there_is_no_other() -> None:
    z = torch.nn.functional.normalize(
        torch.tensor([[1.0, 0, 0], [1, 0.1, 0], [-1, 0, 0], [0.8, 0.6, 0], [-0.7, -0.7, 0], [-0.6, -0.8, 0]]), dim=1
    )
    y = torch.tensor([0, 0, 1, 2, 3, 3])
    for seed in range(40):
        anchors, _, negatives = distance_weighted_triplets(z, y, generator=torch.Generator().manual_seed(seed))
        assert set(negatives[anchors == 0].tolist()) == {3}
        assert set(negatives[anchors == 4].tolist()) <= {2}
    anchors, _, negatives = distance_weighted_triplets(z[[0, 1, 2]], y[[0, 1, 2]])
    assert negatives.tolist() == [2, 2]


def test_distance_weighted_is_repeatable_and_refuses_what_it_cannot_do() -> None:
    z, y = rows(20), labels(20)
    one, other = (distance_weighted_triplets(z, y, generator=torch.Generator().manual_seed(4)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    with pytest.raises(InputError, match="unit rows"):
        distance_weighted_triplets(2 * z, y)
    with pytest.raises(InputError, match="z has 2 columns"):
        distance_weighted_triplets(rows(20, dim=2), y)
    with pytest.raises(InputError, match="distance-weighted mining needs unit rows"):
        TripletLoss(mining="distance-weighted")(2 * z, y)


def test_triplet_loss_by_drawn_triplets() -> None:
    z, y = rows(20).requires_grad_(), labels(20)
    torch.manual_seed(5)
    value = TripletLoss(mining="distance-weighted", margin=0.5)(z, y)
    torch.manual_seed(5)
    anchors, positives, negatives = distance_weighted_triplets(z, y)
    gaps = (z[anchors] - z[positives]).norm(dim=1) - (z[anchors] - z[negatives]).norm(dim=1)
    assert value.item() == pytest.approx((gaps + 0.5).clamp_min(0).mean().item(), rel=1e-12)
    (gradient,) = torch.autograd.grad(value, z)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("miner", MINERS)
def test_nothing_to_mine(miner: Any) -> None:
    for z, y in ((rows(1), labels(1)), (rows(4), torch.zeros(4, dtype=torch.long)), (rows(4), torch.arange(4))):
        assert [len(part) for part in miner(z, y)] == [0, 0, 0]
    assert [len(part) for part in miner(rows(4), labels(4), rows(0), labels(0))] == [0, 0, 0]


@pytest.mark.parametrize("miner", MINERS)
def test_miners_check_what_they_are_given(miner: Any) -> None:
    with pytest.raises(InputError, match="labels is float32"):
        miner(rows(4), torch.ones(4))
    assert not any(part.requires_grad for part in miner(rows(9).requires_grad_(), labels(9)))
