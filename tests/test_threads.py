"""Pieces of work in threads: order, errors, and how many threads PyTorch has afterwards."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from nearfar.threads import single_threads


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
def test_each_piece_computes_with_one_thread_and_three_go_on_at_once() -> None:
    together = threading.Barrier(3, timeout=20)  # breaks unless three pieces are under way at the same time

    def work(item: int) -> tuple[int, int]:
        together.wait()
        return item, torch.get_num_threads()

    with single_threads() as spread:
        assert spread(work, range(9)) == [(item, 1) for item in range(9)]
    assert threads_of_a_new_thread() == torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
def test_an_error_in_a_piece_arrives_and_the_number_of_threads_is_put_back() -> None:
    def work(item: int) -> int:
        if item == 4:
            raise ValueError("piece 4")
        return item

    with pytest.raises(ValueError, match="piece 4"), single_threads() as spread:
        spread(work, range(100))
    assert threads_of_a_new_thread() == torch.get_num_threads() == 3


def test_with_one_thread_the_caller_does_it() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with single_threads() as spread:
            assert spread(lambda item: (item, threading.current_thread()), range(3)) == [
                (item, threading.main_thread()) for item in range(3)
            ]
    finally:
        torch.set_num_threads(before)


def threads_of_a_new_thread() -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]
