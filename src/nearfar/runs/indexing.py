"""Images in a run's index beside those that it was trained on: add, remove, and say what is there. Nothing is trained.

The run's config keeps the classes that training knew; names of classes that came later are kept with the index, behind them
(`nearfar.runs.opening.classes_of`). An added image gets an id above those of the training images, so that both can be told
apart.
"""

from __future__ import annotations

import difflib
import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nearfar import pictures, runs
from nearfar.answers import UNKNOWN, trained_images
from nearfar.data import ImageSet, load_any
from nearfar.data.imageset import class_order, unique_ids
from nearfar.data.loading import name_of
from nearfar.errors import InputError, did_you_mean
from nearfar.files import only_writer
from nearfar.runs.opening import classes_of, load_run, shape_of
from nearfar.search import NeighborIndex

Labels = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

_SAME = 1e-5
"""Embeddings of one image, made in batches of other sizes, differ by less than this share of their largest number."""
_LONGEST_NAME = 200


@dataclass(frozen=True)
class Inserted:
    """What `insert` did with N images."""

    ids: Labels  # in the index, also of images that were there before [N]
    new: Labels  # rows of the images that were not
    classes: list[str]  # that the index may have now
    new_classes: list[str]  # that had no image before


def add_images(
    run: str | Path,
    images: str | Path | ImageSet,
    *,
    label: str | None = None,
    device: str = "auto",
    skip_bad: bool = False,
) -> dict[str, Any]:
    """Embed images and add them to the run's index, also those of classes that the run does not know.

    An image that the index holds already, under the same class, is left out and counted.

    Args:
        run: the run folder.
        images: a folder with one sub-folder per class, or any labelled images; with ``label`` any images.
        label: the class of all of them, whatever they bring.
        device: "auto", "cpu" or "cuda".
        skip_bad: leave out images that cannot be read instead of refusing.

    Returns:
        ``run``, ``added`` (how many by class name), ``new_classes`` (without an image before), ``already_there`` and
        ``skipped`` (images that were left out), and ``images`` (in the index now).

    Raises:
        InputError: the run or the images cannot be used, they have no classes and there is no ``label``, a class name cannot be
            one, an image is in the index under another class, or another process changes the run.
    """
    folder = Path(run)
    runs.read_config(folder)  # is it a run?
    with only_writer(folder):
        model, index = load_run(folder, device=device)
        found = load_any([images], **shape_of(model), skip_bad=skip_bad)
        names = _class_names(found, label)
        titles = [f"{name_of(images)}/{one}" for one in found.ids.tolist()]
        inserted = insert(folder, model.classes_, index, found, model.transform(found), names, titles)
    added = [names[row] for row in inserted.new.tolist()]
    left = np.setdiff1d(np.arange(len(found)), inserted.new)
    return {
        "run": str(folder),
        "added": {name: added.count(name) for name in inserted.classes if name in added},
        "new_classes": inserted.new_classes,
        "already_there": found.ids[left].tolist(),
        "skipped": list(found.skipped),
        "images": len(index),
    }


def insert(
    folder: Path,
    own: Sequence[str],
    index: NeighborIndex,
    found: ImageSet,
    z: Floats,
    names: Sequence[str],
    titles: Sequence[str],
) -> Inserted:
    """Put embedded images into a run's index, and their pictures beside it; whoever calls is the folder's only writer.

    Args:
        folder: the run folder.
        own: the classes that training knew.
        index: of the run, which is changed, and is not to be searched afterwards: the folder has the whole state.
        found: the images [N], of the size and channels that the model takes.
        z: their embeddings [N, D].
        names: of their classes [N], checked.
        titles: what the images are called [N]; a number is put behind those that the index has already.

    Raises:
        InputError: an image is in the index under another class, or the folder cannot be written to.
    """
    before, classes = set(_labels(index).tolist()), list(index.names.get("classes", own))
    fresh = class_order(set(names) - set(classes))
    place = {name: number for number, name in enumerate([*classes, *fresh])}
    labels = np.array([place[name] for name in names], dtype=np.int64)
    new, ids = _not_there_yet(index, found, z, labels, [*classes, *fresh])
    if len(new):
        known = index.names["images"]
        named = unique_ids(np.array([*known, *(titles[row] for row in new)], dtype=np.dtypes.StringDType())).tolist()
        first = max(int(index.ids.max()) + 1, trained_images(runs.read_config(folder), index))
        ids[new] = np.arange(first, first + len(new))
        pictures.sweep(folder, index.ids)
        pictures.write(folder, ids[new], found.images[new])
        index.add(z[new], labels[new], ids=ids[new])
        _save(folder, own, index, named, [*classes, *fresh])
    copies = np.flatnonzero(ids < 0)  # of images before them, which are there now
    ids[copies] = ids[_first_alike(found)[copies]]
    added = {names[row] for row in new.tolist()}
    new_classes = [name for name, number in place.items() if name in added and number not in before]
    return Inserted(ids=ids, new=new, classes=list(place), new_classes=new_classes)


