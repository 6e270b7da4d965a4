"""Sheets of pictures, placed in inches: one pair of axes over the whole figure instead of one for each picture.

Matplotlib's own grids of axes take seconds for a hundred pictures, and leave the space between them to chance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nearfar.plots import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINE = 0.14  # inches from one line of small text to the next
MARGIN = 0.08  # inches around the sheet
YES, NO = "\N{CHECK MARK}", "\N{BALLOT X}"
_MOST_PIXELS = 160  # along an edge; a picture on paper is under an inch, so more would only swell the file


def new_sheet(height: float, width: float = style.WIDTH) -> tuple[Figure, Axes]:
    """An empty sheet; its coordinates are inches from the top left corner. Call it inside ``plot_style()``."""
    figure = style.new_figure(width, height)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.axis("off")
    axes.set(xlim=(0, width), ylim=(height, 0))
    return figure, axes


def image_height(side: float, *stacks: NDArray[np.uint8]) -> float:
    """How many inches high the images of ``stacks`` [..., H, W] are at most, drawn by ``put_image`` with ``side``."""
    return side * min(1.0, max(stack.shape[-2] / stack.shape[-1] for stack in stacks))


def put_image(
    axes: Axes,
    image: NDArray[np.uint8],
    x: float,
    y: float,
    side: float,
    color: str = style.MUTED,
    dashed: bool = False,
) -> None:
    """Draw ``image`` [C, H, W] in a frame of ``color``, ``side`` inches along its longer edge, at most; its top is ``y``.

    A tall image is centred in ``side`` inches of width.
    """
    from matplotlib.patches import Rectangle

    picture = _thumbnail(image)
    height, width = picture.shape[:2]
    wide, high = side * width / max(height, width), side * height / max(height, width)
    left, top = x + (side - wide) / 2, y
    axes.imshow(
        picture,
        extent=(left, left + wide, top + high, top),
        cmap="gray",
        vmin=0,
        vmax=255,
        interpolation="none",
        aspect="auto",
    )
    plain = color == style.MUTED
    pen = 0.6 if plain else 2.0
    lines = (0, (2.2, 1.2)) if dashed else "-"
    axes.add_patch(Rectangle((left, top), wide, high, fill=False, edgecolor=color, linewidth=pen, linestyle=lines))


def put_line(
    axes: Axes, text: object, x: float, y: float, inches: float, *, color: str = style.INK, align: str = "center"
) -> None:
    """Write one line of small text below ``y``, shortened to ``inches``; ``x`` is its middle, or its left end."""
    short = style.fit(text, inches, style.SMALL)
    axes.text(x, y + 0.8 * style.SMALL / 72, short, fontsize=style.SMALL, color=color, ha=align, va="baseline")


def _thumbnail(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """``image`` [C, H, W] as [H, W] or [H, W, 3], made smaller where it is larger than a page can show."""
    from PIL import Image

    picture = image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)
    height, width = picture.shape[:2]
    if max(height, width) > _MOST_PIXELS:
        scale = _MOST_PIXELS / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        picture = np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize(size, Image.Resampling.BOX))
    return picture
