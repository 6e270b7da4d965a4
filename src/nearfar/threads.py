"""Work in pieces, a thread for each core, each computing by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


class Spread(Protocol):
    """Calls a function with each of some items, several at a time, and returns the results in order."""

    def __call__(self, work: Callable[[T], R], items: Iterable[T]) -> list[R]: ...


def one_by_one(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """A `Spread` for where nothing is gained by threads: the caller does one piece after the other."""
    return [work(item) for item in items]


@contextmanager
def single_threads() -> Iterator[Spread]:
    """Give a function that spreads pieces of work over as many threads as PyTorch computes with, one core to each.

    Where a piece is a long chain of small steps, cores that each go their own way wait for nothing; sharing out every step
    would have them wait for one another, and leave all but one idle wherever NumPy computes.
    """
    count = torch.get_num_threads()
    if count == 1:
        yield one_by_one
        return
    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))

    def spread(work: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        return list(pool.map(work, items))

    try:
        yield spread
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(count)  # what threads to come begin with is the number that was set last
