"""Maps of an embedding: points in two or three dimensions coloured by class, and where each class is dense."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearfar.errors import InputError
from nearfar.plots import style
from nearfar.plots.check import check_labels, check_length, check_numbers
from nearfar.plots.density import class_density
from nearfar.plots.plot import Plot, finish
from nearfar.plots.projections import project_pca

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PICTURE_FROM = 1_000  # points; from here on an SVG holds them as a picture, and stays small
_FEWEST_FOR_DENSITY = 5  # points of a class
_TURN, _TILT = 32.0, 22.0  # degrees: how the box of a map in three dimensions is turned and looked down upon
_NAMED_EDGES = (((-1, -1, -1), (1, -1, -1)), ((1, -1, -1), (1, 1, -1)), ((-1, -1, -1), (-1, -1, 1)))


def scatter_map(
    points: ArrayLike,
    labels: ArrayLike | None = None,
    classes: Sequence[str] = (),
    *,
    name: str = "scatter",
    axis_names: tuple[str, str] = ("dimension 1", "dimension 2"),
) -> Plot:
    """Points in the plane, coloured by class.

    Args:
        points: positions [N, 2]: a two-dimensional embedding, or a projection.
        labels: class numbers [N]; None draws all points in one colour.
        classes: the class names, by number.
        name: the plot's file name.
        axis_names: what is written along the axes.

    Raises:
        InputError: an array has the wrong shape, or a label is not the number of a class.
    """
    spots = check_numbers("points", points, "[N, 2]")
    numbers = _numbers(labels, classes, len(spots))
    with style.plot_style():
        figure = style.new_figure(style.WIDTH, 5.2)
        axes = figure.add_subplot()
        _draw_points(axes, spots, numbers, classes)
        axes.set(xlabel=axis_names[0], ylabel=axis_names[1])
        _legend_right(figure, numbers, classes)
        caption = f"Each dot is one image at its place in the embedding{_color_hint(numbers, classes)}."
        return finish(name, figure, caption, f"Scatter plot of {_amount(spots, numbers, classes)}.")


def density_map(
    points: ArrayLike,
    labels: ArrayLike,
    classes: Sequence[str],
    *,
    name: str = "density",
    axis_names: tuple[str, str] = ("dimension 1", "dimension 2"),
) -> Plot:
    """Contours around the densest half and the densest four fifths of each class, from a kernel density estimate.

    With more than 20 classes the lines would tangle: the 20 classes with the most points are drawn, over all points
    in grey. Classes of fewer than five points, or whose points all coincide, appear as dots alone.

    Args:
        points: positions [N, 2].
        labels: class numbers [N].
        classes: the class names, by number.
        name: the plot's file name.
        axis_names: what is written along the axes.

    Raises:
        InputError: an array has the wrong shape, or a label is not the number of a class.
    """
    spots = check_numbers("points", points, "[N, 2]")
    numbers = check_labels("labels", labels, classes)
    check_length("labels", numbers, len(spots), "points")
    sizes = np.bincount(numbers, minlength=len(classes))
    drawn = [int(number) for number in np.argsort(-sizes, kind="stable")[: style.LEGEND_LIMIT] if sizes[number]]
    drawn.sort()
    colors = style.class_colors(len(drawn))
    low, high = np.quantile(spots, (0.002, 0.998), axis=0)
    room = 0.12 * np.where(high > low, high - low, 1.0)
    low, high = low - room, high + room
    with style.plot_style():
        from matplotlib.lines import Line2D

        figure = style.new_figure(style.WIDTH, 5.2)
        axes = figure.add_subplot()
        pale = axes.scatter(spots[:, 0], spots[:, 1], s=_dot_size(len(spots)), c="#CFCFCF", linewidths=0, zorder=0)
        pale.set_rasterized(len(spots) >= _PICTURE_FROM)
        handles = []
        for number, color in zip(drawn, colors, strict=True):
            own = spots[numbers == number]
            handles.append(Line2D([], [], color=color, lw=1.6))
            estimate = class_density(own, low, high) if len(own) >= _FEWEST_FOR_DENSITY else None
            if estimate is None:
                axes.scatter(own[:, 0], own[:, 1], s=12, color=color, zorder=2)
                continue
            across, up, heights, (wide, tight) = estimate
            axes.contourf(across, up, heights, levels=[tight, heights.max() * 1.01], colors=[color], alpha=0.25)
            axes.contour(across, up, heights, levels=[wide, tight], colors=[color], linewidths=[0.9, 1.6])
        axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xlabel=axis_names[0], ylabel=axis_names[1])
        names = [style.clean(classes[number]) for number in drawn]
        style.add_legend(figure, handles, names, loc="outside right upper", title="class")
        among = "" if len(drawn) == (sizes > 0).sum() else f" (the {len(drawn)} largest classes of {(sizes > 0).sum()})"
        caption = (
            f"For each class{among} the thick line encloses the densest half of its images and the thin line four "
            "fifths of them, so overlapping areas are where classes are confused; all images are grey dots."
        )
        return finish(name, figure, caption, f"Density contours by class of {_amount(spots, numbers, classes)}.")


def pca_map(
    z: ArrayLike,
    labels: ArrayLike | None = None,
    classes: Sequence[str] = (),
    *,
    dimensions: Literal[2, 3] = 2,
    name: str | None = None,
) -> Plot:
    """The embedding on its first two or three principal components, coloured by class.

    Args:
        z: embeddings [N, D].
        labels: class numbers [N]; None draws all points in one colour.
        classes: the class names, by number.
        dimensions: 2 or 3.
        name: the plot's file name; ``pca_2d`` or ``pca_3d`` by default.

    Raises:
        InputError: an array has the wrong shape, a label is not the number of a class, or ``dimensions`` is neither.
    """
    if dimensions not in (2, 3):
        raise InputError(f"dimensions is {dimensions}, expected 2 or 3")
    spots, shares = project_pca(z, dimensions)
    numbers = _numbers(labels, classes, len(spots))
    axis_names = [f"component {at + 1} ({share:.0%} of variance)" for at, share in enumerate(shares)]
    caption = (
        f"Each dot is one image on the {'two' if dimensions == 2 else 'three'} directions in which the embedding "
        f"varies most, which hold {shares.sum():.0%} of its variance{_color_hint(numbers, classes)}."
    )
    alt = f"PCA in {dimensions} dimensions of {_amount(spots, numbers, classes)}; {shares.sum():.0%} of the variance."
    with style.plot_style():
        figure = style.new_figure(style.WIDTH, 5.2)
        axes = figure.add_subplot()
        if dimensions == 2:
            _draw_points(axes, spots, numbers, classes)
            axes.set(xlabel=axis_names[0], ylabel=axis_names[1])
        else:
            _draw_box(axes, spots, numbers, classes, axis_names)
        _legend_right(figure, numbers, classes)
        return finish(name or f"pca_{dimensions}d", figure, caption, alt)


def tsne_maps(
    before: ArrayLike | None,
    after: ArrayLike,
    labels: ArrayLike | None = None,
    classes: Sequence[str] = (),
    *,
    name: str = "tsne",
    titles: tuple[str, str] = ("before training", "after training"),
) -> Plot:
    """t-SNE of the same images before and after training, side by side.

    Args:
        before: positions [N, 2] from ``project_tsne`` of the untrained embedding, or of the pixels; None leaves it out.
        after: positions [N, 2] of the same images once trained.
        labels: class numbers [N]; None draws all points in one colour.
        classes: the class names, by number.
        name: the plot's file name.
        titles: what is written above the two.

    Raises:
        InputError: an array has the wrong shape, or a label is not the number of a class.
    """
    maps = [(titles[1], check_numbers("after", after, "[N, 2]"))]
    count = len(maps[0][1])
    if before is not None:
        maps.insert(0, (titles[0], check_numbers("before", before, "[N, 2]")))
        check_length("before", maps[0][1], count, "after")
    numbers = _numbers(labels, classes, count)
    with style.plot_style():
        figure = style.new_figure(style.WIDTH, 3.75 + 0.16 * _legend_rows(numbers, classes) if len(maps) == 2 else 5.4)
        for at, (title, spots) in enumerate(maps):
            axes = figure.add_subplot(1, len(maps), at + 1)
            _draw_points(axes, spots, numbers, classes)
            axes.set(xticks=[], yticks=[], title=style.clean(title, 40))
            axes.spines[:].set_visible(True)
            axes.set_box_aspect(1)
            axes.set_aspect("equal", adjustable="datalim")
        if len(maps) == 2:
            _legend_below(figure, numbers, classes)
        else:
            _legend_right(figure, numbers, classes)
        caption = (
            f"Each dot is one image, near those with a similar embedding{_color_hint(numbers, classes)}; "
            "only who is near whom means something, not the axes, nor the sizes of the groups or the distances between them."
        )
        which = " and ".join(title for title, _ in maps)
        return finish(name, figure, caption, f"t-SNE ({which}) of {_amount(maps[0][1], numbers, classes)}.")


def _numbers(labels: ArrayLike | None, classes: Sequence[str], count: int) -> NDArray[np.int64] | None:
    if labels is None:
        return None
    numbers = check_labels("labels", labels, classes)
    check_length("labels", numbers, count, "points")
    return numbers


def _dot_size(count: int) -> float:
    """Area of a dot in square points: the more dots, the smaller."""
    return float(np.clip(15_000 / count, 1.0, 14.0))


def _draw_points(
    axes: Axes,
    spots: NDArray[np.float64],
    numbers: NDArray[np.int64] | None,
    classes: Sequence[str],
    order: NDArray[np.int64] | None = None,
) -> None:
    if order is None:  # a random one, so that no class lies on top of the others
        order = np.random.default_rng(0).permutation(len(spots))
    colors: Any = style.class_colors(1)[0]
    if numbers is not None:
        colors = np.array(style.class_colors(len(classes)))[numbers[order]]
    cloud = axes.scatter(spots[order, 0], spots[order, 1], s=_dot_size(len(spots)), c=colors, linewidths=0)
    cloud.set_rasterized(len(spots) >= _PICTURE_FROM)


def _draw_box(
    axes: Axes,
    spots: NDArray[np.float64],
    numbers: NDArray[np.int64] | None,
    classes: Sequence[str],
    axis_names: Sequence[str],
) -> None:
    """Draw points [N, 3] in a box seen from above and to one side, all axes to one scale, the nearest points last."""
    low, high = spots.min(axis=0), spots.max(axis=0)
    half = np.maximum((high - low) / 2, 0.02 * (high - low).max() or 0.5)
    middle = (low + high) / 2
    turn, tilt = np.deg2rad(_TURN), np.deg2rad(_TILT)
    across = np.array([np.cos(turn), np.sin(turn), 0.0])
    up = np.array([-np.sin(turn) * np.sin(tilt), np.cos(turn) * np.sin(tilt), np.cos(tilt)])
    screen = np.stack([across, up], axis=1)  # [3, 2]
    corners = np.array(list(itertools.product((-1.0, 1.0), repeat=3)))
    for one, other in itertools.combinations(corners, 2):
        if (one != other).sum() == 1:
            ends = np.stack([one, other]) * half @ screen
            axes.plot(ends[:, 0], ends[:, 1], color=style.PALE, lw=0.8, zorder=0)
    nearness = (spots - middle) @ np.cross(across, up)
    _draw_points(axes, (spots - middle) @ screen, numbers, classes, order=np.argsort(nearness, kind="stable"))
    # The box's edges that face the reader at the bottom and at the left carry the names of the axes.
    for ends, axis_name in zip(_NAMED_EDGES, axis_names, strict=True):
        start, stop = np.array(ends) * half @ screen
        slope = np.rad2deg(np.arctan2(*(stop - start)[::-1]))
        slope = slope - 180 if slope > 90 else slope
        outward = np.array([stop[1] - start[1], start[0] - stop[0]])
        outward /= np.linalg.norm(outward) or 1.0
        centre = (start + stop) / 2
        outward *= np.sign(outward @ centre) or 1.0
        axes.annotate(
            axis_name,
            centre,
            xytext=(9 * outward[0], 9 * outward[1]),
            textcoords="offset points",
            rotation=slope,
            rotation_mode="anchor",
            ha="center",
            va="center",
            fontsize=style.SMALL,
        )
    axes.set_aspect("equal")
    axes.axis("off")


def _legend_handles(numbers: NDArray[np.int64] | None, classes: Sequence[str]) -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D

    if numbers is None or not 1 <= len(classes) <= style.LEGEND_LIMIT:
        return [], []
    colors = style.class_colors(len(classes))
    handles = [Line2D([], [], color=color, marker="o", ls="", ms=5) for color in colors]
    return handles, [style.clean(name) for name in classes]


def _legend_right(figure: Figure, numbers: NDArray[np.int64] | None, classes: Sequence[str]) -> None:
    handles, names = _legend_handles(numbers, classes)
    if handles:
        style.add_legend(figure, handles, names, loc="outside right upper", title="class", handletextpad=0.2)


def _legend_below(figure: Figure, numbers: NDArray[np.int64] | None, classes: Sequence[str]) -> None:
    handles, names = _legend_handles(numbers, classes)
    if handles:
        columns = -(-len(names) // _legend_rows(numbers, classes))
        style.add_legend(
            figure, handles, names, loc="outside lower center", ncols=columns, handletextpad=0.2, columnspacing=1.0
        )


def _legend_rows(numbers: NDArray[np.int64] | None, classes: Sequence[str]) -> int:
    """How many rows the legend needs below a figure."""
    names = _legend_handles(numbers, classes)[1]
    if not names:
        return 0
    widest = max(style.text_width(name, style.SMALL) for name in names) + 0.38
    columns = max(1, min(len(names), int((style.WIDTH - 0.3) / widest)))
    return -(-len(names) // columns)


def _color_hint(numbers: NDArray[np.int64] | None, classes: Sequence[str]) -> str:
    if numbers is None:
        return ""
    if len(classes) > style.LEGEND_LIMIT:
        return f"; the colour is the class, and {len(classes):,} classes are too many to name"
    return "; the colour is its class"


def _amount(spots: NDArray[np.float64], numbers: NDArray[np.int64] | None, classes: Sequence[str]) -> str:
    return f"{len(spots):,} images" + ("" if numbers is None else f" of {len(classes):,} classes")
