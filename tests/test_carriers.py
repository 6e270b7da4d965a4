"""Tensors by memory that processes share, against sums by a loop; threads stand for the processes, each with its own board."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from nearfar.distributed import Group, carriers
from nearfar.distributed.carriers import Board, share_memory
from nearfar.errors import ProcessLostError

SOON = timedelta(seconds=30)


@pytest.fixture
def file(monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(carriers, "_PLACE", 256)  # so that little is sent in several pieces
    made = Board.make(3)
    assert made.stat().st_size == 2 * 3 * (256 + 64)
    assert made.stat().st_mode & 0o777 == 0o600
    return made


def by_three(file: Path, work: Callable[[Group], object]) -> list[object]:
    boards = [Board(file, rank, [os.getpid()] * 3, SOON) for rank in range(3)]
    file.unlink()
    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(lambda board: work(Group(board.rank, 3, carrier=board)), boards))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.uint8])
def test_sums_and_gathered_rows_are_those_of_a_loop(file: Path, dtype: torch.dtype) -> None:
    counts = [5, 3, 4]
    random = np.random.default_rng(0)
    given = [
        [torch.from_numpy(random.integers(0, 9, (12, width)) + random.random((12, width))) for _ in range(3)]
        for width in (1, 7, 33)
    ]

    def work(group: Group) -> list[torch.Tensor]:
        found = []
        for each in given:
            own, start = each[group.rank].to(dtype), sum(counts[: group.rank])
            found.append(group.total(own.clone()))
            found.append(group.total(own.t().clone().t()))  # not contiguous
            found.append(group.gather(own[start : start + counts[group.rank]], counts))
            found.append(group.scatter_sum(own, counts))
        found.append(group.total(torch.empty(0)))
        group.wait()
        return found

    all_found = by_three(file, work)
    for rank, found in enumerate(all_found):
        for place, each in enumerate(given):
            parts = [one.to(dtype) for one in each]
            whole, start = parts[0] + parts[1] + parts[2], sum(counts[:rank])
            one, turned, rows, own = found[4 * place : 4 * place + 4]
            assert torch.equal(one, whole)
            assert torch.equal(turned, whole)
            assert torch.equal(rows, torch.cat([parts[0][:5], parts[1][5:8], parts[2][8:]]))
            assert torch.equal(own, whole[start : start + counts[rank]])
        assert found[-1].numel() == 0


def test_nothing_is_read_late_or_early_in_many_short_exchanges(file: Path) -> None:
    def work(group: Group) -> list[int]:
        return [int(group.total(torch.tensor([step * 10**group.rank]))) for step in range(2000)]

    wanted = [111 * step for step in range(2000)]
    assert by_three(file, work) == [wanted] * 3


def test_who_has_left_or_died_is_missed(file: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    here = os.getpid()
    with pytest.raises(ProcessLostError, match="process 1 has ended"):
        Board(file, 0, [here, dead.pid, here], SOON).total(torch.ones(1))
    zombie = subprocess.Popen([sys.executable, "-c", "pass"], stdout=subprocess.PIPE)
    assert zombie.stdout is not None
    zombie.stdout.read()  # it has closed what it had, and nobody has asked how it ended
    with pytest.raises(ProcessLostError, match="process 2 has ended"):
        Board(file, 1, [here, here, zombie.pid], SOON).total(torch.ones(1))
    zombie.wait()
    zombie.stdout.close()
    Board(file, 2, [here] * 3, SOON).leave()
    one = Board(file, 1, [here] * 3, SOON)
    one._step = 10
    one._written[0] = 11
    with pytest.raises(ProcessLostError, match="process 2 has ended"):
        one.total(torch.ones(1))
    late = Board(file, 0, [here] * 3, timedelta(seconds=0.3))
    late._step = 20
    with pytest.raises(ProcessLostError, match="process 1 timed out"):
        late.total(torch.ones(1))
    file.unlink()


def test_where_memory_cannot_be_shared_all_go_by_wire(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: None)
    board = share_memory(0, 1, dist.HashStore(), SOON)
    assert board is not None
    assert not list(Path("/dev/shm").glob("nearfar-*"))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert share_memory(0, 1, dist.HashStore(), SOON) is None
    assert not list(Path("/dev/shm").glob("nearfar-*"))
    monkeypatch.undo()
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: tensor.fill_(1.0))  # the other could not open it
    store = dist.HashStore()
    store.set("pid-1", "1")
    assert share_memory(0, 2, store, SOON) is None
