"""Recipes against one another: by the size of the training set, seed by seed, and as paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearfar.errors import InputError
from nearfar.plots import style
from nearfar.plots.check import check_numbers
from nearfar.plots.plot import Plot, finish


class Difference(NamedTuple):
    """By how much one recipe does better than another on the same splits and seeds.

    Attributes:
        first: the recipe that a positive difference speaks for.
        second: the recipe it is compared with.
        mean: the mean paired difference, as a share.
        low: the lower end of its interval.
        high: the upper end of its interval.
    """

    first: str
    second: str
    mean: float
    low: float
    high: float


def sample_efficiency(
    sizes: Sequence[int],
    scores: Mapping[str, ArrayLike],
    *,
    score_name: str = "accuracy",
    name: str = "sample_efficiency",
) -> Plot:
    """Accuracy against the size of the training set, one line a recipe, with the spread over seeds.

    Args:
        sizes: numbers of training images, rising [S].
        scores: by recipe, shares of 0 to 1 [S, seeds]; NaN where a run is missing.
        score_name: what the scores are.
        name: the plot's file name.

    Raises:
        InputError: shapes do not fit, sizes do not rise, or a score lies outside 0 to 1.
    """
    counts = check_numbers("sizes", sizes, "[S]")
    if (counts < 1).any() or (np.diff(counts) <= 0).any():
        raise InputError(f"sizes is {list(sizes)}, expected rising numbers of images")
    tables = {recipe: _check_scores(recipe, values, f"[{len(counts)}, seeds]") for recipe, values in scores.items()}
    if not tables:
        raise InputError("scores is empty, expected at least one recipe")
    colors = style.class_colors(len(tables))
    with style.plot_style():
        from matplotlib.ticker import NullLocator

        figure = style.new_figure(style.WIDTH, 4.0)
        axes = figure.add_subplot()
        handles, words = [], []
        for number, (recipe, table) in enumerate(tables.items()):
            there = ~np.isnan(table).all(axis=1)
            at, seen = counts[there], 100 * table[there]
            if not len(at):
                raise InputError(f"scores[{recipe!r}] holds no value, expected at least one finished run")
            means = np.nanmean(seen, axis=1)
            marker = style.MARKERS[number % len(style.MARKERS)]
            line = axes.plot(at, means, color=colors[number], marker=marker, ms=4.5, zorder=3)[0]
            axes.fill_between(at, np.nanmin(seen, axis=1), np.nanmax(seen, axis=1), color=colors[number], alpha=0.18, lw=0)
            sideways = np.repeat(at, seen.shape[1])
            axes.plot(sideways, seen.ravel(), ls="", marker=".", ms=3.5, color=colors[number], alpha=0.7, zorder=2)
            handles.append(line)
            words.append(f"{recipe} from {means[0]:.1f}% at {at[0]:,.0f} images to {means[-1]:.1f}% at {at[-1]:,.0f}")
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(counts, labels=_spread_out([f"{count:,.0f}" for count in counts], counts))
        axes.set(xlabel="training images (logarithmic)", ylabel=f"{style.clean(score_name, 40)} (%)")
        axes.grid(True)
        names = [style.clean(recipe) for recipe in tables]
        style.add_legend(figure, handles, names, loc="outside upper center", ncols=min(4, len(names)))
        seeds = max(table.shape[1] for table in tables.values())
        spread = f", the band from the worst to the best of its {seeds} seeds" if seeds > 1 else ""
        caption = (
            f"Each line is a recipe's mean {style.clean(score_name, 40)}{spread}; the higher it is on the left, the "
            "fewer images the recipe needs, and where bands overlap the seeds alone explain the difference."
        )
        return finish(name, figure, caption, f"{style.clean(score_name, 40)} by training set size: {'; '.join(words)}.")


def score_dots(scores: Mapping[str, ArrayLike], *, score_name: str = "accuracy", name: str = "scores") -> Plot:
    """The scores of several recipes, one dot a seed and a bar at the mean.

    Dots instead of bars from zero: recipes worth comparing differ by a percent, which such bars would hide.

    Args:
        scores: by recipe, shares of 0 to 1 [seeds]; NaN where a run is missing.
        score_name: what the scores are.
        name: the plot's file name.

    Raises:
        InputError: a recipe has no score, or a score lies outside 0 to 1.
    """
    rows = {recipe: _check_scores(recipe, values, "[seeds]") for recipe, values in scores.items()}
    if not rows:
        raise InputError("scores is empty, expected at least one recipe")
    colors = style.class_colors(len(rows))
    with style.plot_style():
        figure = style.new_figure(style.WIDTH, 0.9 + 0.34 * max(len(rows), 2))
        axes = figure.add_subplot()
        words = []
        for number, (recipe, values) in enumerate(rows.items()):
            seen = 100 * values[~np.isnan(values)]
            if not len(seen):
                raise InputError(f"scores[{recipe!r}] holds no value, expected at least one finished run")
            axes.plot(seen, np.full(len(seen), number), ls="", marker="o", ms=5, color=colors[number], alpha=0.7)
            axes.vlines(seen.mean(), number - 0.28, number + 0.28, color=style.INK, lw=1.8)
            axes.annotate(
                f"{seen.mean():.2f}",
                (1.01, number),
                xycoords=("axes fraction", "data"),
                va="center",
                fontsize=style.SMALL,
            )
            words.append(f"{recipe} {seen.mean():.2f}%")
        axes.set_yticks(range(len(rows)), labels=[style.clean(recipe, 30) for recipe in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.margins(x=0.06)
        axes.tick_params(axis="y", length=0)
        axes.grid(True, axis="x")
        axes.set_xlabel(f"{style.clean(score_name, 40)} (%)")
        caption = (
            "Each dot is one seed and the upright bar their mean, written at the right; recipes whose dots mix cannot "
            "be told apart by these runs."
        )
        return finish(name, figure, caption, f"Mean {style.clean(score_name, 40)}: {', '.join(words)}.")


def paired_differences(
    differences: Sequence[Difference],
    *,
    score_name: str = "accuracy",
    confidence: float = 0.95,
    name: str = "differences",
) -> Plot:
    """Paired differences between recipes with their bootstrap intervals, as a forest plot.

    Args:
        differences: one row each, as shares: 0.01 is one percentage point.
        score_name: what the scores are.
        confidence: of the intervals, for the caption.
        name: the plot's file name.

    Raises:
        InputError: there is none, or an interval does not enclose its mean.
    """
    if not differences:
        raise InputError("differences is empty, expected at least one")
    if not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence}, expected a share between 0 and 1")
    for row in differences:
        if not (np.isfinite(row[2:]).all() and row.low <= row.mean <= row.high):
            raise InputError(
                f"{row.first} against {row.second} has mean {row.mean} and interval {row.low} to {row.high}, "
                "expected a finite interval around the mean"
            )
    with style.plot_style():
        figure = style.new_figure(style.WIDTH, 1.0 + 0.36 * max(len(differences), 2))
        axes = figure.add_subplot()
        axes.axvline(0, color=style.MUTED, lw=1.0)
        words = []
        for number, row in enumerate(differences):
            low, mean, high = 100 * row.low, 100 * row.mean, 100 * row.high
            clear = low > 0 or high < 0
            color = "#0173B2" if clear else style.MUTED
            axes.plot([low, high], [number, number], color=color, lw=2, solid_capstyle="butt")
            axes.plot(mean, number, "o", ms=6, mfc=color if clear else "white", mec=color, mew=1.4)
            note = f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]".replace("-", "\N{MINUS SIGN}")
            axes.annotate(note, (1.01, number), xycoords=("axes fraction", "data"), va="center", fontsize=style.SMALL)
            words.append(f"{row.first} minus {row.second} {note}")
        labels = [f"{style.clean(row.first, 22)} \N{MINUS SIGN} {style.clean(row.second, 22)}" for row in differences]
        axes.set_yticks(range(len(differences)), labels=labels)
        axes.set_ylim(len(differences) - 0.5, -0.5)
        axes.margins(x=0.08)
        axes.tick_params(axis="y", length=0)
        axes.grid(True, axis="x")
        axes.set_xlabel(f"difference in {style.clean(score_name, 40)} (percentage points)")
        caption = (
            f"Each row is one recipe minus another on the same splits and seeds, with a {confidence:.0%} bootstrap "
            "interval: right of zero the first is better, left of it the second, and a grey row that crosses zero "
            "decides nothing."
        )
        return finish(name, figure, caption, f"Differences in percentage points: {'; '.join(words)}.")


def _check_scores(recipe: str, values: ArrayLike, shape: str) -> NDArray[np.float64]:
    table = check_numbers(f"scores[{recipe!r}]", values, shape, missing=True)
    if np.nanmin(table, initial=0.0) < 0 or np.nanmax(table, initial=1.0) > 1:
        raise InputError(f"scores[{recipe!r}] holds {table[(table < 0) | (table > 1)][0]:g}, expected shares of 0 to 1")
    return table


def _spread_out(texts: list[str], counts: NDArray[np.float64]) -> list[str]:
    """Blank the tick labels that would touch their left neighbour on a logarithmic axis some six inches long."""
    if len(counts) < 2:
        return texts
    places = np.log(counts / counts[0]) / np.log(counts[-1] / counts[0]) * 0.88 * style.WIDTH
    shown, last = [], -np.inf
    for text, place in zip(texts, places, strict=True):
        half = style.text_width(text, style.SMALL) / 2
        shown.append(text if place - half > last + 0.06 else "")
        last = place + half if shown[-1] else last
    return shown
