"""Images and files that the tests of this folder make."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def grey(height: int = 6, width: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


def colour(height: int = 6, width: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: Image.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def save(path: Path, image: Image.Image | np.ndarray, kind: str = "PNG", **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(image, kind, **options))
    return path


def huge_png(side: int = 50_000) -> bytes:
    """A whole PNG of some hundred bytes whose header claims side x side pixels."""

    def part(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", zlib.compress(bytes(1000))) + part(b"IEND", b"")


def class_folder(root: Path, classes: dict[str, int], *, size: int = 6, seed: int = 0) -> dict[str, np.ndarray]:
    """A sub-folder per class with so many grey images; returns the pixels by relative path."""
    made = {}
    for name, count in classes.items():
        for number in range(count):
            seed += 1
            made[f"{name}/{number}.png"] = grey(size, size, seed)
            save(root / name / f"{number}.png", made[f"{name}/{number}.png"])
    return made
