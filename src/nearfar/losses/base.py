"""What every loss shares: the signature, the checks at the door, and who is a pair of whom.

Knows nothing of formulas. A loss is given a :class:`Batch` that has been checked, in float32 or float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from nearfar.errors import InputError, did_you_mean

_HALF = (torch.bfloat16, torch.float16)
# How far from 1 the length of a unit row may be.
_UNIT = 1e-2


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows and what they are compared with; all tensors on one device, floats of one type.

    ``offset`` says where the rows stand among the keys: row ``i`` is key ``offset + i``, a pair that is left out.
    It is None when no row is among the keys.
    """

    z: Tensor  # [B, D]
    labels: Tensor  # [B] int64
    keys: Tensor  # [K, D]; the very tensor ``z`` when the batch is compared with itself
    key_labels: Tensor  # [K] int64; then the very tensor ``labels``
    offset: int | None

    @property
    def symmetric(self) -> bool:
        """Whether the batch is compared with itself, so that s_ij = s_ji."""
        return self.keys is self.z and self.key_labels is self.labels

    @property
    def pairs(self) -> int:
        """How many pairs there are, self-pairs left out."""
        return len(self.z) * len(self.keys) - (0 if self.offset is None else len(self.z))

    def positive_counts(self) -> Tensor:
        """How many positives each row has, int64 ``[B]``, in memory that grows with the batch alone."""
        keys = self.key_labels.sort().values
        same = torch.searchsorted(keys, self.labels, right=True) - torch.searchsorted(keys, self.labels)
        return same if self.offset is None else same - 1

    def own(self) -> Tensor | None:
        """Bool [B, K], true where a row meets itself; None when it never does."""
        if self.offset is None:
            return None
        rows = torch.arange(len(self.z), device=self.z.device)
        keys = torch.arange(len(self.keys), device=self.z.device)
        return (rows[:, None] + self.offset) == keys[None, :]

    def positives(self) -> Tensor:
        """Bool [B, K]: same class, and not the row itself."""
        same = self.labels[:, None] == self.key_labels[None, :]
        own = self.own()
        return same if own is None else same & ~own

    def negatives(self) -> Tensor:
        """Bool [B, K]: another class."""
        return self.labels[:, None] != self.key_labels[None, :]


