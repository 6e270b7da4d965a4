"""Shards of images, in each form that is read, and a run that embeds them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from samples import TINY, shapes

from nearfar import verbs
from nearfar.data import ImageSet
from nearfar.embedding import Embeddings
from nearfar.recipe import Recipe


def train_tiny(folder: Path, seed: int = 0) -> Path:
    verbs.train(shapes(60), recipe=Recipe.from_dict(TINY), out=folder, epochs=1, seed=seed)
    return folder


def png(image: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image[0]).save(file, "PNG", compress_level=1)
    return file.getvalue()


def write_parquet(path: Path, images: ImageSet, *, group: int = 40, names: bool = True) -> Path:
    """The images with their class names, in row groups of ``group``."""
    structs = [
        {"bytes": png(image), "path": f"{path.stem}/{row}.png" if names else None} for row, image in enumerate(images.images)
    ]
    labels = [images.classes[number] for number in images.require_labels()]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": structs, "label": labels}), path, row_group_size=group)
    return path


def write_tar(path: Path, samples: list[Mapping[str, bytes]]) -> Path:
    """Samples by suffix: ``{".png": ..., ".cls": ...}``, called 000000, 000001, ..."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for number, sample in enumerate(samples):
            for suffix, content in sample.items():
                member = tarfile.TarInfo(f"{number:06d}{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def labelled_tar(path: Path, images: ImageSet) -> Path:
    """Each image with its class and a text."""
    labels = [images.classes[number] for number in images.require_labels()]
    return write_tar(
        path,
        [
            {".png": png(image), ".cls": label.encode(), ".txt": f"bar {label}".encode()}
            for image, label in zip(images.images, labels, strict=True)
        ],
    )


def write_folder(root: Path, images: ImageSet) -> Path:
    """One sub-folder a class."""
    for row, (image, label) in enumerate(zip(images.images, images.require_labels(), strict=True)):
        path = root / images.classes[label] / f"{row:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(image))
    return root


def everything(folder: Path) -> tuple[np.ndarray[Any, Any], list[str], list[str | None]]:
    """Vectors, ids and labels of a folder of embeddings."""
    found = Embeddings(folder)
    found.verify()
    batches = list(found.batches())
    return (
        np.concatenate([z for z, _, _ in batches]),
        [name for _, ids, _ in batches for name in ids],
        [label for _, _, labels in batches for label in labels],
    )


def parts_of(folder: Path) -> dict[str, bytes]:
    """The bytes of each part."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("part-*.parquet"))}


def manifest(folder: Path) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return tree
