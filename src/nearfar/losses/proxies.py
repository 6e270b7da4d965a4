"""Losses that compare each row with the classes rather than with other rows.

All but cross-entropy hold a weight for every class (a proxy, or several centres), compare directions alone (rows and
weights are brought to unit length inside), and are trained with the encoder: give ``loss.parameters()`` to the optimiser.
Labels must be numbers of classes, 0..classes-1. cos_ic is the cosine of row i and the proxy of class c, y the row's class.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nearfar.errors import InputError
from nearfar.losses.base import Batch, RowLoss, number, temperature_of, whole


class CrossEntropyLoss(RowLoss):
    """Cross-entropy of class scores: mean over rows of  -log softmax(z_i)[y].

    ``z`` is class scores ``[B, classes]``, as the last layer of a classifier gives them.

    Args:
        label_smoothing: the part of the target that is spread evenly over all classes (Szegedy et al. 2016).
    """

    scores: ClassVar[bool] = True
    takes_keys: ClassVar[bool] = False

    def __init__(self, *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = _smoothing(label_smoothing)

    def _sums(self, batch: Batch) -> tuple[Tensor, Tensor]:
        check_classes(batch.labels, batch.z.shape[1], f"z has {batch.z.shape[1]} columns, one a class")
        return _cross_entropy(batch.z, batch.labels, label_smoothing=self.label_smoothing)


def _smoothing(value: float) -> float:
    """Check a ``label_smoothing``."""
    return number("label_smoothing", value, low=0.0, high=0.999, usual="0 to 0.2 is usual")


def _cross_entropy(scores: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """The sum over rows and their number."""
    total = F.cross_entropy(scores, labels, label_smoothing=label_smoothing, reduction="sum")
    return total, total.new_tensor(len(scores))


def check_classes(labels: Tensor, classes: int, why: str) -> None:
    """Check that labels are numbers of classes, 0..classes-1."""
    low, high = torch.stack(torch.aminmax(labels)).tolist()
    if low < 0 or high >= classes:
        wrong = low if low < 0 else high
        raise InputError(f"labels has {wrong}; {why}, so labels must lie in 0..{classes - 1}")


class ProxyLoss(RowLoss):
    """A loss with ``centres`` weights for each of ``classes`` classes, in ``dim`` dimensions."""

    needs_classes: ClassVar[bool] = True
    takes_keys: ClassVar[bool] = False

    def __init__(self, classes: int, dim: int, centres: int = 1) -> None:
        super().__init__()
        self.classes = whole("classes", classes, low=2, usual="the number of classes in the training data")
        self.dim = whole("dim", dim, low=1, usual="the width of the embedding")
        self.weight = nn.Parameter(torch.randn(classes * centres, dim))

    def _cosines(self, batch: Batch) -> Tensor:
        """Cosines of rows and weights, ``[B, classes * centres]``, after the checks that all proxies need."""
        if batch.z.shape[1] != self.dim:
            raise InputError(f"z has {batch.z.shape[1]} columns, the loss was made with dim={self.dim}; give it that width")
        check_classes(batch.labels, self.classes, f"the loss was made with classes={self.classes}")
        return F.normalize(batch.z, dim=1) @ F.normalize(self.weight.to(batch.z.dtype), dim=1).T


class NormSoftmaxLoss(ProxyLoss):
    """Normalised softmax: cross-entropy of cos/temperature (Zhai, Wu 2019).

    Args:
        classes: number of classes.
        dim: width of the embedding.
        temperature: divides the cosines.
        label_smoothing: the part of the target that is spread evenly over all classes (Szegedy et al. 2016).
    """

    def __init__(self, *, classes: int, dim: int, temperature: float = 0.05, label_smoothing: float = 0.0) -> None:
        super().__init__(classes, dim)
        self.temperature = temperature_of(temperature)
        self.label_smoothing = _smoothing(label_smoothing)

    def _sums(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return _cross_entropy(self._cosines(batch) / self.temperature, batch.labels, label_smoothing=self.label_smoothing)


class CosFaceLoss(ProxyLoss):
    """CosFace: cross-entropy of scale * cos, after ``margin`` is taken off the cosine of the row's class (Wang et al. 2018).

    Args:
        classes: number of classes.
        dim: width of the embedding.
        margin: in units of the cosine.
        scale: the inverse of a temperature.
    """

    def __init__(self, *, classes: int, dim: int, margin: float = 0.35, scale: float = 64.0) -> None:
        super().__init__(classes, dim)
        self.margin = number("margin", margin, low=0.0, high=2.0, usual="0.2 to 0.4 is usual")
        self.scale = number("scale", scale, above=0.0, usual="16 to 64 is usual")

    def _sums(self, batch: Batch) -> tuple[Tensor, Tensor]:
        cosines = self._cosines(batch)
        own = F.one_hot(batch.labels, self.classes).to(cosines.dtype)
        return _cross_entropy(self.scale * (cosines - self.margin * own), batch.labels)


class ArcFaceLoss(ProxyLoss):
    """ArcFace: cross-entropy of scale * cos, after ``margin`` is added to the angle to the row's class (Deng et al. 2019).

    Where angle and margin together pass pi, cos - margin * sin(margin) goes on falling in place of the cosine.

    Args:
        classes: number of classes.
        dim: width of the embedding.
        margin: in radians.
        scale: the inverse of a temperature.
    """

    def __init__(self, *, classes: int, dim: int, margin: float = 0.5, scale: float = 64.0) -> None:
        super().__init__(classes, dim)
        self.margin = number("margin", margin, low=0.0, high=math.pi / 2, usual="0.3 to 0.5 radians is usual")
        self.scale = number("scale", scale, above=0.0, usual="16 to 64 is usual")

    def _sums(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return self._with_margin(self._cosines(batch), batch.labels)

    def _with_margin(self, cosines: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        own = cosines.gather(1, labels[:, None])
        # The slope of the sine is infinite where row and proxy are one; from there on it is flat.
        sine = (1.0 - own.square()).clamp_min(1e-6).sqrt()
        turned = own * math.cos(self.margin) - sine * math.sin(self.margin)
        past = own < -math.cos(self.margin)
        turned = torch.where(past, own - self.margin * math.sin(self.margin), turned)
        return _cross_entropy(self.scale * cosines.scatter(1, labels[:, None], turned), labels)


class SubCenterArcFaceLoss(ArcFaceLoss):
    """Sub-centre ArcFace: as ArcFace, each class having several centres, of which the nearest counts (Deng et al. 2020).

    Wrong labels and odd images gather at centres of their own.

    Args:
        classes: number of classes.
        dim: width of the embedding.
        centres: centres of each class.
        margin: in radians.
        scale: the inverse of a temperature.
    """

    def __init__(self, *, classes: int, dim: int, centres: int = 3, margin: float = 0.5, scale: float = 64.0) -> None:
        super().__init__(classes=classes, dim=dim, margin=margin, scale=scale)
        self.centres = whole("centres", centres, low=1, usual="3 is usual")
        self.weight = nn.Parameter(torch.randn(classes * centres, dim))

    def _sums(self, batch: Batch) -> tuple[Tensor, Tensor]:
        cosines = self._cosines(batch).unflatten(1, (self.classes, self.centres)).amax(2)
        return self._with_margin(cosines, batch.labels)


class ProxyNCALoss(ProxyLoss):
    """Proxy-NCA: a row near the proxy of its class and far from the others (Movshovitz-Attias et al. 2017).

    Mean over rows of  -log( e^(-d_iy/T) / sum over c other than y of e^(-d_ic/T) ), d the squared distance of unit vectors.
    The row's own class is not in the denominator.

    Args:
        classes: number of classes.
        dim: width of the embedding.
        temperature: T; Teh, DeVries, Taylor (2020) found 1/9 better than the first paper's 1.
    """

    def __init__(self, *, classes: int, dim: int, temperature: float = 1 / 9) -> None:
        super().__init__(classes, dim)
        self.temperature = temperature_of(temperature)

    def _sums(self, batch: Batch) -> tuple[Tensor, Tensor]:
        scores = (2.0 * self._cosines(batch) - 2.0) / self.temperature
        own = batch.labels[:, None]
        others = scores.scatter(1, own, -torch.inf)
        each = torch.logsumexp(others, 1) - scores.gather(1, own)[:, 0]
        return each.sum(), each.new_tensor(len(each))


class ProxyAnchorLoss(ProxyLoss):
    """Proxy-anchor: each proxy against all rows of the batch (Kim, Kim, Cho, Kwak 2020).

    With X+(c) the rows of class c and X-(c) the others, the mean over classes in the batch of
    log(1 + sum over X+(c) of e^(-scale (cos_ic - margin))), plus the mean over all classes of
    log(1 + sum over X-(c) of e^(scale (cos_ic + margin))).

    Args:
        classes: number of classes.
        dim: width of the embedding.
        margin: in units of the cosine.
        scale: how sharply the hardest rows are picked out.
    """

    def __init__(self, *, classes: int, dim: int, margin: float = 0.1, scale: float = 32.0) -> None:
        super().__init__(classes, dim)
        self.margin = number("margin", margin, low=0.0, high=1.0, usual="0.1 is usual")
        self.scale = number("scale", scale, above=0.0, usual="32 is usual")

    def adds_up(self) -> bool:
        """A proxy's logarithm is over all rows together."""
        return False

    def _loss(self, batch: Batch) -> Tensor:
        cosines = self._cosines(batch)
        own = F.one_hot(batch.labels, self.classes).bool()
        # The 1 in the logarithm is a row of zeros, and keeps empty sums from minus infinity.
        one = torch.zeros_like(cosines[:1])
        pull = (-self.scale * (cosines - self.margin)).masked_fill(~own, -torch.inf)
        push = (self.scale * (cosines + self.margin)).masked_fill(own, -torch.inf)
        near = torch.logsumexp(torch.cat((one, pull)), 0).sum() / own.any(0).sum()
        return near + torch.logsumexp(torch.cat((one, push)), 0).mean()


