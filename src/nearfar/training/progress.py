"""Who is told how training goes: nobody, or a person at a terminal."""

from __future__ import annotations

import sys
import time
from typing import IO, Any, Protocol


class Watcher(Protocol):
    """Who is told how training goes."""

    def step(self, epoch: int, epochs: float, step: int, steps: int, loss: float, rate: float, left: float) -> None:
        """Now and then: loss is the epoch's mean so far, rate in images a second, left in seconds."""

    def epoch(self, row: dict[str, Any], epochs: float) -> None:
        """After every epoch: the row of history.jsonl."""

    def note(self, message: str) -> None:
        """Something worth knowing before it starts."""

    def warn(self, message: str) -> None:
        """Something looks wrong, with what to try."""


class Mute:
    """A `Watcher` that passes on nothing: of several processes one speaks."""

    def step(self, epoch: int, epochs: float, step: int, steps: int, loss: float, rate: float, left: float) -> None:
        pass

    def epoch(self, row: dict[str, Any], epochs: float) -> None:
        pass

    def note(self, message: str) -> None:
        pass

    def warn(self, message: str) -> None:
        pass


class Silent(Mute):
    """A `Watcher` that passes warnings on to Python's and nothing else."""

    def warn(self, message: str) -> None:
        import warnings

        warnings.warn(message, stacklevel=3)


class Speed:
    """Images a second since it was made."""

    def __init__(self) -> None:
        self.start, self.images = time.perf_counter(), 0

    def add(self, images: int) -> None:
        self.images += images

    def value(self) -> float:
        return self.images / max(1e-9, time.perf_counter() - self.start)


class ProgressLine:
    """A `Watcher` for people: one line that is rewritten on a terminal, one line an epoch elsewhere."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self.stream = stream if stream is not None else sys.stderr
        self.live = self.stream.isatty()

    def step(self, epoch: int, epochs: float, step: int, steps: int, loss: float, rate: float, left: float) -> None:
        if self.live:
            share = f"{100 * step // steps:3d} %"
            self._rewrite(f"epoch {epoch}/{epochs:g}  {share}  loss {loss:.4f}  {rate:,.0f} images/s  {clock(left)} left")

    def epoch(self, row: dict[str, Any], epochs: float) -> None:
        text = f"epoch {row['epoch']:.4g}/{epochs:g}  loss {row['loss']:.4f}  {row['images_per_second']:,.0f} images/s"
        for name, value in row.get("validation", {}).items():
            if name in ("loss", "knn_accuracy", "pair_accuracy", "head_accuracy", "image_to_text", "text_to_image"):
                text += f"  validation {name.replace('_', ' ').replace('knn', 'k-NN')} {value:.4f}"
        self._rewrite(f"{text}  {clock(row['seconds'])}")
        print(file=self.stream, flush=True)

    def warn(self, message: str) -> None:
        self.note(f"warning: {message}")

    def note(self, message: str) -> None:
        """A line of its own that stays."""
        self._rewrite(message)
        print(file=self.stream, flush=True)

    def _rewrite(self, text: str) -> None:
        start, end = ("\r", "\x1b[K") if self.live else ("", "")
        print(f"{start}{text}{end}", end="", file=self.stream, flush=True)


def clock(seconds: float) -> str:
    """``83.4`` as ``1:23``."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