def remove_images(run: str | Path, *, label: str | None = None, ids: Sequence[str] = ()) -> dict[str, Any]:
    """Remove images from the run's index; what was added and is removed again leaves no trace in any answer.

    Args:
        run: the run folder.
        label: a class, of which all images go; or
        ids: names of images, as `search` and `predict` show them.

    Returns:
        ``run``, ``removed`` (how many by class name), ``gone_classes`` (without an image now) and ``images`` (that remain).

    Raises:
        InputError: neither or both are given, there is no such class or image, nothing would remain, or another process changes
            the run.
    """
    folder = Path(run)
    if (label is None) == (not ids):
        raise InputError("name what to remove: either a class (--label NAME) or images (--id ID ...)")
    runs.read_config(folder)  # is it a run?
    with only_writer(folder):
        model, index = load_run(folder, device="cpu")
        classes, names = classes_of(model, index), index.names["images"]
        labels = _labels(index)
        rows = _rows_of_class(labels, classes, label) if label is not None else _rows_of_images(names, ids)
        if len(rows) == len(index):
            raise InputError(f"that would remove every image of the index in {folder}; an index cannot be empty")
        removed = [classes[number] if number >= 0 else "(no label)" for number in labels[rows]]
        before = {classes[number] for number in np.unique(labels[labels >= 0])}
        drop(folder, model.classes_, index, rows)
        now = classes_of(model, index)
    left = _labels(index)
    remain = {now[number] for number in np.unique(left[left >= 0])}
    return {
        "run": str(folder),
        "removed": {name: removed.count(name) for name in [*classes, "(no label)"] if name in removed},
        "gone_classes": [name for name in classes if name in before - remain],
        "images": len(index),
    }


def drop(folder: Path, own: Sequence[str], index: NeighborIndex, rows: Labels) -> None:
    """Take rows out of a run's index, and their pictures away; arguments as for `insert`."""
    names, ids, gone = index.names["images"], index.ids[rows], set(rows.tolist())
    classes = list(index.names.get("classes", own))
    index.remove(ids)
    _save(folder, own, index, [name for row, name in enumerate(names) if row not in gone], classes)
    pictures.remove(folder, ids)


def index_info(run: str | Path) -> dict[str, Any]:
    """What the index of a run holds.

    Returns:
        ``run``, ``images``, ``added_images``, ``dimensions``, ``metric``, ``model`` (the hash of the model that made it),
        ``bytes`` (of its folder), ``unlabelled`` (images without a label) and ``classes``: ``name``, ``images``, ``added`` (how
        many of them are not from training) of each.

    Raises:
        InputError: the run cannot be used.
    """
    folder = Path(run)
    model, index = load_run(folder, device="cpu")
    labels, later = _labels(index), index.ids >= trained_images(runs.read_config(folder), index)
    classes = classes_of(model, index)
    counts = np.bincount(labels[labels >= 0], minlength=len(classes)).tolist()
    added = np.bincount(labels[later & (labels >= 0)], minlength=len(classes)).tolist()
    return {
        "run": str(folder),
        "images": len(index),
        "added_images": int(later.sum()),
        "dimensions": index.n_features_in_,
        "metric": index.metric,
        "model": index.model_hash,
        "bytes": sum(path.stat().st_size for path in (folder / runs.INDEX).iterdir() if path.is_file()),
        "unlabelled": int((labels < 0).sum()),
        "classes": [
            {"name": name, "images": counts[number], "added": added[number]}
            for number, name in enumerate(classes)
            if counts[number]
        ],
    }


