"""Small synthetic data for the plots, and what every plot promises."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from nearfar.plots import Plot
from nearfar.plots.style import plot_style

AWKWARD = (
    "$5 bill_under_score$",
    "_hidden",
    "tab\there\nand line",
    "日本語のクラス",
    "Ünïcödé",
    "a very long class name that no axis, no legend and no line under a picture has any room for",
    "العربية",
    "emoji 🙂 and \udcff",
    " ",
    "",
)


@dataclasses.dataclass(frozen=True)
class Sample:
    """Embeddings in one blob a class, their labels and class names, and images that look like noise."""

    classes: tuple[str, ...]
    labels: np.ndarray
    z: np.ndarray
    images: np.ndarray


def make_sample(classes: int, per_class: int = 8, channels: int = 1, size: tuple[int, int] = (9, 12)) -> Sample:
    rng = np.random.default_rng(classes)
    names = (*AWKWARD, *(f"species number {number}" for number in range(classes)))[:classes]
    labels = rng.permutation(np.repeat(np.arange(classes), per_class))
    z = rng.normal(size=(classes, 6))[labels] * 3 + rng.normal(size=(len(labels), 6))
    images = rng.integers(0, 256, (len(labels), channels, *size), dtype=np.uint8)
    return Sample(names, labels, z, images)


@contextlib.contextmanager
def recorded_texts() -> Iterator[list[tuple[str, np.ndarray]]]:
    """Collect every text drawn in the block, with left, bottom, right and top as shares of the figure."""
    found: list[tuple[str, np.ndarray]] = []
    draw = Text.draw

    def record(text: Text, renderer: object) -> None:
        draw(text, renderer)
        if text.get_visible() and text.get_text().strip():
            box = text.get_window_extent(renderer).extents / np.tile(text.get_figure(root=True).bbox.size, 2)
            found.append((text.get_text(), box))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", record)
        yield found


def drawn_words(plot: Plot) -> list[str]:
    """The texts on ``plot``, in the order in which they are drawn."""
    with recorded_texts() as texts, plot_style():
        plot.figure.canvas.draw()
    return [text for text, _ in texts]


def check_promises(plot: Plot) -> None:
    """What holds for every plot: one sentence of caption, files that open, nothing cut off at the edge."""
    assert plot.caption[0].isupper()
    assert plot.caption.endswith(".")
    assert "\n" not in plot.caption + plot.alt
    assert plot.alt
    width, height = plot.figure.get_size_inches()
    assert width <= 7.0
    with recorded_texts() as texts:
        picture = Image.open(io.BytesIO(plot.png_bytes(dpi=60)))
        document = ElementTree.fromstring(plot.svg_text())
    assert picture.size == (int(width * 60), int(height * 60))
    assert np.ptp(np.asarray(picture.convert("L"))) > 100  # something is on it
    assert document.tag.endswith("svg")
    assert texts
    for text, box in texts:
        assert (box >= -0.002).all(), text
        assert (box <= 1.002).all(), text
        assert "\n" not in text or "query" in text  # only the titles of recall@k have two lines
