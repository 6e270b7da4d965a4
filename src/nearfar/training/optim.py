"""The step's arithmetic: Adam and SGD, learning rates, averaged weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from nearfar.recipe import TrainSection


class Optimizer:
    """Adam, AdamW or SGD by PyTorch's fused kernels: one call a step for all weights, and nothing around it.

    ``torch.optim`` gives the same weights, bit for bit, but imports PyTorch's compiler when the first one is made, which
    takes a second, and looks up each weight's state by name in every step, which for small networks is a tenth of it.

    Args:
        section: kind, rates and decays.
        parameters: the weights; their gradients are read from ``grad``, and a weight without one stays as it is.
    """

    def __init__(self, section: TrainSection, parameters: list[nn.Parameter]) -> None:
        self.section, self.parameters = section, parameters
        self.rate = section.learning_rate
        self.adam = section.optimizer != "sgd"
        names = ("exp_avg", "exp_avg_sq") if self.adam else ("momentum",) if section.momentum else ()
        self.moments = {name: [torch.zeros_like(p) for p in parameters] for name in names}
        self.count = torch.zeros(len(parameters) if self.adam else 0, device=parameters[0].device)  # steps, for each weight
        self.counts = list(self.count.unbind())  # views of it, which the kernels want

    def forget_gradients(self) -> None:
        """Before a backward pass."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Move every weight that has a gradient by ``rate``."""
        there = [place for place, parameter in enumerate(self.parameters) if parameter.grad is not None]
        if not there:
            return

        def pick(values: Sequence[Tensor]) -> list[Tensor]:
            return list(values) if len(there) == len(values) else [values[place] for place in there]

        weights = pick(self.parameters)
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        moments = [pick(moment) for moment in self.moments.values()]
        decay = self.section.weight_decay
        if self.adam:
            counts = pick(self.counts)
            if len(there) == len(self.counts):
                self.count.add_(1)
            else:
                torch._foreach_add_(counts, 1)
            kernel = torch._fused_adam_ if self.section.optimizer == "adam" else torch._fused_adamw_
            kernel(
                weights,
                gradients,
                moments[0],
                moments[1],
                [],
                counts,
                lr=self.rate,
                beta1=0.9,
                beta2=self.section.beta2,
                weight_decay=decay,
                eps=1e-8,
                amsgrad=False,
                maximize=False,
            )
            return
        torch._fused_sgd_(
            weights,
            gradients,
            moments[0] if moments else [],
            lr=self.rate,
            momentum=self.section.momentum,
            weight_decay=decay,
            nesterov=self.section.momentum > 0,
            dampening=0.0,
            is_first_step=False,  # the first differs only where momentum does not begin at zero, or is dampened
            maximize=False,
        )

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on besides weights and gradients, by name."""
        lists = {**self.moments, "step": self.counts}
        return {f"{place}/{name}": value for name, values in lists.items() for place, value in enumerate(values)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave.

        Raises:
            KeyError: a name is missing.
        """
        for name, own in self.state().items():
            own.copy_(state[name])  # in the memory that is there: the kernels walk a weight and its moments in step


def learning_rate(section: TrainSection, epoch: int, step: int, total: int) -> float:
    """The rate in ``step`` of ``total``, counted over the whole run, in ``epoch``; both from 0."""
    top = section.learning_rate
    if section.schedule == "step":
        return top * section.factor ** (epoch // section.step_epochs)
    if section.schedule == "exponential":
        return top * section.factor ** (epoch / section.epochs)
    if section.schedule == "one-cycle":
        last = max(1, total - 1)
        rise = section.warmup * last
        if step < rise:
            return top * (section.start_factor + (1 - section.start_factor) * step / rise)
        fall = (step - rise) / max(1.0, last - rise)
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
