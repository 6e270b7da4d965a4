"""Which precision an encoder trains faster in on this machine; measured once and remembered."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import math
import platform
import time
from pathlib import Path

import torch
from torch import Tensor, nn

import nearfar
import nearfar.data.cache as cache
from nearfar.errors import InputError
from nearfar.files import NOT_JSON, write_json

_TURNS, _SECONDS = 12, 0.5  # of a measurement: at most so many, and no new one after so long
_WORTH = 0.9  # share of the time of float32 below which bfloat16 is taken
_FILE = "precision.json"
_NONE = "float32: this processor does not compute in bfloat16"


def choose_precision(encoder: nn.Module, images: Tensor) -> tuple[str, str]:
    """ "float32" or "bfloat16", whichever ``encoder`` trains faster in here, and a line that says why.

    A processor that would only imitate bfloat16, ten times slower, is not put to the test.
    What was measured is kept beside the fetched data, by machine, threads, versions, encoder and batch; where
    nothing can be written it is measured anew every time.

    Args:
        encoder: as it will be trained.
        images: a batch like those of training, float [B, C, H, W].
    """
    if images.device.type == "cpu" and not has_bfloat16():
        return "float32", _NONE
    path, key = cache.cache_folder() / _FILE, _key(encoder, images)
    known = _read(path)
    times = known.get(key)
    earlier = ""
    if times is None:
        times = step_seconds(encoder, images)
        with contextlib.suppress(InputError):
            write_json(path, {**_read(path), key: times})
    else:
        earlier = ", as measured before"
    gain = times["float32"] / times["bfloat16"]
    if gain > 1 / _WORTH:
        return "bfloat16", f"bfloat16: {gain:.1f} times as fast here as float32{earlier}"
    why = f"bfloat16 would be {gain:.1f} times as fast here{earlier}"
    return "float32", f"float32: {why}"


def has_bfloat16() -> bool:
    """Whether PyTorch's convolutions have kernels for bfloat16 on this processor; yes where it cannot say."""
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # not a public name; measuring then tells
        return True


def step_seconds(encoder: nn.Module, images: Tensor) -> dict[str, float]:
    """Seconds of a step of ``encoder`` on ``images`` [B, C, H, W] in "float32" and in "bfloat16".

    Both take turns, so that other work on the machine slows both, and the fastest step of each counts.
    """
    trial = copy.deepcopy(encoder).train()
    best = {"float32": math.inf, "bfloat16": math.inf}
    begun = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        for turn in range(_TURNS):
            for precision in best:
                start = time.perf_counter()
                with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                    z = trial(images)
                z.float().square().sum().backward()
                if images.device.type == "cuda":
                    torch.cuda.synchronize()
                if turn >= 2:  # the first ones also choose kernels and fetch memory
                    best[precision] = min(best[precision], time.perf_counter() - start)
            if turn >= 4 and time.perf_counter() - begun > _SECONDS:
                break
    return best


def _key(encoder: nn.Module, images: Tensor) -> str:
    device = torch.cuda.get_device_name(images.device) if images.device.type == "cuda" else _processor()
    parts = (device, torch.get_num_threads(), torch.__version__, nearfar.__version__, tuple(images.shape), repr(encoder))
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):  # what it can do says more than its name
                return hashlib.sha256(line.encode()).hexdigest()
    return f"{platform.machine()} {platform.processor()}"


def _read(path: Path) -> dict[str, dict[str, float]]:
    """What was measured before, but for entries that are not what we write."""
    try:
        tree = json.loads(path.read_text())
    except (OSError, *NOT_JSON):
        return {}
    if not isinstance(tree, dict):
        return {}
    return {
        key: value
        for key, value in tree.items()
        if isinstance(value, dict)
        and set(value) == {"float32", "bfloat16"}
        and all(isinstance(seconds, float) and 0 < seconds < math.inf for seconds in value.values())
    }
