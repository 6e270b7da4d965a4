"""A training state as one safetensors file: tensors by name, everything else as JSON in its header. No pickle.

Knows modules and optimisers; does not know what they are for. A checkpoint is written beside and renamed, so whenever the
process dies the last whole one is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
from torch import Tensor, nn

from nearfar.errors import InputError
from nearfar.files import write_bytes
from nearfar.tensorfile import header_of, load


class HasState(Protocol):
    """An optimiser, as a checkpoint sees it."""

    def state(self) -> dict[str, Tensor]:
        """Tensors by name."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave; KeyError where a name is missing."""


def save_tensors(path: Path | str, tensors: Mapping[str, Tensor], header: Mapping[str, Any] | None = None) -> None:
    """Write named tensors and a JSON-able header to one safetensors file, atomically."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_bytes(path, safetensors.torch.save(plain, header_of(header)))


def load_tensors(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote.

    Raises:
        InputError: the file is missing, truncated, or not safetensors.
    """
    return load(path, "pt")


def save_checkpoint(
    path: Path | str, modules: Mapping[str, nn.Module], optimizer: HasState, position: Mapping[str, Any]
) -> None:
    """Write the weights and buffers of ``modules``, the state of ``optimizer`` and ``position`` to one file."""
    tensors = {f"{part}/{name}": value for part, module in modules.items() for name, value in module.state_dict().items()}
    tensors |= {f"optimizer/{name}": value for name, value in optimizer.state().items()}
    save_tensors(path, tensors, {"position": dict(position)})


def load_checkpoint(path: Path | str, modules: Mapping[str, nn.Module], optimizer: HasState) -> dict[str, Any]:
    """Put the state that `save_checkpoint` wrote into ``modules`` and ``optimizer``; returns the position.

    Raises:
        InputError: the file is damaged, or was made by other modules than these.
    """
    tensors, header = load_tensors(path)
    for part, module in modules.items():
        own = {name.removeprefix(f"{part}/"): value for name, value in tensors.items() if name.startswith(f"{part}/")}
        load_weights(module, own, path)
    state = {name.removeprefix("optimizer/"): value for name, value in tensors.items() if name.startswith("optimizer/")}
    try:
        optimizer.load(state)
    except (KeyError, RuntimeError):
        raise InputError(f"{path} does not belong to this training: the optimiser's state is of another kind") from None
    position = header.get("position")
    if not isinstance(position, dict):
        raise InputError(f"{path} is damaged: it does not say where training stood")
    return position


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], path: Path | str) -> None:
    """Copy ``weights`` into ``module``, or make them its own where it was built without memory (on the meta device).

    Raises:
        InputError: names or shapes differ: the file belongs to another network.
    """
    expected = module.state_dict()
    if set(weights) != set(expected):
        odd = sorted(set(weights) ^ set(expected))
        raise InputError(f"{path} does not belong to this network: {len(odd)} names differ, the first is {odd[0]!r}")
    for name, value in weights.items():
        if value.shape != expected[name].shape:
            raise InputError(
                f"{path} does not belong to this network: {name} has shape {list(value.shape)}, "
                f"expected {list(expected[name].shape)}"
            )
    module.load_state_dict(dict(weights), assign=any(value.is_meta for value in expected.values()))
