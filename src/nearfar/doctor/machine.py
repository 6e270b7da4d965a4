"""What this machine has, and what would make it faster. Looks, and changes nothing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
from pathlib import Path
from typing import Any

import torch

import nearfar
import nearfar.data.cache as cache
from nearfar.cores import cores
from nearfar.memory import free_bytes
from nearfar.training.precision import has_bfloat16

EXTRAS = {
    "ann": "usearch",
    "annoy": "annoy",
    "explore": "plotly",
    "hub": "huggingface_hub",
    "milvus": "pymilvus",
    "onnx": "onnxruntime",
    "project": "openTSNE",
    "ray": "ray",
    "serve": "fastapi",
    "timm": "timm",
    "tracking": "tensorboard",
}
"""Extras of nearfar, and a module that each brings."""
_PACKAGES = ("torch", "numpy", "scikit-learn", "pyarrow", "Pillow", "safetensors")
_LITTLE = 2 * 2**30  # bytes of memory or disk below which it is said


def machine() -> dict[str, Any]:
    """Facts: cores, threads, instruction sets, GPUs, memory and disk in bytes, versions, extras, the data cache."""
    folder = cache.cache_folder()
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "bfloat16": has_bfloat16(),
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        "memory_free": free_bytes(torch.device("cpu")),
        "disk_free": shutil.disk_usage(_existing(folder)).free,
        "versions": {"nearfar": nearfar.__version__, "python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _PACKAGES},
        "extras": {name: importlib.util.find_spec(module) is not None for name, module in EXTRAS.items()},
        "cache": {"folder": str(folder), "bytes": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())},
    }


def advice(found: dict[str, Any]) -> list[str]:
    """What would make it faster, or fail later; one sentence each.

    Args:
        found: what `machine` returned.
    """
    said = []
    if found["threads"] < found["cores"]:
        said.append(
            f"PyTorch computes with {found['threads']} of {found['cores']} cores; unset OMP_NUM_THREADS and MKL_NUM_THREADS, "
            f"or train with --processes {found['cores'] // found['threads']}"
        )
    if not found["gpus"]:
        said.append("no GPU that PyTorch can use: small images train well without, large encoders do not")
    if not found["bfloat16"]:
        said.append("the processor has no bfloat16, so train.precision=auto stays with float32")
    if found["memory_free"] is not None and found["memory_free"] < _LITTLE:
        said.append("less than 2 GiB of memory are free; set train.chunk for large batches")
    if found["disk_free"] < _LITTLE:
        said.append(f"less than 2 GiB of disk are free at {found['cache']['folder']}; point NEARFAR_DATA elsewhere")
    return said


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(one for one in (folder, *folder.resolve().parents) if one.exists())