class Loss(nn.Module):
    """A loss of a batch of embeddings: ``loss(z, labels, keys=None, key_labels=None)`` is a differentiable scalar.

    The class attributes tell a training loop what to bring.
    """

    needs_unit_rows: ClassVar[bool] = False
    """Rows of ``z`` (and of ``keys``) must have length 1."""
    takes_pairs: ClassVar[bool] = False
    """``loss.pairs(a, b, same)`` exists, for explicit pairs."""
    scores: ClassVar[bool] = False
    """``z`` is class scores ``[B, classes]``, not an embedding."""
    needs_classes: ClassVar[bool] = False
    """The constructor wants ``classes`` and ``dim``: the loss has a weight of its own for every class."""
    takes_keys: ClassVar[bool] = True
    """``keys`` and ``key_labels`` may be given: the loss can train two towers (`nearfar.losses.towers.of_towers`)."""
    goes_both_ways: ClassVar[bool] = False
    """Given keys it compares them with the rows, too: swapping equally many rows and keys changes nothing."""

    def adds_up(self) -> bool:
        """Whether `sums` and `combine` exist: the loss comes from sums over the rows of ``z``, each of which may be added up
        in parts by several processes.
        """
        return False

    def forward(
        self,
        z: Tensor,
        labels: Tensor,
        keys: Tensor | None = None,
        key_labels: Tensor | None = None,
        *,
        key_offset: int | None = None,
    ) -> Tensor:
        """Return the loss of a batch, a scalar in float32 (float64 for float64 ``z``).

        Args:
            z: embeddings ``[B, D]`` of a floating type; unit rows where ``needs_unit_rows``.
            labels: ``[B]`` of an integer type. Rows of one label are positives of each other.
            keys: ``[K, D]``, what every row of ``z`` is compared with, instead of the batch itself; may be empty.
            key_labels: ``[K]``, the labels of ``keys``.
            key_offset: where the rows of ``z`` stand in ``keys``, when they do: row ``i`` is key ``key_offset + i``,
                and is not compared with itself. For keys gathered from all processes it is rank * B.

        Raises:
            InputError: shapes or types that do not fit, values that are not finite, rows that are not unit rows.
        """
        batch = self._check(z, labels, keys, key_labels, key_offset)
        # Tiles and sums are exact only in the type of the batch: autocast would make the products bfloat16.
        with torch.autocast(device_type=z.device.type, enabled=False):
            return self._loss(batch)

    def sums(
        self,
        z: Tensor,
        labels: Tensor,
        keys: Tensor | None = None,
        key_labels: Tensor | None = None,
        *,
        key_offset: int | None = None,
    ) -> Tensor:
        """What the loss is made of, float64 ``[S]``: sums over the rows of ``z``, which `combine` turns into the loss.

        Where the rows of a batch are shared out, the sums of the parts add up to those of the whole. Arguments and errors
        are those of the loss itself.
        """
        batch = self._check(z, labels, keys, key_labels, key_offset)
        with torch.autocast(device_type=z.device.type, enabled=False):
            return stacked(self._sums(batch))

    def combine(self, sums: Tensor) -> Tensor:
        """The loss, a scalar in float64, from the sums over all rows ``[S]``: most often a total over a count."""
        total, count = sums
        return total / count.clamp_min(1.0)

    def pair_sums(self, a: Tensor, b: Tensor, same: Tensor) -> Tensor:
        """As `sums`, over explicit pairs: a, b ``[M, D]``, same bool ``[M]``; for losses with ``takes_pairs``."""
        raise NotImplementedError

    def _check(
        self, z: Tensor, labels: Tensor, keys: Tensor | None, key_labels: Tensor | None, key_offset: int | None
    ) -> Batch:
        if not self.takes_keys and (keys is not None or key_labels is not None):
            raise InputError(
                f"{type(self).__name__} was given keys, but it compares z with weights of its own or within the batch; "
                "call it with z and labels alone"
            )
        return check_batch(z, labels, keys, key_labels, key_offset, unit=self.needs_unit_rows)

    @torch.no_grad()
    def active(self, z: Tensor, labels: Tensor) -> dict[str, float]:
        """What share of what the loss compares is not zero, by name of what that is; empty where nothing ever is zero.

        Args:
            z: as for the loss itself ``[B, D]``; takes memory for B x B.
            labels: ``[B]``.
        """
        return self._active(check_batch(z, labels, unit=self.needs_unit_rows))

    def active_pairs(self, a: Tensor, b: Tensor, same: Tensor) -> dict[str, float]:
        """The same for explicit pairs: a, b ``[M, D]``, same bool ``[M]``."""
        return {}

    def _active(self, batch: Batch) -> dict[str, float]:
        return {}

    def _loss(self, batch: Batch) -> Tensor:
        return self.combine(stacked(self._sums(batch))).to(batch.z.dtype)

    def _sums(self, batch: Batch) -> Sequence[Tensor]:
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Show the plain settings, so that a printed loss can be typed in again."""
        settings = {k: v for k, v in vars(self).items() if not k.startswith("_") and k != "training"}
        return ", ".join(f"{name}={value!r}" for name, value in settings.items())


class RowLoss(Loss):
    """A loss that comes from sums over rows; it defines ``_sums``, and ``combine`` where it is not a total over a count."""

    def adds_up(self) -> bool:
        return True


def stacked(sums: Sequence[Tensor]) -> Tensor:
    """Scalars of any type as float64 ``[S]``: counts stay exact."""
    return torch.stack([value.double() for value in sums])


def shares(flags: Tensor, **kinds: Tensor) -> dict[str, float]:
    """The share of true among ``flags`` for each kind, a mask of the same shape; kinds that do not occur are left out."""
    counts = {name: int(mask.sum()) for name, mask in kinds.items()}
    return {name: int((flags & kinds[name]).sum()) / count for name, count in counts.items() if count}


def zero(*tensors: Tensor) -> Tensor:
    """A zero that knows its inputs: backward gives them zero gradients instead of an error."""
    total = tensors[0].new_zeros(())
    for tensor in tensors:
        total = total + (tensor * 0.0).sum()
    return total


def check_batch(
    z: Tensor,
    labels: Tensor,
    keys: Tensor | None = None,
    key_labels: Tensor | None = None,
    key_offset: int | None = None,
    *,
    unit: bool = False,
) -> Batch:
    """Check what a caller gave, and return it as a :class:`Batch` (bfloat16 and float16 become float32)."""
    _check_form("z", z)
    if not z.numel():
        raise InputError(f"z is empty (shape {tuple(z.shape)}); a batch needs at least one row and one column")
    labels = _check_labels("labels", labels, "z", z)
    _check_values("z", z, unit)
    if keys is None:
        if key_labels is not None:
            raise InputError("key_labels came without keys; give both, or neither")
        if key_offset is not None:
            raise InputError(f"key_offset={key_offset} came without keys; leave it out, self-pairs are left out anyway")
        wide = z.float() if z.dtype in _HALF else z
        return Batch(wide, labels, wide, labels, 0)
    if key_labels is None:
        raise InputError("keys came without key_labels; give both, or neither")
    _check_form("keys", keys)
    key_labels = _check_labels("key_labels", key_labels, "keys", keys)
    if keys.shape[1] != z.shape[1]:
        raise InputError(f"keys has {keys.shape[1]} columns, z has {z.shape[1]}; both must come from encoders of one width")
    if keys.device != z.device:
        raise InputError(f"keys is on {keys.device}, z on {z.device}; move them to one device")
    if key_offset is not None and not 0 <= key_offset <= len(keys) - len(z):
        raise InputError(
            f"key_offset is {key_offset}; with {len(z):,} rows in z and {len(keys):,} keys it must lie in "
            f"0..{len(keys) - len(z)}, so that all of z is among the keys"
        )
    if key_offset is not None:
        other = (key_labels[key_offset : key_offset + len(z)] != labels).nonzero()
        if len(other):
            row = int(other[0])
            raise InputError(
                f"row {row} of z has label {int(labels[row])}, key {key_offset + row} has {int(key_labels[key_offset + row])}; "
                f"key_offset={key_offset} says that they are one row: give the place of z among the keys, or none"
            )
    _check_values("keys", keys, unit)
    common = torch.promote_types(z.dtype, keys.dtype)
    if common in _HALF:
        common = torch.float32
    return Batch(z.to(common), labels, keys.to(common), key_labels, key_offset)


def check_pairs(a: Tensor, b: Tensor, same: Tensor, *, unit: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Check explicit pairs and return them with half types widened: a, b ``[M, D]``, same bool ``[M]``."""
    _check_form("a", a)
    _check_form("b", b)
    if a.shape != b.shape:
        raise InputError(f"a has shape {tuple(a.shape)}, b has {tuple(b.shape)}; row m of a is paired with row m of b")
    if same.dtype != torch.bool:
        raise InputError(f"same is {_kind(same)}; it must be bool, true for a pair of one class: use same.bool()")
    if b.device != a.device or same.device != a.device:
        raise InputError(f"a is on {a.device}, b on {b.device}, same on {same.device}; move them to one device")
    if same.shape != a.shape[:1]:
        raise InputError(f"same has shape {tuple(same.shape)}, there are {len(a):,} pairs; it must be one entry a pair")
    _check_values("a", a, unit)
    _check_values("b", b, unit)
    common = torch.promote_types(a.dtype, b.dtype)
    if common in _HALF:
        common = torch.float32
    return a.to(common), b.to(common), same


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _check_form(name: str, rows: Tensor) -> None:
    if not isinstance(rows, Tensor):
        raise InputError(f"{name} is a {type(rows).__name__}; it must be a torch tensor: use torch.as_tensor({name})")
    if rows.ndim != 2:
        raise InputError(f"{name} has shape {tuple(rows.shape)}; it must be [rows, columns], one embedding a row")
    if not rows.is_floating_point():
        raise InputError(f"{name} is {_kind(rows)}; it must be of a floating type: use {name}.float()")


