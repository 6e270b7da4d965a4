"""Which images are for what: training, validation, test, and classes kept apart.

Test images and unseen classes are cut by a fixed seed, so that every run on the same data is judged on the same images;
validation rows are cut by the run's seed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nearfar.data import ImageSet, load_splits
from nearfar.errors import InputError, did_you_mean
from nearfar.recipe import DataSection
from nearfar.sampling import split_classes, split_validation, subset_stratified

FIXED_SEED = 0
How = Literal["random", "stratified", "first", "last"]


@dataclass(frozen=True)
class Splits:
    """The parts of one data set; those that do not exist are None."""

    train: ImageSet
    validation: ImageSet | None
    test: ImageSet | None
    unseen: ImageSet | None  # images of classes that training never sees

    def parts(self) -> dict[str, ImageSet]:
        """The parts that there are, by name, in the order of their use."""
        named = {"train": self.train, "validation": self.validation, "test": self.test, "unseen": self.unseen}
        return {name: part for name, part in named.items() if part is not None}


def load_for(source: str | Path | ImageSet, section: DataSection, *, seed: int, skip_bad: bool = False) -> Splits:
    """Read ``source`` as the recipe's data section asks, and cut it into parts.

    Raises:
        InputError: the source cannot be read, or has too few images or classes for what the section asks.
    """
    parts = load_splits(source, size=section.size, channels=section.channels, background=section.background, skip_bad=skip_bad)
    return cut(parts, section, seed=seed)


def cut(parts: Mapping[str, ImageSet], section: DataSection, *, seed: int) -> Splits:
    """Cut the splits that the data brings, ``train`` and perhaps ``test`` and ``validation``, as the section asks."""
    if "train" not in parts:
        raise InputError(f"the data has no training images, only {', '.join(parts)}; add a split named train")
    train, test, validation = parts["train"], parts.get("test"), parts.get("validation")
    unseen = None
    if section.unseen:
        apart = _unseen_classes(train, section.unseen)
        unseen = _only(train, apart)
        train = _only(train, apart, keep=False)
        if test is not None:
            unseen = concatenate(unseen, _only(test, apart))
            test = _only(test, apart, keep=False)
        if validation is not None:
            validation = _only(validation, apart, keep=False)
    if section.rows is not None:
        train = train.subset(np.arange(min(section.rows, len(train))))
    if test is None and section.test:
        rest, held = split_validation(
            train.labels, len(train), size=section.test, how=_how(train, "stratified"), seed=FIXED_SEED
        )
        test, train = train.subset(held), train.subset(rest)
    if section.validation and validation is None:
        size = section.validation if section.validation < 1 else int(section.validation)
        rest, held = split_validation(train.labels, len(train), size=size, how=_how(train, section.validation_from), seed=seed)
        validation, train = train.subset(held), train.subset(rest)
    if section.fraction < 1:
        if train.labels is None:
            rows = np.sort(np.random.default_rng(seed).permutation(len(train))[: max(1, round(section.fraction * len(train)))])
        else:
            rows = subset_stratified(train.labels, size=section.fraction, seed=seed)
        train = train.subset(rows)
    return Splits(train=train, validation=validation, test=test, unseen=unseen)


def parse_unseen(text: str) -> float | tuple[str, ...]:
    """Read "0.3", a share of the classes, or "7,8,9", their names with commas between them.

    A class that is called like a share, or has a comma in its name, is named in the recipe: ``data.unseen = ["0.3"]``.

    Raises:
        InputError: there is no name in it.
    """
    with contextlib.suppress(ValueError):
        if 0 < (share := float(text)) < 1:
            return share
    names = tuple(name for part in text.split(",") if (name := part.strip()))
    if not names:
        raise InputError(f"unseen is {text!r}; expected names of classes with commas between them, or a share such as 0.3")
    return names


def concatenate(first: ImageSet, second: ImageSet) -> ImageSet:
    """Both sets' images, first ones first; they must have the same classes and image shape."""
    labels = None
    if first.labels is not None and second.labels is not None:
        labels = np.concatenate([first.labels, second.labels])
    ids = np.concatenate([[f"train/{name}" for name in first.ids], [f"test/{name}" for name in second.ids]])
    images = np.concatenate([first.images[np.arange(len(first))], second.images[np.arange(len(second))]])
    texts = None if first.texts is None or second.texts is None else (*first.texts, *second.texts)
    return ImageSet(images=images, labels=labels, classes=first.classes, ids=ids, name=first.name, texts=texts)  # type: ignore[arg-type]  # put into form there


def describe(part: ImageSet) -> dict[str, Any]:
    """What is written down of a part: its size and the hash of its images and labels."""
    return {"images": len(part), "classes": len(present_classes(part)), "sha256": part.fingerprint()}


def present_classes(part: ImageSet) -> np.ndarray:
    """Numbers of the classes that ``part`` has images of, sorted, [P] int64."""
    if part.labels is None:
        return np.empty(0, dtype=np.int64)
    return np.unique(part.labels[part.labels >= 0])


def _how(train: ImageSet, how: How) -> How:
    return "random" if how == "stratified" and train.labels is None else how


def _unseen_classes(train: ImageSet, unseen: float | Sequence[str]) -> np.ndarray:
    if train.labels is None:
        raise InputError("data.unseen keeps classes from training, but the data has no labels")
    if isinstance(unseen, float):
        _, rows = split_classes(train.labels, unseen=unseen, seed=FIXED_SEED)
        return np.unique(train.labels[rows])
    numbers = {name: number for number, name in enumerate(train.classes)}
    for name in unseen:
        if name not in numbers:
            raise InputError(f"data.unseen names the class {name!r}, which the data lacks{did_you_mean(name, numbers)}")
    apart = np.array(sorted({numbers[name] for name in unseen}), dtype=np.int64)
    if len(rest := np.setdiff1d(present_classes(train), apart)) < 2:
        left = f"only {train.classes[rest[0]]!r}" if len(rest) else "no class"
        raise InputError(f"data.unseen leaves {left} to train on, and training needs two classes; name fewer")
    return apart


def _only(part: ImageSet, classes: np.ndarray, *, keep: bool = True) -> ImageSet:
    assert part.labels is not None
    rows = np.flatnonzero(np.isin(part.labels, classes) == keep)
    if len(rows) == 0 and not keep:
        raise InputError("data.unseen leaves no class to train on; name fewer classes")
    return part.subset(rows)
