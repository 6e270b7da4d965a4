"""Two ways for tensors to travel between processes: PyTorch's own, and memory that processes of one machine share.

Knows bytes and processes; never what they mean. Every process must make the same calls in the same order.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from nearfar.cores import cores
from nearfar.errors import ProcessLostError

# PyTorch 2.13 has new names for both.
_GATHER = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_SCATTER = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor

_PLACE = 1 << 20
"""Bytes of a process's place on a board; what is longer goes in pieces."""
_LINE = 64
"""Bytes of a cache line; the counters of two processes do not share one."""
_SPIN, _YIELD = 0.0005, 0.05
"""Seconds that a process waits by looking all the time, and then by letting others go first; after that it naps in between."""
_NAP, _LOOK = 0.005, 0.2
"""Seconds of the longest nap, and between two looks at whether those waited for are alive."""


class Carrier(Protocol):
    """What a group needs of the way its tensors travel."""

    def total(self, values: Tensor) -> None:
        """Put the sum over processes in place of ``values``; the same bits everywhere."""

    def gather(self, every: Tensor, own: Tensor) -> None:
        """Fill ``every`` [world * n, ...] with the ``own`` [n, ...] of all processes, in the order of ranks."""

    def scatter(self, own: Tensor, every: Tensor) -> None:
        """Fill ``own`` [n, ...] with this process's part of the sum over processes of ``every`` [world * n, ...]."""


class Wires:
    """PyTorch's engine: gloo or NCCL, between processes anywhere."""

    def total(self, values: Tensor) -> None:
        with listening():
            dist.all_reduce(values)

    def gather(self, every: Tensor, own: Tensor) -> None:
        with listening():
            _GATHER(every, own)

    def scatter(self, own: Tensor, every: Tensor) -> None:
        with listening():
            _SCATTER(own, every)