class SoftTripleLoss(ProxyLoss):
    """SoftTriple: cross-entropy over classes that have several centres each (Qian et al. 2019).

    The similarity of row i and class c is S_ic, the mean of its cosines to the class's centres, weighted by their softmax
    at ``gamma``. The loss is cross-entropy of scale * (S_ic - margin if c is y), plus ``spread`` times the mean distance
    of two centres of one class, so that superfluous centres fall together.

    Args:
        classes: number of classes.
        dim: width of the embedding.
        centres: centres of each class.
        margin: in units of the cosine.
        scale: the inverse of a temperature.
        gamma: temperature of the choice among the centres.
        spread: weight of the distances between centres.
    """

    def __init__(
        self,
        *,
        classes: int,
        dim: int,
        centres: int = 10,
        margin: float = 0.01,
        scale: float = 20.0,
        gamma: float = 0.1,
        spread: float = 0.2,
    ) -> None:
        super().__init__(classes, dim, whole("centres", centres, low=1, usual="2 to 10 is usual"))
        self.centres = centres
        self.margin = number("margin", margin, low=0.0, high=2.0, usual="0.01 is usual")
        self.scale = number("scale", scale, above=0.0, usual="20 is usual")
        self.gamma = number("gamma", gamma, low=1e-3, high=1e3, usual="0.1 is usual")
        self.spread = number("spread", spread, low=0.0, usual="0.2 is usual")

    def _sums(self, batch: Batch) -> tuple[Tensor, Tensor]:
        cosines = self._cosines(batch).unflatten(1, (self.classes, self.centres))
        similarity = (torch.softmax(cosines / self.gamma, 2) * cosines).sum(2)
        own = F.one_hot(batch.labels, self.classes).to(similarity.dtype)
        loss, rows = _cross_entropy(self.scale * (similarity - self.margin * own), batch.labels)
        if self.centres == 1 or not self.spread:
            return loss, rows
        centres = F.normalize(self.weight.to(similarity.dtype), dim=1).unflatten(0, (self.classes, self.centres))
        first, second = torch.triu_indices(self.centres, self.centres, 1, device=centres.device)
        # A root with a finite slope at 0, where two centres have become one.
        apart = (centres[:, first] - centres[:, second]).square().sum(2).clamp_min(1e-10).sqrt()
        return loss + rows * self.spread * apart.mean(), rows  # a part of it with every row
