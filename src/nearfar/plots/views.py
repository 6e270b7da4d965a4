"""What a recipe's changes make of images: each beside a few views of it."""

from __future__ import annotations

from typing import Any

from nearfar.errors import InputError
from nearfar.plots import sheets, style
from nearfar.plots.check import check_images
from nearfar.plots.plot import Plot, finish


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
