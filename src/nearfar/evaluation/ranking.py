"""The places that wrong vectors take among the right ones: all that retrieval figures follow from.

Right ones are those of the query's own class, R in number. Only what comes into the first R places (or k) matters, and for
a good embedding that are few wrong ones. So of each query the right scores are sorted, and the wrong ones only compared
with a threshold that keeps those that matter, and hardly more:

- *Sparingly*, for classes with many queries. Wrong scores of a sample of the gallery say where the threshold may lie.
  Pairs that may reach it are found by bfloat16 (``nearfar.search.tiles``), and only they are computed in float32. Then it is
  checked that the wrong ones that reach it are at least as many as the right ones that do not: all places of interest are
  filled, and nothing was lost. Queries for which this fails go the other way.
- *As a whole*: all scores of a query are computed in float32; maxima of groups of columns give the threshold.

Memory: some 70 MiB beside two copies of the gallery, one in order of classes and one in bfloat16.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nearfar.search.scoring import spread_places
from nearfar.search.tensors import as_tensor, has_narrow_products, largest, products
from nearfar.search.tiles import Tiles, greatest_possible
from nearfar.search.vectors import Floats, Ints, Metric, centre_of
from nearfar.threads import Spread, single_threads

Wide = npt.NDArray[np.float64]

_TILE = 1 << 22
"""Scores looked at together: 16 MiB of float32."""
_SAMPLE, _DRAWN = 4096, 40
"""Rows of the gallery that thresholds are chosen by, and how many of the nearest wrong ones of them."""
_LOW, _HIGH = 160, 24
"""How many of the lowest right ones are sorted, about, and how many wrong ones of a query are compared with all right ones."""
_MANY_ROWS, _MANY_QUERIES = 1 << 13, 64
"""From how large a gallery, and how many queries of a class on, it is gone through sparingly."""
_ROUND = 128
"""Sides of products are multiples of it: oneDNN makes, and keeps, a kernel for every shape."""
_CHUNK, _GROUP = 1 << 11, 32
"""Rows of the gallery narrowed together, and of which the maximum is taken."""


class Ranking:
    """The arrays of one evaluation: the gallery in order of classes, so that a class is one range of columns.

    Args:
        queries: [N, D].
        codes: the queries' classes [N], from 0.
        gallery: [M, D].
        classes: [M].
        metric: "cosine" (of unit rows), "dot" or "euclidean".
        ks: the k of precision@k, ascending.
        exclude: a row of the gallery for each query that is left out of its ranking, or -1: [N]; None for none.
    """

    def __init__(
        self,
        queries: Floats,
        codes: Ints,
        gallery: Floats,
        classes: Ints,
        metric: Metric,
        ks: list[int],
        exclude: Ints | None,
    ) -> None:
        highest = int(max(codes.max(), classes.max())) + 1
        order = np.lexsort((-_eccentricity(gallery, classes, highest), classes))
        self.gallery, self.metric, self.ks = gallery[order], metric, ks
        bounds = np.searchsorted(classes[order], np.arange(highest + 1))
        self.bounds = bounds
        self.start, self.end = bounds[codes], bounds[codes + 1]  # the columns of each query's class
        self.relevant = self.end - self.start
        self.excluded = np.full(len(queries), -1)
        if exclude is not None:
            place = np.empty(len(order), dtype=np.int64)
            place[order] = np.arange(len(order))
            self.excluded = np.where(exclude >= 0, place[exclude], -1)
            self.relevant = self.relevant - ((self.excluded >= self.start) & (self.excluded < self.end))
        self.queries, self.codes = queries, codes
        self.bias: Tensor | None = None
        if metric == "euclidean":
            centre = centre_of(self.gallery)
            self.gallery, self.queries = self.gallery - centre, queries - centre
            self.bias = -torch.linalg.vecdot(as_tensor(self.gallery), as_tensor(self.gallery))
        # A group's maximum stands for the group, so there must be more groups than places of interest.
        widest = max(int(self.relevant.max()) // 2, ks[-1])
        self.group = 1 << min(6, max(0, (len(self.gallery) // (widest + 1)).bit_length() - 1))
        self.harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, 2 * len(self.gallery) + 2))])
        self.rank = np.full(len(queries), np.nan)
        self.r_precision, self.average = self.rank.copy(), self.rank.copy()
        self.precision = {k: self.rank.copy() for k in ks}

    def run(self) -> Ranking:
        """Fill ``rank``, ``r_precision``, ``average`` and ``precision``; what cannot be answered stays NaN."""
        # Queries of classes of like size are done together, since a tile is cut at the largest R in it.
        order = np.lexsort((self.codes, self.relevant))
        order = order[self.relevant[order] > 0]
        with single_threads() as spread:
            if len(self.gallery) >= _MANY_ROWS:
                order = self._sparingly(order, spread)
            step = max(1, min(_TILE // 2 // len(self.gallery), 1 << 15))
            spread(self._as_a_whole, [order[first : first + step] for first in range(0, len(order), step)])
        return self

    # ---- sparingly -----------------------------------------------------------------------------------------------------------

    def _sparingly(self, order: Ints, spread: Spread) -> Ints:
        """Do what queries can be done this way, and return the others."""
        codes, counts = np.unique(self.codes[order], return_counts=True)
        many = np.isin(self.codes, codes[counts >= _MANY_QUERIES]) & (self.relevant >= self.ks[-1])
        if not many[order].any():
            return order
        scan = _Scan(self.gallery, self.metric, np.unique(self.bounds))
        first_blocks, other_blocks = [], []
        for own in np.split(order[many[order]], np.flatnonzero(np.diff(self.codes[order[many[order]]])) + 1):
            step = min(len(own), max(1, min(1024, _TILE // 2 // int(self.end[own[0]] - self.start[own[0]])) // _ROUND) * _ROUND)
            first_blocks.append(own[:step])
            # The last has as many as the others, some of which are done again.
            starts = np.minimum(np.arange(step, len(own), step), len(own) - step)
            other_blocks.append([own[first : first + step] for first in starts])
        left = [order[~many[order]]]
        blocks: list[Ints] = []
        for own, done, others in zip(first_blocks, spread(partial(self._block, scan), first_blocks), other_blocks, strict=True):
            left.append(own[~done])
            (blocks if done.mean() >= 0.5 else left).extend(others)  # else too many wrong ones matter
        left += [own[~done] for own, done in zip(blocks, spread(partial(self._block, scan), blocks), strict=True)]
        return np.concatenate(left)

    def _block(self, scan: _Scan, rows: Ints) -> npt.NDArray[np.bool_]:
        """Do queries of one class; say for which [n] nothing was lost."""
        start, end = int(self.start[rows[0]]), int(self.end[rows[0]])
        queries, excluded = self.queries[rows], self.excluded[rows]
        scores = self._scores(queries, slice(start, end))
        at = np.flatnonzero((excluded >= start) & (excluded < end))
        scores[at, excluded[at] - start] = np.inf
        right = _Right(scores)

        # The wrong ones of a sample: above the i-th of them are most likely more than i - 2 sqrt(i) times those in the sample.
        drawn = torch.from_numpy(self._scores(queries, scan.sample))
        drawn[:, slice(*np.searchsorted(scan.sample, (start, end)).tolist())] = -np.inf
        drawn = largest(drawn, min(_DRAWN, drawn.shape[1]))[0].sort(dim=1, descending=True).values
        passed = right.below(drawn)
        number = np.arange(1, drawn.shape[1] + 1)
        enough = (number - 2.0 * np.sqrt(number)) * (len(self.gallery) / len(scan.sample)) >= passed
        enough &= np.isfinite(drawn.numpy()) & (passed < self.relevant[rows, None])
        found, chosen = enough.any(axis=1), (np.arange(len(rows)), enough.argmax(axis=1))
        least, needed = drawn.numpy()[chosen], passed[chosen]

        some = np.flatnonzero(found)
        owners, places = scan.reaching(queries[some], least[some], (start, end))
        owners = some[owners]
        wanted = places != excluded[owners]
        owners, places = owners[wanted], places[wanted]
        values = self._pick(queries, owners, places)
        reached = values >= least[owners]
        owners, values = owners[reached], values[reached]
        found &= np.bincount(owners, minlength=len(rows)) >= needed
        kept = found[owners]
        self._figures(rows, right, owners[kept], values[kept], found)
        return found

    def _scores(self, queries: Floats, which: slice | Ints) -> Floats:
        """Scores of queries [n, D] and some rows of the gallery: float32 [n, m]."""
        part = as_tensor(queries)
        bias = None if self.bias is None else self.bias[which]
        found: Floats = products(part if bias is None else 2.0 * part, as_tensor(self.gallery[which]), bias).numpy()
        return found

    def _pick(self, queries: Floats, owners: Ints, places: Ints) -> Floats:
        """Scores of pairs [m] as `_scores` gives them, which is asked for all queries and all places that occur."""
        there = np.zeros(len(self.gallery), dtype=np.bool_)
        there[places] = True
        union = _fill_up(there, 8 * _ROUND)
        number = np.empty(len(there), dtype=np.int64)
        number[union] = np.arange(len(union))
        values, columns = np.empty(len(places), dtype=np.float32), number[places]
        step = 8 * _ROUND
        for first in range(0, len(union), step):
            scores = self._scores(queries, union[first : first + step])
            own = np.flatnonzero((columns >= first) & (columns < first + step))
            values[own] = scores[owners[own], columns[own] - first]
        return values

    # ---- as a whole ----------------------------------------------------------------------------------------------------------

    def _as_a_whole(self, rows: Ints) -> None:
        scores = self._scores(self.queries[rows], slice(None))
        left_out = np.flatnonzero(self.excluded[rows] >= 0)
        scores[left_out, self.excluded[rows[left_out]]] = -np.inf
        right = self._take_right(rows, scores)
        more = max(0, min(self.ks[-1], scores.shape[1]) - int(self.relevant[rows].min()))
        self._figures(rows, _Right(right, in_order=True), *self._best_wrong(scores, right, more))

    def _take_right(self, rows: Ints, scores: Floats) -> Floats:
        """Move the scores of each query's own class out of ``scores``: sorted, best last, filled up with inf."""
        sizes = self.end[rows] - self.start[rows]
        right = np.full((len(rows), int(sizes.max())), np.inf, dtype=np.float32)
        edges = np.flatnonzero(np.diff(self.codes[rows])) + 1
        for first, last in zip([0, *edges.tolist()], [*edges.tolist(), len(rows)], strict=True):
            columns = slice(self.start[rows[first]], self.end[rows[first]])
            right[first:last, : sizes[first]] = scores[first:last, columns]
            scores[first:last, columns] = -np.inf
        right[np.isneginf(right)] = np.inf  # what is excluded
        right.sort(axis=1)
        return right

    def _best_wrong(self, scores: Floats, right: Floats, more: int) -> tuple[Ints, Floats]:
        """Return the wrong scores that take one of the first R + ``more`` places, and whose they are: [m] both.

        Args:
            scores: [n, M], the right ones at -inf.
            right: [n, R], best last.
            more: places of interest beyond the R of any query.

        If the s lowest right ones fall below a threshold that s + ``more`` wrong ones reach, then what reaches it fills all
        places of interest. The right score that has s right ones below it is such a threshold if s + ``more`` groups have
        a maximum that reaches it; the greatest such s leaves the fewest.
        """
        count, size = len(scores), self.group
        groups = scores.shape[1] // size
        head, rest = scores[:, : groups * size].reshape(count, size, groups), scores[:, groups * size :]
        highest = np.concatenate([head.max(axis=1), rest], axis=1)
        ordered = np.sort(highest, axis=1)[:, ::-1]
        steps = max(1, min(right.shape[1], ordered.shape[1] - more + 1))
        below = 1 + (ordered[:, more : more + steps - 1] >= right[:, 1:steps]).sum(axis=1)
        least = right[np.arange(count), below - 1]
        if more:
            first = ordered[:, min(more, ordered.shape[1]) - 1]
            least = np.where(below > 1, least, np.minimum(least, first))
        least = np.maximum(least, np.finfo(np.float32).min)
        owner, group = np.nonzero(highest >= least[:, None])
        inner = group < groups
        inside = head[owner[inner], :, group[inner]]
        hit, column = np.nonzero(inside >= least[owner[inner], None])
        owners = np.concatenate([owner[inner][hit], owner[~inner]])
        return owners, np.concatenate([inside[hit, column], rest[owner[~inner], group[~inner] - groups]])

    # ---- figures -------------------------------------------------------------------------------------------------------------

    def _figures(
        self, rows: Ints, right: _Right, owners: Ints, values: Floats, which: npt.NDArray[np.bool_] | None = None
    ) -> None:
        """Set the figures of the queries ``rows``.

        Args:
            rows: [n].
            right: the scores of their right ones.
            owners: of each wrong one that matters, the number of its query among the n: [m].
            values: their scores [m].
            which: of which of the n, [n]; None for all.
        """
        count, relevant = len(rows), self.relevant[rows]
        order = np.argsort(-values)
        order = order[np.argsort(owners[order].astype(np.uint16), kind="stable")]  # of short numbers by radix
        owners, values = owners[order], values[order]
        sizes = np.bincount(owners, minlength=count)
        before = np.arange(len(owners)) - (np.cumsum(sizes) - sizes)[owners]  # wrong ones
        ahead = relevant[owners] - right.not_above(owners, before, values)  # right ones
        places = ahead + before + 1
        within = places <= relevant[owners]
        misses = np.bincount(owners[within], minlength=count)
        average = self._average_precision(ahead[within], relevant, misses)
        some = slice(None) if which is None else which
        chosen = rows[some]
        self.rank[chosen] = 1.0 + np.bincount(owners[ahead == 0], minlength=count)[some]
        self.r_precision[chosen] = (1.0 - misses / relevant)[some]
        self.average[chosen] = average[some]
        for k in self.ks:
            wrong = np.bincount(owners[places <= k], minlength=count)
            self.precision[k][chosen] = (np.minimum(relevant, k - wrong) / k)[some]

    def _average_precision(self, ahead: Ints, relevant: Ints, misses: Ints) -> Wide:
        """Sum j / (j + i) over the right ones, the j-th of which has i wrong ones before it, within R places: [n].

        Between two wrong ones i is the same, and the sum of 1 - i / (j + i) is a difference of harmonic numbers.

        Args:
            ahead: right ones before the i-th wrong one within R places, query by query.
            relevant: R [n].
            misses: wrong ones within R places [n].
        """
        firsts = np.cumsum(misses + 1) - misses - 1  # where each query begins in starts
        starts = np.zeros(len(ahead) + len(misses), dtype=np.int64)
        after_wrong = np.ones(len(starts), dtype=np.bool_)
        after_wrong[firsts] = False
        starts[after_wrong] = ahead
        ends = np.append(starts[1:], 0)
        ends[firsts + misses] = relevant - misses
        passed = np.arange(len(starts)) - np.repeat(firsts, misses + 1)
        spans = (ends - starts) - passed * (self.harmonic[ends + passed] - self.harmonic[starts + passed])
        total: Wide = np.add.reduceat(spans, firsts)
        return total / relevant


