"""How much memory a training step will take, tried on a few images before it starts, and what to set when that is too much.

And one thing that memory costs in time: pages that go back to the system between steps and come anew.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

_PROBE = 1024  # rows that the loss is tried on at most; beyond, what it saves is extrapolated
IMAGES_TRIED = 4  # that the encoder is tried on, at most


@dataclass(frozen=True)
class StepMemory:
    """Bytes that a training step needs at its peak, about."""

    weights: int  # weights, their gradients and the optimiser's state
    activations: int  # what the encoder keeps of the images that pass through it at once
    loss: int  # what the loss keeps, and the embeddings
    free: int | None  # what the machine has left; None where it does not say

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.activations + self.loss

    def describe(self, images: int, chunk: int, processes: int = 1) -> str:
        """One line: the sum, its parts, what there is; and what to set when that is too little.

        Args:
            images: in a batch.
            chunk: images that pass through the encoder at once.
            processes: that share a batch; ``chunk`` is what each of them takes.
        """
        parts = f"weights and optimiser {mib(self.weights)}, {chunk:,} images in the encoder {mib(self.activations)}"
        where = "" if processes == 1 else f" in each of {processes} processes"
        line = f"a step needs about {mib(self.total)}{where} ({parts}, loss {mib(self.loss)})"
        if self.free is None:
            return line
        line += f"; {mib(self.free)} are free"
        if self.total * processes <= self.free:
            return line
        room = self.free - processes * (self.weights + self.loss)
        fits = int(room / max(1, self.activations / chunk) * 0.8)
        if fits < 1:
            return f"{line}: too little; set a smaller sampling.batch_size or encoder"
        return f"{line}: too little; set train.chunk={min(fits, images - 1)}, which gives the same gradient in less memory"


def step_memory(
    encoder: nn.Module,
    embed: Callable[[Tensor], Tensor],
    loss: Callable[[Tensor], Tensor],
    pixels: Tensor,
    *,
    images: int,
    chunk: int,
    copies: int,
) -> StepMemory:
    """Try the encoder on a few images and the loss on random embeddings, and reckon the memory of a step.

    Args:
        encoder: as it will be trained.
        embed: pixels to embeddings through ``encoder``, as in training.
        loss: embeddings [B, D] of whatever number to the loss of a batch like those of training.
        pixels: a few images, uint8 [B, C, H, W].
        images: in a batch.
        chunk: images that pass through the encoder at once.
        copies: numbers that the optimiser keeps for each weight.
    """
    weights = sum(p.numel() * p.element_size() for p in encoder.parameters())
    few = pixels[:IMAGES_TRIED]
    training = encoder.training
    with torch.random.fork_rng(devices=[]):
        buffers = [(buffer, buffer.clone()) for buffer in encoder.buffers()]
        encoder.train()
        one, z = saved_bytes(lambda: embed(few), encoder)
        for buffer, before in buffers:
            buffer.data.copy_(before)
        encoder.train(training)
        rows = min(images, _PROBE)
        at_most = _saved_by_loss(loss, rows, z)
        if rows < images:
            # From its growth between half the probe and the probe: by the batch, its square, or whatever it is.
            half = max(1, _saved_by_loss(loss, rows // 2, z))
            at_most = int(at_most * max(1.0, at_most / half) ** math.log2(images / rows))
    return StepMemory(
        weights=weights * (2 + copies),
        activations=one * chunk // len(few),
        loss=at_most + 2 * images * z.shape[1] * z.element_size(),
        free=free_bytes(z.device),
    )


def saved_bytes(run: Callable[[], Tensor], module: nn.Module | None = None) -> tuple[int, Tensor]:
    """The bytes that autograd keeps for the backward pass of ``run``, each block once and without weights, and its result."""
    own = set() if module is None else {p.untyped_storage().data_ptr() for p in module.parameters()}
    blocks: dict[int, int] = {}

    kept: list[Tensor] = []  # blocks must not be freed and used again while they are counted

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            blocks[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = run()
    return sum(blocks.values()), result.detach()


def free_bytes(device: torch.device) -> int | None:
    """Memory that is to be had on ``device``, in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


@cache
def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, for the next step, instead of giving it back to the system.

    A training step frees and takes tens of megabytes, and each page that comes anew is an interrupt that clears it: a fifth
    of the time of a step of small convolutions in float32. Only glibc is spoken to; elsewhere nothing happens.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, mmap_threshold = -1, -3  # numbers of glibc's malloc.h
    mallopt(mmap_threshold, 1 << 30)
    mallopt(trim_threshold, (1 << 31) - 1)


def mib(count: int) -> str:
    """``1234567`` as ``1.2 MiB``."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"


def _saved_by_loss(loss: Callable[[Tensor], Tensor], rows: int, like: Tensor) -> int:
    z = torch.nn.functional.normalize(torch.randn(rows, like.shape[1], dtype=like.dtype, device=like.device), dim=1)
    return saved_bytes(lambda: loss(z.requires_grad_()))[0]
