"""A finished plot: the figure, how to read it, a description for those who cannot see it, and its files."""

from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nearfar.errors import InputError
from nearfar.files import write_bytes, write_text
from nearfar.plots.style import plot_style, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LAYOUT_ROUNDS = 6
_RASTER_DPI = 200  # of the layers inside an SVG that hold too many points to be drawn one by one


@dataclasses.dataclass(frozen=True, eq=False)
class Plot:
    """One plot.

    Attributes:
        name: file name without ending: lower-case letters, digits, ``-`` and ``_``.
        figure: the Matplotlib figure, laid out.
        caption: one sentence on how to read it.
        alt: what it shows, in words and numbers, for screen readers.
    """

    name: str
    figure: Figure
    caption: str
    alt: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", self.name):
            raise InputError(f"name is {self.name!r}, expected lower-case letters, digits, '-' and '_'")

    def png_bytes(self, dpi: float = 150) -> bytes:
        """The plot as a PNG file of ``dpi`` pixels per inch; the same plot gives the same bytes."""
        if not 10 <= dpi <= 1200:
            raise InputError(f"dpi is {dpi}, expected 10 to 1200 pixels per inch")
        buffer = io.BytesIO()
        with plot_style():
            self.figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
        return buffer.getvalue()

    def svg_text(self) -> str:
        """The plot as an SVG document; the same plot gives the same text. Layers of many points are pictures in it."""
        import matplotlib

        buffer = io.BytesIO()
        metadata = {"Date": None, "Creator": None, "Title": self.name, "Description": self.alt}
        # The name as salt keeps the identifiers of several plots in one page apart.
        with plot_style(), matplotlib.rc_context({"svg.hashsalt": self.name}):
            self.figure.savefig(buffer, format="svg", dpi=_RASTER_DPI, metadata=metadata)
        return buffer.getvalue().decode()


def finish(name: str, figure: Figure, caption: str, alt: str) -> Plot:
    """Lay ``figure`` out once and for all, so that drawing it again moves nothing, and make a ``Plot`` of it."""
    engine = figure.get_layout_engine()
    places: list[NDArray[np.float64]] = []
    for _ in range(_LAYOUT_ROUNDS):
        if engine is None:
            break
        engine.execute(figure)  # which changes how many ticks fit, and those change the layout
        earlier, places = places, [np.array(axes.get_position().bounds) for axes in figure.axes]
        if earlier and np.allclose(earlier, places, rtol=0, atol=1e-4):
            break
    figure.set_layout_engine("none")
    return Plot(name, figure, printable(caption), printable(alt))


def save(plot: Plot, folder: Path | str) -> list[Path]:
    """Write ``plot`` to ``folder`` as ``NAME.png`` (150 dpi) and ``NAME.svg``, each whole or not at all.

    Returns:
        The two paths.

    Raises:
        InputError: the folder cannot be written to, or the disk is full.
    """
    paths = [Path(folder) / f"{plot.name}.{ending}" for ending in ("png", "svg")]
    write_bytes(paths[0], plot.png_bytes())
    write_text(paths[1], plot.svg_text())
    return paths