class _Right:
    """The scores of right ones, to tell how many of them are below a value.

    A sort of thousands for each query would take longer than the products. Where most wrong ones come after most right
    ones, it is enough to sort the lowest, and to go through all for the few values above.
    """

    def __init__(self, scores: Floats, in_order: bool = False) -> None:
        """Args:
        scores: [n, R], what does not count at inf.
        in_order: whether they are sorted already.
        """
        self.scores = scores
        self.limit = np.full(len(scores), np.inf, dtype=np.float32)  # ``lowest`` holds all that are less
        if not in_order and scores.shape[1] > 8 * _LOW:
            self.lowest = torch.from_numpy(self._take_lowest())
            return
        if not in_order:
            scores.sort(axis=1)
        self.lowest = torch.from_numpy(scores)

    def _take_lowest(self) -> Floats:
        """About `_LOW` of each query, sorted, then inf: [n, m]; sets the limit."""
        step = self.scores.shape[1] // (8 * _LOW) * 2
        few = np.ascontiguousarray(self.scores[:, ::step])
        self.limit = np.partition(few, _LOW // step, axis=1)[:, _LOW // step]
        owner, column = _where(self.scores < self.limit[:, None])
        sizes = np.bincount(owner, minlength=len(self.scores))
        low = np.full((len(self.scores), max(1, int(sizes.max()))), np.inf, dtype=np.float32)
        low[owner, np.arange(len(owner)) - (np.cumsum(sizes) - sizes)[owner]] = self.scores[owner, column]
        low.sort(axis=1)
        return low

    def below(self, values: Tensor) -> Ints:
        """How many are less than ``values`` [n, m]; where they lie above the limit, more than there are."""
        counts: Ints = torch.searchsorted(self.lowest, values).numpy()
        return np.where(values.numpy() <= self.limit[:, None], counts, self.scores.shape[1] + 1)

    def not_above(self, owners: Ints, before: Ints, values: Floats) -> Ints:
        """How many are not greater than each of ``values`` [m], those of query ``owners`` standing at ``before`` from 0 on."""
        table = np.full((len(self.scores), int(before.max(initial=0)) + 1), -np.inf, dtype=np.float32)
        table[owners, before] = values
        high = np.flatnonzero(values >= self.limit[owners])
        if len(high) > _HIGH * len(self.scores):
            self.scores.sort(axis=1)
            self.lowest, high = torch.from_numpy(self.scores), high[:0]
        counts: Ints = torch.searchsorted(self.lowest, torch.from_numpy(table), right=True).numpy()[owners, before]
        for first in range(0, len(high), 32):
            some = high[first : first + 32]
            counts[some] = np.count_nonzero(self.scores[owners[some]] <= values[some, None], axis=1)
        return counts


def _where(flags: npt.NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """`numpy.nonzero` of a matrix in which little is true: eight flags are looked at together."""
    flat = flags.ravel()
    whole = len(flat) // 8 * 8
    words = np.flatnonzero(flat[:whole].view(np.uint64))
    word, bit = np.nonzero(flat[:whole].reshape(-1, 8)[words])
    at = np.concatenate([words[word] * 8 + bit, whole + np.flatnonzero(flat[whole:])])
    return at // flags.shape[1], at % flags.shape[1]


def _eccentricity(vectors: Floats, classes: Ints, count: int) -> Floats:
    """How far each of ``vectors`` [M, D] lies from the mean of its class, of ``count``: squared, [M]."""
    sums = torch.zeros((count, vectors.shape[1])).index_add_(0, torch.from_numpy(classes), as_tensor(vectors))
    means = (sums / torch.bincount(torch.from_numpy(classes), minlength=count).clamp_min(1)[:, None]).numpy()
    far = np.empty(len(vectors), dtype=np.float32)
    for start in range(0, len(vectors), 1 << 14):
        part = slice(start, start + (1 << 14))
        far[part] = np.square(vectors[part] - means[classes[part]]).sum(axis=1)
    return far


class _Scan:
    """A gallery narrowed to bfloat16, where there is hardware for it, to find what reaches a threshold."""

    def __init__(self, gallery: Floats, metric: Metric, edges: Ints) -> None:
        """``edges``: where each class begins, in order of which the gallery lies, its farthest vectors first; and the end."""
        self.sample = spread_places(len(gallery), _SAMPLE)
        self.metric, self.zero = metric, np.zeros(gallery.shape[1], dtype=np.float32)
        self.tiles = Tiles(gallery.shape[1], metric, narrow=has_narrow_products(), moved=False)
        cuts = _cuts(edges)
        self.parts, centres, radii = [], [], []
        for start, end in pairwise(cuts):
            vectors = gallery[start:end]
            self.parts.append(self.tiles.part(vectors, self.zero, group=4 * _ROUND, start=start))
            centres.append(vectors.mean(axis=0, dtype=np.float64).astype(np.float32))
            radii.append(np.sqrt(np.square(vectors - centres[-1]).sum(axis=1, dtype=np.float64).max()) * (1.0 + 1e-6))
        self.centres, self.radii = np.stack(centres), np.array(radii)

    def reaching(self, queries: Floats, least: Floats, leave_out: tuple[int, int]) -> tuple[Ints, Ints]:
        """Return all pairs that may reach their query's score ``least`` [n]: numbers of queries and places, [m] both.

        ``leave_out`` is a range of places that are not looked at.
        """
        owners, places = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
        everyone = self.tiles.block(queries, np.arange(len(queries)), self.zero)
        floor = least.astype(np.float64)
        if self.metric == "euclidean":  # scores are 2 q.g - |g|^2, and similarities - |q - g|^2 / 2
            floor = floor / 2.0 + everyone.constant
        near = greatest_possible(queries, self.centres, self.radii, self.metric) >= floor[:, None]
        for part, there in zip(self.parts, near.T, strict=True):
            first, last = (min(max(0, edge - part.start), part.size) for edge in leave_out)
            if last - first == part.size or not there.any():
                continue
            which = _fill_up(there, _ROUND)
            block = everyone.take(which)
            bias = block.constant - floor[which]
            # Twice: scores in float32, with which the threshold was compared, are off as well.
            tile = self.tiles.product(part, block, bias + 2.0 * self.tiles.error(part, block, bias))
            tile[first:last] = -1.0
            groups = self.tiles.compared(tile).view(-1, _GROUP, len(which))
            group, owner = (groups.amax(dim=1) >= 0).nonzero(as_tuple=True)
            hit, column = (groups[group, :, owner] >= 0).nonzero(as_tuple=True)
            place = group[hit] * _GROUP + column
            real = place < part.size
            owners.append(which[owner[hit][real].numpy()])
            places.append(place[real].numpy() + part.start)
        return np.concatenate(owners), np.concatenate(places)


def _fill_up(flags: npt.NDArray[np.bool_], multiple: int) -> Ints:
    """Where ``flags`` are true, and then where they are not, to a ``multiple`` if there are as many."""
    missing = min(-int(flags.sum()) % multiple, int((~flags).sum()))
    return np.concatenate([np.flatnonzero(flags), np.flatnonzero(~flags)[:missing]])


def _cuts(edges: Ints) -> list[int]:
    """Where parts of a gallery begin, and the end. Large classes are parts by themselves, their farthest eighth first."""
    cuts = [0]
    for start, end in pairwise(edges.tolist()):
        if end - start >= _CHUNK // 4:
            cuts += [start, *range(start + (end - start) // 8, end, _CHUNK)]
        elif end - cuts[-1] > _CHUNK:
            cuts.append(start)
    return sorted({*cuts, int(edges[-1])})
