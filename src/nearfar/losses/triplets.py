"""Losses that compare a row's positives with its negatives, one against one or all against all, without a softmax.

They make the B x K matrix of distances or similarities. d_ij is the Euclidean distance of row i and key j, s_ij the cosine
of unit rows; P(i) are the positives of row i (same label, not the row itself), N(i) its negatives.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nearfar.errors import InputError
from nearfar.losses.base import Batch, Loss, RowLoss, choice, number, shares, temperature_of, zero
from nearfar.losses.dense import masked_logsumexp
from nearfar.losses.mining import distances, mine

_Mining = Literal["all", "hard", "semi-hard", "easy-positive", "distance-weighted"]
_MINING = ("all", "hard", "semi-hard", "easy-positive", "distance-weighted")


class TripletLoss(RowLoss):
    """Triplet loss: a positive shall be nearer than a negative, by a margin (Schroff, Kalenichenko, Philbin 2015).

    Mean over triplets of max(0, d_ap - d_an + margin), or of log(1 + e^(d_ap - d_an)) with ``soft_margin`` (Hermans,
    Beyer, Leibe 2017). The triplets are

    - ``"all"``: every one of the batch; the mean is over those that break the margin (all of them with ``soft_margin``)
    - ``"hard"``: for each row its farthest positive and nearest negative
    - ``"semi-hard"``: for each positive pair the nearest negative farther away than the positive
    - ``"easy-positive"``: for each row its nearest positive and nearest negative
    - ``"distance-weighted"``: for each positive pair a negative drawn so that all distances are alike; needs unit rows

    ``"all"`` with the hinge takes O(B K log K) steps and no list of triplets; with the soft margin it takes memory for
    positive pairs times K.

    Args:
        margin: by how much, in the units of the distance; not used with ``soft_margin``.
        mining: which triplets.
        soft_margin: a smooth pull that never ends, in place of the hinge.
        distance: ``"euclidean"`` or ``"squared"``.
    """

    def __init__(
        self,
        *,
        margin: float = 0.2,
        mining: _Mining = "semi-hard",
        soft_margin: bool = False,
        distance: Literal["euclidean", "squared"] = "euclidean",
    ) -> None:
        super().__init__()
        self.margin = number("margin", margin, low=0.0, usual="0.1 to 0.5 is usual for unit rows")
        self.mining = choice("mining", mining, _MINING)
        if not isinstance(soft_margin, bool):
            raise InputError(f"soft_margin is {soft_margin!r}; it must be true or false")
        self.soft_margin = soft_margin
        self.distance = choice("distance", distance, ("euclidean", "squared"))

    def adds_up(self) -> bool:
        """Not where negatives are drawn: what is drawn depends on all rows there are."""
        return self.mining != "distance-weighted"

    def _sums(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if not len(batch.keys):
            return zero(batch.z, batch.keys), batch.z.new_zeros(())
        plain = distances(batch)
        distance = plain if self.distance == "euclidean" else plain.square()
        if self.mining == "all":
            return self._all_soft(batch, distance) if self.soft_margin else self._all_hinge(batch, distance)
        if self.mining == "distance-weighted":
            lengths = torch.linalg.vector_norm(batch.z.detach(), dim=1)
            if bool(((lengths - 1).abs() > 1e-2).any()):
                raise InputError(
                    "z has rows that are not of length 1; distance-weighted mining needs unit rows: "
                    "use torch.nn.functional.normalize(z, dim=1)"
                )
        anchors, positives, negatives = mine(self.mining, batch, plain)
        gap = distance[anchors, positives] - distance[anchors, negatives]
        each = F.softplus(gap, threshold=50.0) if self.soft_margin else (gap + self.margin).clamp_min(0.0)
        return each.sum(), each.new_tensor(len(each))

    def _active(self, batch: Batch) -> dict[str, float]:
        if self.soft_margin:
            return {}
        plain = distances(batch)
        distance = plain if self.distance == "euclidean" else plain.square()
        positives, negatives = batch.positives(), batch.negatives()
        if self.mining == "all":
            pairs = positives * negatives.sum(1, keepdim=True)
            active = self._broken(batch, distance, distance + self.margin)[1].sum()
        else:
            anchors, partners, others = mine(self.mining, batch, plain)
            pairs = positives & negatives.any(1, keepdim=True)
            if self.mining in ("hard", "easy-positive"):
                pairs = pairs.any(1)  # one triplet for each anchor
            active = (distance[anchors, partners] - distance[anchors, others] + self.margin > 0).sum()
        return {"triplets": int(active) / int(pairs.sum())} if bool(pairs.any()) else {}

    def _broken(self, batch: Batch, distance: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
        """Distances to the negatives, sorted, and for each positive how many of them lie within its reach; both [B, K]."""
        ordered = distance.masked_fill(~batch.negatives(), float("inf")).sort(1).values
        return ordered, torch.searchsorted(ordered.detach(), reach.detach().contiguous()) * batch.positives()

    def _all_hinge(self, batch: Batch, distance: Tensor) -> tuple[Tensor, Tensor]:
        """All triplets at once: the negatives of a row that break a margin are a prefix of those sorted by distance."""
        reach = distance + self.margin
        ordered, broken = self._broken(batch, distance, reach)
        sums = F.pad(torch.where(torch.isfinite(ordered), ordered, 0.0).cumsum(1), (1, 0))
        total = torch.where(broken > 0, broken * reach - sums.gather(1, broken), 0.0).sum()
        return total, broken.sum()

    def _all_soft(self, batch: Batch, distance: Tensor) -> tuple[Tensor, Tensor]:
        anchors, positives = batch.positives().nonzero(as_tuple=True)
        negatives = batch.negatives()[anchors]
        gap = distance[anchors, positives, None] - distance[anchors]
        return F.softplus(gap, threshold=50.0).masked_fill(~negatives, 0.0).sum(), negatives.sum()


class LiftedStructureLoss(Loss):
    """Lifted structured loss: each positive pair against all negatives of both its ends (Oh Song et al. 2016).

    With J_ip = d_ip + log( sum over n in N(i) of e^(margin - d_in) + sum over n in N(p) of e^(margin - d_np) ), the mean
    over positive pairs of max(0, J_ip)^2 / 2. Pairs without any negative do not count. With ``keys`` the negatives of
    a key are rows of ``z``.

    Args:
        margin: how far apart two classes are pushed, in the units of the distance.
    """

    def __init__(self, *, margin: float = 1.0) -> None:
        super().__init__()
        self.margin = number("margin", margin, above=0.0, usual="1 is usual")

    def _loss(self, batch: Batch) -> Tensor:
        if not len(batch.keys):
            return zero(batch.z, batch.keys)
        distance = distances(batch)
        skip = ~batch.negatives()
        by_row = masked_logsumexp(self.margin - distance, skip)
        by_key = by_row if batch.symmetric else masked_logsumexp(self.margin - distance.T, skip.T)
        anchors, positives = batch.positives().nonzero(as_tuple=True)
        ends = torch.stack((by_row[anchors], by_key[positives]), 1)
        none = torch.isneginf(ends)
        each = (distance[anchors, positives] + masked_logsumexp(ends, none)).clamp_min(0.0).square() / 2.0
        # A pair without any negative has J = minus infinity: it is 0, and not of the mean.
        return each.sum() / (~none.all(1)).sum().clamp_min(1)


class MultiSimilarityLoss(RowLoss):
    """Multi-similarity loss (Wang, Han, Huang, Dong, Scott 2019), with the paper's mining.

    Mean over rows of  log(1 + sum over P(i) of e^(-alpha (s_ip - base))) / alpha
                     + log(1 + sum over N(i) of e^(beta (s_in - base))) / beta.
    Only pairs that carry news count: positives less similar than the most similar negative plus ``epsilon``, negatives
    more similar than the least similar positive less ``epsilon``.

    Args:
        alpha: how sharply the least similar positives are picked out.
        beta: how sharply the most similar negatives are picked out.
        base: the similarity that positives shall exceed and negatives stay below.
        epsilon: the slack of the mining; 2 or more keeps all pairs of rows that have both kinds.
    """

    needs_unit_rows: ClassVar[bool] = True

    def __init__(self, *, alpha: float = 2.0, beta: float = 50.0, base: float = 0.5, epsilon: float = 0.1) -> None:
        super().__init__()
        self.alpha = number("alpha", alpha, above=0.0, usual="2 is usual")
        self.beta = number("beta", beta, above=0.0, usual="40 to 50 is usual")
        self.base = number("base", base, low=-1.0, high=1.0, usual="0.5 is usual")
        self.epsilon = number("epsilon", epsilon, low=0.0, usual="0.1 is usual")

    def _active(self, batch: Batch) -> dict[str, float]:
        positives, negatives = self._mined(batch, batch.z @ batch.keys.T)
        return shares(positives | negatives, positives=batch.positives(), negatives=batch.negatives())

    def _mined(self, batch: Batch, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Which positives and which negatives carry news, by the similarities ``seen``; bool [B, K] each."""
        positives, negatives = batch.positives(), batch.negatives()
        nearest = seen.masked_fill(~negatives, -torch.inf).amax(1, keepdim=True)
        farthest = seen.masked_fill(~positives, torch.inf).amin(1, keepdim=True)
        return positives & (seen - self.epsilon < nearest), negatives & (seen + self.epsilon > farthest)

    def _sums(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if not len(batch.keys):
            return zero(batch.z, batch.keys), batch.z.new_zeros(())
        cosine = batch.z @ batch.keys.T
        positives, negatives = self._mined(batch, cosine.detach())
        near = F.softplus(masked_logsumexp(-self.alpha * (cosine - self.base), ~positives), threshold=50.0)
        far = F.softplus(masked_logsumexp(self.beta * (cosine - self.base), ~negatives), threshold=50.0)
        return (near / self.alpha + far / self.beta).sum(), near.new_tensor(len(near))


class CircleLoss(RowLoss):
    """Circle loss: every similarity is pulled as hard as it is off its mark (Sun et al. 2020).

    Mean over rows with positives and negatives of
    log(1 + sum over N(i) of e^(scale a_n (s_in - margin)) * sum over P(i) of e^(-scale a_p (s_ip - 1 + margin))), with
    a_n = max(0, s_in + margin) and a_p = max(0, 1 + margin - s_ip), taken as constants in the gradient as in the paper.

    Args:
        margin: the slack on both sides: positives beyond 1 - margin and negatives below margin rest.
        scale: how sharply the worst pairs are picked out.
    """

    needs_unit_rows: ClassVar[bool] = True

    def __init__(self, *, margin: float = 0.25, scale: float = 256.0) -> None:
        super().__init__()
        self.margin = number("margin", margin, low=0.0, high=1.0, usual="0.25 to 0.4 is usual")
        self.scale = number("scale", scale, above=0.0, usual="80 to 256 is usual")

    def _sums(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if not len(batch.keys):
            return zero(batch.z, batch.keys), batch.z.new_zeros(())
        cosine = batch.z @ batch.keys.T
        positives, negatives = batch.positives(), batch.negatives()
        pull = (1.0 + self.margin - cosine.detach()).clamp_min(0.0)
        push = (cosine.detach() + self.margin).clamp_min(0.0)
        near = masked_logsumexp(-self.scale * pull * (cosine - 1.0 + self.margin), ~positives)
        far = masked_logsumexp(self.scale * push * (cosine - self.margin), ~negatives)
        anchors = positives.any(1) & negatives.any(1)
        both = torch.where(anchors, near, 0.0) + torch.where(anchors, far, 0.0)
        return torch.where(anchors, F.softplus(both, threshold=50.0), 0.0).sum(), anchors.sum()


class SmoothAPLoss(RowLoss):
    """Smooth-AP: one minus average precision, with ranks made differentiable (Brown, Xie, Kalogeiton, Zisserman 2020).

    The rank of positive p of row i among a set is 1 plus the sum over the set's other members j of
    1 / (1 + e^(-(s_ij - s_ip)/temperature)). The precision at p is its rank among P(i) divided by its rank among all; the
    loss is 1 less the mean over rows that have a positive of the mean over P(i). Takes memory for positive pairs times K.

    Args:
        temperature: the smaller, the nearer to true ranks, and the fewer pairs have a gradient.
    """

    needs_unit_rows: ClassVar[bool] = True

    def __init__(self, *, temperature: float = 0.01) -> None:
        super().__init__()
        self.temperature = temperature_of(temperature)

    def _sums(self, batch: Batch) -> tuple[Tensor, Tensor]:
        cosine = batch.z @ batch.keys.T
        positives, negatives = batch.positives(), batch.negatives()
        anchors, partners = positives.nonzero(as_tuple=True)
        if not len(anchors):
            return zero(batch.z, batch.keys), batch.z.new_zeros(())
        before = torch.sigmoid((cosine[anchors] - cosine[anchors, partners, None]) / self.temperature)
        # A positive is not before itself: the sigmoid of 0 is taken off again.
        among_positives = 0.5 + (before * positives[anchors]).sum(1)
        among_all = among_positives + (before * negatives[anchors]).sum(1)
        precision = among_positives / among_all
        by_row = torch.zeros_like(cosine[:, 0]).index_add(0, anchors, precision / positives.sum(1)[anchors])
        has = positives.any(1).sum()
        return has - by_row.sum(), has
