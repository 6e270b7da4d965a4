"""A finished run, opened: its model, by PyTorch or as an ONNX file, and its index; and how images must be read for it.

PyTorch is imported only where the model is PyTorch's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, overload

import numpy as np
import numpy.typing as npt

from nearfar import runs
from nearfar.data import ImageSet
from nearfar.errors import InputError
from nearfar.heads import Head
from nearfar.recipe import Recipe
from nearfar.search import NeighborIndex

if TYPE_CHECKING:
    from nearfar.embedder import Embedder

Labels = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

ONNX = ".onnx"


class Model(Protocol):
    """What turns images into vectors: a `nearfar.Embedder`, or a `nearfar.onnxmodel.OnnxEmbedder`.

    Attributes:
        recipe_: the resolved `Recipe`.
        classes_: names of the classes that it was trained on.
        channels_, size_: of the images that it takes; others are converted and resized.
        head_: the linear classifier on top, or None.
    """

    recipe_: Recipe
    classes_: tuple[str, ...]
    channels_: int
    size_: tuple[int, int]
    head_: Head | None

    def transform(self, X: ImageSet | npt.ArrayLike) -> Floats:
        """Embed images: float32 [N, D], unit rows where the recipe says so.

        Raises:
            InputError: the images cannot be brought to its size and channels.
        """

    def conform(self, X: ImageSet | npt.ArrayLike) -> ImageSet:
        """Images brought to the size and channels that it takes."""

    def embed_block(self, pixels: npt.NDArray[np.uint8]) -> Floats:
        """Embed uint8 [N, C, H, W], of its own size and channels: float32 [N, D].

        Raises:
            InputError: another shape or type.
        """


@overload
def load_run(folder: Path, *, device: str = "auto", onnx: None = None) -> tuple[Embedder, NeighborIndex]: ...
@overload
def load_run(folder: Path, *, device: str = "auto", onnx: Path | None, threads: int = ...) -> tuple[Model, NeighborIndex]: ...
def load_run(folder: Path, *, device: str = "auto", onnx: Path | None = None, threads: int = 1) -> tuple[Model, NeighborIndex]:
    """The model and the index of a finished run; arguments as for `load_model`.

    Raises:
        InputError: a part is missing or damaged, or the index or the ONNX file was made by another model.
    """
    model = load_model(folder, device=device, onnx=onnx, threads=threads)
    return model, load_index(folder, runs.read_config(folder), model.classes_)


def load_model(folder: Path, *, device: str = "auto", onnx: Path | None = None, threads: int = 1) -> Model:
    """The model of a finished run.

    Args:
        folder: the run.
        device: where PyTorch computes: "auto", "cpu" or "cuda".
        onnx: the run's model as `nearfar.export.onnx` wrote it, to be used in place of the folder's own; PyTorch is then not
            imported.
        threads: that onnxruntime computes with.

    Raises:
        InputError: a part is missing or damaged, or the ONNX file was made from another model.
    """
    if onnx is None:
        from nearfar.embedder import Embedder

        return Embedder.load(folder, device=device)
    from nearfar.onnxmodel import OnnxEmbedder

    config = runs.read_finished(folder)
    model = OnnxEmbedder.load(onnx, expect_model_hash=config["model"]["sha256"], threads=threads)
    model.head_ = runs.head_of(folder, config)
    return model


def load_index(
    folder: Path, config: Mapping[str, Any], classes: Sequence[str], *, mapped: bool = True, path: Path | None = None
) -> NeighborIndex:
    """The index of a finished run, or another one that its model made.

    Args:
        folder: the run.
        config: of the run.
        classes: of the run's model.
        mapped: False reads the vectors into memory, so that nothing done to the files later reaches them.
        path: of an index with classes of its own (`nearfar.embedding.build_index`); None: that in the folder.

    Raises:
        InputError: it is missing or damaged, or was made by another model.
    """
    own, path = path is None, folder / runs.INDEX if path is None else path
    index = NeighborIndex.load(path, expect_model_hash=config["model"]["sha256"], mapped=mapped)
    if index.labels is None or len(index.names.get("images", [])) != len(index):
        raise InputError(f"{path} is damaged: it lacks labels or names of images; {'train' if own else 'build it'} again")
    named = list(index.names.get("classes", classes))
    if np.asarray(index.labels).max() >= len(named) or (own and tuple(named[: len(classes)]) != tuple(classes)):
        raise InputError(f"{path} does not belong to {folder}: it has classes that the run lacks")
    return index


def open_model(path: Path, *, device: str = "auto") -> Model:
    """The model of a run folder, or of an ONNX file, which needs no folder.

    Raises:
        InputError: it is neither, or a part is missing or damaged.
    """
    if path.suffix == ONNX:
        from nearfar.onnxmodel import OnnxEmbedder

        return OnnxEmbedder.load(path)
    from nearfar.embedder import Embedder

    return Embedder.load(path, device=device)


def classes_of(model: Model, index: NeighborIndex) -> list[str]:
    """Names of the classes that labels of the index number: those of training, then those that were added to the index."""
    return list(index.names.get("classes", model.classes_))


def shape_of(model: Model) -> dict[str, Any]:
    """How images must be read for this model."""
    return {
        "size": model.size_,
        "channels": model.channels_,
        "background": model.recipe_.data.background,
    }


def labels_in(images: ImageSet, classes: Sequence[str]) -> Labels:
    """Labels as numbers of ``classes``, followed by those classes of the images that are not among them."""
    place = {name: number for number, name in enumerate(classes)}
    for name in images.classes:
        place.setdefault(name, len(place))
    return np.array([place[name] for name in images.classes], dtype=np.int64)[images.require_labels()]
