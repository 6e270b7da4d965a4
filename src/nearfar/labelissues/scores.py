"""From neighbours to how far their labels support an image's own: pure functions on arrays.

Knows labels and similarities, never vectors or images. N images, k neighbours each, P classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.int64]
Wide = npt.NDArray[np.float64]

LIKELY = 0.1
"""Score below which a label is likely wrong: another one fits nine times as well."""

_WIDTHS = np.geomspace(0.002, 1.0, 16)
_FLOORS = np.geomspace(1e-4, 3.0, 10)
_STEEPEST = 60.0  # exp of this is far from the largest float64 there is
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Kernel:
    """How a neighbour's vote falls with its distance: exp((similarity - centre) / width), and what every class has anyhow."""

    centre: float
    width: float
    floor: float

    def weights(self, similarity: Wide) -> Wide:
        """The vote of each neighbour, [N, k]."""
        return np.exp(np.clip((similarity - self.centre) / self.width, -_STEEPEST, _STEEPEST))


class Judged(NamedTuple):
    """What the neighbours of each image say of its label; [N] each."""

    score: Wide
    """From 0, the label is surely wrong, to 1; below 1/2 another label fits better."""
    suggested: Codes
    """The other label that fits best; the given one where no neighbour has another."""
    likely: npt.NDArray[np.bool_]
    """Whether the score is below ``LIKELY``."""
    given: Wide
    """The probability that the neighbours give to the label."""


def judge(codes: Codes, votes: Wide, floors: Wide, labels: Codes, classes: int) -> Judged:
    """Judge the label of every image by its neighbours, itself not among them.

    With v_j the vote of neighbour j and f the floor, the probability of class c is q_c = (f + sum of v_j over the neighbours
    of c) / (P f + sum of all v_j). An image far from all others, whose votes are weak beside the floor, is thus near 1 / P
    for every class. Classes differ in how well they are told apart and in how many images they have, so q_c is measured by
    t_c, its mean over the images labelled c (the threshold of confident learning: Northcutt, Jiang, Chuang 2021). For the
    given label g and that other label s for which q_s / max(t_s, t) is greatest, t the mean of all t_c, the score is
    u / (u + v) with u = q_g / t_g and v = q_s / max(t_s, t).

    Args:
        codes: classes of the neighbours [N, k], the nearest first.
        votes: of the neighbours [N, k], see ``Kernel``.
        floors: what every class has besides [N].
        labels: as given [N].
        classes: P.
    """
    total = votes.sum(axis=1) + classes * floors
    given = ((votes * (codes == labels[:, None])).sum(axis=1) + floors) / total
    counts = np.bincount(labels, minlength=classes)
    usual = np.bincount(labels, weights=given, minlength=classes) / np.maximum(counts, 1)
    least = np.maximum(usual, usual[counts > 0].mean())
    best, suggested = np.zeros(len(labels)), labels.copy()
    step = max(1, _BLOCK // codes.shape[1] ** 2)
    for start in range(0, len(labels), step):
        part = slice(start, start + step)
        of_class = codes[part, :, None] == codes[part, None, :]  # [n, k, k]
        sums = np.where(of_class, votes[part, None, :], 0.0).sum(axis=2)
        shares = (sums + floors[part, None]) / total[part, None]
        fit = np.where(codes[part] == labels[part, None], 0.0, shares / least[codes[part]])
        first = fit.argmax(axis=1)  # of equal ones the nearest
        rows = np.arange(len(first))
        best[part] = fit[rows, first]
        suggested[part] = np.where(best[part] > 0, codes[part][rows, first], labels[part])
    fits = given / usual[labels]
    score = fits / (fits + best)
    return Judged(score, suggested, score < LIKELY, given)


def fit_kernel(codes: Codes, similarity: Wide, labels: Codes, classes: int, scale: float) -> Kernel:
    """The kernel under which the given labels are most probable, each class counting alike however many images it has.

    The log-likelihood of each image's label is that of the others around it (leave-one-out: Duin 1976), so that nothing is
    gained by a kernel too narrow. Wrong labels keep the floor above zero.

    Args:
        codes, labels, classes: as for ``judge``.
        similarity: of the neighbours [N, k], greater is nearer.
        scale: by how much similarities of any two images differ; widths are tried from 0.002 to 1 times that.
    """
    counts = np.bincount(labels, minlength=classes)
    weights = (1.0 / counts[labels]) / (counts > 0).sum()
    centre = float(np.median(similarity[:, 0]))
    same = codes == labels[:, None]
    best, found = -np.inf, Kernel(centre, scale, 1.0)
    for width in (_WIDTHS * scale).tolist():
        votes = Kernel(centre, width, 0.0).weights(similarity)
        own, total = (votes * same).sum(axis=1), votes.sum(axis=1)
        for floor in _FLOORS.tolist():
            value = float((weights * np.log((own + floor) / (total + classes * floor))).sum())
            if value > best:
                best, found = value, Kernel(centre, width, floor)
    return found


def similarity_scale(similarity: Wide) -> float:
    """The spread of similarities between images taken at random, [n]; 1 where all are equal."""
    spread = float(similarity.std())
    return spread if spread > 0.0 else 1.0