def check_class_name(name: str) -> str:
    """Return a name that a class may have.

    Raises:
        InputError: it is empty, too long, ``unknown``, could be taken for a path, or holds characters that cannot be seen.
    """
    shown = repr(name) if len(name) <= _LONGEST_NAME else f"{name[:20]!r}..."
    if not name.strip() or name != name.strip():
        raise InputError(f"the class name {shown} is empty or has spaces around it; choose a name of visible characters")
    if len(name) > _LONGEST_NAME:
        raise InputError(f"the class name {shown} has {len(name):,} characters, expected at most {_LONGEST_NAME}")
    if any(unicodedata.category(one).startswith("C") for one in name):
        raise InputError(f"the class name {name!a} holds control characters; choose a name of visible characters")
    if "/" in name or "\\" in name or name in (".", ".."):
        raise InputError(f"the class name {shown} looks like a path; choose a name without / and \\")
    if name == UNKNOWN:
        raise InputError(f"{UNKNOWN!r} is what images of no known class are called; choose another name for the class")
    return name


def _class_names(found: ImageSet, label: str | None) -> list[str]:
    """The class name of each image."""
    if label is not None:
        return [check_class_name(label)] * len(found)
    if found.labels is None:
        raise InputError(
            f"{found.name} has no classes; say which one its images are of with --label NAME, or sort them into folders"
        )
    return [check_class_name(found.classes[number]) for number in found.labels.tolist()]


def _not_there_yet(
    index: NeighborIndex, found: ImageSet, z: Floats, labels: Labels, classes: list[str]
) -> tuple[Labels, Labels]:
    """Rows of the images that are new: neither in the index, nor a copy of one before them. And of all [N] the id of the one
    in the index that is the same image, -1 where none is.

    Raises:
        InputError: an image is there under another class.
    """
    _, near = index.search_rows(z, 1)
    there, known, earlier = near[:, 0], _labels(index), _first_alike(found)
    vectors = np.asarray(index.vectors[there])
    mine = z / np.linalg.norm(z, axis=1, keepdims=True) if index.metric == "cosine" else z
    same = np.abs(mine - vectors).max(axis=1) <= _SAME * np.abs(vectors).max(axis=1)
    same &= known[there] >= 0  # what is there without a label may come again with one
    other = np.where(same, known[there], labels[earlier])
    for row in np.flatnonzero(other != labels)[:1].tolist():
        where = (
            f"the index as {index.names['images'][there[row]]!r}"
            if same[row]
            else f"these images as {found.ids[earlier[row]]!r}"
        )
        raise InputError(
            f"{found.ids[row]!s} is given as {classes[labels[row]]!r}, but is in {where} of class {classes[other[row]]!r}; "
            "remove that first, or leave this out"
        )
    return np.flatnonzero(~same & (earlier == np.arange(len(found)))), np.where(same, index.ids[there], -1)


def _first_alike(found: ImageSet) -> Labels:
    """For each image the row of the first one with the same pixels."""
    seen: dict[bytes, int] = {}
    rows = []
    for row in range(len(found)):
        digest = hashlib.sha256(np.ascontiguousarray(found.images[row : row + 1]).tobytes()).digest()
        rows.append(seen.setdefault(digest, row))
    return np.array(rows, dtype=np.int64)


def _save(folder: Path, own: Sequence[str], index: NeighborIndex, names: list[str], classes: list[str]) -> None:
    """Write the index with the names of its images and of the classes that came after training, without gaps."""
    labels = _labels(index)
    later = np.unique(labels[labels >= len(own)])
    place = np.arange(len(classes))
    place[later] = len(own) + np.arange(len(later))
    kept: dict[str, Sequence[str]] = {"images": names}
    if len(later):
        kept["classes"] = [*own, *(classes[number] for number in later)]
    renumbered = np.append(place, -1)[labels]  # -1: an image without a label
    if not np.array_equal(renumbered, labels):
        index = type(index)(**index.get_params(deep=False)).fit(index.vectors, renumbered, ids=index.ids)
    index.save(folder / runs.INDEX, model_hash=runs.read_config(folder)["model"]["sha256"], names=kept)


def _labels(index: NeighborIndex) -> Labels:
    return np.asarray(index.labels, dtype=np.int64)


def _rows_of_class(labels: Labels, classes: list[str], label: str) -> Labels:
    there = [classes[number] for number in np.unique(labels[labels >= 0])]
    if label not in there:
        raise InputError(f"the index has no image of class {label!r}{did_you_mean(label, there)}")
    return np.flatnonzero(labels == classes.index(label))


def _rows_of_images(names: list[str], ids: Sequence[str]) -> Labels:
    place = {name: row for row, name in enumerate(names)}
    for one in ids:
        if one not in place:
            near = difflib.get_close_matches(one, names, n=3)
            hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "; nearfar search shows the ids of images"
            raise InputError(f"the index has no image {one!r}{hint}")
    return np.unique(np.array([place[one] for one in ids], dtype=np.int64))
