"""Changed views of images: what a recipe makes of them, and those by which an image is not found again."""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike

from nearfar.errors import InputError
from nearfar.plots import sheets, style
from nearfar.plots.check import check_images, check_length, check_numbers
from nearfar.plots.plot import Plot, finish

_MISSED_COLUMNS = 4


def view_grid(images: Any, views: Any, *, limit: int = 6, name: str = "views") -> Plot:
    """An image a row, and to its right views of it, as training sees them.

    Args:
        images: uint8 [N, C, H, W].
        views: uint8 [N, V, C, H, W].
        limit: how many images at most, from the first.
        name: the plot's file name.

    Raises:
        InputError: shapes do not fit, or there is no image or no view.
    """
    shown, changed = check_images("images", images), check_images("views", views, lead=2)
    if len(shown) != len(changed) or not len(shown) or not changed.shape[1]:
        raise InputError(
            f"images has {len(shown)} rows, views {list(changed.shape[:2])}; expected as many, and at least one view"
        )
    rows, count = min(limit, len(shown)), changed.shape[1]
    first, gap, header = 0.95, 0.15, 0.28
    cell = min(0.95, (style.WIDTH - 2 * sheets.MARGIN - first - gap) / count)
    side = 0.92 * cell
    high = sheets.image_height(side, shown, changed) + 0.06
    width = 2 * sheets.MARGIN + first + gap + max(count * cell, 1.2)
    with style.plot_style():
        figure, axes = sheets.new_sheet(header + sheets.MARGIN + rows * high, width)
        start = sheets.MARGIN + first + gap
        sheets.put_line(axes, "image", sheets.MARGIN + first / 2, 0.07, first)
        sheets.put_line(axes, "views of it", start + (cell - side) / 2, 0.07, count * cell, align="left")
        for row in range(rows):
            y = header + row * high
            sheets.put_image(axes, shown[row], sheets.MARGIN + (first - side) / 2, y, side)
            for at in range(count):
                sheets.put_image(axes, changed[row, at], start + at * cell + (cell - side) / 2, y, side)
        caption = "Each row is an image and views of it as training sees them, drawn anew every time."
        return finish(name, figure, caption, f"{rows} images with {count} views of each.")


def missed_views(
    images: Any,
    views: Any,
    found: Any,
    ranks: ArrayLike,
    *,
    limit: int = 20,
    total: int | None = None,
    name: str = "views_missed",
) -> Plot:
    """Images, a view of each, and the image that this view finds in its place.

    Args:
        images: uint8 [M, C, H, W].
        views: uint8 [M, C, H, W], one of each.
        found: uint8 [M, C, H, W], what each view is nearest to.
        ranks: the place at which each view finds its own image, from 1 [M].
        limit: how many at most, from the first.
        total: how many views there were, for the caption.
        name: the plot's file name.

    Raises:
        InputError: shapes or lengths do not fit, or there is none.
    """
    asked, changed, instead = (
        check_images(argument, value) for argument, value in (("images", images), ("views", views), ("found", found))
    )
    places = check_numbers("ranks", ranks, "[M]")
    for argument, values in (("views", changed), ("found", instead), ("ranks", places)):
        check_length(argument, values, len(asked), "images")
    shown = min(limit, len(asked))
    cell = (style.WIDTH - 2 * sheets.MARGIN) / _MISSED_COLUMNS
    side = (cell - 0.22) / 3
    high = sheets.image_height(side, asked, changed, instead)
    row_height = high + sheets.LINE + 0.16
    with style.plot_style():
        figure, axes = sheets.new_sheet(2 * sheets.MARGIN + -(-shown // _MISSED_COLUMNS) * row_height)
        for at in range(shown):
            x = sheets.MARGIN + at % _MISSED_COLUMNS * cell + 0.06
            y = sheets.MARGIN + at // _MISSED_COLUMNS * row_height
            for place, image in enumerate((asked[at], changed[at])):
                sheets.put_image(axes, image, x + place * (side + 0.04), y, side)
            sheets.put_image(axes, instead[at], x + 2 * (side + 0.04), y, side, style.WRONG, dashed=True)
            sheets.put_line(axes, f"found in place {places[at]:,.0f}", x + 1.5 * side + 0.04, y + high + 0.05, cell - 0.06)
        among = "" if total is None else f" of {total:,} views"
        caption = (
            f"Views{among} that find another image first, those that are farthest from their own one before the others: "
            f"left the image, beside it the view, and framed red and dashed what the view is nearest to; "
            "below, at which place it finds its own image."
        )
        alt = f"The {shown} views{among} that are farthest from their image, the first in place {places[0]:,.0f}."
        return finish(name, figure, caption, alt)
