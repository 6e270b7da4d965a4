"""One safetensors file: arrays by name, and a JSON object in its header. No pickle, and no PyTorch unless it is asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from nearfar.errors import InputError, reason_of
from nearfar.files import NOT_JSON, write_bytes

Arrays = dict[str, npt.NDArray[Any]]


def header_of(header: Mapping[str, Any] | None) -> dict[str, str]:
    """What safetensors keeps of ``header``."""
    # One entry only: safetensors writes several in random order, and equal models should be equal files.
    return {"format": "pt"} if header is None else {"nearfar": json.dumps(dict(header), allow_nan=False)}


def save_arrays(path: Path | str, arrays: Mapping[str, npt.NDArray[Any]], header: Mapping[str, Any]) -> None:
    """Write named arrays and a JSON-able header to one safetensors file, atomically."""
    write_bytes(
        path, safetensors.numpy.save({name: np.ascontiguousarray(one) for name, one in arrays.items()}, header_of(header))
    )


def load_arrays(path: Path | str) -> tuple[Arrays, dict[str, Any]]:
    """Read what `save_arrays` wrote, or `nearfar.training.checkpoint.save_tensors`.

    Raises:
        InputError: the file is missing, truncated, not safetensors, or holds a type that NumPy lacks.
    """
    return load(path, "np")


def load(path: Path | str, framework: Literal["np", "pt"]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors by name, as arrays ("np") or tensors ("pt"), and the header.

    Raises:
        InputError: the file is missing, truncated, or not safetensors.
    """
    try:
        with safetensors.safe_open(str(path), framework=framework) as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - an open file has keys, but cannot be iterated
        header = json.loads(metadata.get("nearfar", "{}"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except (safetensors.SafetensorError, *NOT_JSON, OSError, TypeError) as error:
        raise InputError(f"{path} is damaged: {reason_of(error)}") from None
    if not isinstance(header, dict):
        raise InputError(f"{path} is damaged: its header is not a JSON object")
    return tensors, header
