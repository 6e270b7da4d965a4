"""torchvision beside PyTorch's CPU build, for packages that import it: nearfar itself has no use for it.

Its wheels for Linux are built for CUDA. Beside the CPU build their compiled part does not load, and the import ends at the
first of its operators that is described and not there. Nothing here calls any: they are named, and the import goes on.
"""

from __future__ import annotations

import importlib
import importlib.util

import torch

_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_kept: list[torch.library.Library] = []  # what is named goes with the object that named it


def make_importable() -> None:
    """Import torchvision where it is installed, so that packages which import it can be imported.

    Raises:
        RuntimeError, ImportError, OSError: it does not suit PyTorch in some other way.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error) or _kept:
            raise
        library = torch.library.Library("torchvision", "FRAGMENT")
        for one in _OPERATORS:
            library.define(one)
        _kept.append(library)
        importlib.import_module("torchvision")
