"""Are images found again by changed views of them? What can be said of an embedding without any label.

A view of an image is looked for among all images, and should find that image first: what an embedding is to ignore is how
a picture was taken, and what it is to keep is which picture it is. The changes are the same for every run, whatever it was
trained with, so that runs can be compared. Of classes it says nothing: what tells all pictures apart need not put those of
one class together.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from nearfar.augment import Augment
from nearfar.data import ImageSet
from nearfar.evaluation.retrieval import rank_queries
from nearfar.search.vectors import Floats, Ints, Metric

Wide = npt.NDArray[np.float64]

CHANGES = Augment(degrees=15.0, crop=0.7, brightness=0.3)
"""What is done to an image: turned, a part of it enlarged, made darker or brighter. Black stays black."""
KS = (1, 5, 10)
MOST = 10_000
"""Images that are looked for at most, drawn at random from more."""
_VALUES = 1 << 22
"""Pixel values changed together."""


class Views:
    """Changed views of some images, one of each, made when they are asked for and the same every time.

    Args:
        images: N images.
        rows: those of which there are views, ascending [n].
        seed: of the changes.
    """

    def __init__(self, images: ImageSet, rows: Ints, seed: int = 0) -> None:
        self.images, self.rows, self.seed = images, rows, seed
        self._step = max(1, _VALUES // int(np.prod(images.shape[1:])))

    def __len__(self) -> int:
        return len(self.rows)

    def parts(self, places: Ints | None = None) -> Iterator[ImageSet]:
        """The views at ``places`` of ``rows``, ascending (all by default), some at a time."""
        wanted = np.arange(len(self)) if places is None else places
        for number in np.unique(wanted // self._step).tolist():
            here = wanted[wanted // self._step == number] - number * self._step
            yield ImageSet(images=self._made(number)[here], name=f"views of {self.images.name}")

    def at(self, places: Ints) -> npt.NDArray[np.uint8]:
        """The views at ``places`` of ``rows`` [n], at least one, in that order: uint8 [n, C, H, W]."""
        ascending, back = np.unique(places, return_inverse=True)
        made: npt.NDArray[np.uint8] = np.concatenate([np.asarray(part.images) for part in self.parts(ascending)])[back]
        return made

    def _made(self, number: int) -> npt.NDArray[np.uint8]:
        rows = self.rows[number * self._step : (number + 1) * self._step]
        pixels = torch.from_numpy(np.ascontiguousarray(self.images.images[rows]))
        state = np.random.SeedSequence((self.seed, number)).generate_state(1, np.uint64)
        changed = CHANGES(pixels, torch.Generator().manual_seed(int(state[0] >> np.uint64(1))))
        made: npt.NDArray[np.uint8] = changed.float().round_().clamp_(0.0, 255.0).to(torch.uint8).numpy()
        return made


def view_rows(count: int, most: int = MOST) -> Ints:
    """The rows of ``count`` images that are looked for, ascending: all, or ``most`` at random, always the same ones."""
    return np.arange(count) if count <= most else np.sort(np.random.default_rng(0).permutation(count)[:most])


def rank_views(views: Floats, z: Floats, rows: Ints, *, metric: Metric) -> Wide:
    """The place, from 1, at which each view finds its own image; of equal scores the others come first.

    Args:
        views: embeddings of views [n, D].
        z: embeddings of all images [N, D].
        rows: the image behind each view [n].
        metric: by which images are near.

    Returns:
        [n].

    Raises:
        InputError: shapes do not fit, NaN, or a zero vector with cosine.
    """
    return rank_queries(views, rows, z, np.arange(len(z)), metric=metric, ks=KS).rank


def figures_by_view(ranks: Wide) -> dict[str, Wide]:
    """Each view's ``recall@1``, ``@5`` and ``@10`` (whether its image is among so many) and ``mrr`` (1 / rank), [n] each."""
    return {f"recall@{k}": (ranks <= k).astype(np.float64) for k in KS} | {"mrr": 1.0 / ranks}


def means(figures: dict[str, Wide]) -> dict[str, Any]:
    """Their means; None of no view."""
    return {name: float(values.mean()) if len(values) else None for name, values in figures.items()}
