"""Where the images of a run lie on its map, and where others belong: among their neighbours.

Knows positions, vectors and similarities; no images, no networks, no server. It imports neither torch nor what draws maps.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from nearfar.explore.store import read_placed, row_marks

if TYPE_CHECKING:
    from nearfar.search import NeighborIndex

NEIGHBORS = 10  # that place a row which was added after the map was made

Floats = npt.NDArray[np.float32]
_BLOCK = 1 << 20


@dataclass(frozen=True, eq=False)
class Positions:
    """Positions of the rows of an index."""

    xy: Floats  # [M, 2], from 0 to 1, y upwards
    method: str  # "t-SNE" or "PCA"

    def place(self, rows: npt.ArrayLike, similarities: npt.ArrayLike) -> Floats:
        """Place queries by their neighbours; see `place`.

        Args:
            rows: of the index [N, k].
            similarities: of these neighbours [N, k], greater is nearer.

        Returns:
            float32 [N, 2].
        """
        return place(self.xy[np.asarray(rows, dtype=np.int64)], similarities)


def open_positions(run: Path, index: NeighborIndex) -> Positions | None:
    """The positions of the rows of a run's index, in their order.

    Rows that were added after the map was made, or have another vector now, are placed among their neighbours on it.

    Args:
        run: the run folder.
        index: the run's, of M rows.

    Returns:
        None where the run has no map, or one of another model, or of none of these rows.

    Raises:
        InputError: the file of the map is damaged.
    """
    placed = read_placed(Path(run))
    if placed is None or placed.bound_to.get("model") != index.model_hash:
        return None
    vectors = np.asarray(index.vectors)
    there = dict(zip(placed.marks.tolist(), range(len(placed.marks)), strict=True))
    at = np.array([there.get(mark, -1) for mark in row_marks(index.ids, vectors).tolist()], dtype=np.int64)
    old, new = np.flatnonzero(at >= 0), np.flatnonzero(at < 0)
    if len(old) == 0:
        return None
    xy = np.empty((len(vectors), 2), dtype=np.float32)
    xy[old] = placed.xy[at[old]]
    step = max(1, (_BLOCK << 3) // len(old))
    for start in range(0, len(new), step):
        part = new[start : start + step]
        rows, similarity = _nearest(vectors[part], vectors[old], index.metric)
        xy[part] = place(xy[old[rows]], similarity)
    return Positions(xy, placed.method)


def place(neighbors: Floats, similarities: npt.ArrayLike) -> Floats:
    """Place points among their neighbours, and not in the empty space between two groups of them.

    Neighbour j has the weight w_j = exp((s_j - s_1) / (s_1 - m)), s_1 the greatest of the similarities and m their mean; all
    weights are 1 where the similarities are equal. The middle is the neighbour from which the weighted distances on the map to
    the others sum to the least, the nearer one of several. The point lies at the weighted mean of those half of the
    neighbours, rounded up, that lie nearest to the middle.

    Args:
        neighbors: positions [N, k, 2].
        similarities: [N, k], greater is nearer; the nearest first.

    Returns:
        float32 [N, 2].
    """
    places = np.asarray(neighbors, dtype=np.float64)
    similar = np.asarray(similarities, dtype=np.float64)
    result = np.empty((len(places), 2), dtype=np.float32)
    k = places.shape[1]
    step = max(1, _BLOCK // k**2)
    for start in range(0, len(places), step):
        part = slice(start, start + step)
        here, best = places[part], similar[part].max(axis=1, keepdims=True)
        spread = best - similar[part].mean(axis=1, keepdims=True)
        weights = np.exp((similar[part] - best) / np.where(spread > 0, spread, 1.0))
        apart = np.linalg.norm(here[:, :, None] - here[:, None], axis=3)  # [n, k, k]
        middle = (apart * weights[:, None, :]).sum(axis=2).argmin(axis=1)
        away = apart[np.arange(len(here)), middle]
        near = np.argsort(away, axis=1, kind="stable")[:, : (k + 1) // 2]
        chosen = np.take_along_axis(weights, near, axis=1)[:, :, None]
        result[part] = (np.take_along_axis(here, near[:, :, None], axis=1) * chosen).sum(axis=1) / chosen.sum(axis=1)
    return result


def _nearest(queries: Floats, vectors: Floats, metric: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Rows and similarities [N, k] of the nearest vectors, the nearest first."""
    wide = queries.astype(np.float64)
    similarity = wide @ vectors.T.astype(np.float64)
    if metric == "euclidean":
        similarity -= 0.5 * (wide**2).sum(axis=1)[:, None] + 0.5 * (vectors.astype(np.float64) ** 2).sum(axis=1)
    rows = np.argsort(-similarity, axis=1, kind="stable")[:, : min(NEIGHBORS, len(vectors))]
    return rows, np.take_along_axis(similarity, rows, axis=1)
