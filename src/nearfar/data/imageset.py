"""A set of images: pixels, labels, captions, class names and ids. It knows no files and no networks."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from nearfar.data.store import DiskImages, as_rows
from nearfar.data.texts import Texts, as_texts, texts_of_classes
from nearfar.errors import InputError

Images = npt.NDArray[np.uint8] | DiskImages
Ids = npt.NDArray[Any]

_SLICE_BYTES = 16 << 20


@dataclass(frozen=True, eq=False, repr=False)
class ImageSet:
    """Images with what is known of them; the form in which every stage takes data.

    Attributes:
        images: uint8 [N, C, H, W], in memory or on disk; ``images[rows]`` is an array either way.
        labels: int64 [N], positions in ``classes``; None where the set is unlabelled.
        classes: names of the classes; with labels but no names given, the numbers from 0 to the largest label. A class without
            an image is fine.
        ids: [N] unique texts (NumPy's variable-length ``StringDType``): relative path or row number; default: row numbers.
        name: what messages and reports call the set.
        skipped: one line for each file that was left out because it could not be read.
        texts: the captions of each image, [N] tuples, () for an image that has none; None where the set has no captions.
            Blanks around captions, and empty captions, are left out.

    Raises:
        InputError: shapes, types or lengths do not fit together.
    """

    images: Images
    labels: npt.NDArray[np.int64] | None = None
    classes: tuple[str, ...] = ()
    ids: Ids = field(default=None)  # type: ignore[arg-type]  # None becomes row numbers in __post_init__, never seen outside
    name: str = "images"
    skipped: tuple[str, ...] = ()
    texts: Texts | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.images, (np.ndarray, DiskImages)):
            raise InputError(f"images must be a NumPy array or DiskImages, got {type(self.images).__name__}")
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise InputError(
                f"images must be uint8 [N, C, H, W], got {self.images.dtype} {list(self.images.shape)}; "
                "ImageSet.from_arrays brings other layouts into this form"
            )
        put = object.__setattr__
        put(self, "classes", tuple(str(name) for name in self.classes))
        put(self, "skipped", tuple(self.skipped))
        if self.labels is not None:
            labels = _checked_labels(self.labels, len(self.images))
            if not self.classes and len(labels):
                put(self, "classes", tuple(str(number) for number in range(int(labels.max()) + 1)))
            if len(labels) and labels.max() >= len(self.classes):
                raise InputError(
                    f"labels go up to {labels.max()}, but there are {len(self.classes)} classes; labels number them from 0"
                )
            put(self, "labels", labels)
        if len(set(self.classes)) != len(self.classes):
            twice = next(name for name in self.classes if self.classes.count(name) > 1)
            raise InputError(f"classes names {twice!r} twice; class names must differ")
        put(self, "ids", row_ids(len(self.images)) if self.ids is None else _checked_ids(self.ids, len(self.images)))
        put(self, "texts", None if self.texts is None else as_texts(self.texts, len(self.images)))

    @classmethod
    def from_arrays(cls, images: Any, labels: Any = None, *, name: str = "images", texts: Any = None) -> ImageSet:
        """A set from arrays as they come.

        Args:
            images: [N, H, W], [N, C, H, W] or [N, H, W, C] with 1 or 3 channels; uint8, or floats in [0, 1].
            labels: [N] whole numbers or texts, any values; they become the classes, in order.
            name: what messages and reports call the set.
            texts: captions, for each image one text or several, or None.

        Raises:
            InputError: the shape, type or range cannot be images, or the lengths differ.
        """
        from nearfar.data.pixels import as_images

        pixels = as_images(images, name)
        if labels is None:
            return cls(pixels, name=name, texts=texts)
        values = np.asarray(labels)
        if values.ndim != 1 or values.dtype.kind not in "iuUT":
            raise InputError(
                f"labels must be [N] whole numbers or texts, got {values.dtype} {list(values.shape)}; "
                "for one column per class use labels.argmax(1)"
            )
        numbers, classes = number_labels(values)
        return cls(pixels, numbers, classes, name=name, texts=texts)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W)."""
        count, channels, height, width = self.images.shape
        return count, channels, height, width

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour."""
        return self.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.shape[2:]

    def subset(self, rows: Any) -> ImageSet:
        """The images at ``rows`` (integers, slice or boolean mask) in that order; repeated rows get ids of their own.

        Images on disk stay there. ``classes`` stays as it is, so that labels keep their meaning.
        """
        chosen = as_rows(rows, len(self))
        return ImageSet(
            images=self.images.view(chosen) if isinstance(self.images, DiskImages) else self.images[chosen],
            labels=None if self.labels is None else self.labels[chosen],
            classes=self.classes,
            ids=unique_ids(self.ids[chosen]),
            name=self.name,
            skipped=self.skipped,
            texts=None if self.texts is None else self.texts.take(chosen.tolist()),
        )

    def with_texts(self, texts: Sequence[Any] | Mapping[str, str | Sequence[str]]) -> ImageSet:
        """The same images with captions.

        Args:
            texts: for each image one caption, several, or None; or, where there are labels, one or several by class name.

        Raises:
            InputError: the number of captions is another than that of images, one is no text, or a class has none.
        """
        if isinstance(texts, Mapping):
            texts = texts_of_classes(self.classes, self.require_labels().tolist(), texts)
        return replace(self, texts=texts)  # type: ignore[arg-type]  # checked and put into form in __post_init__

    def require_labels(self) -> npt.NDArray[np.int64]:
        """The labels.

        Raises:
            InputError: the set is unlabelled; the message says how labels are given.
        """
        if self.labels is None:
            raise InputError(
                f"{self.name} has no labels, and this needs them; give a folder with one sub-folder per class, "
                "or a label column, or a labels file"
            )
        return self.labels

    def fingerprint(self) -> str:
        """SHA-256 of images, labels, class names and captions, as hexadecimal digits; ids and name do not count."""
        digest = hashlib.sha256(json.dumps([self.shape, self.classes, self.labels is None]).encode())
        if self.labels is not None:
            digest.update(np.ascontiguousarray(self.labels, dtype="<i8").data)
        if self.texts is not None:
            digest.update(json.dumps(self.texts).encode())
        step = max(1, _SLICE_BYTES // max(1, int(np.prod(self.shape[1:]))))
        for start in range(0, len(self), step):
            digest.update(np.ascontiguousarray(self.images[start : start + step]).data)
        return digest.hexdigest()

    def __repr__(self) -> str:
        labels = "unlabelled" if self.labels is None else f"{len(self.classes)} classes"
        where = ", on disk" if isinstance(self.images, DiskImages) else ""
        captions = "" if self.texts is None else f", {sum(map(len, self.texts)):,} captions"
        return f"ImageSet({self.name!r}, {' x '.join(map(str, self.shape))}, {labels}{captions}{where})"


def row_ids(count: int) -> Ids:
    """Row numbers as text."""
    return np.arange(count).astype(np.dtypes.StringDType())


def text_ids(texts: Iterable[str]) -> Ids:
    """Texts as a compact array, each made unique; a million paths take some 60 MB."""
    return unique_ids(np.array(list(texts), dtype=np.dtypes.StringDType()))


def unique_ids(ids: Ids) -> Ids:
    """Make each text unique: the second ``a`` becomes ``a#2``, the third ``a#3``."""
    texts: list[str] = ids.tolist()
    taken = set(texts)
    if len(taken) == len(texts):
        return ids
    seen: dict[str, int] = {}
    for row, text in enumerate(texts):
        number = seen.get(text, 0) + 1
        if number > 1:
            while (fresh := f"{text}#{number}") in taken:
                number += 1
            taken.add(fresh)
            texts[row] = fresh
        seen[text] = number
    return np.array(texts, dtype=np.dtypes.StringDType())


def class_order(names: Iterable[str]) -> tuple[str, ...]:
    """Distinct class names in order: by number when all of them are whole numbers, else by text."""
    distinct = set(names)
    if all(re.fullmatch(r"[+-]?\d{1,18}", name, re.ASCII) for name in distinct):
        return tuple(sorted(distinct, key=lambda name: (int(name), name)))
    return tuple(sorted(distinct))


def number_labels(values: Sequence[str] | npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """Number label texts (or integers) by their place in the class order: (int64 [N], class names)."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "iu":
        distinct, codes = np.unique(values, return_inverse=True)
        return codes.reshape(-1).astype(np.int64), tuple(str(value) for value in distinct.tolist())
    texts = values.tolist() if isinstance(values, np.ndarray) else values
    classes = class_order(texts)
    place = {name: number for number, name in enumerate(classes)}
    return np.fromiter((place[text] for text in texts), dtype=np.int64, count=len(texts)), classes


def _checked_labels(labels: Any, count: int) -> npt.NDArray[np.int64]:
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(
            f"labels must be whole numbers [N], got {labels.dtype} {list(labels.shape)}; "
            "ImageSet.from_arrays numbers class names"
        )
    if len(labels) != count:
        raise InputError(f"labels has {len(labels):,} entries, images has {count:,}; there must be one label per image")
    labels = labels.astype(np.int64, copy=False)
    if len(labels) and labels.min() < 0:
        raise InputError(f"labels go down to {labels.min()}; they must number the classes from 0 (labels=None: unlabelled)")
    return labels


def _checked_ids(ids: Any, count: int) -> Ids:
    ids = np.asarray(ids)
    if ids.ndim != 1 or len(ids) != count:
        raise InputError(f"ids has {ids.size:,} entries, images has {count:,}; there must be one id per image")
    if ids.dtype != np.dtypes.StringDType():
        ids = np.array([str(value) for value in ids.tolist()], dtype=np.dtypes.StringDType())
    if len(set(ids.tolist())) != count:
        raise InputError("ids must be unique, and some occur twice")
    return ids
