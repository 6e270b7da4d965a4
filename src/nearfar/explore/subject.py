"""A run and the images to look at: those of its index, and those that it is judged by.

Knows run folders, data and pictures; nothing of maps. Where the images themselves are not to be had, only the points of the
index are shown, and ``notes`` says why.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nearfar import pictures, runs
from nearfar.answers import Gallery, trained_images, voters_of
from nearfar.calibrate import Calibration
from nearfar.data import ImageSet
from nearfar.embedder import Embedder
from nearfar.errors import InputError
from nearfar.measuring.judging import classes_of, labels_in, load_run
from nearfar.search import NeighborIndex
from nearfar.search.vectors import Metric
from nearfar.splits import Splits, load_for

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """Images beside the index."""

    split: str  # one of `nearfar.explore.store.SPLITS`
    images: ImageSet
    labels: Labels  # numbers of the subject's classes; -1 for all where they have none


@dataclass(frozen=True, eq=False)
class Subject:
    """What is looked at. The points are the rows of the index, then the images of the parts, in order."""

    folder: Path
    config: dict[str, Any]
    model: Embedder
    index: NeighborIndex
    classes: list[str]  # those of the index, then those that only the parts have
    parts: list[Part]
    training: ImageSet | None  # image i is that of the row with id i; None where they are not to be had
    notes: list[str]

    @cached_property
    def labels(self) -> Labels:
        """Of the rows of the index [M], numbers of ``classes``; -1 where they have none."""
        return np.asarray(self.index.labels, dtype=np.int64)

    @property
    def metric(self) -> Metric:
        """What near and far mean."""
        return self.model.recipe_.evaluate.metric

    @cached_property
    def trained(self) -> int:
        """Rows of the index with ids below this are training images."""
        return trained_images(self.config, self.index)

    @cached_property
    def voters(self) -> tuple[Gallery, Calibration] | None:
        """What `nearfar.answers.voters_of` says of the index."""
        return voters_of(self.folder, self.index, self.model.recipe_.evaluate, self.trained)

    def picture(self, point: int) -> bytes | None:
        """The PNG of a point, or None where its image is not to be had."""
        found = self._image(point)
        return found if found is None or isinstance(found, bytes) else pictures.as_png(found)

    def names(self) -> Iterator[str]:
        """What the images are called, as text that any file can hold."""
        for name in self.index.names["images"]:
            yield _plain(name)
        for part in self.parts:
            yield from map(_plain, part.images.ids.tolist())

    def _image(self, point: int) -> npt.NDArray[np.uint8] | bytes | None:
        if point < len(self.index):
            number = int(self.index.ids[point])
            if number >= self.trained:
                return pictures.read(self.folder, number)
            return None if self.training is None else np.asarray(self.training.images[number : number + 1][0])
        point -= len(self.index)
        for part in self.parts:
            if point < len(part.images):
                return np.asarray(part.images.images[point : point + 1][0])
            point -= len(part.images)
        return None


def open_subject(run: str | Path, *, device: str = "auto", skip_bad: bool = False) -> Subject:
    """Load a run and the images to look at.

    Raises:
        InputError: the run cannot be used, or its index has one image only.
    """
    folder = Path(run)
    model, index = load_run(folder, device=device)
    if len(index) < 2:
        raise InputError(f"the index of {folder} holds one image, and there are no neighbours to look at; add some")
    config = runs.read_config(folder)
    classes, notes = classes_of(model, index), []
    splits = None
    try:
        splits = _splits(config, model, skip_bad)
    except InputError as reason:
        notes.append(f"there are no pictures, and no test images: {reason}")
    parts, training = [], None
    if splits is not None:
        training = _training(splits, config, index)
        if training is None:
            notes.append("there are no pictures of the training images: they have changed since the run was made")
        for split, images in _held(splits):
            labels = np.full(len(images), -1) if images.labels is None else labels_in(images, classes)
            classes = [*classes, *(one for one in images.classes if one not in classes)]
            parts.append(Part(split, images, labels))
    return Subject(folder, config, model, index, classes, parts, training, notes)


def _splits(config: dict[str, Any], model: Embedder, skip_bad: bool) -> Splits:
    source = config["data"].get("source")
    if source is None:
        raise InputError("the run does not say what it was trained on")
    return load_for(source, model.recipe_.data, seed=config["seed"], skip_bad=skip_bad)


def _held(splits: Splits) -> Iterator[tuple[str, ImageSet]]:
    """The images that the run is judged by, and those of classes that were kept apart."""
    if splits.test is not None:
        yield "test", splits.test
    elif splits.validation is not None:
        yield "validation", splits.validation
    if splits.unseen is not None:
        yield "unseen", splits.unseen


def _training(splits: Splits, config: dict[str, Any], index: NeighborIndex) -> ImageSet | None:
    """The training images, if they still are those that the index was made from."""
    images, noted = splits.train, config["data"].get("train", {})
    trained = trained_images(config, index)
    if len(images) != trained or images.fingerprint() != noted.get("sha256"):
        return None
    names = images.ids.tolist()
    rows = np.flatnonzero(index.ids < trained).tolist()
    there = index.names["images"]
    return images if all(there[row] == names[index.ids[row]] for row in rows) else None


def _plain(name: str) -> str:
    return name.encode("utf-8", "replace").decode()
