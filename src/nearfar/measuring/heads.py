"""What the linear head and the text tower of a run say of the queries, beside what neighbours say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nearfar.evaluation.bootstrap import bootstrap_intervals
from nearfar.evaluation.figures import finite

if TYPE_CHECKING:
    from nearfar.measuring.judging import Judged


def add_head_accuracy(tree: dict[str, Any], judged: Judged) -> None:
    """Put what the run's linear head says beside what neighbours say, where it knows every class of the queries."""
    head = judged.model.head_
    if head is None or not {judged.classes[number] for number in np.unique(judged.labels)} <= set(head.classes):
        return
    numbers = np.array([judged.classes.index(name) for name in head.classes], dtype=np.int64)
    right = {"head_accuracy": (numbers[head.predict(judged.z)] == judged.labels).astype(np.float64)}
    tree["classification"]["head_accuracy"] = float(right["head_accuracy"].mean())
    samples = judged.model.recipe_.evaluate.bootstrap
    if samples:
        intervals = bootstrap_intervals(right, samples=samples, seed=judged.config["seed"])
        tree["confidence"]["classification"] |= finite(intervals)


def add_towers(tree: dict[str, Any], judged: Judged) -> None:
    """Put how images and texts find each other beside it, where the run has a text tower."""
    if judged.model.has_text:
        from nearfar.measuring.captions import towers

        tree["towers"] = towers(judged.model, judged.queries, judged.z, judged.labels, judged.classes)
