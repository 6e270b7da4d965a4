"""A map for a run that has none yet: the two principal components of what it was trained on."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nearfar.explore.positions import Positions

Floats = npt.NDArray[np.float32]


class Plane:
    """The plane in which the vectors [M, D], D at least 1, are spread the most."""

    def __init__(self, vectors: Floats) -> None:
        self._mean = vectors.mean(axis=0, dtype=np.float64)
        some = vectors[:: max(1, len(vectors) // 20_000)].astype(np.float64) - self._mean
        _, axes = np.linalg.eigh(some.T @ some)
        self._axes = axes[:, ::-1][:, :2]
        # An axis may point either way; its largest part shall be positive.
        self._axes *= np.sign(self._axes[np.abs(self._axes).argmax(axis=0), np.arange(self._axes.shape[1])])
        drawn = self._drawn(vectors)
        self._low, span = drawn.min(axis=0), drawn.max(axis=0) - drawn.min(axis=0)
        self._span = np.where(span > 0, span, 1.0)

    def positions(self, vectors: Floats) -> Positions:
        """Where vectors [M, D] lie, from 0 to 1."""
        xy = np.clip((self._drawn(vectors) - self._low) / self._span, 0.0, 1.0)
        return Positions(np.ascontiguousarray(xy, dtype=np.float32), "PCA")

    def _drawn(self, vectors: Floats) -> npt.NDArray[np.float64]:
        drawn = (vectors - self._mean) @ self._axes
        return drawn if drawn.shape[1] == 2 else np.concatenate([drawn, np.zeros_like(drawn)], axis=1)
