"""Candidates of many queries at once: every vector that may be among a query's k nearest, and few others.

The similarity of a pair is its dot product, or minus half its squared distance: greater is nearer. It is found by
matrix products in bfloat16 (or float32), and every product comes with a bound on its error, so that nothing is lost:

1. Some rows of the gallery, in float32, give each query a ``floor`` that its k-th nearest exceeds for certain.
2. For a chunk of the gallery and a block of queries, oneDNN computes ``similarity - floor + error bound``. What is
   negative cannot be a neighbour. Near the k-th nearest these numbers are small, so that rounding them to bfloat16 costs
   nothing; and as positive floats have the order of their bits, maxima of groups of rows are taken as whole numbers.
3. Groups whose maximum reaches the query's k-th best so far are opened. Their rows that reach it are candidates.

A chunk is moved so that its centre is the origin, and the queries with it: the error is relative to the distances from
there, which are small where vectors form clusters. With cells (``nearfar.search.cells``) a chunk is a cluster; then a
query looks into its own cell first, and afterwards only into those that could hold something nearer.

Memory: a tile and a chunk of 16 MiB each, the queries in bfloat16, and 16 bytes for each candidate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nearfar.search.scoring import Gallery, spread_places
from nearfar.search.vectors import Floats, Ints, Metric, as_tensor, narrow_products, products, squared_lengths

Wide = npt.NDArray[np.float64]

_CHUNK = 1 << 16
"""Rows of the gallery gone through together."""
_TILE = 1 << 22
"""Products computed together."""
_GROUP = 64
"""Rows of which the maximum is taken."""
_SAMPLE = 2048
"""Rows that give the floors."""
_UNIT, _NARROW_UNIT = 2.0**-24, 2.0**-8
"""Unit roundoffs of float32 and bfloat16."""
_TINY = 2.0**-120
"""More than numbers that are flushed to zero can add up to, for each unit of length."""


class Candidates(NamedTuple):
    """Pairs of a query and a place of the gallery [m], in no order; and the queries [u] for which there were too many."""

    owners: Ints
    places: Ints
    unsettled: Ints


class Cells(NamedTuple):
    """The gallery in clusters."""

    order: Ints
    """Places, cell by cell: [M]."""
    bounds: list[int]
    """Where in ``order`` each cell begins, and the end: [C + 1]."""
    centres: Floats
    """[C, D]."""
    radii: Wide
    """The distance of a cell's farthest vector from its centre: [C]."""
    home: Ints
    """The cell that each query lies in: [N]."""


class _Part(NamedTuple):
    """A chunk of the gallery, moved to its centre and narrowed."""

    places: Ints | None  # None: in a row, from start
    start: int
    size: int
    keys: Tensor  # [groups * _GROUP, D + columns]
    centre: Floats  # [D]
    longest: float  # the greatest length of a row
    lost: float  # the greatest length of what narrowing took from a row


class _Block(NamedTuple):
    """Some queries, moved to a centre and narrowed."""

    which: Ints  # [n]
    weights: Tensor  # [n, D + columns]
    constant: Wide  # what the products lack of the similarity: [n]
    lengths: Wide  # [n]
    lost: Wide  # [n]


def find_candidates(
    queries: Floats,
    gallery: Gallery,
    k: int,
    metric: Metric,
    exclude: Ints | None,
    *,
    narrow: bool,
    centre: Floats,
    cells: Cells | None = None,
) -> Candidates:
    """Return all pairs that may be of the k nearest, by products in bfloat16 (``narrow``) or float32.

    Args:
        queries: [N, D].
        gallery: more than a few thousand vectors.
        k: a few at most.
        metric: "cosine" (of unit rows), "dot" or "euclidean".
        exclude: a place [N] for each query that is no candidate, or -1.
        narrow: whether in bfloat16. Where it proves too coarse for most, all queries are returned as unsettled.
        centre: a point [D] that vectors are moved by; with ``cells`` each has its own.
        cells: the gallery in clusters, or None.
    """
    return _Search(queries, gallery, k, metric, exclude, narrow, centre, cells).run()


