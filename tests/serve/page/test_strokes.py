"""What the page makes of pen strokes, against a brute-force drawing and against how MNIST was made."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page
from serve.page.visits import SEVEN, Open, Server

LINES = {  # strokes of two points are not rounded, so that the oracle need not know how
    "upright": [[(0.5, 0.1), (0.5, 0.9)]],
    "level": [[(0.2, 0.5), (0.6, 0.5)]],
    "angle": [[(0.3, 0.2), (0.3, 0.8)], [(0.3, 0.8), (0.7, 0.8)]],
    "cross": [[(0.1, 0.2), (0.6, 0.7)], [(0.6, 0.2), (0.1, 0.7)]],
    "flag": [[(0.2, 0.1), (0.2, 0.95)], [(0.2, 0.1), (0.5, 0.2)], [(0.5, 0.2), (0.2, 0.3)]],
    "small": [[(0.80, 0.80), (0.95, 0.90)], [(0.95, 0.90), (0.82, 0.93)]],
}


def rasterized(page: Page, strokes: Any, size: tuple[int, int] = (28, 28), ink: str = "light") -> Any:
    """The image that the page makes of strokes, uint8 [H, W]."""
    points = [[{"x": x, "y": y} for x, y in stroke] for stroke in strokes]
    pixels = page.evaluate(
        "async ([strokes, size, ink]) => [...(await import('/static/strokes.js')).rasterize(strokes, size, ink)]",
        [points, list(size), ink],
    )
    return np.array(pixels, dtype=np.uint8).reshape(size)


def brute_force(strokes: Any, fine: int = 40) -> Any:
    """Strokes of straight lines in MNIST's form, float64 [28, 28] in 0..1: every sample's distance to every line."""
    points = np.array([point for stroke in strokes for point in stroke])
    low = points.min(axis=0)
    scale = (20 - 2.6) / max((points - low).max(), 0.1)
    samples = (np.stack(np.meshgrid(np.arange(20 * fine), np.arange(20 * fine)), axis=-1) + 0.5) / fine  # x, y
    inked = np.zeros((20 * fine, 20 * fine), dtype=bool)
    for stroke in strokes:
        a, b = (np.array(stroke) - low) * scale + 1.3
        along = np.clip(((samples - a) @ (b - a)) / ((b - a) @ (b - a)), 0, 1)
        inked |= np.linalg.norm(samples - a - along[..., None] * (b - a), axis=-1) <= 1.3
    boxed = inked.reshape(20, fine, 20, fine).mean(axis=(1, 3))
    image = np.zeros((68, 68))
    image[20:40, 20:40] = boxed
    down, right = (int(np.ceil(13.5 - centre - 1e-9)) for centre in mass_centre(boxed))
    return np.roll(image, (down, right), axis=(0, 1))[20:48, 20:48]


def mass_centre(image: Any) -> tuple[float, float]:
    weights = image.astype(np.float64)
    rows, columns = np.indices(image.shape)
    return float((weights * rows).sum() / weights.sum()), float((weights * columns).sum() / weights.sum())


def side(image: Any) -> int:
    """The longer side of the box around what is not 0."""
    rows, columns = np.flatnonzero(image.any(axis=1)), np.flatnonzero(image.any(axis=0))
    return int(max(rows[-1] - rows[0], columns[-1] - columns[0])) + 1


class TestStrokes:
    @pytest.mark.parametrize("name", LINES)
    def test_drawings_are_boxed_centred_and_inked_as_mnist(self, server: Server, open_page: Open, name: str) -> None:
        page, strokes = open_page(server).page, LINES[name]
        image = rasterized(page, strokes)
        assert side(image) == 20
        assert np.abs(np.array(mass_centre(image)) - 14).max() <= 0.5 + 1e-2
        # A sample more or less at the edge of 16 x 16: the oracle has 40 x 40.
        assert np.abs(image / 255 - brute_force(strokes)).max() < 0.06
        np.testing.assert_array_equal(rasterized(page, strokes, ink="dark"), 255 - image)

    def test_the_pen_is_as_thick_as_in_mnist_however_large_the_drawing(self, server: Server, open_page: Open) -> None:
        page = open_page(server).page
        for length in (0.2, 0.5, 0.95):
            image = rasterized(page, [[(0.5, 0.02), (0.5, 0.02 + length)]])
            assert image[12:16].sum(axis=1) / 255 == pytest.approx(2.6, abs=0.1)

    def test_where_and_how_large_it_is_drawn_does_not_matter(self, server: Server, open_page: Open) -> None:
        page = open_page(server).page
        round_one = [[(0.5 + 0.3 * np.cos(t), 0.5 + 0.4 * np.sin(t)) for t in np.linspace(0, 6, 60)]]
        image = rasterized(page, round_one)
        assert side(image) == 20
        moved = [[(0.1 + 0.5 * x, 0.3 + 0.5 * y) for x, y in stroke] for stroke in round_one]
        assert np.abs(rasterized(page, moved).astype(int) - image).max() <= 40  # curves are cut into fewer pieces
        assert np.abs(rasterized(page, moved).astype(int) - image).mean() < 1.0

    def test_dots_and_other_sizes(self, server: Server, open_page: Open) -> None:
        page = open_page(server).page
        dot = rasterized(page, [[(0.9, 0.9)]])
        assert dot.sum() / 255 == pytest.approx(np.pi * 1.3**2, rel=0.05)
        assert side(rasterized(page, SEVEN, (8, 8))) == 6  # 20 of 28
        wide = rasterized(page, SEVEN, (64, 96))
        assert side(wide) == 46
        assert np.abs(np.array(mass_centre(wide)) - [32, 48]).max() <= 0.51
