"""Candidates of many queries at once: every vector that may be among a query's k nearest, and few others.

Similarities are found by matrix products in bfloat16 or float32 (``nearfar.search.tiles``), and every product comes with
a bound on its error, so that nothing is lost:

1. Some rows of the gallery, in float32, give each query a ``floor`` that its k-th nearest exceeds for certain.
2. For a chunk of the gallery and a block of queries, ``similarity - floor + error bound`` is computed. What is negative
   cannot be a neighbour. Of groups of rows the maxima are taken.
3. Groups whose maximum reaches the query's k-th best so far are opened. Their rows that reach it are candidates.

Where float32 goes through the whole gallery, step 2 is done by every thread for itself, in pieces that a core's own cache
holds and that are forgotten at once; step 3 multiplies each opened group anew with the queries that opened it. Products
are three quarters of the time there, and the memory that they are written to would be most of the rest.

There, too, most of the products are spared where vectors use few directions (``nearfar.search.leading``): a bound from the
leading coordinates rules out nearly every pair, and the few others are scored one by one. Whether it does is tried on a
sample before each chunk but the first, since it takes some neighbours already found.

A chunk is moved so that its centre is the origin, and the queries with it: the error is relative to the distances from
there, which are small where vectors form clusters. With cells (``nearfar.search.cells``) a chunk is a cluster; then a
query looks into its own cell first, and afterwards only into those that could hold something nearer.

Memory: a tile and a chunk of 16 MiB each, the queries as they are multiplied, and 16 bytes for each candidate; in pieces,
the maxima twice, 16 MiB each, and what opened groups hold, 64 MiB at most; with leading coordinates, these of the chunk and
of the queries.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nearfar.search.leading import Leading, leading_axes
from nearfar.search.scoring import Gallery, spread_places
from nearfar.search.tensors import products
from nearfar.search.tiles import Block, Part, Tiles, greatest_possible
from nearfar.search.vectors import Floats, Ints, Metric
from nearfar.threads import Spread, single_threads

Wide = npt.NDArray[np.float64]

_CHUNK, _SMALL_CHUNK, _ENOUGH = 1 << 16, 1 << 13, 1 << 12
"""Rows of the gallery gone through together; where there are not enough queries for wide tiles, fewer."""
_TILE = 1 << 22
"""Products computed together."""
_GROUP = 64
"""Rows of which the maximum is taken."""
_PIECE_ROWS, _PIECE_QUERIES = 1 << 12, 1 << 8
"""Products that one thread computes and takes the maxima of: 4 MiB."""
_OPENED = 1 << 18
"""Groups that a block of queries may open."""
_SAMPLE = 2048
"""Rows that give the floors."""
_SHARES = (1 / 8, 1 / 4, 1 / 2)
"""Of a vector's numbers, that may be leading ones."""
_MULTIPLE, _LEAST_LEADING = 8, 8
"""Columns that products are quickest with a multiple of, and the fewest leading numbers that are worth while."""
_PRICE, _FIXED, _WORTH = 370.0, 0.2, 0.85
"""What a pair costs that leading coordinates leave, and all else, in whole products of pairs; what both may cost together."""
_TRIED, _SLAB = 256, 1 << 13
"""Queries that it is tried with, and pairs that are scored together."""
_TO_TRY, _TOO_WIDE = 2, 1024
"""Chunks of a gallery from which on it is tried, and numbers of a vector whose axes take too long."""
_UNIT = 2.0**-24
"""The unit roundoff of float32."""


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
        self.exclude, self.centre, self.cells = exclude, centre, cells
        moved = cells is not None or bool(centre.any())
        self.tiles = Tiles(gallery.dimensions, metric, narrow=narrow, moved=moved)
        self.exact_tiles = Tiles(gallery.dimensions, metric, narrow=False, moved=moved)
        self.wanted = k if exclude is None else k + 1  # one of the greatest may be what the query excludes
        self.most = 4 * k + 24  # candidates of one query, beyond which it is left to a finer search
        count = len(queries)
        self.floor = np.zeros(count)
        self.best = torch.full((count, k), -math.inf)  # lower bounds of similarity - floor
        self.settled = np.ones(count, dtype=np.bool_)
        self.found: list[tuple[Tensor, Tensor, Tensor]] = []  # owners, places, upper bounds of similarity - floor

    def run(self) -> Candidates:
        self._set_floors()
        everyone = np.arange(len(self.queries))
        if self.cells is not None:
            self._run_cells(self.cells, everyone)
            return self._gather()
        narrow = self.tiles.narrow
        chunk = min(_SMALL_CHUNK if narrow and len(everyone) < _ENOUGH else _CHUNK, len(self.gallery))
        size = _fitting(chunk) if narrow else max(64, _OPENED // self.most)
        blocks = list(self._blocks(self.tiles, everyone, self.centre, size))
        small = len(self.gallery) < _TO_TRY * chunk or self.gallery.dimensions > _TOO_WIDE
        trial = None if narrow or small else _Trial(self)
        with nullcontext() if narrow else single_threads() as spread:
            for start in range(0, len(self.gallery), chunk):
                part = self._part(start, min(start + chunk, len(self.gallery)), self.centre)
                look = partial(self._look, part, spread=spread)
                if trial is not None and spread is not None and start and (leading := trial.best()) is not None:
                    look = partial(self._look_ahead, part, spread=spread, leading=leading, keys=leading.keys(part))
                for number, block in enumerate(blocks):
                    look(block)
                    if number == 0 and start == 0 and self.settled[block.which].mean() < 0.75:
                        return Candidates(*(np.empty(0, dtype=np.int64),) * 2, everyone)
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
                    for block in self._blocks(self.tiles, which, part.centre, _fitting(end - start)):
                        self._look(part, block)

    def _reach(self, which: Ints, centre: Floats, radius: float) -> npt.NDArray[np.bool_]:
        """Say which queries may have one of their k nearest within ``radius`` of ``centre``: [n]."""
        above = greatest_possible(self.queries[which], centre[None], np.array([radius]), self.metric)[:, 0]
        least = np.maximum(self.best[torch.from_numpy(which)].amin(dim=1).numpy(), 0.0)
        return self.settled[which] & (above >= self.floor[which] + least)

    def _set_floors(self) -> None:
        """Step 1: floors from a sample of rows, spread over the gallery. The k-th greatest of maxima of groups is one."""
        size = min(len(self.gallery), max(_SAMPLE, 16 * self.k))
        group = max(1, size // (8 * self.k))
        places = spread_places(len(self.gallery), size)[: size // group * group]
        tiles = self.exact_tiles
        part = tiles.part(self.gallery.at(places), self.centre, group=group, places=places)
        for block in self._blocks(tiles, np.arange(len(self.queries)), self.centre, _fitting(size)):
            error = tiles.error(part, block, 0.0)
            tile = tiles.product(part, block, block.constant - error)
            highest = tile.unflatten(0, (-1, group)).amax(dim=1).T.contiguous()
            last = highest.topk(self.wanted, dim=1, sorted=False).values.amin(dim=1).numpy().astype(np.float64)
            self.floor[block.which] = last - np.abs(last) * 2.0 * _UNIT

    def _part(self, start: int, end: int, centre: Floats, places: Ints | None = None) -> Part:
        rows = self.gallery.between(start, end) if places is None else self.gallery.at(places)
        return self.tiles.part(rows, centre, group=_GROUP, start=start, places=places)

    def _blocks(self, tiles: Tiles, which: Ints, centre: Floats, size: int) -> Iterator[Block]:
        """Cut the queries ``which`` into blocks of ``size``, each from all over."""
        number = -(-len(which) // size)
        for first in range(number):
            yield tiles.block(self.queries, which[first::number], centre)

    def _look(self, part: Part, block: Block, spread: Spread | None = None) -> None:
        """Steps 2 and 3 for one block; in pieces where there are threads to ``spread`` them over."""
        which = torch.from_numpy(block.which)
        bias = block.constant - self.floor[block.which]
        error = self.tiles.error(part, block, bias)
        found: _Tile | _Pieces
        if spread is None:
            found = _Tile(self.tiles, part, block, bias + error)
        else:
            found = _Pieces(self.tiles, part, block, bias + error, spread)
        highest = found.highest()
        twice = torch.from_numpy(2.0 * error * (1.0 + 1e-6)).float()
        best = self.best[which]
        least = best.amin(dim=1).clamp_min_(0.0)
        reached = self.tiles.reached(highest, least)
        if int(reached.sum()) > 2 * self.k * len(which) and highest.shape[1] >= self.wanted:
            last = highest.topk(self.wanted, dim=1, sorted=False).values.amin(dim=1)
            least = torch.maximum(least, self.tiles.lowest(last) - twice)
            reached = self.tiles.reached(highest, least)
        owner, group = reached.nonzero(as_tuple=True)
        settled = torch.from_numpy(self.settled[block.which])
        settled &= owner.bincount(minlength=len(which)) <= self.most
        self.settled[block.which] = settled.numpy()
        owner, group = _those(settled[owner], owner, group)
        if not len(owner):
            return
        owner, group, inside = found.opened(owner, group)  # inside: [hits, _GROUP]
        hit, column = self.tiles.reached(inside, least[owner]).nonzero(as_tuple=True)
        self._take(part, block, owner[hit], group[hit] * _GROUP + column, inside[hit, column], twice)

    def _look_ahead(self, part: Part, block: Block, spread: Spread, leading: Leading, keys: Tensor) -> None:
        """The same by leading coordinates, of which ``keys`` are the part's: what they leave is scored pair by pair."""
        bias = block.constant - self.floor[block.which]
        error = self.tiles.error(part, block, bias)
        least = self.best[torch.from_numpy(block.which)].amin(dim=1).clamp_min_(0.0)
        settled = torch.from_numpy(self.settled[block.which])
        ahead = _Ahead(part, block, bias + error, keys, leading.weights(block), leading.slack(part, block))
        owner, place, value = ahead.reached(torch.where(settled, least, math.inf), spread)
        owner, place, value = _those(place < part.size, owner, place, value)
        settled &= owner.bincount(minlength=len(settled)) <= 8 * self.most  # of which the best are kept
        self.settled[block.which] = settled.numpy()
        twice = torch.from_numpy(2.0 * error * (1.0 + 1e-6)).float()
        owner, place, value = _those(settled[owner], owner, place, value)
        self._take(part, block, owner, place, value, twice)

    def _take(self, part: Part, block: Block, owner: Tensor, place: Tensor, value: Tensor, twice: Tensor) -> None:
        """Keep pairs of a query of ``block`` and a place in ``part`` [m], with what a tile holds there, as candidates."""
        which = torch.from_numpy(block.which)
        best = self.best[which]
        if part.keys.shape[0] > part.size:
            owner, place, value = _those(place < part.size, owner, place, value)
        place = place + part.start if part.places is None else torch.from_numpy(part.places)[place]
        if self.exclude is not None:
            own = torch.from_numpy(self.exclude[block.which])[owner]
            owner, place, value = _those(place != own, owner, place, value)
        if not len(owner):
            return
        self._update(which, best, owner, self.tiles.lowest(value) - twice[owner])
        upper = self.tiles.highest(value)
        keep = upper >= self.best[which].amin(dim=1)[owner]
        owner, place, upper = _those(keep, owner, place, upper)
        self.found.append((which[owner], place, upper))

    def _update(self, which: Tensor, best: Tensor, owner: Tensor, lower: Tensor) -> None:
        """Put the lower bounds of the hits among each query's best."""
        owner, order = owner.sort(stable=True)
        counts = torch.bincount(owner, minlength=len(which))
        slot = torch.arange(len(owner)) - (counts.cumsum(0) - counts)[owner]
        fresh = torch.full((len(which), int(counts.max())), -math.inf)
        fresh[owner, slot] = lower[order]
        self.best[which] = torch.cat([best, fresh], dim=1).topk(self.k, dim=1, sorted=False).values

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


class _Tile:
    """Products of a part and a block in one tile, which is kept until its groups have been opened."""

    def __init__(self, tiles: Tiles, part: Part, block: Block, bias: Wide) -> None:
        self.groups = tiles.compared(tiles.product(part, block, bias)).unflatten(0, (-1, _GROUP))

    def highest(self) -> Tensor:
        """The greatest of each group: [n, groups]."""
        return self.groups.amax(dim=1).T.contiguous()

    def opened(self, owner: Tensor, group: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pairs of a query and a group [hits], in another order maybe, and the products that lie there [hits, _GROUP]."""
        return owner, group, self.groups[group, :, owner]


class _Trial:
    """Tries with some queries and some rows how much leading coordinates would leave."""

    def __init__(self, search: _Search) -> None:
        self.search = search
        gallery, count = search.gallery, len(search.queries)
        rows = gallery.at(spread_places(len(gallery), _SAMPLE))
        self.part = search.tiles.part(rows, search.centre, group=1)
        self.block = search.tiles.block(search.queries, spread_places(count, _TRIED), search.centre)
        columns = search.tiles.columns
        axes = leading_axes(self.part.keys[:, : gallery.dimensions])
        self.ways = []
        for share in _SHARES:
            together = max(_MULTIPLE, int(gallery.dimensions * share) // _MULTIPLE * _MULTIPLE)
            kept = together - 1 - columns
            if _LEAST_LEADING <= kept <= gallery.dimensions // 2:
                self.ways.append(Leading(axes[:, :kept].contiguous(), columns))

    def best(self) -> Leading | None:
        """The leading coordinates that cost least by what is known now, or None where whole products do."""
        search, block = self.search, self.block
        bias = block.constant - search.floor[block.which]
        bias += search.tiles.error(self.part, block, bias)
        least = search.best[torch.from_numpy(block.which)].amin(dim=1).clamp_min_(0.0)
        found, lowest = None, _WORTH
        for way in self.ways:
            reach = torch.from_numpy((bias + way.slack(self.part, block)).astype(np.float32))
            tile = products(way.keys(self.part), way.weights(block), reach)
            left = float((tile >= least).float().mean())
            cost = left * _PRICE + _FIXED + way.axes.shape[1] / search.gallery.dimensions
            if cost < lowest:
                found, lowest = way, cost
        return found


class _Ahead:
    """Pairs that the leading coordinates of a part and a block leave, in pieces, with their products in float32."""

    def __init__(self, part: Part, block: Block, bias: Wide, keys: Tensor, weights: Tensor, slack: Wide) -> None:
        self.keys, self.weights, self.leading_keys, self.leading_weights = part.keys, block.weights, keys, weights
        self.bias = torch.from_numpy(bias.astype(np.float32))
        self.reach = torch.from_numpy((bias + slack).astype(np.float32))

    def reached(self, least: Tensor, spread: Spread) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, rows and products of all pairs whose product is not surely below ``least`` [n]: [m] each."""
        corners = itertools.product(range(0, len(self.keys), _PIECE_ROWS), range(0, len(self.weights), _PIECE_QUERIES))
        found = spread(lambda corner: self._piece(*corner, least), corners)
        owners, places, values = (torch.cat(each) for each in zip(*found, strict=True))
        return owners, places, values

    def _piece(self, row: int, query: int, least: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows, some = slice(row, row + _PIECE_ROWS), slice(query, query + _PIECE_QUERIES)
        mine = least[some]
        tile = products(self.leading_keys[rows], self.leading_weights[some], self.reach[some])
        groups = tile.unflatten(0, (-1, _GROUP))
        maxima = groups.amax(dim=1)
        group, owner = (maxima >= mine).nonzero(as_tuple=True)
        if len(group) > maxima.numel() // 4:  # too many: quicker as a whole
            tile = products(self.keys[rows], self.weights[some], self.bias[some])
            place, owner = (tile >= mine).nonzero(as_tuple=True)
            return owner + query, place + row, tile[place, owner]
        hit, column = (groups[group, :, owner] >= mine[owner, None]).nonzero(as_tuple=True)
        place, owner = group[hit] * _GROUP + column, owner[hit]
        value = torch.empty(len(place))
        for at in range(0, len(place), _SLAB):
            slab = slice(at, at + _SLAB)
            value[slab] = torch.linalg.vecdot(self.keys[rows][place[slab]], self.weights[some][owner[slab]])
        value += self.bias[some][owner]
        place, owner, value = _those(value >= mine[owner], place, owner, value)
        return owner + query, place + row, value


class _Pieces:
    """The same in float32, in pieces of which no more than the maxima is kept; what groups hold is multiplied anew."""

    def __init__(self, tiles: Tiles, part: Part, block: Block, bias: Wide, spread: Spread) -> None:
        self.keys, self.weights, self.spread = part.keys, block.weights, spread
        self.bias = torch.from_numpy(bias.astype(np.float32))

    def highest(self) -> Tensor:
        rows, queries = len(self.keys), len(self.weights)
        maxima = torch.empty((rows // _GROUP, queries))

        def piece(corner: tuple[int, int]) -> None:
            row, query = corner
            some = slice(query, query + _PIECE_QUERIES)
            tile = products(self.keys[row : row + _PIECE_ROWS], self.weights[some], self.bias[some])
            groups = slice(row // _GROUP, (row + len(tile)) // _GROUP)
            torch.amax(tile.unflatten(0, (-1, _GROUP)), 1, out=maxima[groups, some])

        self.spread(piece, itertools.product(range(0, rows, _PIECE_ROWS), range(0, queries, _PIECE_QUERIES)))
        return maxima.T.contiguous()

    def opened(self, owner: Tensor, group: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        group, order = group.sort()
        owner = owner[order]
        weights, keys, which = self.weights.numpy(), self.keys.numpy(), owner.numpy()
        inside = np.empty((len(owner), _GROUP), dtype=np.float32)
        numbers, counts = group.unique_consecutive(return_counts=True)
        end = 0
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            start, end = end, end + count
            rows = keys[number * _GROUP : (number + 1) * _GROUP]
            np.matmul(weights[which[start:end]], rows.T, out=inside[start:end])  # NumPy is quicker to begin than PyTorch
        return owner, group, torch.from_numpy(inside).add_(self.bias[owner][:, None])


def _fitting(rows: int) -> int:
    """So many queries that their products with ``rows`` of the gallery are a tile."""
    return max(64, _TILE // rows // 64 * 64)


def _those(keep: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    return tuple(each[keep] for each in values)
