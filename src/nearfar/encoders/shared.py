"""A batch that several processes embed together: what a layer must know to do as one process would.

Batch norm takes its statistics over all images, dropout draws for all of them. Knows places and sums; never how they travel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Shared:
    """The images that this process embeds, of those that all processes embed at the same time."""

    places: Tensor  # int64 [n], which they are
    count: int  # how many there are in all
    total: Callable[[Tensor], Tensor]  # sums a tensor over all processes

    def part_of(self, drawn: Tensor) -> Tensor:
        """What is drawn for all images, [count, ...], for those of this process, [n, ...]."""
        return drawn[self.places.to(drawn.device)]


_current: ContextVar[Shared | None] = ContextVar("shared", default=None)


def current() -> Shared | None:
    """What the images in the encoder are a part of; None where this process embeds them alone."""
    return _current.get()


@contextmanager
def embedding(part: Shared | None) -> Iterator[None]:
    """While it lasts, images that pass through an encoder are such a part."""
    before = _current.set(part)
    try:
        yield
    finally:
        _current.reset(before)
