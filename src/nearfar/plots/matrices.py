"""Class-by-class matrices as heat maps: who is taken for whom, and which classes lie close to which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearfar.errors import InputError
from nearfar.plots import style
from nearfar.plots.check import check_labels, check_length, check_matrix
from nearfar.plots.plot import Plot, finish

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

_MOST_CELLS = 250  # along an axis; more would be less than two pixels each
_SIDE_BY_SIDE = 10  # classes; up to here two annotated matrices fit next to each other


def count_confusions(truth: ArrayLike, predicted: ArrayLike, classes: Sequence[str]) -> NDArray[np.int64]:
    """How often images of each class (rows) were said to be of each class (columns).

    Args:
        truth: class numbers [N].
        predicted: class numbers [N].
        classes: the class names, by number.

    Returns:
        Counts int64 [K, K].

    Raises:
        InputError: the lengths differ, or a label is not the number of a class.
    """
    rows, columns = check_labels("truth", truth, classes), check_labels("predicted", predicted, classes)
    check_length("predicted", columns, len(rows), "truth")
    size = len(classes)
    return np.bincount(rows * size + columns, minlength=size * size).reshape(size, size)


def confusion_matrix(counts: ArrayLike, classes: Sequence[str], *, diagonal: bool = True, name: str | None = None) -> Plot:
    """The confusion matrix as a heat map.

    With the diagonal, colours are shares of the true class, so that classes of different sizes compare; without it,
    colours are counts of mistakes, which the right answers would otherwise outshine. Numbers are counts, left out
    where they would be too small to read. Beyond 250 classes neighbouring classes share a square.

    Args:
        counts: [K, K], rows are the true classes, columns the predicted ones: see ``count_confusions``.
        classes: the class names, by number.
        diagonal: show the right answers too.
        name: the plot's file name; ``confusion`` or ``confusion_errors`` by default.

    Raises:
        InputError: ``counts`` is not [K, K], or holds something other than counts.
    """
    table = _check_counts(counts, classes)
    errors = table * ~np.eye(len(table), dtype=bool)
    right, total = int(np.trace(table)), int(table.sum())
    shown: NDArray[np.float64] = errors.astype(np.float64)
    label = "mistakes"
    if diagonal:
        shown = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
        label = "share of the true class"
    texts = table.astype(str)
    if not diagonal:
        shown[np.eye(len(table), dtype=bool)] = np.nan
        texts = np.where(errors > 0, texts, "")
    with style.plot_style():
        from matplotlib.ticker import MaxNLocator

        side = 5.0
        figure = style.new_figure(style.WIDTH, 6.0)
        axes = figure.add_subplot()
        image, pooled = _heat_map(axes, shown, classes, side, "Blues" if diagonal else "OrRd")
        image.set_clim(0, 1 if diagonal else max(1.0, float(errors.max())))
        if pooled == 1:
            _write_cells(axes, image, texts, side, max(len(text) for text in texts.flat))
        axes.set(xlabel="predicted class", ylabel="true class")
        bar = figure.colorbar(image, ax=axes, label=label, shrink=0.7, aspect=30)
        if not diagonal:
            bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        bar.outline.set_visible(False)
        caption = "Each row is a true class and each column what it was taken for; " + (
            "a good model is dark on the diagonal alone, and a dark square off it is a pair of classes it confuses"
            if diagonal
            else "right answers are left out (grey), so that the darkest square is the most frequent mistake"
        )
        if pooled > 1:
            caption += f"; one square stands for {pooled} x {pooled} classes and shows the highest among them"
        words = f"{right:,} of {total:,} right{_worst_words(errors, classes)}"
        alt = f"Confusion matrix of {len(classes):,} classes: {words}."
        return finish(name or ("confusion" if diagonal else "confusion_errors"), figure, caption + ".", alt)


def most_confused(counts: ArrayLike, classes: Sequence[str], *, limit: int = 15, name: str = "most_confused") -> Plot:
    """The most frequent mistakes as bars, with the classes named: readable for any number of classes.

    Args:
        counts: [K, K], rows are the true classes, columns the predicted ones.
        classes: the class names, by number.
        limit: how many pairs at most.
        name: the plot's file name.

    Raises:
        InputError: ``counts`` is not [K, K], or holds something other than counts.
    """
    table = _check_counts(counts, classes)
    if limit < 1:
        raise InputError(f"limit is {limit}, expected at least 1")
    errors = table * ~np.eye(len(table), dtype=bool)
    order = np.argsort(-errors, axis=None, kind="stable")[:limit]
    worst = [(int(at) // len(table), int(at) % len(table)) for at in order if errors.flat[at] > 0]
    caption = "Each bar is one kind of mistake, images of the first class taken for the second; the longest come first."
    with style.plot_style():
        from matplotlib.ticker import MaxNLocator

        figure = style.new_figure(style.WIDTH, 0.9 + 0.24 * max(len(worst), 2))
        axes = figure.add_subplot()
        if not worst:
            axes.axis("off")
            axes.text(0.5, 0.5, f"No mistakes among {table.sum():,} images.", ha="center", va="center")
            return finish(name, figure, caption, f"No mistakes among {table.sum():,} images.")
        values = [int(errors[pair]) for pair in worst]
        bars = axes.barh(range(len(worst)), values, color=style.class_colors(1)[0], height=0.7)
        notes = [
            f"{value:,} ({value / table[pair[0]].sum():.1%} of its images)" for value, pair in zip(values, worst, strict=True)
        ]
        axes.bar_label(bars, notes, padding=3, fontsize=style.SMALL)
        axes.set_yticks(
            range(len(worst)),
            labels=[
                f"{style.clean(classes[said_of])} \N{RIGHTWARDS ARROW} {style.clean(classes[said])}" for said_of, said in worst
            ],
        )
        axes.set(xlabel="images", xlim=(0, 1.35 * max(values)))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        return finish(name, figure, caption, f"The most frequent mistakes{_worst_words(errors, classes)}.")


def class_cosines(
    after: ArrayLike,
    classes: Sequence[str],
    *,
    before: ArrayLike | None = None,
    name: str = "class_cosines",
    titles: tuple[str, str] = ("before training", "after training"),
) -> Plot:
    """Mean cosine similarity between the images of every two classes, before and after training, in the same colours.

    Args:
        after: [K, K], on the diagonal the mean within a class without the pairs of an image with itself; NaN where a
            class has no such pair.
        classes: the class names, by number.
        before: the same of the untrained embedding; None leaves it out.
        name: the plot's file name.
        titles: what is written above the two.

    Raises:
        InputError: a matrix is not [K, K], or holds a value outside -1 to 1.
    """
    tables = [(titles[1], check_matrix("after", after, classes, missing=True))]
    if before is not None:
        tables.insert(0, (titles[0], check_matrix("before", before, classes, missing=True)))
    for title, table in tables:
        if np.nanmax(np.abs(table), initial=0.0) > 1.0 + 1e-4:
            raise InputError(f"the matrix {title!r} holds {table.flat[np.nanargmax(np.abs(table))]:.4g}, expected cosines")
    stacked = _SIDE_BY_SIDE < len(classes) <= style.LEGEND_LIMIT
    shape = (2, 1) if stacked and len(tables) == 2 else (1, len(tables))
    side, height = {(1, 1): (5.0, 5.8), (1, 2): (2.2, 3.9), (2, 1): (4.05, 9.8)}[shape]
    with style.plot_style():
        figure = style.new_figure(style.WIDTH, height)
        grid = figure.subplots(*shape, squeeze=False, sharex=True, sharey=True)
        pooled = 1
        texts = {title: _cosine_texts(table) for title, table in tables}
        longest = max(len(text) for written in texts.values() for text in written.flat)
        for axes, (title, table) in zip(grid.flat, tables, strict=True):
            image, pooled = _heat_map(axes, table, classes, side, "RdBu_r")
            image.set_clim(-1, 1)
            if pooled == 1:
                _write_cells(axes, image, texts[title], side, longest)
            axes.set_title(style.clean(title, 40))
        below = shape == (1, 2)
        bar = figure.colorbar(
            image,
            ax=list(grid.flat),
            label="mean cosine similarity",
            location="bottom" if below else "right",
            shrink=0.5 if below else 0.6,
            aspect=40 if below else 30,
        )
        bar.outline.set_visible(False)
        caption = (
            "Each square is the mean cosine similarity between the images of two classes, on the diagonal within one; "
            "a good embedding is red on the diagonal and white or blue everywhere else"
        )
        if pooled > 1:
            caption += f"; one square stands for {pooled} x {pooled} classes and shows the highest among them"
        words = ", ".join(f"{title}: {_cosine_words(table)}" for title, table in tables)
        return finish(name, figure, caption + ".", f"Mean cosines of {len(classes):,} classes, {words}.")


def _check_counts(counts: ArrayLike, classes: Sequence[str]) -> NDArray[np.int64]:
    table = check_matrix("counts", counts, classes)
    if (table < 0).any() or (table != np.round(table)).any():
        raise InputError(f"counts holds {table[(table < 0) | (table != np.round(table))][0]:g}, expected counts of images")
    return table.astype(np.int64)


def _heat_map(
    axes: Axes, table: NDArray[np.float64], classes: Sequence[str], side: float, colors: str
) -> tuple[AxesImage, int]:
    """Draw ``table`` on ``side`` inches; returns the image, and how many classes share a square along each axis."""
    pooled = -(-len(table) // _MOST_CELLS)
    if pooled > 1:
        padding = -len(table) % pooled
        padded = np.pad(np.where(np.isnan(table), -np.inf, table), (0, padding), constant_values=-np.inf)
        blocks = len(padded) // pooled
        table = padded.reshape(blocks, pooled, blocks, pooled).max(axis=(1, 3))
        table = np.where(np.isinf(table), np.nan, table)
    extent = (-0.5, len(classes) - 0.5, len(classes) - 0.5, -0.5)
    image = axes.imshow(table, cmap=colors, extent=extent, interpolation="none", aspect="equal")
    axes.set_facecolor(style.PALE)
    style.name_ticks(axes, "x", classes, side)
    style.name_ticks(axes, "y", classes, side)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return image, pooled


def _write_cells(axes: Axes, image: AxesImage, texts: NDArray[Any], side: float, longest: int) -> None:
    """Write ``texts`` [K, K] into the squares, sized for ``longest`` letters, unless that is too small to be read."""
    size = min(style.SMALL, side / len(texts) * 72 / (0.66 * max(longest, 2)))
    if size < style.SMALLEST or len(texts) > style.LEGEND_LIMIT:
        return
    values: Any = image.get_array()
    shades = image.to_rgba(values)
    for (row, column), text in np.ndenumerate(texts):
        if text:
            light = float(shades[row, column, :3] ** 2.2 @ (0.2126, 0.7152, 0.0722))  # relative luminance
            dark = light < 0.18 and not np.ma.is_masked(values[row, column])
            color = "white" if dark else style.INK
            written = axes.text(column, row, text, ha="center", va="center", fontsize=size, color=color)
            written.set_in_layout(False)  # it lies inside anyhow, and a thousand of them take time to measure


def _cosine_texts(table: NDArray[np.float64]) -> NDArray[Any]:
    """Two decimals without the leading zero, which a cosine does not need: ".98", "-.05", "1.0"."""
    texts = np.empty(table.shape, dtype=object)
    for at, value in np.ndenumerate(table):
        text = f"{value:.2f}"
        text = "1.0" if text == "1.00" else text.replace("0.", ".").replace("-.00", ".00")
        texts[at] = "" if np.isnan(value) else text.replace("-", "\N{MINUS SIGN}")
    return texts


def _cosine_words(table: NDArray[np.float64]) -> str:
    own = np.eye(len(table), dtype=bool)
    means = []
    for which, values in (("within", table[own]), ("between", table[~own])):
        values = values[~np.isnan(values)]
        means.append(f"{which} {values.mean():.2f}" if len(values) else f"{which} unknown")
    return " and ".join(means)


def _worst_words(errors: NDArray[np.int64], classes: Sequence[str]) -> str:
    if not errors.any():
        return "; no mistakes"
    said_of, said = divmod(int(errors.argmax()), len(errors))
    return f"; most often {classes[said_of]} taken for {classes[said]}, {errors[said_of, said]:,} times"