def _check_values(name: str, rows: Tensor, unit: bool) -> None:
    if not len(rows):
        return
    seen = rows.detach()
    if not unit:
        if not bool(torch.isfinite(seen).all()):
            raise _not_finite(name, seen)
        return
    lengths = torch.linalg.vector_norm(seen, dim=1, dtype=torch.float32 if rows.dtype in _HALF else None)
    # One comparison for NaN, infinity and length, so that a batch costs one wait for the device. Rows that were made unit
    # in bfloat16 are off by up to 2^-8, and may since have become float32.
    if not bool(((lengths - 1).abs() <= _UNIT).all()):
        if not bool(torch.isfinite(lengths).all()):
            raise _not_finite(name, seen)
        row = int((lengths - 1).abs().argmax())
        raise InputError(
            f"row {row} of {name} has length {float(lengths[row]):.4g}; this loss needs unit rows: "
            f"use torch.nn.functional.normalize({name}, dim=1)"
        )


def _not_finite(name: str, rows: Tensor) -> InputError:
    bad = (~torch.isfinite(rows)).any(dim=1)
    row = int(bad.nonzero()[0]) if bool(bad.any()) else 0
    return InputError(
        f"{name} has NaN or infinity in {int(bad.sum()):,} of {len(rows):,} rows, the first in row {row}; "
        "lower the learning rate, or look for NaN in the images"
    )


