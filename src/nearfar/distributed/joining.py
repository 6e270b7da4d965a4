"""How processes that torchrun or `nearfar.processes` started meet, and how they end: all of them, with one message.

Knows the environment that those leave; nothing of training.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from nearfar.distributed.carriers import share_memory
from nearfar.distributed.group import ALONE, Group, together
from nearfar.errors import InputError, ProcessLostError
from nearfar.processes import MEETING, THREADS

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for another, e.g. while process 0 computes validation figures."""
_MEET = timedelta(minutes=5)
_SPEAKS, _CODE = "nearfar/speaks", "nearfar/code"


@dataclass(frozen=True)
class Place:
    """What the environment says of this process."""

    rank: int
    world: int
    local_rank: int
    local_world: int


def place() -> Place:
    """Where this process stands among those that torchrun started; alone where it did not.

    Raises:
        InputError: the environment is not what torchrun leaves.
    """
    if not {"RANK", "WORLD_SIZE"} <= os.environ.keys() or not (os.environ.keys() & {"MASTER_ADDR", MEETING}):
        return Place(0, 1, 0, 1)
    try:
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local = int(os.environ.get("LOCAL_RANK", rank))
        here = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    except ValueError as error:
        raise InputError(f"RANK, WORLD_SIZE or LOCAL_RANK is not a number ({error}); start with torchrun") from None
    if not 0 <= rank < world:
        raise InputError(f"RANK is {rank} and WORLD_SIZE {world}; ranks count from 0: start with torchrun")
    return Place(rank, world, local, here)


@contextlib.contextmanager
def joined(device: str = "auto") -> Iterator[Group]:
    """Meet the other processes, and train with them while it lasts; alone where torchrun started none.

    An error in one process ends all. The first that has something to say raises it; the others end in silence, with its
    exit code.

    Args:
        device: "auto", "cpu" or "cuda".

    Raises:
        InputError: there are more processes than GPUs, or the others are not to be reached.
        ProcessLostError: another process ended without a word.
    """
    here = place()
    if here.world == 1:
        yield ALONE
        return
    where = _device(device, here)
    store = _meet(here)
    try:
        dist.init_process_group(
            "nccl" if where.type == "cuda" else "gloo",
            store=dist.PrefixStore("group", store),
            rank=here.rank,
            world_size=here.world,
            timeout=TIMEOUT,
        )
    except RuntimeError as error:
        raise InputError(f"cannot reach the other {here.world - 1} processes: {' '.join(str(error).split())[:200]}") from None
    board = None
    try:
        if where.type == "cpu" and here.local_world == here.world:
            board = share_memory(here.rank, here.world, dist.PrefixStore("memory", store), TIMEOUT)
        with together(Group(here.rank, here.world, where, board)) as group:
            yield group
        if threads := os.environ.get(THREADS):  # the others leave, and this one may have more to do
            torch.set_num_threads(int(threads))
    except BaseException as error:
        if not _may_speak(store, _exit_code(error)):
            raise SystemExit(_code_of_speaker(store)) from None
        if isinstance(error, ProcessLostError):
            late = "timed out" in str(error).lower()
            what = f"did not answer for {TIMEOUT.seconds // 60} minutes" if late else "ended without a word"
            raise ProcessLostError(
                f"one of the {here.world} processes {what}; its own output may say why. Go on with the same command, "
                "--out and --resume"
            ) from error
        raise
    finally:
        if board is not None:
            board.leave()
        # Not at once after an error: the others shall first see who speaks.
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def _device(name: str, here: Place) -> torch.device:
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if here.local_world > torch.cuda.device_count():
        raise InputError(
            f"{here.local_world} processes on this machine, which has {torch.cuda.device_count()} GPUs; start one process a "
            "GPU, or give --device cpu"
        )
    torch.cuda.set_device(here.local_rank)
    return torch.device("cuda", here.local_rank)


def _meet(here: Place) -> dist.Store:
    """Where processes leave notes for each other."""
    if file := os.environ.get(MEETING):
        return dist.FileStore(str(Path(file)), here.world)
    address, port = os.environ["MASTER_ADDR"], os.environ.get("MASTER_PORT", "29500")
    host = here.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        store = dist.TCPStore(address, int(port), here.world, host, timeout=_MEET, multi_tenant=True)
    except (RuntimeError, ValueError) as error:
        text = " ".join(str(error).split())[:200]
        raise InputError(f"cannot meet the other processes at {address}:{port}: {text}") from None
    return dist.PrefixStore(f"nearfar/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _exit_code(error: BaseException) -> int:
    return 130 if isinstance(error, KeyboardInterrupt) else 2 if isinstance(error, InputError) else 1


def _may_speak(store: dist.Store, code: int) -> bool:
    """Whether this process is the first to end; it then says with what exit code all do."""
    try:
        if store.add(_SPEAKS, 1) > 1:
            return False
        store.set(_CODE, str(code))
    except RuntimeError:  # who kept the notes is gone
        return True
    return True


def _code_of_speaker(store: dist.Store) -> int:
    try:
        store.wait([_CODE], timedelta(seconds=5))
        return int(store.get(_CODE))
    except (RuntimeError, ValueError):
        return 1
