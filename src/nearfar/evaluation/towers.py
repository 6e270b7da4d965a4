"""Figures of two towers: whether images find their captions, captions their images, and words a class. By tiles.

Right is what belongs together: an image and each of its captions. The same caption of two images is one text, and right
for both. Of equal scores the lower row comes first. Knows unit rows and numbers; no images, no texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from nearfar.errors import InputError
from nearfar.search.tensors import as_tensor, products
from nearfar.search.vectors import Floats, Ints, as_vectors, unit_rows
from nearfar.threads import single_threads

Wide = npt.NDArray[np.float64]

KS = (1, 5, 10)
_TILE = 1 << 22
"""Scores looked at together: 16 MiB of float32."""


@dataclass(frozen=True, kw_only=True)
class TowerRanks:
    """From 1, the rank of the first right one for each query; NaN where there is none."""

    image_to_text: Wide
    """Rank of the best caption of each image: [N]."""
    text_to_image: Wide
    """Rank of the best image of each text: [T]."""

    def figures(self, ks: Sequence[int] = KS) -> dict[str, dict[str, float | None]]:
        """``{"image_to_text": {"recall@1": ..., "mrr": ...}, "text_to_image": ...}``; None where no query has a right one."""
        return {way: _means(ranks, ks) for way, ranks in vars(self).items()}


def rank_towers(images: Any, texts: Any, captions: Sequence[Any] | npt.NDArray[Any]) -> TowerRanks:
    """Rank texts for every image, and images for every text, by cosine.

    Args:
        images: embeddings of images ``[N, D]``.
        texts: embeddings of texts, each distinct one once, ``[T, D]``.
        captions: for each image the number of its text, or the numbers of its texts: whole numbers ``[N]``, or N
            sequences, of which some may be empty.

    Raises:
        InputError: shapes do not fit, NaN, a zero vector, or a number of a text that there is not.
    """
    texts = unit_rows(as_vectors(texts, "texts"), "texts")
    images = unit_rows(as_vectors(images, "images", dimensions=texts.shape[1], owner="texts"), "images")
    rows, columns = _pairs(captions, len(images), len(texts))
    back = np.lexsort((rows, columns))
    return TowerRanks(
        image_to_text=_first_right(images, texts, rows, columns),
        text_to_image=_first_right(texts, images, columns[back], rows[back]),
    )


def class_precision(texts: Any, text_labels: Any, images: Any, labels: Any, *, k: int = 10) -> Wide:
    """For each text, the share of its class among the ``k`` images nearest to it: ``[T]``, their mean is precision@k.

    Args:
        texts: embeddings of texts ``[T, D]``.
        text_labels: the class that each text names ``[T]``.
        images: embeddings of images ``[N, D]``.
        labels: their classes ``[N]``.
        k: how many are looked at, N at most.

    Raises:
        InputError: shapes do not fit, NaN, a zero vector, or a k out of range.
    """
    images = unit_rows(as_vectors(images, "images"), "images")
    texts = unit_rows(as_vectors(texts, "texts", dimensions=images.shape[1], owner="images"), "texts")
    wanted, classes = np.asarray(text_labels), np.asarray(labels)
    for name, given, count in (("text_labels", wanted, len(texts)), ("labels", classes, len(images))):
        if given.shape != (count,):
            raise InputError(f"{name} has shape {given.shape}, expected ({count},), one label for each vector")
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= len(images):
        raise InputError(f"k is {k!r}, expected 1 to {len(images):,}, the number of images")

    def share(scores: Floats, first: int) -> Wide:
        least = np.partition(scores, -k, axis=1)[:, -k, None]
        above, at = scores > least, scores == least
        chosen = above | (at & (at.cumsum(axis=1) <= k - above.sum(axis=1, keepdims=True)))
        right = classes[None, :] == wanted[first : first + len(scores), None]
        found: Wide = (chosen & right).sum(axis=1) / float(k)
        return found

    return _by_tiles(texts, images, share)


def _first_right(queries: Floats, gallery: Floats, rows: Ints, columns: Ints) -> Wide:
    """Rank of the first right one of each query [N]; pairs that belong together [M] in order of rows, then columns."""
    return _by_tiles(queries, gallery, partial(_ranks, rows=rows, columns=columns))


def _ranks(scores: Floats, first: int, *, rows: Ints, columns: Ints) -> Wide:
    """Ranks of the queries from ``first`` on, by their scores [n, M]."""
    ranks = np.full(len(scores), np.nan)
    start, end = np.searchsorted(rows, (first, first + len(scores)))
    if start == end:
        return ranks
    own, places = rows[start:end] - first, columns[start:end]
    values = scores[own, places]
    starts = np.flatnonzero(np.diff(own, prepend=-1))
    asked = own[starts]
    best = np.maximum.reduceat(values, starts)
    # Of right ones that are equally good the first counts: others are put beyond all places.
    count = np.diff(np.append(starts, len(own)))
    place = np.minimum.reduceat(np.where(values == np.repeat(best, count), places, scores.shape[1]), starts)
    scores = scores[asked]
    before = (scores > best[:, None]).sum(axis=1)
    query, column = np.nonzero(scores == best[:, None])
    before += np.bincount(query[column < place[query]], minlength=len(asked))
    ranks[asked] = before + 1.0
    return ranks


def _by_tiles(queries: Floats, gallery: Floats, figure: Callable[[Floats, int], Wide]) -> Wide:
    """``figure(scores [n, M], first query)`` [n] for all queries, some at a time: [N]."""
    step = max(1, _TILE // len(gallery))
    keys = as_tensor(gallery)

    def part(first: int) -> Wide:
        return figure(products(as_tensor(queries[first : first + step]), keys).numpy(), first)

    with single_threads() as spread:
        return np.concatenate(spread(part, range(0, len(queries), step)))


def _pairs(captions: Sequence[Any] | npt.NDArray[Any], images: int, texts: int) -> tuple[Ints, Ints]:
    """Images and texts that belong together, each pair once, in order: [M] both."""
    if len(captions) != images:
        raise InputError(f"captions has {len(captions):,} entries, images has {images:,}; give one entry for each image")
    each = [np.atleast_1d(np.asarray(one)) for one in captions]
    flat = np.concatenate([one for one in each if one.size] or [np.empty(0, dtype=np.int64)])
    if flat.dtype.kind not in "iu" or any(one.ndim != 1 for one in each):
        raise InputError(f"captions holds {flat.dtype} values; expected whole numbers, the rows of texts")
    if len(flat) and not 0 <= flat.min() <= flat.max() < texts:
        wrong = flat.min() if flat.min() < 0 else flat.max()
        raise InputError(f"captions names text {wrong}, there are {texts:,} (0..{texts - 1})")
    rows = np.repeat(np.arange(images), [one.size for one in each])
    pairs = np.unique(rows * np.int64(texts) + flat.astype(np.int64))
    return pairs // texts, pairs % texts


def _means(ranks: Wide, ks: Sequence[int]) -> dict[str, float | None]:
    there = ranks[~np.isnan(ranks)]
    names = [f"recall@{k}" for k in ks]
    if not len(there):
        return dict.fromkeys([*names, "mrr"])
    shares: dict[str, float | None] = {name: float((there <= k).mean()) for name, k in zip(names, ks, strict=True)}
    return shares | {"mrr": float((1.0 / there).mean())}
