"""The processes that train together, and what they send each other. For one process alone all of it does nothing.

Knows tensors and processes; never what they mean. Every process must make the same calls in the same order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from nearfar.distributed.carriers import Carrier, Wires, listening
from nearfar.errors import InputError

T = TypeVar("T")


class Group:
    """``world`` processes, of which this is number ``rank``.

    Args:
        rank: from 0; process 0 writes and speaks.
        world: how many there are.
        device: where tensors that travel lie.
        carrier: how they travel; None: by PyTorch's engine.
    """

    def __init__(
        self, rank: int = 0, world: int = 1, device: torch.device | str = "cpu", carrier: Carrier | None = None
    ) -> None:
        self.rank, self.world, self.device = rank, world, torch.device(device)
        self._carrier = Wires() if carrier is None else carrier

    @property
    def first(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """The sum over processes, put in place of ``values`` and returned; the same bits everywhere."""
        if self.world > 1:
            self._carrier.total(values)
        return values

    def gather(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """The rows of all processes one after another, [sum of counts, D], from those of this one [counts[rank], D]."""
        if self.world == 1:
            return rows
        most = max(counts)
        every = rows.new_empty((self.world * most, *rows.shape[1:]))
        self._carrier.gather(every, _filled(rows, most))
        if min(counts) == most:
            return every
        return torch.cat([part[:count] for part, count in zip(every.split(most), counts, strict=True)])

    def scatter_sum(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Of the sum over processes of ``rows`` [sum of counts, D] what stands where this one's rows do, [counts[rank], D]."""
        if self.world == 1:
            return rows
        most = max(counts)
        if min(counts) == most:
            every = rows.contiguous()
        else:
            every = torch.cat([_filled(part, most) for part in rows.split(list(counts))])
        own = rows.new_empty((most, *rows.shape[1:]))
        self._carrier.scatter(own, every)
        return own[: counts[self.rank]]

    def reduce(self, parameters: Iterable[Tensor], flag: bool = False, *, whole: bool = False) -> bool:
        """Put the sum over processes in place of the gradient of every parameter that has one; one exchange for all.

        Args:
            parameters: those that are learned.
            flag: something that may be true for any process.
            whole: each process has the gradient of the whole batch already: the mean is taken.

        Returns:
            Whether ``flag`` is true for any process.
        """
        if self.world == 1:
            return flag
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        sign = torch.full((1,), float(flag), device=self.device)
        flat = self.total(torch.cat([*(gradient.reshape(-1) for gradient in gradients), sign]))
        raised = bool(flat[-1] > 0)
        if whole:
            flat /= self.world
        start = 0
        for gradient in gradients:
            gradient.copy_(flat[start : start + gradient.numel()].view(gradient.shape))
            start += gradient.numel()
        return raised

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the values that process 0 has."""
        if self.world == 1:
            return
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            by_type.setdefault(tensor.dtype, []).append(tensor)
        with torch.no_grad():
            for same in by_type.values():
                flat = torch.cat([tensor.reshape(-1) for tensor in same]).to(self.device)
                with listening():
                    dist.broadcast(flat, 0)
                for tensor, values in zip(same, flat.split([tensor.numel() for tensor in same]), strict=True):
                    tensor.copy_(values.view(tensor.shape))

    def tell(self, value: Any) -> Any:
        """What process 0 gives, of any value that JSON holds."""
        if self.world == 1:
            return value
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8) if self.first else torch.empty(0)
        size = torch.tensor([len(data)], device=self.device)
        with listening():
            dist.broadcast(size, 0)
            text = data.to(self.device) if self.first else torch.empty(int(size), dtype=torch.uint8, device=self.device)
            dist.broadcast(text, 0)
        return json.loads(bytes(text.tolist()))

    def agree(self, about: Mapping[str, Any]) -> None:
        """Refuse to go on where processes were given different things.

        Args:
            about: what must be the same everywhere, by name; values that JSON holds.

        Raises:
            InputError: one is not.
        """
        if self.world == 1:
            return
        texts = [json.dumps(value, sort_keys=True, default=str) for value in about.values()]
        own = torch.tensor([list(hashlib.sha256(text.encode()).digest()) for text in texts], dtype=torch.uint8)
        every = self.gather(own.to(self.device)[None], [1] * self.world).cpu()
        for rank in range(1, self.world):
            for place, name in enumerate(about):
                if not torch.equal(every[rank, place], every[0, place]):
                    raise InputError(
                        f"process {rank} of {self.world} was given another {name} than process 0; "
                        "start all of them with the same command, data and version of nearfar"
                    )

    def in_turn(self, work: Callable[[], T]) -> T:
        """What ``work`` returns, done by process 0 first: the others then find what it has put in caches."""
        if self.first:
            result = work()
            self.wait()
            return result
        self.wait()
        return work()

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.world > 1:
            self.total(torch.zeros(1, device=self.device))

    def __deepcopy__(self, memo: Any) -> Group:
        return self


ALONE = Group()
_current: ContextVar[Group] = ContextVar("group", default=ALONE)


def current() -> Group:
    """The processes that this one trains with; `ALONE` outside `nearfar.distributed.joined`."""
    return _current.get()


@contextmanager
def together(group: Group) -> Any:
    """While it lasts, training is shared with ``group``."""
    before = _current.set(group)
    try:
        yield group
    finally:
        _current.reset(before)


def _filled(rows: Tensor, count: int) -> Tensor:
    """With rows of zeros up to ``count``; all processes send equally many."""
    if len(rows) == count:
        return rows.contiguous()
    return torch.cat([rows, rows.new_zeros((count - len(rows), *rows.shape[1:]))])
