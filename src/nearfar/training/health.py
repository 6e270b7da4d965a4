"""Whether training goes well: figures of the embedding by epoch, and one sentence when something is wrong.

Knows embeddings, labels and rows of ``history.jsonl``; never an encoder, an optimiser or the formula of a loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nearfar.evaluation.geometry import alignment, directions, effective_rank, uniformity
from nearfar.sampling import Epoch

COLLAPSED = 0.05  # spread of the embeddings (0: all the same, 1: centred) below which we speak of collapse
FEW_DIMENSIONS = 0.1  # share of the dimensions that there could be, below which we speak of few
LEARNED = 0.9  # share of images with one of their class nearest, from which a loss of zero is no fault
STILL = 1e-3  # share of the first epoch's loss by which it must have fallen
SAMPLE = 256  # rows of a batch that are looked at
BATCHES = 32  # batches of an epoch whose classes are counted

Codes = npt.NDArray[np.int64]


def spread(z: Tensor) -> float:
    """Root mean square distance of the rows of ``z`` [B, D] from their mean, over their root mean square length.

    0 when all points are the same, 1 when their mean is the origin.
    """
    z = z.double()
    size = z.square().sum(1).mean().sqrt()
    return float((z - z.mean(0)).square().sum(1).mean().sqrt() / size.clamp_min(1e-30))


def sample(rows: int) -> Codes:
    """The rows of a batch of so many that are looked at: all, or ``SAMPLE`` drawn by a fixed seed; sorted, [n] int64."""
    return np.sort(np.random.default_rng(0).permutation(rows)[:SAMPLE])


def measured_batch(plan: Epoch) -> int:
    """The number of the batch that an epoch is judged by: the last that is not short."""
    return max(0, len(plan.rows) // plan.batch_size - 1)


def embedding_figures(z: Tensor, labels: Codes) -> dict[str, Any]:
    """How the embeddings ``z`` [B, D] of a batch with ``labels`` [B] lie in space.

    Returns:
        images, classes, dim, spread; effective_rank, alignment and uniformity as `nearfar.evaluation.geometry` defines
        them, None where there is no such pair; nearest_right, the share of images whose nearest other one is of their
        class, of those that have another of their class in the batch, None where none has.
    """
    points = z.detach().float().cpu().numpy()
    unit = directions(points)
    return {
        "images": len(points),
        "classes": len(np.unique(labels)),
        "dim": points.shape[1],
        "spread": spread(z.detach()),
        "effective_rank": effective_rank(points),
        "alignment": alignment(unit, labels),
        "uniformity": uniformity(unit),
        "nearest_right": _nearest_right(torch.from_numpy(points), torch.from_numpy(labels)),
    }


def _nearest_right(points: Tensor, labels: Tensor) -> float | None:
    same = labels[:, None] == labels[None, :]
    asked = same.sum(1) > 1
    if not bool(asked.any()):
        return None
    nearest = torch.cdist(points, points).fill_diagonal_(torch.inf).argmin(1)
    return float(same[torch.arange(len(labels)), nearest][asked].double().mean())


def batch_figures(plan: Epoch, labels: Codes) -> dict[str, float]:
    """What the batches of an epoch are made of; of at most ``BATCHES`` of them, evenly spaced.

    Args:
        plan: the epoch.
        labels: of all rows that it draws from, [N].

    Returns:
        classes_per_batch (mean); one_class_batches and no_positive_batches: shares of the batches that hold one class
        only, and no two images of a class.
    """
    chosen = np.unique(np.linspace(0, len(plan) - 1, BATCHES).round().astype(np.int64))
    counts, single, lonely = [], 0, 0
    for number in chosen.tolist():
        batch = plan.batch(number)
        rows = batch.rows if batch.partners is None else np.concatenate([batch.rows, batch.partners])
        classes = len(np.unique(labels[rows]))
        counts.append(classes)
        single += classes == 1
        lonely += classes == len(rows)
    return {
        "classes_per_batch": float(np.mean(counts)),
        "one_class_batches": single / len(chosen),
        "no_positive_batches": lonely / len(chosen),
    }


def diagnose(history: Sequence[Mapping[str, Any]], row: Mapping[str, Any], *, within_batch: bool) -> dict[str, str] | None:
    """What is wrong with training, if anything is: the first cause that fits, unless it has been said before.

    Args:
        history: the rows of earlier epochs.
        row: that of the newest, with ``health``.
        within_batch: the loss compares the images of a batch with one another, so that it needs several classes there and
            several images of a class.

    Returns:
        ``kind`` (a word) and ``message`` (a sentence with what to try), or None.
    """
    found = _first_fault(history, row, within_batch)
    said = {earlier["warning"]["kind"] for earlier in history if "warning" in earlier}
    return None if found is None or found[0] in said else {"kind": found[0], "message": found[1]}


def warnings_of(history: Sequence[Mapping[str, Any]]) -> list[str]:
    """The sentences that a history holds, in the order in which they were said."""
    notes = [row["warning"] for row in history if isinstance(row.get("warning"), Mapping)]
    return [str(note["message"]) for note in notes if "message" in note]


def _first_fault(history: Sequence[Mapping[str, Any]], row: Mapping[str, Any], within_batch: bool) -> tuple[str, str] | None:
    health, epoch = row["health"], row["epoch"]
    if within_batch and health["one_class_batches"] > 0.5:
        return "one-class", (
            f"{100 * health['one_class_batches']:.0f} % of the batches in epoch {epoch} hold one class only, so that nothing "
            "is pushed apart; try a larger sampling.batch_size, or sampling.kind=class-batches with more sampling.classes"
        )
    if within_batch and health["no_positive_batches"] > 0.5:
        return "no-positives", (
            f"{100 * health['no_positive_batches']:.0f} % of the batches in epoch {epoch} hold no two images of a class, so "
            "that nothing is pulled together; try sampling.kind=class-batches, or a larger sampling.batch_size"
        )
    if health["images"] >= 4 and health["spread"] < COLLAPSED:
        return "collapsed", (
            f"the embedding has collapsed in epoch {epoch}: all points lie near each other (spread {health['spread']:.3f} "
            "of 1); try a lower train.learning_rate, a larger loss margin or a lower temperature, or more classes in a batch"
        )
    if _few_dimensions(history, health):
        return "few-dimensions", (
            f"the embedding has collapsed to few dimensions by epoch {epoch}: its effective rank is "
            f"{health['effective_rank']:.1f}, with {health['classes']} classes and {health['dim']} dimensions; try a lower "
            "train.learning_rate, a larger loss margin or a lower temperature, or more classes in a batch"
        )
    active, right = health["active"], health["nearest_right"]
    if active and not any(active.values()) and right is not None and right < LEARNED:
        return "inactive", (
            f"no {' or '.join(active)} are active in epoch {epoch}, so that nothing is learned from them, but only "
            f"{100 * right:.0f} % of the images of a batch have one of their class nearest; try a larger loss.margin or, for "
            "triplets, loss.mining=hard"
        )
    if len(history) >= 2 and row["loss"] > (first := history[0]["loss"]) - STILL * abs(first):
        return "not-falling", (
            f"the loss is not falling: {first:.4g} in the first epoch, {row['loss']:.4g} in epoch {epoch}; try another "
            "train.learning_rate, ten times lower or higher, and look at the data with nearfar data check"
        )
    return None


def _few_dimensions(history: Sequence[Mapping[str, Any]], health: Mapping[str, Any]) -> bool:
    """Whether the rank is tiny for so many classes and dimensions, and does not rise: at first it always is."""
    room = min(health["dim"], health["classes"])
    before = history[-1].get("health", {}).get("effective_rank") if history else None
    if room < 4 or before is None or health["effective_rank"] >= 1.0 + FEW_DIMENSIONS * (room - 1):
        return False
    return bool(health["effective_rank"] <= 1.05 * before)
