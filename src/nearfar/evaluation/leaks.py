"""Copies of queries in the gallery: whose answer the gallery holds beforehand, a query says little of an embedding.

Looked for among pixels, not among embeddings, so that what counts as a copy does not depend on what is judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from nearfar.data import ImageSet
from nearfar.data.duplicates import digests, same_picture
from nearfar.errors import InputError
from nearfar.evaluation.pixels import flat_pixels, parts, reduced_size
from nearfar.search.exact import nearest_prepared, neighbours_to_find
from nearfar.search.scoring import spread_places

Floats = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

LIKENESS = 0.99
"""Correlation of the pixels of two images from which the one counts as a near copy of the other.

At 0.98, a hundred of MNIST's test images, all of them ones, would be copies of another writer's; at 0.99 one is. Copies stored
as JPEG at quality 75, or with noise of five grey values, still reach it. ``docs/evaluation.md`` has the figures.
"""

EXAMPLES = 20
"""Pairs that are named."""

MOST_PAIRS = 5_000_000_000
"""Queries times gallery images beyond which looking for near copies would take minutes: exact ones are found anyhow."""

_THUMBNAIL = 256  # numbers an image at most by which candidates are found
_FINE = 1024  # and by which they are compared
_CANDIDATES = 4
_MANY_PAIRS = 10_000_000  # from which on it pays to look first for queries that may have a copy at all
_AXES, _SAMPLE = 32, 4096  # principal axes that this is seen along, and the images that they are those of
_TILE = 1 << 22  # pairs looked at together
_FLAT = 0.5 / 255.0  # standard deviation below which an image shows nothing


class Copies(NamedTuple):
    """For each query the image of the gallery that it copies."""

    partner: Ints
    """Its row in the gallery, -1 where there is none: [N]."""
    exact: Flags
    """Whether all pixels are equal: [N]."""
    likeness: Wide
    """Correlation of their pixels, 1 for exact copies, NaN where there is no copy: [N]."""
    near_sought: bool
    """Whether near copies were looked for."""

    @property
    def found(self) -> Flags:
        """Whether the gallery has a copy: [N]."""
        return self.partner >= 0


def find_copies(gallery: ImageSet, queries: ImageSet, *, exclude: Ints | None = None) -> Copies:
    """Find exact and near copies of the ``queries`` in the ``gallery``.

    Exact: the same shape and pixels, by hash. Near: the correlation of the pixels (Pearson 1895), which brightness and
    contrast leave as it is, is at least ``LIKENESS``; images of more than 1,024 numbers are averaged down first. The
    four gallery images whose thumbnails correlate most are compared. An image of one colour has no near copies.

    Args:
        gallery: M images.
        queries: N images of the same size.
        exclude: a row of the gallery for each query that does not count, its own [N]; -1 leaves out nothing.

    Raises:
        InputError: images of another size.
    """
    if gallery.shape[1:] != queries.shape[1:]:
        raise InputError(
            f"queries are images of {list(queries.shape[1:])}, the gallery's are {list(gallery.shape[1:])}; "
            "copies are looked for among images of one size"
        )
    partner = same_picture(digests(queries), digests(gallery), exclude)
    exact = partner >= 0
    likeness = np.where(exact, 1.0, np.nan)
    sought = len(gallery) * len(queries) <= MOST_PAIRS
    rest = np.flatnonzero(~exact)
    if sought and len(rest) * len(gallery) >= _MANY_PAIRS:
        rest = rest[_may_be_copies(gallery, queries.subset(rest), None if exclude is None else exclude[rest])]
    if sought and len(rest):
        others = None if exclude is None else exclude[rest]
        rows, alike = _most_alike(gallery, queries.subset(rest), others)
        near = alike >= LIKENESS
        partner[rest[near]], likeness[rest[near]] = rows[near], alike[near]
    return Copies(partner, exact, likeness, sought)


def nearer_copies(one: Copies, other: Copies, shift: int) -> Copies:
    """Of copies in two galleries those that are more alike; rows of the ``other`` gallery follow ``shift`` earlier ones."""
    better = other.found & ~(one.likeness >= other.likeness)
    return Copies(
        np.where(better, other.partner + shift, one.partner),
        one.exact | other.exact,
        np.where(better, other.likeness, one.likeness),
        one.near_sought and other.near_sought,
    )


def leak_parts(copies: Copies) -> dict[str, Flags]:
    """The queries whose figures are compared, [N] each: all, and those without a copy in the gallery."""
    return {"all": np.ones(len(copies.partner), dtype=bool), "without": ~copies.found}


def leak_figures(
    copies: Copies,
    figures: Mapping[str, Any],
    truth: Ints | None,
    known: Ints | None,
    query_ids: Sequence[str],
    gallery_ids: Sequence[str],
) -> dict[str, Any]:
    """What ``metrics.json`` says of copies.

    Args:
        copies: as found.
        figures: of the queries that ``leak_parts`` names.
        truth: class numbers of the queries [N], or None.
        known: class numbers of the gallery [M], or None.
        query_ids: N names.
        gallery_ids: M names.

    Returns:
        ``exact`` and ``near``: queries with such a copy (``near`` without the exact ones; None where they were not looked
        for); with labels ``differing_labels``: those whose copy is of another class; ``likeness``, the rule; ``figures``; and
        ``examples``, twenty pairs from the most to the least alike: ``query, gallery, likeness`` and, with labels,
        ``same_class``.
    """
    rows = np.flatnonzero(copies.found)
    partners, likeness = copies.partner[rows], copies.likeness[rows]
    agree = None if truth is None or known is None else known[partners] == truth[rows]
    order = np.lexsort((rows, -likeness))
    shown = order[np.unique(np.linspace(0, len(order) - 1, min(EXAMPLES, len(order))).round().astype(np.int64))]
    return {
        "exact": int(copies.exact.sum()),
        "near": int((copies.found & ~copies.exact).sum()) if copies.near_sought else None,
        **({} if agree is None else {"differing_labels": int((~agree).sum())}),
        "likeness": LIKENESS,
        "figures": dict(figures),
        "examples": [
            {
                "query": str(query_ids[rows[at]]),
                "gallery": str(gallery_ids[partners[at]]),
                "likeness": round(float(likeness[at]), 6),
                **({} if agree is None else {"same_class": bool(agree[at])}),
            }
            for at in shown.tolist()
        ],
    }


def _may_be_copies(gallery: ImageSet, queries: ImageSet, exclude: Ints | None) -> Flags:
    """Say which queries [N] may have a near copy: certainly all that have one, and few others.

    Images of unit length with correlation r lie sqrt(2 - 2 r) apart, and along a few orthogonal axes no farther.
    """
    size = reduced_size(gallery.channels, gallery.size, _FINE)
    sample = centred(flat_pixels(gallery.subset(spread_places(len(gallery), min(len(gallery), _SAMPLE))), size))
    axes = np.linalg.eigh(sample.T @ sample)[1][:, ::-1][:, :_AXES]
    known, asked = (
        np.concatenate([centred(flat_pixels(images.subset(part), size)) @ axes for part in parts(len(images))])
        for images in (gallery, queries)
    )
    # a.b - b.b / 2 is greatest for the nearest b; the last term goes along as a column.
    squares = [0.5 * np.square(x).sum(axis=1, keepdims=True) for x in (known, asked)]
    keys = torch.from_numpy(np.concatenate([known, -squares[0]], axis=1))
    least = squares[1][:, 0] - (1.0 - LIKENESS) - 1e-3  # far more than rounding could take
    greatest = np.empty(len(queries), dtype=np.float32)
    for start in range(0, len(queries), step := max(1, _TILE // len(gallery))):
        rows = slice(start, start + step)
        block = np.concatenate([asked[rows], np.ones((len(asked[rows]), 1), dtype=np.float32)], axis=1)
        tile = torch.from_numpy(block) @ keys.T
        if exclude is not None:
            own = np.flatnonzero(exclude[rows] >= 0)
            tile[torch.from_numpy(own), torch.from_numpy(exclude[rows][own])] = -torch.inf
        greatest[rows] = tile.amax(dim=1).numpy()
    return greatest >= least


def _most_alike(gallery: ImageSet, queries: ImageSet, exclude: Ints | None) -> tuple[Ints, Wide]:
    """The row [N] of the gallery image that is most like each query, and their correlation [N]."""
    size = reduced_size(gallery.channels, gallery.size, _THUMBNAIL)
    known, asked = (centred(flat_pixels(images, size)) for images in (gallery, queries))
    k = min(_CANDIDATES, neighbours_to_find(len(gallery), exclude))
    if k == 0:
        return np.zeros(len(queries), dtype=np.int64), np.full(len(queries), np.nan)
    # By the product, since an image of one colour is a row of zeros, which has no cosine and is like nothing.
    scores, rows = nearest_prepared(asked, known, k, "dot", exclude)
    size = reduced_size(gallery.channels, gallery.size, _FINE)
    if size == reduced_size(gallery.channels, gallery.size, _THUMBNAIL):
        return rows[:, 0], scores[:, 0].astype(np.float64)
    alike = np.empty(rows.shape)
    for part in parts(len(queries)):
        fine = centred(flat_pixels(queries.subset(part), size))
        for place in range(k):
            near, back = np.unique(rows[part, place], return_inverse=True)
            other = centred(flat_pixels(gallery.subset(near), size))[back]
            alike[part, place] = np.einsum("nd,nd->n", fine, other, dtype=np.float64)
    best = alike.argmax(axis=1)
    each = np.arange(len(queries))
    return rows[each, best], alike[each, best]


def centred(x: Floats) -> Floats:
    """The rows of ``x`` [N, D] less their mean and at unit length, so that products are correlations; flat ones are zeros."""
    moved = x - x.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(moved, axis=1, keepdims=True)
    shows = lengths > _FLAT * np.sqrt(x.shape[1])
    return np.divide(moved, lengths, out=np.zeros_like(moved), where=shows)
