"""Muon: steps for matrices whose singular values are all about one; what is not a matrix goes by Adam."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from nearfar.recipe import TrainSection
from nearfar.training.optim import Optimizer

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic that Jordan et al. (2024) iterate
_ITERATIONS = 3


class Muon:
    """Momentum made orthogonal (Jordan et al. 2024) for linear layers and convolutions, Adam for all other parameters.

    Every direction of a matrix moves by about ``rate``, however small its gradient, so that far fewer steps do; a matrix
    with more rows than columns moves by sqrt(rows / columns) times that. Kernels [O, C, H, W] are taken as [O, C * H * W].

    Args:
        section: ``learning_rate`` of the matrices and ``vector_rate`` of the rest, both under one schedule; momentum; decay.
        matrices: parameters of two dimensions and more, of any layout in memory.
        others: all other parameters.
    """

    def __init__(self, section: TrainSection, matrices: Sequence[nn.Parameter], others: Sequence[nn.Parameter]) -> None:
        self.section, self.matrices = section, list(matrices)
        self.rate = section.learning_rate
        self.momentum = [torch.zeros_like(parameter) for parameter in self.matrices]
        slow = dataclasses.replace(section, optimizer="adam", learning_rate=section.vector_rate, weight_decay=0.0)
        self.adam = Optimizer(slow, list(others)) if others else None

    def forget_gradients(self) -> None:
        """Before a backward pass."""
        for parameter in self.matrices:
            parameter.grad = None
        if self.adam is not None:
            self.adam.forget_gradients()

    @torch.no_grad()
    def step(self) -> None:
        """Move every weight that has a gradient."""
        there = [place for place, parameter in enumerate(self.matrices) if parameter.grad is not None]
        if there:
            weights: list[Tensor] = [self.matrices[place] for place in there]
            momentum = [self.momentum[place] for place in there]
            gradients: list[Tensor] = [weight.grad for weight in weights if weight.grad is not None]
            torch._foreach_mul_(momentum, self.section.momentum)
            torch._foreach_add_(momentum, gradients)
            ahead = torch._foreach_add(gradients, momentum, alpha=self.section.momentum)  # Nesterov's
            if self.section.weight_decay:
                torch._foreach_mul_(weights, 1 - self.rate * self.section.weight_decay)
            for weight, step in zip(weights, ahead, strict=True):
                rows, columns = len(weight), weight[0].numel()
                tall = max(1.0, rows / columns) ** 0.5
                weight.add_(orthogonal(step), alpha=-self.rate * tall)
        if self.adam is not None:
            self.adam.rate = self.rate / self.section.learning_rate * self.section.vector_rate
            self.adam.step()

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on besides weights and gradients, by name."""
        own = {f"matrix/{place}/momentum": value for place, value in enumerate(self.momentum)}
        return own | ({} if self.adam is None else self.adam.state())

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave.

        Raises:
            KeyError: a name is missing.
        """
        for name, own in self.state().items():
            own.copy_(state[name])


def orthogonal(step: Tensor) -> Tensor:
    """``step`` [O, ...] with its rows taken as vectors and its singular values brought to about one; the same shape and layout.

    By Newton-Schulz iterations of the quintic of Jordan et al. (2024): singular values that are not tiny against the
    Frobenius norm end between 0.7 and 1.2. The iterates are polynomials of the smaller Gram matrix times ``step``, so all
    but the first and the last product are of that small size.
    """
    innermost = step.ndim == 4 and step.is_contiguous(memory_format=torch.channels_last)
    matrix = (step.permute(0, 2, 3, 1) if innermost else step).reshape(len(step), -1)
    wide = matrix.T if len(matrix) > matrix.shape[1] else matrix
    gram = wide @ wide.T
    size = gram.diagonal().sum().sqrt().clamp_min(1e-15)
    gram = gram / size.square()
    one, three, five = _COEFFICIENTS
    product: Tensor | None = None
    for left in reversed(range(_ITERATIONS)):
        factor = torch.addmm(gram, gram, gram, beta=three, alpha=five)
        factor.diagonal().add_(one)
        product = factor if product is None else factor @ product
        if left:
            gram = factor @ gram @ factor
    assert product is not None
    result = product.mul_(1 / size) @ wide
    result = result.T if wide is not matrix else result
    if innermost:
        batch, channels, height, width = step.shape
        return result.reshape(batch, height, width, channels).permute(0, 3, 1, 2)
    return result.reshape(step.shape)
