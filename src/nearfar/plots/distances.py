"""Where the distances of same and of different pairs lie, and how a threshold parts them."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from nearfar.errors import InputError
from nearfar.plots import style
from nearfar.plots.check import check_numbers
from nearfar.plots.plot import Plot, finish

_MOST_BINS = 60


def distance_histogram(
    same: ArrayLike,
    different: ArrayLike,
    threshold: float | None = None,
    *,
    measure: Literal["distance", "similarity"] = "distance",
    axis_name: str | None = None,
    name: str = "distances",
) -> Plot:
    """Histograms of the distances (or similarities) of pairs of one class and of pairs of two.

    Each histogram is scaled to its own number of pairs, so that many more different pairs do not hide the same ones.

    Args:
        same: distances of pairs of the same class [P].
        different: distances of pairs of different classes [M].
        threshold: on the near side of it a pair is called the same; None draws none.
        measure: whether small ("distance") or large ("similarity") values mean near.
        axis_name: what is written along the axis; by default the measure.
        name: the plot's file name.

    Raises:
        InputError: an array is empty or not finite, or ``measure`` is neither.
    """
    if measure not in ("distance", "similarity"):
        raise InputError(f"measure is {measure!r}, expected 'distance' or 'similarity'")
    if threshold is not None and not np.isfinite(threshold):
        raise InputError(f"threshold is {threshold}, expected a finite number")
    kinds = {
        "same class": check_numbers("same", same, "[P]"),
        "different classes": check_numbers("different", different, "[M]"),
    }
    both = np.concatenate(list(kinds.values()))
    low, high = float(both.min()), float(both.max())
    if high - low < 1e-9 * max(1.0, abs(low)):
        low, high = low - 0.5, high + 0.5
    fewest = min(len(values) for values in kinds.values())
    edges = np.linspace(low, high, int(np.clip(np.sqrt(fewest), 10, _MOST_BINS)) + 1)
    looks = {"same class": ("#0173B2", "", "-"), "different classes": ("#D55E00", "////", "--")}
    near = "below" if measure == "distance" else "above"
    with style.plot_style():
        from matplotlib.patches import Patch

        figure = style.new_figure(style.WIDTH, 3.4)
        axes = figure.add_subplot()
        handles: list[Any] = []
        for kind, values in kinds.items():
            color, hatch, dash = looks[kind]
            shares = 100 * np.histogram(values, edges)[0] / len(values)
            axes.stairs(shares, edges, fill=True, facecolor=color, alpha=0.3, edgecolor="none")
            axes.stairs(shares, edges, color=color, lw=1.4, ls=dash)
            if hatch:
                axes.stairs(shares, edges, fill=True, facecolor="none", edgecolor=color, hatch=hatch, lw=0, alpha=0.6)
            handles.append(Patch(facecolor=(color, 0.3), edgecolor=color, hatch=hatch, lw=1.2, ls=dash))
        names = list(kinds)
        if threshold is not None:
            handles.append(axes.axvline(threshold, color=style.INK, lw=1.2, ls=":"))
            names.append(f"threshold {threshold:.3g}")
        axes.set(xlabel=style.clean(axis_name or measure, 60), ylabel="pairs of each kind (%)", ylim=(0, None))
        axes.margins(y=0.08)
        names = [f"{text} ({len(kinds[text]):,} pairs)" if text in kinds else text for text in names]
        style.add_legend(figure, handles, names, loc="outside upper center", ncols=len(handles))
        caption = f"The less the two overlap, the better: pairs {near} the threshold are called the same"
        words = ", ".join(f"median {np.median(values):.3g} for pairs of {kind}" for kind, values in kinds.items())
        if threshold is None:
            caption = "The less the two overlap, the better the pairs of one class can be told from those of two"
        else:
            called = {kind: (values < threshold) == (measure == "distance") for kind, values in kinds.items()}
            missed, mistaken = 1 - called["same class"].mean(), called["different classes"].mean()
            caption += f", which here is wrong for {missed:.1%} of the same and {mistaken:.1%} of the different pairs"
            words += f"; the threshold {threshold:.3g} misses {missed:.1%} of the same and passes {mistaken:.1%} of the others"
        return finish(name, figure, caption + ".", f"Histograms of the {measure}: {words}.")
