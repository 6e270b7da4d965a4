"""Pairs of images with what they are and, once a model has judged them, whether it was right."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from nearfar.errors import InputError
from nearfar.plots import sheets, style
from nearfar.plots.check import check_flags, check_images, check_length, check_numbers
from nearfar.plots.plot import Plot, finish

_COLUMNS = 5


def pair_grid(
    a: Any,
    b: Any,
    same: ArrayLike | None,
    *,
    predicted: ArrayLike | None = None,
    scores: ArrayLike | None = None,
    score_name: str = "d",
    limit: int = 20,
    name: str | None = None,
) -> Plot:
    """A grid of pairs: before training with what they are, after it with the verdicts too, green right and red wrong.

    Args:
        a: the pairs' first images, uint8 [M, C, H, W].
        b: the pairs' second images, uint8 [M, C, H, W].
        same: [M], true where the two are of the same class; None where nobody knows, which leaves no verdict either.
        predicted: [M], true where the model says so; None before training.
        scores: [M], the distances or similarities behind the verdicts; None leaves them out.
        score_name: what to call them.
        limit: how many pairs at most, from the first.
        name: the plot's file name; ``pairs`` or ``pairs_predicted`` by default.

    Raises:
        InputError: shapes or lengths do not fit, or there is no pair.
    """
    first, second = check_images("a", a), check_images("b", b)
    if same is None and predicted is not None:
        raise InputError("same is missing, expected it where predicted is given")
    alike = None if same is None else check_flags("same", same)
    if not len(first):
        raise InputError("a is empty, expected at least one pair")
    if limit < 1:
        raise InputError(f"limit is {limit}, expected at least 1 pair")
    said = None if predicted is None else check_flags("predicted", predicted)
    numbers = None if scores is None else check_numbers("scores", scores, "[M]")
    for argument, values in (("b", second), ("same", alike), ("predicted", said), ("scores", numbers)):
        if values is not None:
            check_length(argument, values, len(first), "a")
    shown = min(limit, len(first))
    cell = (style.WIDTH - 2 * sheets.MARGIN) / _COLUMNS
    side = (cell - 0.2) / 2
    lines = 1 if said is None else 2
    high = sheets.image_height(side, first, second)
    row_height = high + lines * sheets.LINE + 0.16
    rows = -(-shown // _COLUMNS)
    with style.plot_style():
        figure, axes = sheets.new_sheet(2 * sheets.MARGIN + rows * row_height)
        for at in range(shown):
            x = sheets.MARGIN + at % _COLUMNS * cell + 0.07
            y = sheets.MARGIN + at // _COLUMNS * row_height
            right = said is None or alike is None or said[at] == alike[at]
            color = style.MUTED if said is None else style.RIGHT if right else style.WRONG
            for offset, image in ((0.0, first[at]), (side + 0.05, second[at])):
                sheets.put_image(axes, image, x + offset, y, side, color, dashed=not right)
            words = [] if alike is None else [_word(alike[at])]
            if numbers is not None:
                words.append(f"{style.clean(score_name, 12)} = {numbers[at]:.2f}")
            middle, below = x + side + 0.025, y + high + 0.05
            sheets.put_line(axes, ", ".join(words), middle, below, 2 * side + 0.1)
            if said is not None:
                verdict = f"{sheets.YES if right else sheets.NO} said {_word(said[at])}"
                sheets.put_line(axes, verdict, middle, below + sheets.LINE, 2 * side + 0.1, color=color)
        if alike is None:
            return finish(name or "pairs", figure, "Each two images side by side are one pair.", f"{shown} pairs of images.")
        if said is None:
            caption = "Each two images side by side are one pair; the line below says whether they are of the same class."
            alt = f"{shown} pairs of images, {int(alike[:shown].sum())} of the same class."
            return finish(name or "pairs", figure, caption, alt)
        count = int((said[:shown] == alike[:shown]).sum())
        caption = (
            "Under each pair stands what its two images are, and below it what the model said: "
            f"green with {sheets.YES} where it was right, red, dashed and with {sheets.NO} where it was wrong."
        )
        alt = f"{shown} pairs of images with the model's verdicts, {count} right and {shown - count} wrong."
        return finish(name or "pairs_predicted", figure, caption, alt)


def _word(alike: np.bool_) -> str:
    return "same" if alike else "different"
