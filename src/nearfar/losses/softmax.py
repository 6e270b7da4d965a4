"""Losses that compare a positive with many negatives at once, through a softmax over similarities.

Rows are unit rows, s_ij is the cosine of row i and key j, tau the temperature. P(i) are the positives of row i (same
label, not the row itself), N(i) its negatives (another label).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nearfar.losses.base import Batch, RowLoss, choice, number, temperature_of, zero
from nearfar.losses.dense import Dense, masked_logsumexp
from nearfar.losses.mining import distances
from nearfar.losses.tiled import Tiled, compare
from nearfar.losses.tiles import Relation


class InfoNCELoss(RowLoss):
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

    def _sums(self, batch: Batch) -> tuple[Tensor, Tensor]:
        pairs = compare(batch)
        against = pairs.logsumexp(Relation.NEGATIVES, self.temperature)
        return pairs.positive_softplus(against, self.temperature), pairs.positives.sum()


class NTXentLoss(InfoNCELoss):
    """NT-Xent, InfoNCE under the name and with the customs of SimCLR (Chen, Kornblith, Norouzi, Hinton 2020).

    Give both views of every image in one batch, with the number of the image as label; every row is an anchor.
    """

    def __init__(self, *, temperature: float = 0.1) -> None:
        super().__init__(temperature=temperature)


class SupConLoss(RowLoss):
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

    def _sums(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if self.mean == "outside":
            return outside_sums(batch, self.temperature)
        pairs = compare(batch)
        # log(P + N) - log P as softplus(log N - log P): it keeps its digits where the positives outweigh the rest.
        near = pairs.logsumexp(Relation.POSITIVES, self.temperature)
        far = pairs.logsumexp(Relation.NEGATIVES, self.temperature)
        near = torch.where(pairs.positives > 0, near, 0.0)
        count = pairs.positives.clamp_min(1).to(batch.z.dtype)
        return _over_anchors(F.softplus(far - near, threshold=50.0) + count.log(), pairs.positives)


def mean_outside(batch: Batch, temperature: float) -> Tensor:
    """The mean over rows with a positive of the mean over p in P(i) of (L_i - s_ip/temperature), as in `SupConLoss`."""
    total, count = outside_sums(batch, temperature)
    return total / count.clamp_min(1)


def outside_sums(batch: Batch, temperature: float) -> tuple[Tensor, Tensor]:
    """The sum over rows with a positive of what `mean_outside` is the mean of, and their number."""
    pairs = compare(batch, by_label=False)
    count = pairs.positives.clamp_min(1).to(batch.z.dtype)
    everyone = pairs.logsumexp(Relation.OTHERS, temperature)
    return _over_anchors(everyone - pairs.positive_sums() / (count * temperature), pairs.positives)


def _over_anchors(each: Tensor, positives: Tensor) -> tuple[Tensor, Tensor]:
    anchors = positives > 0
    return torch.where(anchors, each, 0.0).sum(), anchors.sum()


class DCLLoss(RowLoss):
    """Decoupled contrastive loss (Yeh et al. 2022), for any number of positives.

    Mean over all pairs (i, p), p in P(i), of  -s_ip/tau + log sum over n in N(i) of e^(s_in/tau).
    The positive is not in the denominator: without it the gradient does not fade when the positive is near, and small
    batches learn as well as large ones. Rows without a negative do not count.
    """

    needs_unit_rows: ClassVar[bool] = True

    def __init__(self, *, temperature: float = 0.07) -> None:
        super().__init__()
        self.temperature = temperature_of(temperature)

    def _sums(self, batch: Batch) -> tuple[Tensor, ...]:
        return self._parts(batch)[:3]

    def combine(self, sums: Tensor) -> Tensor:
        """From what pushes, what pulls, and how many pairs there are."""
        push, pull, count = sums
        return (push - pull / self.temperature) / count.clamp_min(1.0)

    def _parts(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Dense | Tiled, Tensor]:
        pairs = compare(batch)
        against = pairs.logsumexp(Relation.NEGATIVES, self.temperature)
        count = torch.where(pairs.negatives > 0, pairs.positives, 0)
        push = torch.where(count > 0, against * count, 0.0).sum()
        pull = torch.where(count > 0, pairs.positive_sums(), 0.0).sum()
        return push, pull, count.sum(), pairs, count > 0


class DCLWLoss(DCLLoss):
    """Decoupled contrastive loss with weighted positives (Yeh et al. 2022, DCLW).

    As DCL, with w_ip * s_ip in place of s_ip, and w_ip = 2 - e^(s_ip/sigma) / (mean over all pairs of e^(s/sigma)): far
    positives pull harder. The weights are part of the gradient.
    """

    def __init__(self, *, temperature: float = 0.07, sigma: float = 0.5) -> None:
        super().__init__(temperature=temperature)
        self.sigma = number("sigma", sigma, low=0.05, high=1e3, usual="0.5 is usual")

    def _sums(self, batch: Batch) -> tuple[Tensor, ...]:
        push, pull, count, pairs, counted = self._parts(batch)
        power, product = pairs.pair_sum(Relation.POSITIVES, self._terms, by_row=counted)
        return push, pull, count, power, product

    def combine(self, sums: Tensor) -> Tensor:
        """As DCL, with the weights' sum and that of the weighted similarities."""
        push, pull, count, power, product = sums
        mean = torch.where(count > 0, power / count.clamp_min(1.0), 1.0)
        return super().combine(torch.stack((push, 2.0 * pull - product / mean, count)))

    def _terms(self, cosine: Tensor, counted: Tensor) -> Tensor:
        # From 1 downwards, so that no sigma overflows; the factor e^(1/sigma) cancels.
        power = ((cosine - 1.0) / self.sigma).exp() * counted
        return torch.stack((power, power * cosine))


class NPairLoss(RowLoss):
    """N-pair loss: InfoNCE on plain products of rows of any length (Sohn 2016).

    Mean over all pairs (i, p), p in P(i), of  log(1 + sum over n in N(i) of e^(z_i . k_n - z_i . k_p)), plus ``l2`` times
    the mean squared length of the rows, which keeps them from growing.

    Args:
        l2: weight of the squared lengths.
    """

    def __init__(self, *, l2: float = 0.002) -> None:
        super().__init__()
        self.l2 = number("l2", l2, low=0.0, usual="0.002 is usual")

    def _sums(self, batch: Batch) -> tuple[Tensor, ...]:
        pairs = Dense(batch)
        against = pairs.logsumexp(Relation.NEGATIVES, 1.0)
        squares = batch.z.square().sum()
        return pairs.positive_softplus(against, 1.0), pairs.positives.sum(), squares, squares.new_tensor(len(batch.z))

    def combine(self, sums: Tensor) -> Tensor:
        """From the pairs' sum and number, the squared lengths and the number of rows."""
        terms, pairs, squares, rows = sums
        # Rows that take no part in a pair shall have no gradient.
        return torch.where(pairs > 0, terms / pairs.clamp_min(1.0) + self.l2 * squares / rows.clamp_min(1.0), 0.0)


class SNNLoss(RowLoss):
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

    def _sums(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if not len(batch.keys):
            return zero(batch.z, batch.keys), batch.z.new_zeros(())
        scores = distances(batch).square() / -self.temperature
        positives = batch.positives()
        anchors = positives.any(1)
        near = torch.where(anchors, masked_logsumexp(scores, ~positives), 0.0)
        far = masked_logsumexp(scores, ~batch.negatives())
        return torch.where(anchors, F.softplus(far - near, threshold=50.0), 0.0).sum(), anchors.sum()