class _Search:
    def __init__(
        self,
        queries: Floats,
        gallery: Gallery,
        k: int,
        metric: Metric,
        exclude: Ints | None,
        narrow: bool,
        centre: Floats,
        cells: Cells | None,
    ) -> None:
        self.queries, self.gallery, self.k, self.metric = queries, gallery, k, metric
        self.exclude, self.narrow, self.centre, self.cells = exclude, narrow, centre, cells
        self.type = torch.bfloat16 if narrow else torch.float32
        # A row's own term, -|h|^2 / 2 or c.h, goes along as columns; three bfloat16 hold the digits of a float32.
        plain = metric != "euclidean" and cells is None and not centre.any()
        self.columns = 0 if plain else 3 if narrow else 1
        self.most = 4 * k + 24  # candidates of one query, beyond which it is left to a finer search
        count = len(queries)
        self.floor = np.zeros(count)
        self.best = torch.full((count, k), -math.inf)  # lower bounds of similarity - floor
        self.settled = np.ones(count, dtype=np.bool_)
        self.found: list[tuple[Tensor, Tensor, Tensor]] = []  # owners, places, upper bounds of similarity - floor

    def run(self) -> Candidates:
        self._set_floors()
        everyone = np.arange(len(self.queries))
        if self.cells is None:
            blocks = list(self._blocks(everyone, self.centre, min(_CHUNK, len(self.gallery))))
            for start in range(0, len(self.gallery), _CHUNK):
                part = self._part(start, min(start + _CHUNK, len(self.gallery)), self.centre)
                for number, block in enumerate(blocks):
                    self._look(part, block)
                    if number == 0 and start == 0 and self.settled[block.which].mean() < 0.75:
                        return Candidates(*(np.empty(0, dtype=np.int64),) * 2, everyone)
        else:
            self._run_cells(self.cells, everyone)
        return self._gather()

    def _run_cells(self, cells: Cells, everyone: Ints) -> None:
        """First each query in its own cell, then where something nearer may be."""
        by_home = np.argsort(cells.home, kind="stable")
        edges = np.searchsorted(cells.home[by_home], np.arange(len(cells.centres) + 1))
        for own in (True, False):
            for cell, (start, end) in enumerate(zip(cells.bounds[:-1], cells.bounds[1:], strict=True)):
                which = by_home[edges[cell] : edges[cell + 1]]
                if not own:
                    which = np.delete(by_home, slice(edges[cell], edges[cell + 1]))
                    which = which[self._reach(which, cells.centres[cell], cells.radii[cell])]
                if len(which):
                    part = self._part(start, end, cells.centres[cell], cells.order[start:end])
                    for block in self._blocks(which, part.centre, end - start):
                        self._look(part, block)

    def _reach(self, which: Ints, centre: Floats, radius: float) -> npt.NDArray[np.bool_]:
        """Say which queries may have one of their k nearest within ``radius`` of ``centre``: [n]."""
        queries = self.queries[which].astype(np.float64)
        apart = np.sqrt(np.maximum(squared_lengths(self.queries[which] - centre), 0.0))
        above = -0.5 * np.maximum(apart * (1.0 - 1e-6) - radius, 0.0) ** 2
        if self.metric != "euclidean":
            by_angle = queries @ centre.astype(np.float64) + np.sqrt(np.einsum("nd,nd->n", queries, queries)) * radius
            # For unit rows, which are so but for rounding, the cosine is 1 - d^2 / 2.
            above = by_angle if self.metric == "dot" else np.minimum(by_angle, above + 1.0)
        margin = 1e-6 * (1.0 + np.abs(above))
        least = np.maximum(self.best[torch.from_numpy(which)].amin(dim=1).numpy(), 0.0)
        return self.settled[which] & (above + margin >= self.floor[which] + least)

    def _set_floors(self) -> None:
        """Step 1: floors from a sample of rows, spread over the gallery. The k-th greatest of maxima of groups is one."""
        size = min(len(self.gallery), max(_SAMPLE, 16 * self.k))
        places = spread_places(len(self.gallery), size)
        narrow, self.narrow, self.type = self.narrow, False, torch.float32
        columns, self.columns = self.columns, min(self.columns, 1)
        group = max(1, size // (8 * self.k))
        part = self._part(0, size // group * group, self.centre, places[: size // group * group], group)
        for block in self._blocks(np.arange(len(self.queries)), self.centre, size):
            error = self._error(part, block, 0.0)
            tile = self._product(part, block, block.constant - error)
            highest = tile.unflatten(0, (-1, group)).amax(dim=1).T.contiguous()
            last = highest.topk(self.k, dim=1, sorted=False).values.amin(dim=1).numpy().astype(np.float64)
            self.floor[block.which] = last - np.abs(last) * 2.0 * _UNIT
        self.narrow, self.type = narrow, torch.bfloat16 if narrow else torch.float32
        self.columns = columns

    def _part(self, start: int, end: int, centre: Floats, places: Ints | None = None, group: int = _GROUP) -> _Part:
        rows = as_tensor(self.gallery.between(start, end) if places is None else self.gallery.at(places))
        moved = rows - as_tensor(centre) if centre.any() else rows
        count, width = moved.shape
        squares = torch.linalg.vecdot(moved, moved)
        longest = math.sqrt(float(squares.max()) * (1.0 + (width + 2) * _UNIT))
        if not self.columns and not self.narrow and count % group == 0:
            return _Part(places, start, count, moved, centre, longest, 0.0)
        keys = torch.empty((-(-count // group) * group, width + self.columns), dtype=self.type)
        keys[:count, :width] = moved
        lost = 0.0
        if self.narrow:
            rest = moved - keys[:count, :width]
            lost = math.sqrt(float(torch.linalg.vecdot(rest, rest).max()) * (1.0 + (width + 2) * _UNIT))
        if self.columns:
            term = squares.mul_(-0.5) if self.metric == "euclidean" else moved @ as_tensor(centre)
            for column in range(width, width + self.columns):
                keys[:count, column] = term
                term = term - keys[:count, column]
        keys[count:] = keys[count - 1]  # in the last row's own group: the maximum of none is changed
        return _Part(places, start, count, keys, centre, longest, lost)

    def _blocks(self, which: Ints, centre: Floats, rows: int) -> Iterator[_Block]:
        """Cut the queries ``which`` into blocks, each from all over, that fit to chunks of so many ``rows``."""
        size = max(64, _TILE // rows // 64 * 64)
        number = -(-len(which) // size)
        for first in range(number):
            some = which[first::number]
            moved = as_tensor(self.queries[some] - centre if centre.any() else self.queries[some])
            width = moved.shape[1]
            weights = torch.ones((len(some), width + self.columns), dtype=self.type)
            weights[:, :width] = moved
            lost = np.zeros(len(some))
            if self.narrow:
                rest = moved - weights[:, :width]
                lost = np.sqrt(squared_lengths(rest.numpy()))
            squares = squared_lengths(moved.numpy())
            if self.metric == "euclidean":
                constant = -0.5 * squares
            else:
                constant = self.queries[some].astype(np.float64) @ centre.astype(np.float64)
            yield _Block(some, weights, constant, np.sqrt(squares), lost)

    def _error(self, part: _Part, block: _Block, bias: Wide | float) -> Wide:
        """Bound what a product, before it is rounded to the type of the result, may be wrong by: [n].

        Narrowing takes parts of known length away, and |a.b| <= |a| |b|. A sum of n products in float32 is off by at most
        n 2^-24 times the sum of their magnitudes (Higham 2002, section 3.1).
        """
        p, h = block.lengths, part.longest
        narrowed = block.lost * h + (p + block.lost) * part.lost
        reach = (p + block.lost) * (h + part.lost) + np.abs(bias)
        if self.columns:
            centre = float(np.sqrt(squared_lengths(part.centre[None])[0]))
            # The row's term, the rounding of the moves, and of the constant.
            reach += h * h + p * p if self.metric == "euclidean" else (centre + p) * (h + centre)
        terms = self.gallery.dimensions + self.columns + 16
        return (narrowed + terms * _UNIT * reach) * (1.0 + 1e-6) + terms * _TINY * (1.0 + p + h)

    def _product(self, part: _Part, block: _Block, bias: Wide) -> Tensor:
        """Return [rows, n] of ``part`` and ``block``, what a query excludes at minus infinity."""
        narrowed = torch.from_numpy(bias.astype(np.float32))
        multiply = narrow_products if self.narrow else products
        tile = multiply(part.keys, block.weights, narrowed)
        if self.exclude is not None:
            wanted = self.exclude[block.which]
            if part.places is None:
                at = wanted - part.start
            else:
                order = np.argsort(part.places)
                at = order[np.minimum(np.searchsorted(part.places, wanted, sorter=order), part.size - 1)]
                at = np.where(part.places[at] == wanted, at, -1)
            there = np.flatnonzero((at >= 0) & (at < part.size) & (wanted >= 0))
            tile[torch.from_numpy(at[there]), torch.from_numpy(there)] = -math.inf
            # The copies behind the last row are excluded with it.
            last = there[at[there] == part.size - 1]
            tile[part.size :, torch.from_numpy(last)] = -math.inf
        return tile

    def _look(self, part: _Part, block: _Block) -> None:
        """Steps 2 and 3 for one tile."""
        which = torch.from_numpy(block.which)
        bias = block.constant - self.floor[block.which]
        error = self._error(part, block, bias)
        tile = self._product(part, block, bias + error)
        tile = tile.view(torch.int16) if self.narrow else tile
        groups = tile.view(-1, _GROUP, len(which))
        highest = groups.amax(dim=1).T.contiguous()  # [n, groups]
        twice = torch.from_numpy(2.0 * error * (1.0 + 1e-6)).float()
        best = self.best[which]
        least = best.amin(dim=1).clamp_min_(0.0)
        reached = self._reached(highest, least)
        if int(reached.sum()) > 2 * self.k * len(which) and highest.shape[1] >= self.k:
            last = highest.topk(self.k, dim=1, sorted=False).values.amin(dim=1)
            least = torch.maximum(least, self._lowest(last) - twice)
            reached = self._reached(highest, least)
        settled = torch.from_numpy(self.settled[block.which])
        settled &= reached.sum(dim=1) <= self.most
        reached &= settled[:, None]
        self.settled[block.which] = settled.numpy()
        owner, group = reached.nonzero(as_tuple=True)
        if not len(owner):
            return
        inside = groups[group, :, owner]  # [hits, _GROUP]
        hit, column = self._reached(inside, least[owner]).nonzero(as_tuple=True)
        owner, place = owner[hit], group[hit] * _GROUP + column
        value = inside[hit, column]
        if part.keys.shape[0] > part.size:
            real = place < part.size
            owner, place, value = owner[real], place[real], value[real]
        self._update(which, best, owner, self._lowest(value) - twice[owner])
        upper = self._highest(value)
        keep = upper >= self.best[which].amin(dim=1)[owner]
        owner, place, upper = owner[keep], place[keep], upper[keep]
        place = place + part.start if part.places is None else torch.from_numpy(part.places)[place]
        self.found.append((which[owner], place, upper))

    def _update(self, which: Tensor, best: Tensor, owner: Tensor, lower: Tensor) -> None:
        """Put the lower bounds of the hits, in order of queries, among each query's best."""
        counts = torch.bincount(owner, minlength=len(which))
        slot = torch.arange(len(owner)) - (counts.cumsum(0) - counts)[owner]
        fresh = torch.full((len(which), int(counts.max())), -math.inf)
        fresh[owner, slot] = lower
        self.best[which] = torch.cat([best, fresh], dim=1).topk(self.k, dim=1, sorted=False).values

    def _reached(self, values: Tensor, least: Tensor) -> Tensor:
        """Say which of ``values`` [n, m], as they come out of a tile, are not surely below ``least`` [n], positive."""
        if self.narrow:
            least = (least.view(torch.int32) >> 16).to(torch.int16)  # rounded towards zero
        return values >= least[:, None]

    def _lowest(self, values: Tensor) -> Tensor:
        """The least that, before rounding, gave ``values`` of a tile; where positive."""
        if self.narrow:
            return (values.to(torch.int32) << 16).view(torch.float32) * (1.0 - _NARROW_UNIT)
        return values * (1.0 - 2.0 * _UNIT)

    def _highest(self, values: Tensor) -> Tensor:
        if self.narrow:
            return (values.to(torch.int32) << 16).view(torch.float32) * (1.0 + _NARROW_UNIT)
        return values * (1.0 + 2.0 * _UNIT)

    def _gather(self) -> Candidates:
        """Drop what has since fallen below its query's k-th best, and queries of which too much is left."""
        none: Sequence[Tensor] = (torch.empty(0, dtype=torch.int64),) * 2 + (torch.empty(0),)
        whose, where, upper = (torch.cat(each) for each in zip(none, *self.found, strict=True))
        keep = (upper >= self.best.amin(dim=1)[whose]) & torch.from_numpy(self.settled)[whose]
        owners, places = whose[keep].numpy(), where[keep].numpy()
        counts = np.bincount(owners, minlength=len(self.queries))
        self.settled &= (counts >= self.k) & (counts <= self.most)
        keep_too = self.settled[owners]
        return Candidates(owners[keep_too], places[keep_too], np.flatnonzero(~self.settled))
