"""The similarity matrix of a batch, one tile at a time and never whole.

A :class:`Layout` says in which order rows and keys are walked through, which tiles hold pairs that count, and which
pairs inside a tile do not. Rows in label order make nearly every tile all-negative or all-positive, so that masks are
needed only where two classes meet. Knows labels and positions; knows nothing of losses.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cache

import torch
from torch import Tensor

from nearfar.losses.base import Batch


class Relation(Enum):
    """Which pairs of a row and a key count."""

    OTHERS = "all but a row with itself"
    NEGATIVES = "of another class"
    POSITIVES = "of one class, but not a row with itself"


def tile_size(device: torch.device) -> int:
    """Rows and columns of a tile: a float32 tile and its operands stay in the L2 cache, or fill a GPU."""
    return 512 if device.type == "cpu" else 4096


@dataclass(slots=True)
class Tile:
    """Scaled similarities of some rows with some keys; ``scores`` may be overwritten, ``skip`` is gone with the next tile."""

    rows: slice
    cols: slice
    scores: Tensor  # [R, C]
    z: Tensor  # [R, D]
    keys: Tensor  # [C, D]
    twin: bool  # stands for the tile across the diagonal too
    skip: Tensor | None  # bool [R, C], true where a pair does not count
    own: tuple[Tensor, Tensor] | None  # where rows meet themselves
    whole: bool  # of the usual size, not a part of a tile

    def hide(self, values: Tensor, value: float) -> Tensor:
        """Overwrite the pairs that do not count, in place."""
        if self.skip is not None:
            values.masked_fill_(self.skip, value)
        if self.own is not None:
            values[self.own] = value
        return values


@dataclass(frozen=True, slots=True)
class _Block:
    start: int
    stop: int
    low: int  # least label in it
    high: int  # greatest

    @property
    def span(self) -> slice:
        return slice(self.start, self.stop)


class Layout:
    """The order of rows and keys, their tiles, and how many positives and negatives each row has.

    All that is counted by row (``positives``, ``negatives``, results of sweeps) stands in the order of the layout.

    Args:
        batch: rows and keys with their labels.
        by_label: walk in the order of labels; of use where only positives or only negatives count.
    """

    def __init__(self, batch: Batch, *, by_label: bool) -> None:
        device = batch.z.device
        self.symmetric = batch.symmetric
        self.size = tile_size(device)
        several = max(len(batch.z), len(batch.keys)) > self.size
        self._ascending = by_label and several
        self.order = _order(batch.labels) if self._ascending else None
        self.labels = batch.labels if self.order is None else batch.labels[self.order]
        if self.symmetric:
            self.key_order, self.key_labels = self.order, self.labels
        else:
            self.key_order = _order(batch.key_labels) if self._ascending else None
            self.key_labels = batch.key_labels if self.key_order is None else batch.key_labels[self.key_order]
        self.own: Tensor | None = None  # [B], the place of each row among the keys
        if batch.offset is not None:
            self.own = torch.arange(len(batch.z), device=device)
            if not self.symmetric:
                if self.order is not None:
                    self.own = self.own[self.order]
                self.own = self.own + batch.offset
                if self.key_order is not None:
                    place = torch.empty_like(self.key_order)
                    place[self.key_order] = torch.arange(len(place), device=device)
                    self.own = place[self.own]
        ascending = self.key_labels if self.key_order is not None else self.key_labels.sort().values
        same = torch.searchsorted(ascending, self.labels, right=True) - torch.searchsorted(ascending, self.labels)
        self.positives = same if self.own is None else same - 1  # [B]
        self.negatives = len(batch.keys) - same  # [B]
        self._row_blocks = self._blocks(self.labels)
        self._key_blocks = self._row_blocks if self.symmetric else self._blocks(self.key_labels)

    def _blocks(self, labels: Tensor) -> list[_Block]:
        if not len(labels):
            return []
        parts = labels.split(self.size)
        edges = torch.stack([torch.stack(torch.aminmax(part)) for part in parts]).tolist()
        starts = range(0, len(labels), self.size)
        return [
            _Block(start, start + len(part), low, high) for start, part, (low, high) in zip(starts, parts, edges, strict=True)
        ]

    def tiles(self, z: Tensor, keys: Tensor, relation: Relation, scale: float, *, twins: bool) -> Iterator[Tile]:
        """Yield the tiles with pairs that count, each with ``scale * z @ keys.T``.

        With ``twins`` (the batch against itself only) those below the diagonal are left out, and those above it are
        marked as standing for both.
        """
        mask: Tensor | None = None
        for number, rows in enumerate(self._row_blocks):
            z_rows: Tensor | None = None
            scaled: Tensor | None = None
            for other, cols in enumerate(self._key_blocks):
                if twins and other < number:
                    continue
                apart = rows.high < cols.low or cols.high < rows.low
                alike = rows.low == rows.high == cols.low == cols.high
                if (relation is Relation.NEGATIVES and alike) or (relation is Relation.POSITIVES and apart):
                    continue
                near_rows, near_cols = rows, cols
                if relation is Relation.POSITIVES and self._ascending and rows is not cols:
                    # Only the labels that both have: most often the one class that lies across the border.
                    low, high = max(rows.low, cols.low), min(rows.high, cols.high)
                    near_rows, near_cols = _within(rows, self.labels, low, high), _within(cols, self.key_labels, low, high)
                    alike = low == high
                    if near_rows.start == near_rows.stop or near_cols.start == near_cols.stop:
                        continue
                if z_rows is None or scaled is None:
                    z_rows = _take(z, self.order, rows.span)
                    scaled = z_rows * scale
                whole = near_rows is rows
                part = slice(near_rows.start - rows.start, near_rows.stop - rows.start)
                key_rows = z_rows if self.symmetric and rows is cols else _take(keys, self.key_order, near_cols.span)
                scores = product(scaled[part], key_rows.T, usual=whole)
                skip = None
                if relation is not Relation.OTHERS and not apart and not alike:
                    if mask is None:
                        mask = torch.empty(self.size * self.size, dtype=torch.bool, device=z.device)
                    skip = mask[: scores.numel()].view(scores.shape)
                    compare = torch.eq if relation is Relation.NEGATIVES else torch.ne
                    compare(self.labels[near_rows.span, None], self.key_labels[None, near_cols.span], out=skip)
                own = None if relation is Relation.NEGATIVES else self._own(near_rows, near_cols)
                twin = twins and rows is not cols
                yield Tile(near_rows.span, near_cols.span, scores, z_rows[part], key_rows, twin, skip, own, whole)

    def _own(self, rows: _Block, cols: _Block) -> tuple[Tensor, Tensor] | None:
        if self.own is None or (self.symmetric and rows is not cols):
            return None
        if self.symmetric:
            places = torch.arange(rows.stop - rows.start, device=self.own.device)
            return places, places
        places = self.own[rows.span] - cols.start
        inside = ((places >= 0) & (places < cols.stop - cols.start)).nonzero()[:, 0]
        return (inside, places[inside]) if len(inside) else None

    def push(
        self,
        z: Tensor,
        keys: Tensor,
        of_rows: Tensor,
        of_keys: Tensor | None,
        relation: Relation,
        scale: float,
        weigh: Callable[[Tile], Tensor],
        *,
        twins: bool,
    ) -> None:
        """Carry the gradient of the similarities back: add it to that of the rows and, if there is one, of the keys.

        Both gradients stand in the order of the layout (see :meth:`restore`), and are one where the batch is compared with
        itself. ``weigh(tile)`` returns the gradient of each s_ij in it, and with ``twins`` that of s_ij plus that of s_ji.
        """
        for tile in self.tiles(z, keys, relation, scale, twins=twins):
            weights = weigh(tile)
            of_rows[tile.rows] += product(weights, tile.keys, usual=tile.whole)
            if of_keys is not None and (tile.twin or not twins):
                # W'Z as (Z'W)': the small factor is turned round in memory, not the tile.
                of_keys[tile.cols] += product(tile.z.T, weights, usual=tile.whole).T

    def restore(self, of_rows: Tensor, of_keys: Tensor | None) -> None:
        """Bring gradients from the order of the layout to that of the batch, in place."""
        _restore(of_rows, self.order)
        if of_keys is not None and of_keys is not of_rows:
            _restore(of_keys, self.key_order)

    def row_places(self) -> Tensor:
        """Where the rows of the layout stand in the batch, ``[B]``."""
        return torch.arange(len(self.labels), device=self.labels.device) if self.order is None else self.order

    def key_places(self) -> Tensor:
        """Where the keys of the layout stand among the keys, ``[K]``."""
        return torch.arange(len(self.key_labels), device=self.labels.device) if self.key_order is None else self.key_order


def _order(labels: Tensor) -> Tensor | None:
    """The order that sorts labels, or None when they are sorted."""
    if len(labels) < 2 or bool((labels[1:] >= labels[:-1]).all()):
        return None
    return labels.argsort(stable=True)


def _within(block: _Block, labels: Tensor, low: int, high: int) -> _Block:
    """The part of a block whose labels lie in low..high; they ascend."""
    part = labels[block.span]
    first, last = int(torch.searchsorted(part, low)), int(torch.searchsorted(part, high, right=True))
    return _Block(block.start + first, block.start + last, low, high)


def _take(rows: Tensor, order: Tensor | None, span: slice) -> Tensor:
    return rows[span] if order is None else rows.index_select(0, order[span])


def _restore(rows: Tensor, order: Tensor | None) -> None:
    """Undo an order in place; some columns at a time, so that no second copy of the rows is made."""
    if order is None:
        return
    for start in range(0, rows.shape[1], 16):
        columns = rows[:, start : start + 16]
        columns.index_copy_(0, order, columns.clone())


def product(left: Tensor, right: Tensor, *, usual: bool = True) -> Tensor:
    """``left @ right`` of two tiles, by the quickest exact way.

    Where PyTorch's BLAS is MKL and the processor not Intel's, it leaves half of AVX-512 unused; oneDNN, which PyTorch
    brings too, does not. It needs some time for every new shape, so that it is for ``usual`` ones. The choice depends on
    build, type and shape alone, so that results can be repeated.
    """
    if not usual or left.dtype != torch.float32 or left.device.type != "cpu" or not torch.backends.mkldnn.enabled:
        return left @ right
    quick = _onednn()
    return left @ right if quick is None else quick(left, right.T, None, "none", [], "")


@cache
def _onednn() -> Callable[..., Tensor] | None:
    """PyTorch's linear layer on oneDNN, if this build has it on a kind of processor that it was measured on."""
    if platform.machine().lower() not in ("x86_64", "amd64") or not torch.backends.mkldnn.is_available():
        return None
    try:
        # No public name leads to it. One that has changed its ways is left alone.
        found: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise
        probe = found(torch.ones(2, 3), torch.ones(4, 3), None, "none", [], "")
    except (AttributeError, RuntimeError, TypeError):
        return None
    return found if torch.equal(probe, torch.full((2, 4), 3.0)) else None
