"""A kernel density estimate in the plane, quick for every class of a large set, and the levels that hold its mass."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nearfar.errors import InputError

_CELLS = 220  # along each axis of the grid
_SHARES = (0.8, 0.5)  # of a class's images that the outer and the inner contour enclose


class Density(NamedTuple):
    """Heights on a grid.

    Attributes:
        across: grid positions along the first axis [G].
        up: grid positions along the second axis [G].
        heights: the density [G (up), G (across)]; sums to 1 over all of the plane.
        levels: the heights whose contours enclose the densest 80 % and the densest 50 %.
    """

    across: NDArray[np.float64]
    up: NDArray[np.float64]
    heights: NDArray[np.float64]
    levels: tuple[float, float]


def class_density(
    points: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    shares: tuple[float, float] = _SHARES,
) -> Density | None:
    """Gaussian kernel density of ``points``, counted into the cells of a grid and then blurred.

    The width of the kernel along each axis follows Scott (1992), ``spread * n**(-1/6)``, where the spread is the
    smaller of the standard deviation and the scaled interquartile range (Silverman 1986), so that a few far-off points
    do not smear out a compact class; and it is at least one cell.

    Args:
        points: positions [N, 2].
        low: the lower ends of the grid [2].
        high: the upper ends of the grid [2].
        shares: of the mass inside the grid that the two levels enclose, the larger one first.

    Returns:
        The density, or None where it cannot be drawn: no point lies inside, or the two levels coincide.

    Raises:
        InputError: the grid has no area.
    """
    from scipy.ndimage import gaussian_filter

    if not (high > low).all():
        raise InputError(f"the grid reaches from {low} to {high}, expected lower ends below upper ends")
    counts, across_edges, up_edges = np.histogram2d(
        points[:, 0], points[:, 1], bins=_CELLS, range=np.stack([low, high], axis=1)
    )
    cell = (high - low) / _CELLS
    quartiles = np.quantile(points, (0.25, 0.75), axis=0)
    robust = (quartiles[1] - quartiles[0]) / 1.349
    spread = np.where(robust > 0, np.minimum(points.std(axis=0), robust), points.std(axis=0))
    width = np.maximum(spread * len(points) ** (-1 / 6) / cell, 1.0)
    heights = gaussian_filter(counts, sigma=width, mode="constant", truncate=5.0).T / len(points)
    if heights.max() <= 0:
        return None
    descending = np.sort(heights, axis=None)[::-1]
    enclosed = np.cumsum(descending) / descending.sum()
    wide, tight = (float(descending[min(int(np.searchsorted(enclosed, share)), descending.size - 1)]) for share in shares)
    if not 0 < wide < tight < heights.max():
        return None
    middle = [(edges[:-1] + edges[1:]) / 2 for edges in (across_edges, up_edges)]
    return Density(middle[0], middle[1], heights, (wide, tight))
