"""The step's arithmetic: optimisers, learning rates, averaged weights, and which precision is faster here."""

from __future__ import annotations

import copy
import math
import time

import torch
from torch import Tensor, nn

from nearfar.recipe import TrainSection


def build_optimizer(section: TrainSection, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The recipe's optimiser, in its fused form."""
    rate, decay = section.learning_rate, section.weight_decay
    if section.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, rate, momentum=section.momentum, weight_decay=decay, nesterov=section.momentum > 0, fused=True
        )
    kind = torch.optim.Adam if section.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, rate, betas=(0.9, section.beta2), weight_decay=decay, fused=True)


def learning_rate(section: TrainSection, epoch: int, step: int, steps: int) -> float:
    """The rate in ``step`` (counted over the whole run) of ``epoch``, both from 0, with ``steps`` in an epoch."""
    top = section.learning_rate
    if section.schedule == "step":
        return top * section.factor ** (epoch // section.step_epochs)
    if section.schedule == "exponential":
        return top * section.factor ** (epoch / section.epochs)
    if section.schedule == "one-cycle":
        total = max(1, section.epochs * steps - 1)
        rise = section.warmup * total
        if step < rise:
            return top * (section.start_factor + (1 - section.start_factor) * step / rise)
        fall = (step - rise) / max(1.0, total - rise)
        return top * (section.final_factor + (1 - section.final_factor) * (1 + math.cos(math.pi * fall)) / 2)
    return top


@torch.no_grad()
def update_average(average: nn.Module, encoder: nn.Module, decay: float) -> None:
    """Move the averaged weights and statistics towards the encoder's: a <- decay * a + (1 - decay) * w."""
    old, new = list(average.state_dict().values()), list(encoder.state_dict().values())
    floating = [i for i, value in enumerate(old) if value.is_floating_point()]
    torch._foreach_lerp_([old[i] for i in floating], [new[i] for i in floating], 1 - decay)
    for mine, other in zip(old, new, strict=True):
        if not mine.is_floating_point():
            mine.copy_(other)


def fastest_precision(encoder: nn.Module, images: Tensor) -> str:
    """Whether steps of ``encoder`` on ``images`` [B, C, H, W] are faster here in "float32" or "bfloat16"; measured."""
    trial = copy.deepcopy(encoder).train()
    best = {}
    with torch.random.fork_rng(devices=[]):
        for precision in ("float32", "bfloat16"):
            times = []
            for _ in range(4):
                start = time.perf_counter()
                with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                    z = trial(images)
                z.float().square().sum().backward()
                if images.device.type == "cuda":
                    torch.cuda.synchronize()
                times.append(time.perf_counter() - start)
            best[precision] = min(times[1:])
    return "bfloat16" if best["bfloat16"] < 0.85 * best["float32"] else "float32"
