"""Losses made for two towers, such as images and their captions, whose sharpness is learned with them.

Rows are one tower's embeddings, keys the other's; a caption's number is the label of both. So the same caption twice in a
batch is a positive of both its images, and never a negative. Knows embeddings; nothing of images or texts.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nearfar.errors import InputError
from nearfar.losses.base import Batch, Loss, RowLoss, check_batch, number, zero
from nearfar.losses.softmax import mean_outside
from nearfar.losses.tiled import compare
from nearfar.losses.tiles import Relation

_SHARPEST = math.log(100.0)


class CLIPLoss(Loss):
    """Contrastive loss of two towers, with a learned temperature (Radford et al. 2021).

    With s_ij the cosine of row i and key j and t = e^``log_scale``, the mean of two ways: rows against keys, and keys
    against rows. Each is the mean over rows that have a positive of the mean over p in P(i) of
    log( sum over all j of e^(t s_ij) ) - t s_ip,
    for one positive each the cross-entropy of the paper, for several as in `SupConLoss`. t is learned with the encoders,
    so give ``log_scale`` to the optimiser too; it is kept at 100 at most, as in the paper.

    Without keys the batch is compared with itself, and both ways are one. So they are with a ``key_offset``, which says
    that rows and keys are of one tower.

    Args:
        temperature: where 1 / t starts.
    """

    needs_unit_rows: ClassVar[bool] = True
    goes_both_ways: ClassVar[bool] = True

    def __init__(self, *, temperature: float = 0.07) -> None:
        super().__init__()
        start = number("temperature", temperature, low=0.01, high=100.0, usual="0.07 is usual")
        self.log_scale = nn.Parameter(torch.tensor(-math.log(start)))

    def one_way(self, z: Tensor, labels: Tensor, keys: Tensor, key_labels: Tensor) -> Tensor:
        """Rows against keys alone, a scalar; arguments and errors as for the loss itself."""
        batch = check_batch(z, labels, keys, key_labels, unit=True)
        with torch.autocast(device_type=z.device.type, enabled=False):
            return self._ways(batch, both=False)

    def _loss(self, batch: Batch) -> Tensor:
        return self._ways(batch, both=not batch.symmetric and batch.offset is None)

    def _ways(self, batch: Batch, *, both: bool) -> Tensor:
        if not len(batch.keys):
            return zero(batch.z, batch.keys)
        # The parameter itself is held, outside the graph: a clamp in the formula would leave it without a gradient beyond.
        self.log_scale.data.clamp_(max=_SHARPEST)
        # The sums over pairs take a temperature that is a plain number. Only the products t * s count, so the rows are
        # multiplied by t / t: a 1 through which the gradient of t comes out.
        log_scale = self.log_scale.to(batch.z.dtype)
        temperature = math.exp(-log_scale.item())
        step = log_scale - log_scale.detach()
        if batch.symmetric:
            z = batch.z * (step / 2.0).exp()
            return mean_outside(replace(batch, z=z, keys=z), temperature)
        batch = replace(batch, z=batch.z * step.exp())
        there = mean_outside(batch, temperature)
        if not both:
            return there
        back = Batch(batch.keys, batch.key_labels, batch.z, batch.labels, None)
        return (there + mean_outside(back, temperature)) / 2.0


class SigLIPLoss(RowLoss):
    """Sigmoid loss: every pair is a yes-or-no question of its own (Zhai, Mustafa, Kolesnikov, Beyer 2023).

    With x_ij = t * cos(i, j) + b, the sum over all pairs of log(1 + e^(-x)) for one class and log(1 + e^x) for two,
    divided by the number of rows. Scale t = e^``log_scale`` and ``bias`` b are learned with the encoder: give them to the
    optimiser too. Made for image-text towers, where ``keys`` are the other tower's rows.

    Args:
        scale: where t starts.
        bias: where b starts; strongly negative, since nearly all pairs are negatives.
    """

    needs_unit_rows: ClassVar[bool] = True
    goes_both_ways: ClassVar[bool] = True

    def __init__(self, *, scale: float = 10.0, bias: float = -10.0) -> None:
        super().__init__()
        scale = number("scale", scale, low=1e-3, high=1e3, usual="10 is usual")
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.bias = nn.Parameter(torch.tensor(number("bias", bias, low=-1e3, high=1e3, usual="-10 is usual")))

    def _sums(self, batch: Batch) -> tuple[Tensor, Tensor]:
        pairs = compare(batch)
        scale, bias = self.log_scale.exp().to(batch.z.dtype), self.bias.to(batch.z.dtype)
        near = pairs.pair_sum(Relation.POSITIVES, _miss_of_positive, scale, bias)
        far = pairs.pair_sum(Relation.NEGATIVES, _miss_of_negative, scale, bias)
        return near + far, near.new_tensor(len(batch.z))


def of_towers(
    loss: Loss, a: Tensor, b: Tensor, labels: Tensor, everyone: tuple[Tensor, Tensor, Tensor] | None = None
) -> Tensor:
    """The loss of two towers, both ways: a scalar that does not change when ``a`` and ``b`` change places.

    Any loss that takes keys can be used. One that does not go both ways by itself is asked twice, and the mean taken.

    Args:
        loss: what to learn by.
        a: embeddings of one tower ``[B, D]``.
        b: those of the other ``[B, D]``; row i belongs to row i of ``a``.
        labels: whole numbers ``[B]``, e.g. of captions. Rows of one number are positives of each other in both towers.
        everyone: ``a``, ``b`` and ``labels`` of all processes, gathered with their gradient, when there are several. The
            mean over processes of what is returned is then the loss of the whole batch, for losses that are means over
            rows (or sums divided by the rows) with a positive in the whole batch, which each row of two towers has.

    Raises:
        InputError: the loss takes no keys, or refuses the rows.
    """
    if not loss.takes_keys:
        raise InputError(
            f"{type(loss).__name__} cannot compare two towers: it takes no keys; use CLIPLoss (clip) or SigLIPLoss (siglip)"
        )
    if everyone is None and loss.goes_both_ways:
        value: Tensor = loss(a, labels, b, labels)
        return value
    all_a, all_b, all_labels = (a, b, labels) if everyone is None else everyone
    if isinstance(loss, SigLIPLoss):
        value = loss(a, labels, all_b, all_labels)  # each pair once
        return value
    compare_one = loss.one_way if isinstance(loss, CLIPLoss) else loss
    there, back = compare_one(a, labels, all_b, all_labels), compare_one(b, labels, all_a, all_labels)
    value = (there + back) / 2.0
    return value


def _miss_of_positive(cosine: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.softplus(-(scale * cosine + bias), threshold=50.0)


def _miss_of_negative(cosine: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.softplus(scale * cosine + bias, threshold=50.0)
