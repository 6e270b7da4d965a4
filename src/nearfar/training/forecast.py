"""What a training step will need, said before the first one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nearfar.losses import Loss
from nearfar.memory import step_memory
from nearfar.recipe import Recipe

_ABOUT = 16  # images; to a multiple of it a number is rounded that differs from batch to batch


def images_at_once(recipe: Recipe, images: int, processes: int) -> int:
    """How many of a batch of ``images`` pass through the encoder of one process together.

    Of linked pairs a batch is of about so many; rounded up, so that what is measured with one serves all, and all seeds.
    """
    if recipe.sampling.linked > 1:
        images = -(-images // _ABOUT) * _ABOUT
    return -(-min(recipe.train.chunk or images, images) // processes)


def memory_line(
    recipe: Recipe,
    encoder: nn.Module,
    loss: Loss,
    forward: Callable[[Tensor], Tensor],
    pixels: Tensor,
    images: int,
    classes: int,
    processes: int,
) -> str:
    """What a step will need, in one line."""

    def compare(z: Tensor) -> Tensor:
        places = torch.arange(len(z) // (2 if recipe.sampling.kind == "pairs" else 1), device=z.device)
        if recipe.sampling.kind == "views":
            return loss(z, places // recipe.sampling.views)
        if recipe.sampling.kind == "pairs":
            value: Tensor = loss.pairs(*z[: 2 * len(places)].chunk(2), places % 2 == 0)  # type: ignore[operator]  # takes_pairs was checked
            return value
        return loss(z, places % classes)

    chunk = images_at_once(recipe, images, processes)
    copies = 1 if recipe.train.optimizer == "sgd" else 2
    memory = step_memory(encoder, forward, compare, pixels, images=images, chunk=chunk, copies=copies)
    return memory.describe(images, chunk, processes)