class Board:
    """Memory that the processes of one machine share: each writes to its own place, all read, nobody is woken up.

    By gloo a message of a few numbers takes as long as it takes to wake threads, up to milliseconds in a virtual machine, and
    batch norm sends several a step. Every process has two places, used in turn: when all have written for the second time, all
    have read what was written first.

    Args:
        file: the memory, made by `make` in one process and opened by all.
        rank: which process this is.
        pids: the numbers by which the system knows the processes.
        timeout: how long a process that lives is waited for.

    Raises:
        OSError, ValueError: it cannot be opened.
    """

    def __init__(self, file: Path, rank: int, pids: list[int], timeout: timedelta) -> None:
        self.rank, self.pids, self.timeout = rank, pids, timeout.total_seconds()
        world = len(pids)
        with file.open("r+b") as opened:
            self._memory = mmap.mmap(opened.fileno(), _size(world))
        heads = np.frombuffer(self._memory, np.int64, count=2 * world * _LINE // 8).reshape(2, world, -1)
        self._written, self._left = heads[0, :, 0], heads[1, :, 0]
        places = torch.frombuffer(self._memory, dtype=torch.uint8, offset=2 * world * _LINE)
        self._places = places.view(2, world, _PLACE)
        self._step = 0
        self._fence = threading.Lock()
        self._patient = world <= cores()

    @staticmethod
    def make(world: int) -> Path:
        """Make the memory for so many processes; the file may be removed once all have opened it.

        Raises:
            OSError: there is no room for it.
        """
        shared = Path("/dev/shm")
        folder = shared if shared.is_dir() and os.access(shared, os.W_OK) else Path(tempfile.gettempdir())
        file = folder / f"nearfar-{secrets.token_hex(8)}"
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.posix_fallocate(handle, 0, _size(world))  # what is not there is found out now, not by a signal later
        except OSError:
            file.unlink()
            raise
        finally:
            os.close(handle)
        return file

    def total(self, values: Tensor) -> None:
        flat = values.reshape(-1)
        for part in _pieces(flat):
            first, *others = self._exchange(part)
            part.copy_(first)
            for other in others:
                part.add_(other)
        if flat.data_ptr() != values.data_ptr():
            values.copy_(flat.view(values.shape))

    def gather(self, every: Tensor, own: Tensor) -> None:
        rows, start = every.view(len(self.pids), -1), 0
        for part in _pieces(own.reshape(-1)):
            for row, found in zip(rows, self._exchange(part), strict=True):
                row[start : start + len(part)] = found
            start += len(part)

    def scatter(self, own: Tensor, every: Tensor) -> None:
        world, flat = len(self.pids), own.view(-1)
        parts = every.view(world, -1)
        width = max(1, _room(every) // world)
        for start in range(0, parts.shape[1], width):
            piece = parts[:, start : start + width]
            mine = flat[start : start + width].zero_()
            for found in self._exchange(piece.reshape(-1)):
                mine.add_(found.view(piece.shape)[self.rank])

    def leave(self) -> None:
        """Say that this process writes no more."""
        self._left[self.rank] = 1

    def _exchange(self, values: Tensor) -> list[Tensor]:
        """What all processes have written, in the order of ranks; to be read before the exchange after the next."""
        half, self._step = self._places[self._step % 2], self._step + 1
        found = [place[: values.numel() * values.element_size()].view(values.dtype) for place in half]
        found[self.rank].copy_(values)
        self._pass_fence()
        self._written[self.rank] = self._step
        for rank in range(len(self.pids)):
            if self._written[rank] < self._step:
                self._await(rank)
        self._pass_fence()
        return found

    def _await(self, rank: int) -> None:
        started = time.perf_counter()
        looked = started
        while self._written[rank] < self._step:
            now = time.perf_counter()
            waited = now - started
            if waited < _SPIN and self._patient:
                continue
            if waited < _YIELD:
                os.sched_yield()
                continue
            time.sleep(min(_NAP, waited / 100))
            if now - looked > _LOOK:
                looked, gone = now, self._left[rank] or not _alive(self.pids[rank])
                if gone and self._written[rank] < self._step:
                    raise ProcessLostError(f"process {rank} has ended")
                if waited > self.timeout:
                    raise ProcessLostError(f"process {rank} timed out")

    def _pass_fence(self) -> None:
        """Some processors write in another order than they are told; taking a lock keeps what is before it before."""
        with self._fence:
            pass


def share_memory(rank: int, world: int, store: dist.Store, timeout: timedelta) -> Board | None:
    """A board that all processes have opened; None, for all of them, where one could not.

    Args:
        rank: which process this is.
        world: how many there are.
        store: where they leave notes for each other.
        timeout: of the board.
    """
    board = None
    if rank == 0:
        try:
            name = str(Board.make(world))
        except OSError:
            name = ""
        store.set("board", name)
    name = store.get("board").decode()
    store.set(f"pid-{rank}", str(os.getpid()))
    pids = [int(store.get(f"pid-{other}")) for other in range(world)]
    try:
        with contextlib.suppress(OSError, ValueError):
            board = Board(Path(name), rank, pids, timeout) if name else None
        opened = torch.tensor([float(board is not None)])
        with listening():
            dist.all_reduce(opened)
    finally:
        if rank == 0 and name:
            Path(name).unlink(missing_ok=True)
    return board if opened.item() == world else None


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """A message that does not come through is a process that is gone."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessLostError(" ".join(str(error).split())) from error


def _size(world: int) -> int:
    return 2 * world * (_LINE + _PLACE)


def _room(values: Tensor) -> int:
    """How many numbers of this type a place has room for."""
    return _PLACE // values.element_size()


def _pieces(flat: Tensor) -> tuple[Tensor, ...]:
    return flat.split(_room(flat)) if flat.numel() else ()


def _alive(pid: int) -> bool:
    """Whether a process is there and has not ended; one that ended may wait for whoever started it to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return not Path("/proc/self/stat").exists()
