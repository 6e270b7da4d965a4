"""From whatever holds images to an ``ImageSet``: readers, named sets, decoding, and a check of what is there.

The order of the house: ``readers`` find out what a path holds, as ``sources``; ``pipeline`` decodes a source into an
``ImageSet``; ``catalog`` fetches named sets; ``loading`` has the functions for users; ``checking`` looks through data without
loading it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nearfar.data.imageset import ImageSet

_HOME = {
    "DiskImages": "nearfar.data.store",
    "check": "nearfar.data.checking",
    "decode_image": "nearfar.data.decode",
    "fetch": "nearfar.data.catalog",
    "format_check": "nearfar.data.checking",
    "known_sets": "nearfar.data.catalog",
    "load_any": "nearfar.data.loading",
    "load_images": "nearfar.data.loading",
    "load_splits": "nearfar.data.loading",
}

__all__ = [
    "DiskImages",
    "ImageSet",
    "check",
    "decode_image",
    "fetch",
    "format_check",
    "known_sets",
    "load_any",
    "load_images",
    "load_splits",
]

if TYPE_CHECKING:
    from nearfar.data.catalog import fetch, known_sets
    from nearfar.data.checking import check, format_check
    from nearfar.data.decode import decode_image
    from nearfar.data.loading import load_any, load_images, load_splits
    from nearfar.data.store import DiskImages


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'nearfar.data' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
