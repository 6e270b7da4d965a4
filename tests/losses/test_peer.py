"""Values of pytorch-metric-learning 2.9, where its definition and ours are one.

Where they differ: its contrastive loss means over positives and over negatives apart, its triplet and SupCon means leave out
zeros, its NT-Xent adds a small number inside the logarithm, its n-pair takes one pair a class, its smooth-AP counts the
query among the ranked. Its other definitions, as they are tested here, are ours.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from losses.cases import CLASSES, DIM, labels, rows
from pytorch_metric_learning import distances, losses, miners, reducers

from nearfar.losses import (
    ArcFaceLoss,
    CircleLoss,
    CosFaceLoss,
    InfoNCELoss,
    LiftedStructureLoss,
    MultiSimilarityLoss,
    NormSoftmaxLoss,
    ProxyAnchorLoss,
    SoftTripleLoss,
    SubCenterArcFaceLoss,
    SupConLoss,
    TripletLoss,
    VICRegLoss,
)

COUNT = 24
MEAN = {"reducer": reducers.MeanReducer()}
PLAIN = {"distance": distances.LpDistance(normalize_embeddings=False)}
SIZES = (CLASSES, DIM)


def pairs_of_losses() -> list[Any]:
    same: list[Any] = []
    for temperature in (0.07, 0.5):
        same.append((InfoNCELoss(temperature=temperature), losses.NTXentLoss(temperature=temperature), None))
        same.append((SupConLoss(temperature=temperature), losses.SupConLoss(temperature=temperature), None))
    same.append((TripletLoss(mining="all", margin=0.1), losses.TripletMarginLoss(margin=0.1, **PLAIN), None))
    hard = miners.BatchHardMiner(**PLAIN)
    same.append((TripletLoss(mining="hard", margin=0.4), losses.TripletMarginLoss(margin=0.4, **PLAIN, **MEAN), hard))
    same.append((LiftedStructureLoss(), losses.LiftedStructureLoss(**PLAIN), None))
    multi = miners.MultiSimilarityMiner(epsilon=0.1)
    same.append((MultiSimilarityLoss(), losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5), multi))
    same.append((CircleLoss(margin=0.4, scale=80.0), losses.CircleLoss(m=0.4, gamma=80), None))
    return same


@pytest.mark.parametrize(("ours", "theirs", "miner"), pairs_of_losses(), ids=lambda one: type(one).__name__)
def test_losses_of_rows(ours: Any, theirs: Any, miner: Any) -> None:
    z, y = rows(COUNT).requires_grad_(), labels(COUNT)
    value = theirs(z, y, miner(z, y) if miner is not None else None)
    mine = ours(z, y)
    assert mine.item() == pytest.approx(value.item(), rel=1e-6)
    one, other = (torch.autograd.grad(loss, z)[0] for loss in (mine, value))
    # Rows are unit rows for both; theirs also has the gradient of making them so, which has no part along the row.
    one, other = (part - (part * z).sum(1, keepdim=True) * z for part in (one, other))
    assert torch.allclose(one, other, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("ours", "theirs", "name"),
    [
        (NormSoftmaxLoss(classes=CLASSES, dim=DIM), losses.NormalizedSoftmaxLoss(*SIZES, temperature=0.05), "W"),
        (CosFaceLoss(classes=CLASSES, dim=DIM), losses.CosFaceLoss(*SIZES, margin=0.35, scale=64), "W"),
        (ArcFaceLoss(classes=CLASSES, dim=DIM), losses.ArcFaceLoss(*SIZES, margin=math.degrees(0.5), scale=64), "W"),
        (
            SubCenterArcFaceLoss(classes=CLASSES, dim=DIM),
            losses.SubCenterArcFaceLoss(
                num_classes=CLASSES, embedding_size=DIM, margin=math.degrees(0.5), scale=64, sub_centers=3
            ),
            "W",
        ),
        (ProxyAnchorLoss(classes=CLASSES, dim=DIM), losses.ProxyAnchorLoss(*SIZES, margin=0.1, alpha=32), "proxies"),
        (
            SoftTripleLoss(classes=CLASSES, dim=DIM, spread=0.0),
            losses.SoftTripleLoss(*SIZES, centers_per_class=10, la=20, gamma=0.1, margin=0.01),
            "fc",
        ),
    ],
    ids=lambda one: type(one).__name__,
)
def test_losses_of_proxies(ours: Any, theirs: Any, name: str) -> None:
    z, y = 2 * rows(COUNT), labels(COUNT)
    ours.double()
    with torch.no_grad():
        weight = ours.weight if name == "proxies" else ours.weight.T
        getattr(theirs, name).data = weight.detach().clone()
    assert ours(z, y).item() == pytest.approx(theirs(z, y).item(), rel=1e-6)


def test_vicreg() -> None:
    a, b, y = rows(COUNT), rows(COUNT, 1), torch.arange(COUNT)
    assert VICRegLoss()(a, y, b, y).item() == pytest.approx(losses.VICRegLoss()(a, ref_emb=b).item(), rel=1e-9)