def _check_labels(name: str, labels: Tensor, rows_name: str, rows: Tensor) -> Tensor:
    if not isinstance(labels, Tensor):
        raise InputError(f"{name} is a {type(labels).__name__}; it must be a torch tensor: use torch.as_tensor({name})")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InputError(f"{name} is {_kind(labels)}; labels are whole numbers of classes: use {name}.long()")
    if labels.ndim != 1 or len(labels) != len(rows):
        raise InputError(
            f"{name} has shape {tuple(labels.shape)}, {rows_name} has {len(rows):,} rows; it must be one label a row"
        )
    if labels.device != rows.device:
        raise InputError(f"{name} is on {labels.device}, {rows_name} on {rows.device}; move them to one device")
    return labels.long().contiguous()


def number(
    name: str,
    value: float,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    above: float | None = None,
    usual: str = "",
) -> float:
    """Return ``value`` as a float when it lies in [low, high] (and beyond ``above``), or say what is wrong with it."""
    ok = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if ok and low <= value <= high and (above is None or value > above):
        return float(value)
    bounds = [f"above {above:g}"] if above is not None else [f"at least {low:g}"] if low > -math.inf else []
    if high < math.inf:
        bounds.append(f"at most {high:g}")
    wanted = " and ".join(bounds) or "finite"
    raise InputError(f"{name} is {value!r}; it must be a number {wanted}" + (f" ({usual})" if usual else ""))


def temperature_of(value: float) -> float:
    """Check a temperature."""
    return number("temperature", value, low=1e-3, high=1e3, usual="0.05 to 0.5 is usual")


def whole(name: str, value: int, *, low: int, usual: str = "") -> int:
    """Return ``value`` when it is a whole number of at least ``low``, or say what is wrong with it."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= low:
        return value
    raise InputError(f"{name} is {value!r}; it must be a whole number of at least {low}" + (f" ({usual})" if usual else ""))


def choice(name: str, value: str, known: Sequence[str]) -> str:
    """Return ``value`` when it is one of ``known``, or say which there are."""
    if value in known:
        return value
    hint = did_you_mean(value, known) if isinstance(value, str) else "; known are " + ", ".join(known)
    raise InputError(f"{name} is {value!r}{hint}")
