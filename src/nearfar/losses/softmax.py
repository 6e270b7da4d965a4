"""Losses that compare a positive with many negatives at once, through a softmax over similarities.

Rows are unit rows, s_ij is the cosine of row i and key j, tau the temperature. P(i) are the positives of row i (same
label, not the row itself), N(i) its negatives (another label).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nearfar.losses.base import Batch, Loss, choice, number, temperature_of, zero
from nearfar.losses.dense import Dense, masked_logsumexp
from nearfar.losses.mining import distances
from nearfar.losses.tiled import Tiled, compare
from nearfar.losses.tiles import Relation


class InfoNCELoss(Loss):
    """InfoNCE: each positive against itself and all negatives (van den Oord, Li, Vinyals 2018).

    Mean over all pairs (i, p), p in P(i), of
    -log( e^(s_ip/tau) / (e^(s_ip/tau) + sum over n in N(i) of e^(s_in/tau)) ).
    The other positives of a row are not in the denominator, so that they do not push each other away.

    For two towers of one batch (images and texts) the symmetric form is the mean of ``loss(a, y, b, y)`` and
    ``loss(b, y, a, y)``.

    Args:
        temperature: low values look at the hardest negatives only, high values at all alike.
    """

    needs_unit_rows: ClassVar[bool] = True

    def __init__(self, *, temperature: float = 0.07) -> None:
        super().__init__()
        self.temperature = temperature_of(temperature)

    def _loss(self, batch: Batch) -> Tensor:
        pairs = compare(batch)
        against = pairs.logsumexp(Relation.NEGATIVES, self.temperature)
        return pairs.positive_softplus(against, self.temperature) / pairs.positives.sum().clamp_min(1)


class NTXentLoss(InfoNCELoss):
    """NT-Xent, InfoNCE under the name and with the customs of SimCLR (Chen, Kornblith, Norouzi, Hinton 2020).

    Give both views of every image in one batch, with the number of the image as label; every row is an anchor.
    """

    def __init__(self, *, temperature: float = 0.1) -> None:
        super().__init__(temperature=temperature)


class SupConLoss(Loss):
    """Supervised contrastive loss (Khosla et al. 2020): all positives and negatives of a row in one softmax.

    With L_i = log sum over all a in P(i) and N(i) of e^(s_ia/tau), the mean over rows that have a positive of

    - ``mean="outside"`` (the paper's L_out):  mean over p in P(i) of (L_i - s_ip/tau)
    - ``mean="inside"``  (the paper's L_in):   L_i - log mean over p in P(i) of e^(s_ip/tau)

    The paper finds "outside" better. "inside" is content with one near positive for each row.
    """

    needs_unit_rows: ClassVar[bool] = True

    def __init__(self, *, temperature: float = 0.1, mean: Literal["outside", "inside"] = "outside") -> None:
        super().__init__()
        self.temperature = temperature_of(temperature)
        self.mean = choice("mean", mean, ("outside", "inside"))

    def _loss(self, batch: Batch) -> Tensor:
        if self.mean == "outside":
            return mean_outside(batch, self.temperature)
        pairs = compare(batch)
        # log(P + N) - log P as softplus(log N - log P): it keeps its digits where the positives outweigh the rest.
        near = pairs.logsumexp(Relation.POSITIVES, self.temperature)
        far = pairs.logsumexp(Relation.NEGATIVES, self.temperature)
        near = torch.where(pairs.positives > 0, near, 0.0)
        count = pairs.positives.clamp_min(1).to(batch.z.dtype)
        return _mean_over_anchors(F.softplus(far - near, threshold=50.0) + count.log(), pairs.positives)


def mean_outside(batch: Batch, temperature: float) -> Tensor:
    """The mean over rows with a positive of the mean over p in P(i) of (L_i - s_ip/temperature), as in `SupConLoss`."""
    pairs = compare(batch, by_label=False)
    count = pairs.positives.clamp_min(1).to(batch.z.dtype)
    everyone = pairs.logsumexp(Relation.OTHERS, temperature)
    return _mean_over_anchors(everyone - pairs.positive_sums() / (count * temperature), pairs.positives)


def _mean_over_anchors(each: Tensor, positives: Tensor) -> Tensor:
    anchors = positives > 0
    return torch.where(anchors, each, 0.0).sum() / anchors.sum().clamp_min(1)


class DCLLoss(Loss):
    """Decoupled contrastive loss (Yeh et al. 2022), for any number of positives.

    Mean over all pairs (i, p), p in P(i), of  -s_ip/tau + log sum over n in N(i) of e^(s_in/tau).
    The positive is not in the denominator: without it the gradient does not fade when the positive is near, and small
    batches learn as well as large ones. Rows without a negative do not count.
    """

    needs_unit_rows: ClassVar[bool] = True

    def __init__(self, *, temperature: float = 0.07) -> None:
        super().__init__()
        self.temperature = temperature_of(temperature)

    def _loss(self, batch: Batch) -> Tensor:
        pairs = compare(batch)
        against = pairs.logsumexp(Relation.NEGATIVES, self.temperature)
        count = torch.where(pairs.negatives > 0, pairs.positives, 0)
        push = torch.where(count > 0, against * count, 0.0).sum()
        return (push - self._pull(pairs, count) / self.temperature) / count.sum().clamp_min(1)

    def _pull(self, pairs: Dense | Tiled, count: Tensor) -> Tensor:
        return torch.where(count > 0, pairs.positive_sums(), 0.0).sum()


class DCLWLoss(DCLLoss):
    """Decoupled contrastive loss with weighted positives (Yeh et al. 2022, DCLW).

    As DCL, with w_ip * s_ip in place of s_ip, and w_ip = 2 - e^(s_ip/sigma) / (mean over all pairs of e^(s/sigma)): far
    positives pull harder. The weights are part of the gradient.
    """

    def __init__(self, *, temperature: float = 0.07, sigma: float = 0.5) -> None:
        super().__init__(temperature=temperature)
        self.sigma = number("sigma", sigma, low=0.05, high=1e3, usual="0.5 is usual")

    def _pull(self, pairs: Dense | Tiled, count: Tensor) -> Tensor:
        power, product = pairs.pair_sum(Relation.POSITIVES, self._terms, by_row=count > 0)
        mean = power / count.sum().clamp_min(1)
        return 2.0 * super()._pull(pairs, count) - product / torch.where(count.any(), mean, 1.0)

    def _terms(self, cosine: Tensor, counted: Tensor) -> Tensor:
        # From 1 downwards, so that no sigma overflows; the factor e^(1/sigma) cancels.
        power = ((cosine - 1.0) / self.sigma).exp() * counted
        return torch.stack((power, power * cosine))


class NPairLoss(Loss):
    """N-pair loss: InfoNCE on plain products of rows of any length (Sohn 2016).

    Mean over all pairs (i, p), p in P(i), of  log(1 + sum over n in N(i) of e^(z_i . k_n - z_i . k_p)), plus ``l2`` times
    the mean squared length of the rows, which keeps them from growing.

    Args:
        l2: weight of the squared lengths.
    """

    def __init__(self, *, l2: float = 0.002) -> None:
        super().__init__()
        self.l2 = number("l2", l2, low=0.0, usual="0.002 is usual")

    def _loss(self, batch: Batch) -> Tensor:
        pairs = Dense(batch)
        against = pairs.logsumexp(Relation.NEGATIVES, 1.0)
        terms = pairs.positive_softplus(against, 1.0) / pairs.positives.sum().clamp_min(1)
        # Rows that take no part in a pair shall have no gradient.
        some = (pairs.positives > 0).any()
        return torch.where(some, terms + self.l2 * batch.z.square().sum(1).mean(), zero(batch.z, batch.keys))


class SNNLoss(Loss):
    """Soft nearest neighbour loss (Salakhutdinov, Hinton 2007; Frosst, Papernot, Hinton 2019).

    Mean over rows that have a positive of
    -log( sum over P(i) of e^(-d_ip^2/T) / sum over P(i) and N(i) of e^(-d_ia^2/T) ),
    d the Euclidean distance: the chance that a neighbour drawn by nearness is of the row's class.

    Args:
        temperature: T, in the units of the squared distance.
    """

    def __init__(self, *, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = temperature_of(temperature)

    def _loss(self, batch: Batch) -> Tensor:
        if not len(batch.keys):
            return zero(batch.z, batch.keys)
        scores = distances(batch).square() / -self.temperature
        positives = batch.positives()
        anchors = positives.any(1)
        near = torch.where(anchors, masked_logsumexp(scores, ~positives), 0.0)
        far = masked_logsumexp(scores, ~batch.negatives())
        return torch.where(anchors, F.softplus(far - near, threshold=50.0), 0.0).sum() / anchors.sum().clamp_min(1)
