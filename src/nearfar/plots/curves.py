"""Curves over k: how many neighbours one must look at before the right class turns up, in both senses of recall@k."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearfar.errors import InputError
from nearfar.plots import style
from nearfar.plots.check import check_numbers
from nearfar.plots.plot import Plot, finish

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

_RETRIEVAL = "an image of the query's class\nis among the k nearest"
_PROBABILITY = "the query's class is among the k classes\nthat its neighbours make most probable"
_TOLD = {
    _RETRIEVAL: "retrieval recall, the share of queries for which at least one of the k nearest images is of their class",
    _PROBABILITY: "recall by neighbour probability, the share of queries whose class is among the k most probable ones",
}


def recall_at_k(
    retrieval: Mapping[str, ArrayLike] | None = None,
    retrieval_k: Sequence[int] = (1, 5, 10),
    *,
    probability: Mapping[str, ArrayLike] | None = None,
    probability_k: Sequence[int] = (1, 2, 3, 4, 5),
    name: str = "recall_at_k",
) -> Plot:
    """Recall over k, of one or several recipes; the two things that go by that name get a panel each.

    Args:
        retrieval: by recipe, the share of queries with at least one of the k nearest images of their class [len(k)].
        retrieval_k: the numbers of images looked at.
        probability: by recipe, the share of queries whose class is among the k classes to which their neighbours give
            the highest probability [len(k)].
        probability_k: the numbers of classes looked at.
        name: the plot's file name.

    Raises:
        InputError: neither is given, a curve has another length than its k, or a share lies outside 0 to 1.
    """
    panels = []
    for argument, curves, ks, title, axis_name in (
        ("retrieval", retrieval, retrieval_k, _RETRIEVAL, "k nearest images"),
        ("probability", probability, probability_k, _PROBABILITY, "k most probable classes"),
    ):
        if curves:
            panels.append((title, axis_name, _check_curves(argument, curves, ks), [int(k) for k in ks]))
    if not panels:
        raise InputError("retrieval and probability are both missing, expected at least one curve")
    recipes = list(dict.fromkeys(recipe for panel in panels for recipe in panel[2]))
    colors = style.class_colors(len(recipes))
    with style.plot_style():
        figure = style.new_figure(style.WIDTH, 3.4)
        grid = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (title, axis_name, curves_of, ks) in zip(grid, panels, strict=True):
            _draw_curves(axes, curves_of, ks, recipes, colors)
            axes.set_title(title)
            axes.set_xlabel(axis_name)
        grid[0].set_ylabel("queries (%)")
        if len(recipes) > 1:
            handles = _keys(colors)
            names = [style.clean(recipe) for recipe in recipes]
            style.add_legend(figure, handles, names, loc="outside lower center", ncols=min(4, len(recipes)))
        told = [_TOLD[title] for title, *_ in panels]
        caption = told[0] if len(told) == 1 else f"left, {told[0]}; right, {told[1]}, which is another figure altogether"
        words = [
            f"{recipe}: {', '.join(f'{values[at]:.1%} at {k}' for at, k in enumerate(ks))} ({axis_name})"
            for _, axis_name, curves_of, ks in panels
            for recipe, values in curves_of.items()
        ]
        return finish(name, figure, caption[0].upper() + caption[1:] + ".", f"Recall at k. {'; '.join(words)}.")


def _check_curves(argument: str, curves: Mapping[str, ArrayLike], ks: Sequence[int]) -> dict[str, NDArray[np.float64]]:
    if not len(ks) or any(k < 1 for k in ks) or any(b <= a for a, b in itertools.pairwise(ks)):
        raise InputError(f"{argument}_k is {list(ks)}, expected rising numbers from 1 on")
    checked = {}
    for recipe, values in curves.items():
        shares = check_numbers(f"{argument}[{recipe!r}]", values, f"[{len(ks)}]")
        if shares.min() < 0 or shares.max() > 1:
            raise InputError(f"{argument}[{recipe!r}] holds {shares[(shares < 0) | (shares > 1)][0]:g}, expected 0 to 1")
        checked[recipe] = shares
    return checked


def _draw_curves(
    axes: Axes, curves: Mapping[str, NDArray[np.float64]], ks: list[int], recipes: list[str], colors: list[str]
) -> None:
    for recipe, shares in curves.items():
        number = recipes.index(recipe)
        marker = style.MARKERS[number % len(style.MARKERS)]
        axes.plot(ks, 100 * shares, color=colors[number], marker=marker, ms=4, clip_on=False)
    low = 100 * min(float(shares.min()) for shares in curves.values())
    axes.set_ylim(max(0.0, low - 0.12 * (100 - low) - 0.5), 100)
    axes.grid(True)
    if ks[-1] > 30:
        from matplotlib.ticker import FuncFormatter, NullLocator

        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(ks, labels=[str(k) for k in ks])


def _keys(colors: list[str]) -> list[Line2D]:
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=color, marker=style.MARKERS[number % len(style.MARKERS)], ms=4)
        for number, color in enumerate(colors)
    ]
