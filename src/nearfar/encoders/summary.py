"""What an encoder is made of: layers, shapes, numbers of parameters."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from nearfar.errors import InputError, reason_of


class LayerSummary(NamedTuple):
    layer: str  # place and kind, as "features.0 Conv2d"
    shape: tuple[int, ...]  # of the output for one image, without the batch
    parameters: int


def summary(encoder: nn.Module, input_shape: tuple[int, int, int]) -> list[LayerSummary]:
    """One row for each layer, in the order in which one image of ``input_shape`` (C, H, W) first passes them.

    The encoder is left as it was: run in eval mode, without gradients, and set back.

    Raises:
        InputError: the encoder does not take images of this shape.
    """
    rows: dict[str, LayerSummary] = {}  # by name: further views of the image pass the same layers again

    def note(name: str, layer: nn.Module) -> Any:
        parameters = sum(p.numel() for p in layer.parameters())

        def hook(_layer: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            row = LayerSummary(f"{name} {type(layer).__name__}".strip(), tuple(output.shape[1:]), parameters)
            rows.setdefault(name, row)

        return layer.register_forward_hook(hook)

    leaves = [
        (name, layer)
        for name, layer in encoder.named_modules()
        if not any(layer.children()) and not isinstance(layer, nn.Identity)
    ]
    modes = {layer: layer.training for layer in encoder.modules()}
    hooks = [note(name, layer) for name, layer in leaves]
    like = next(encoder.parameters(), torch.empty(0))
    try:
        with torch.no_grad():
            encoder.eval()(torch.zeros(1, *input_shape, dtype=like.dtype, device=like.device))
    except RuntimeError as error:
        raise InputError(f"the encoder does not take images of shape {tuple(input_shape)}: {reason_of(error)}") from error
    finally:
        for hook in hooks:
            hook.remove()
        for layer, training in modes.items():
            layer.training = training
    return list(rows.values())


def format_summary(rows: list[LayerSummary], input_shape: tuple[int, int, int] | None = None) -> str:
    """The rows as a table of text, with the sum of the parameters below."""
    cells = [("layer", "output shape", "parameters")]
    if input_shape is not None:
        cells.append(("input", _shape(input_shape), "0"))
    cells += [(row.layer, _shape(row.shape), f"{row.parameters:,}") for row in rows]
    cells.append(("total", "", f"{sum(row.parameters for row in rows):,}"))
    first, second, third = (max(len(cell[i]) for cell in cells) for i in range(3))
    lines = [f"{a:<{first}}  {b:>{second}}  {c:>{third}}" for a, b, c in cells]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in shape)
