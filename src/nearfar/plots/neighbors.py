"""Queries beside their nearest neighbours in the gallery, and the mistakes that the model was surest of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearfar.errors import InputError
from nearfar.plots import sheets, style
from nearfar.plots.check import check_images, check_labels, check_length, check_numbers
from nearfar.plots.plot import Plot, finish

_MISTAKE_COLUMNS = 5


def neighbor_grid(
    queries: Any,
    query_labels: ArrayLike | None,
    neighbors: Any,
    neighbor_labels: ArrayLike | None,
    scores: ArrayLike,
    classes: Sequence[str] = (),
    *,
    score_name: str = "cosine similarity",
    limit: int = 12,
    name: str = "neighbors",
) -> Plot:
    """One query a row, and to its right the nearest images of the gallery, best first.

    Args:
        queries: uint8 [Q, C, H, W]; ``one_per_class`` picks the rows.
        query_labels: class numbers [Q]; None where nobody knows: then no neighbour is right or wrong.
        neighbors: uint8 [Q, k, C, H, W], for example ``gallery.images[ids.ravel()].reshape(*ids.shape, C, H, W)``.
        neighbor_labels: class numbers [Q, k]; None where ``query_labels`` is.
        scores: similarities or distances [Q, k], best first.
        classes: the class names, by number.
        score_name: what the scores are, for the caption.
        limit: how many queries at most, from the first.
        name: the plot's file name.

    Raises:
        InputError: shapes or lengths do not fit, or there is no query or no neighbour.
    """
    asked, found = check_images("queries", queries), check_images("neighbors", neighbors, lead=2)
    if (query_labels is None) != (neighbor_labels is None):
        raise InputError("query_labels or neighbor_labels is missing, expected both or neither")
    if not len(asked) or not found.shape[1]:
        raise InputError(f"queries has {len(asked)} rows with {found.shape[1]} neighbors each, expected at least one of each")
    if limit < 1:
        raise InputError(f"limit is {limit}, expected at least 1 query")
    numbers = check_numbers("scores", scores, "[Q, k]")
    needed: dict[str, NDArray[Any]] = {"scores": numbers}
    truth = answers = hits = None
    if query_labels is not None and neighbor_labels is not None:
        truth = check_labels("query_labels", query_labels, classes)
        needed["neighbor_labels"] = answers = check_labels("neighbor_labels", neighbor_labels, classes)
        check_length("query_labels", truth, len(asked), "queries")
    for argument, values in needed.items():
        if values.shape != found.shape[:2] or len(values) != len(asked):
            raise InputError(
                f"{argument} has shape {list(values.shape)}, queries and neighbors need {[len(asked), found.shape[1]]}"
            )
    rows, k = min(limit, len(asked)), found.shape[1]
    query_room, gap = 0.85, 0.15
    cell = min(0.95, (style.WIDTH - 2 * sheets.MARGIN - query_room - gap) / k)
    width = 2 * sheets.MARGIN + query_room + gap + max(k * cell, 2.1)  # never narrower than the heading
    side = min(0.75, 0.88 * cell)
    high = sheets.image_height(side, asked, found)
    header = 0.25
    lines = np.ones(rows)
    if truth is not None and answers is not None:
        hits = answers[:rows] == truth[:rows, None]
        lines += ~hits.all(axis=1)  # only a row with a wrong neighbour needs a second line, for that one's class
    heights = high + lines * sheets.LINE + 0.14
    tops = header + np.cumsum(heights) - heights
    with style.plot_style():
        figure, axes = sheets.new_sheet(header + sheets.MARGIN + float(heights.sum()), width)
        sheets.put_line(axes, "query", sheets.MARGIN + query_room / 2, 0.07, query_room)
        start = sheets.MARGIN + query_room + gap
        sheets.put_line(axes, "nearest in the gallery, best first", start + (cell - side) / 2, 0.07, k * cell, align="left")
        for row in range(rows):
            y = float(tops[row])
            x = sheets.MARGIN + (query_room - side) / 2
            sheets.put_image(axes, asked[row], x, y, side)
            if truth is not None:
                sheets.put_line(axes, classes[truth[row]], x + side / 2, y + high + 0.05, query_room)
            for at in range(k):
                right = hits is None or bool(hits[row, at])
                score, color, frame = _short(numbers[row, at]), style.INK, style.MUTED
                if hits is not None:
                    color = frame = style.RIGHT if right else style.WRONG
                    score = f"{sheets.YES if right else sheets.NO} {score}"
                x = start + at * cell + (cell - side) / 2
                sheets.put_image(axes, found[row, at], x, y, side, frame, dashed=not right)
                sheets.put_line(axes, score, x + side / 2, y + high + 0.05, cell, color=color)
                if answers is not None and not right:
                    below = y + high + 0.05 + sheets.LINE
                    sheets.put_line(axes, classes[answers[row, at]], x + side / 2, below, cell - 0.03, color=color)
        lead = (
            f"Each row is a query and its nearest gallery images, best first, with the {style.clean(score_name, 40)} under each"
        )
        if hits is None:
            return finish(name, figure, f"{lead}.", f"{rows} queries with their {k} nearest images.")
        caption = (
            f"{lead}: framed green with {sheets.YES} where the class is the query's, red and dashed with {sheets.NO} "
            "and the class's name where it is not."
        )
        alt = f"{rows} queries with their {k} nearest images; {int(hits.sum())} of {hits.size} are of the query's class."
        return finish(name, figure, caption, alt)


def worst_mistakes(
    queries: Any,
    labels: ArrayLike,
    predicted: ArrayLike,
    confidence: ArrayLike,
    classes: Sequence[str],
    *,
    nearest: Any | None = None,
    limit: int = 20,
    total: int | None = None,
    name: str = "worst_mistakes",
) -> Plot:
    """The wrong predictions that the model was surest of, each beside the gallery image that misled it.

    Args:
        queries: wrongly classified images, uint8 [M, C, H, W]; ``worst_rows`` picks them. M may be 0.
        labels: their true class numbers [M].
        predicted: what the model said [M].
        confidence: how sure it was [M], 0 to 1.
        classes: the class names, by number.
        nearest: the nearest gallery image of the predicted class for each, uint8 [M, C, H, W]; None leaves them out.
        limit: how many at most, from the first.
        total: how many images were judged, for the description.
        name: the plot's file name.

    Raises:
        InputError: shapes or lengths do not fit, a prediction is right, or a confidence lies outside 0 to 1.
    """
    if limit < 1:
        raise InputError(f"limit is {limit}, expected at least 1")
    truth, said = check_labels("labels", labels, classes), check_labels("predicted", predicted, classes)
    among = "" if total is None else f" among {total:,} images"
    caption = (
        "The wrong predictions the model was surest of, surest first: under each image its class, then, in red, the "
        "class the model said and how sure it was"
        + (", with the nearest image of that class at the right." if nearest is not None else ".")
    )
    if not len(truth):
        with style.plot_style():
            figure, axes = sheets.new_sheet(0.6)
            axes.text(style.WIDTH / 2, 0.3, f"No mistakes{among}.", ha="center", va="center")
            return finish(name, figure, caption, f"No mistakes{among}.")
    images = check_images("queries", queries)
    sure = check_numbers("confidence", confidence, "[M]")
    misled = None if nearest is None else check_images("nearest", nearest)
    for argument, values in (("labels", truth), ("predicted", said), ("confidence", sure), ("nearest", misled)):
        if values is not None:
            check_length(argument, values, len(images), "queries")
    if (truth == said).any():
        raise InputError(f"predicted[{int(np.argmax(truth == said))}] is right; give the mistakes alone, see worst_rows")
    if sure.min() < 0 or sure.max() > 1:
        raise InputError(f"confidence holds {sure[(sure < 0) | (sure > 1)][0]:g}, expected 0 to 1")
    shown = min(limit, len(images))
    cell = (style.WIDTH - 2 * sheets.MARGIN) / _MISTAKE_COLUMNS
    side = (cell - 0.2) / 2
    high = sheets.image_height(side, images, *([] if misled is None else [misled]))
    row_height = high + 2 * sheets.LINE + 0.16
    with style.plot_style():
        figure, axes = sheets.new_sheet(2 * sheets.MARGIN + -(-shown // _MISTAKE_COLUMNS) * row_height)
        for at in range(shown):
            x = sheets.MARGIN + at % _MISTAKE_COLUMNS * cell + 0.07
            y = sheets.MARGIN + at // _MISTAKE_COLUMNS * row_height
            width = side if misled is None else 2 * side + 0.05
            left = x + (2 * side + 0.05 - width) / 2
            sheets.put_image(axes, images[at], left, y, side, style.WRONG, dashed=True)
            if misled is not None:
                sheets.put_image(axes, misled[at], left + side + 0.05, y, side)
            middle, below = x + side + 0.025, y + high + 0.05
            sheets.put_line(axes, classes[truth[at]], middle, below, cell - 0.06)
            mark, percent = f"{sheets.NO} ", f", {sure[at]:.0%}"
            room = cell - 0.06 - style.text_width(mark + percent, style.SMALL)
            verdict = mark + style.fit(classes[said[at]], room, style.SMALL) + percent
            sheets.put_line(axes, verdict, middle, below + sheets.LINE, cell, color=style.WRONG)
        first = f"the surest is {classes[truth[0]]} taken for {classes[said[0]]}, {sure[0]:.0%} sure"
        return finish(name, figure, caption, f"The {shown} worst mistakes{among}; {first}.")


def one_per_class(labels: ArrayLike, limit: int = 10, seed: int = 0) -> NDArray[np.int64]:
    """Row numbers of one random image of each class, in the order of the classes.

    Args:
        labels: class numbers [N].
        limit: how many classes at most; with more, a random choice of them.
        seed: of the random choices.

    Returns:
        Row numbers, int64 [min(classes that occur, limit)].

    Raises:
        InputError: ``labels`` is empty or not [N], or ``limit`` is less than 1.
    """
    numbers = np.asarray(labels)
    if numbers.ndim != 1 or not len(numbers):
        raise InputError(f"labels has shape {list(numbers.shape)}, expected [N] with at least one entry")
    if limit < 1:
        raise InputError(f"limit is {limit}, expected at least 1 class")
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(numbers))
    present, first = np.unique(numbers[order], return_index=True)
    chosen = np.arange(len(present))
    if len(present) > limit:
        chosen = np.sort(rng.choice(len(present), size=limit, replace=False))
    return order[first[chosen]].astype(np.int64)


def worst_rows(labels: ArrayLike, predicted: ArrayLike, confidence: ArrayLike, limit: int = 20) -> NDArray[np.int64]:
    """Row numbers of the wrong predictions, the surest first.

    Args:
        labels: true class numbers [N].
        predicted: what the model said [N].
        confidence: how sure it was [N].
        limit: how many at most.

    Returns:
        Row numbers, int64 [min(mistakes, limit)]; equally sure ones in the order of their rows.

    Raises:
        InputError: the lengths differ.
    """
    truth, said, sure = np.asarray(labels), np.asarray(predicted), np.asarray(confidence, dtype=np.float64)
    check_length("predicted", said, len(truth), "labels")
    check_length("confidence", sure, len(truth), "labels")
    wrong = np.flatnonzero(truth != said)
    return wrong[np.argsort(-sure[wrong], kind="stable")][:limit]


def _short(score: float) -> str:
    """A score in few letters: two decimals, three significant digits where it is large."""
    return f"{score:.2f}" if abs(score) < 100 else f"{score:.3g}"
