"""The losses under test: how each is made, and the loop that says what it must return."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from losses import loops
from torch import Tensor

from nearfar.losses import LOSSES, Loss

CLASSES, DIM = 4, 6


@dataclass(frozen=True)
class Case:
    """A loss by its recipe name, with settings, and its oracle."""

    name: str
    oracle: Callable[..., Tensor]
    settings: dict[str, Any] = field(default_factory=dict)

    def make(self, dtype: torch.dtype = torch.float64) -> Loss:
        home = LOSSES[self.name]
        torch.manual_seed(7)
        sizes = {"classes": CLASSES, "dim": DIM} if home.needs_classes else {}
        return home(**sizes, **self.settings).to(dtype)

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{value}" for value in self.settings.values())])


CASES = [
    Case("contrastive", loops.over_pairs(loops.contrastive_pair), {"margin": 1.3}),
    Case("contrastive", loops.over_pairs(loops.contrastive_pair), {"margin": 1.7, "distance": "squared", "weight": 0.4}),
    Case("cosine-mse", loops.over_pairs(loops.cosine_mse_pair)),
    Case("siglip", loops.siglip, {"scale": 5.0, "bias": -1.5}),
    Case("clip", loops.clip),
    Case("clip", loops.clip, {"temperature": 0.0125}),
    Case("info-nce", loops.info_nce),
    Case("nt-xent", loops.info_nce, {"temperature": 0.5}),
    Case("info-nce", loops.info_nce, {"temperature": 0.011}),
    Case("supcon", loops.supcon),
    Case("supcon", loops.supcon, {"temperature": 0.012}),
    Case("supcon", loops.supcon, {"temperature": 0.2, "mean": "inside"}),
    Case("dcl", loops.dcl),
    Case("dcl", loops.dcl, {"temperature": 0.012}),
    Case("dclw", loops.dclw, {"temperature": 0.2}),
    Case("n-pair", loops.n_pair, {"l2": 0.1}),
    Case("snn", loops.snn, {"temperature": 0.5}),
    Case("triplet", loops.triplet, {"margin": 0.3}),
    Case("triplet", loops.triplet, {"mining": "all"}),
    Case("triplet", loops.triplet, {"mining": "all", "soft_margin": True}),
    Case("triplet", loops.triplet, {"mining": "hard", "soft_margin": True}),
    Case("triplet", loops.triplet, {"mining": "hard", "distance": "squared"}),
    Case("triplet", loops.triplet, {"mining": "easy-positive"}),
    Case("lifted-structure", loops.lifted),
    Case("multi-similarity", loops.multi_similarity, {"beta": 10.0}),
    Case("circle", loops.circle, {"scale": 8.0}),
    Case("smooth-ap", loops.smooth_ap, {"temperature": 0.1}),
    Case("vicreg", loops.vicreg),
    Case("barlow-twins", loops.barlow),
    Case("cross-entropy", loops.cross_entropy, {"label_smoothing": 0.1}),
    Case("norm-softmax", loops.norm_softmax),
    Case("norm-softmax", loops.norm_softmax, {"label_smoothing": 0.1}),
    Case("cosface", loops.cosface, {"scale": 8.0}),
    Case("arcface", loops.arcface, {"scale": 8.0}),
    Case("sub-center-arcface", loops.arcface, {"scale": 8.0}),
    Case("proxy-nca", loops.proxy_nca),
    Case("proxy-anchor", loops.proxy_anchor, {"scale": 8.0}),
    Case("soft-triple", loops.soft_triple, {"centres": 3}),
]
KEYED = [case for case in CASES if LOSSES[case.name].takes_keys]
# Those that go tile by tile when a batch is large.
TILED = [
    case
    for case in CASES
    if case.name in ("contrastive", "clip", "siglip", "info-nce", "nt-xent", "supcon", "dcl", "dclw", "cosine-mse")
]


def rows(count: int, seed: int = 0, *, dim: int = DIM, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random unit rows."""
    drawn = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(drawn, dim=1).to(dtype)


def labels(count: int, seed: int = 0, classes: int = CLASSES) -> Tensor:
    return torch.randint(0, classes, (count,), generator=torch.Generator().manual_seed(seed + 1000))


def gradients(loss: Loss, z: Tensor, y: Tensor, *keys: Any, key_offset: int | None = None) -> list[Tensor]:
    """Value, gradient of z, of the keys and of the parameters."""
    z = z.detach().clone().requires_grad_()
    inputs = [z, *loss.parameters()]
    if keys:
        keys = (keys[0].detach().clone().requires_grad_(), keys[1])
        inputs.append(keys[0])
    value = loss(z, y, *keys, key_offset=key_offset)
    return [value.detach(), *torch.autograd.grad(value, inputs, materialize_grads=True)]


def expected(case: Case, loss: Loss, z: Tensor, y: Tensor, *keys: Any, key_offset: int | None = None) -> list[Tensor]:
    """The same from the loop."""
    z = z.detach().clone().requires_grad_()
    inputs = [z, *loss.parameters()]
    if keys:
        keys = (keys[0].detach().clone().requires_grad_(), keys[1])
        inputs.append(keys[0])
        value = case.oracle(loss, z, y, *keys, lambda i, j: key_offset is not None and j == i + key_offset)
    else:
        value = case.oracle(loss, z, y, z, y, lambda i, j: i == j)
    value = value + (z * 0).sum()
    return [value.detach(), *torch.autograd.grad(value, inputs, materialize_grads=True)]


def assert_same(found: list[Tensor], wanted: list[Tensor], tolerance: float = 1e-9) -> None:
    assert len(found) == len(wanted)
    for number, (one, other) in enumerate(zip(found, wanted, strict=True)):
        assert torch.isfinite(one).all(), f"part {number} is not finite"
        scale = max(float(other.double().norm()), 1e-3)
        error = float((one.double() - other.double()).norm()) / scale
        assert error < tolerance, f"part {number} is off by {error:.2e}: {one} for {other}"
