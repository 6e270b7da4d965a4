"""Pictures of what was added to a run's index since training: one PNG each, in ``RUN/items``, called after the id.

They are for looking, and for whoever wants the images themselves: no answer depends on them, so that a lost one is a gap
in a page and nothing more. Those of the training images stay where these are.
"""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nearfar.files import write_bytes

FOLDER = "items"
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_NAME = re.compile(r"(\d{1,19})\.png")


def write(folder: Path, ids: npt.NDArray[np.int64], images: Any) -> None:
    """Write the images uint8 [N, C, H, W] of a run under their ids [N]; in order, and before the index names them."""
    for number, image in zip(ids.tolist(), images, strict=True):
        write_bytes(folder / FOLDER / f"{number}.png", as_png(image), tidy=False)  # `sweep` looks at the folder once


def read(folder: Path, number: int) -> bytes | None:
    """The PNG of an added image, or None where there is none."""
    try:
        content = (folder / FOLDER / f"{number}.png").read_bytes()
    except OSError:
        return None
    return content if content.startswith(_SIGNATURE) else None  # a link in a stranger's run may lead to any file


def remove(folder: Path, ids: npt.NDArray[np.int64]) -> None:
    """Remove the pictures of images that the index does not name any more; those without one are passed over."""
    for number in ids.tolist():
        with contextlib.suppress(OSError):
            (folder / FOLDER / f"{number}.png").unlink()


def sweep(folder: Path, keep: npt.NDArray[np.int64]) -> None:
    """Remove what a writer that was killed left: pictures whose image never came into the index, or went."""
    if not (folder / FOLDER).is_dir():
        return
    known = set(keep.tolist())
    for path in (folder / FOLDER).iterdir():
        match = _NAME.fullmatch(path.name)
        if (match and int(match[1]) not in known) or (path.name.startswith(".") and path.name.endswith(".part")):
            with contextlib.suppress(OSError):
                path.unlink()


def as_png(image: npt.NDArray[np.uint8]) -> bytes:
    """The PNG of an image uint8 [C, H, W] with 1 or 3 channels."""
    from PIL import Image

    buffer = io.BytesIO()
    flat = image[0] if len(image) == 1 else np.ascontiguousarray(np.moveaxis(image, 0, -1))
    Image.fromarray(flat).save(buffer, format="PNG")
    return buffer.getvalue()
