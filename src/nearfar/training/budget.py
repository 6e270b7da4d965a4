"""How many epochs fit into a number of seconds: the speed of a training, measured on its first steps."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from nearfar.data import ImageSet
from nearfar.recipe import Recipe
from nearfar.training.loop import fit

ENDLESS = 10**9  # epochs of the training that is measured, which never ends by itself


class Enough(Exception):
    """A `Stopwatch` has seen what it needs."""


class Stopwatch:
    """A `nearfar.training.progress.Watcher` that notes how far training has come, and breaks it off after ``limit`` seconds."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.marks: list[tuple[float, float]] = []  # seconds, epochs done

    def step(self, epoch: int, epochs: float, step: int, steps: int, loss: float, rate: float, left: float) -> None:
        self._mark(epoch - 1 + step / steps)

    def epoch(self, row: dict[str, Any], epochs: float) -> None:
        self._mark(row["epoch"])

    def note(self, message: str) -> None:
        pass

    def warn(self, message: str) -> None:
        pass

    def epoch_seconds(self) -> float:
        """From the first mark on: what comes before is preparation."""
        (began, before), (ended, after) = self.marks[0], self.marks[-1]
        return (ended - began) / (after - before)

    def _mark(self, done: float) -> None:
        if not self.marks or done > self.marks[-1][1]:
            self.marks.append((time.perf_counter(), done))
        if len(self.marks) > 1 and self.marks[-1][0] - self.marks[0][0] >= self.limit:
            raise Enough


def epoch_seconds(recipe: Recipe, train: ImageSet, *, seed: int, device: str, limit: float) -> float:
    """How long an epoch of ``recipe`` on ``train`` takes, in seconds, by a training that is broken off after ``limit`` s.

    Raises:
        InputError: the recipe does not fit the images, or the loss stopped being a finite number.
    """
    watch = Stopwatch(limit)
    with contextlib.suppress(Enough):
        fit(recipe.with_changes({"train.epochs": ENDLESS}), train, seed=seed, device=device, watcher=watch)
    return watch.epoch_seconds()
