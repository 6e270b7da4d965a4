"""Images that are one picture, or nearly, but have different labels: one of them must be wrong. Knows pixels and labels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nearfar.data import ImageSet
from nearfar.data.duplicates import digests, number_pictures
from nearfar.evaluation.leaks import find_copies

Ints = npt.NDArray[np.int64]


class Conflict(NamedTuple):
    """Copies that do not have one label."""

    rows: tuple[int, ...]
    """Of the images, two or more."""
    likeness: float
    """Correlation of their pixels; 1 where all pixels are equal."""


def conflicting_copies(images: ImageSet, labels: Ints) -> tuple[list[Conflict], bool]:
    """Groups of equal pictures with several labels, then pairs of near copies with two, the most alike first.

    Near copies are those of `nearfar.evaluation.leaks.find_copies`; each image's most alike one is looked at.

    Returns:
        The conflicts, and whether near copies were looked for (not among very many images).
    """
    pictures = number_pictures(digests(images))
    order = np.argsort(pictures, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(pictures[order])) + 1)
    found = [Conflict(tuple(group.tolist()), 1.0) for group in groups if len(group) > 1 and len(np.unique(labels[group])) > 1]
    found.sort()
    copies = find_copies(images, images, exclude=np.arange(len(images)))
    rows = np.flatnonzero(copies.found & ~copies.exact)
    rows = rows[labels[rows] != labels[copies.partner[rows]]]
    pairs = {
        (min(row, other), max(row, other)): float(copies.likeness[row])
        for row, other in zip(rows.tolist(), copies.partner[rows].tolist(), strict=True)
    }
    near = sorted((Conflict(pair, likeness) for pair, likeness in pairs.items()), key=lambda one: (-one.likeness, one.rows))
    return found + near, copies.near_sought
