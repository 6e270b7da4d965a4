"""A run and the images that it is judged by, brought together, with the images behind its gallery.

Knows no figures: `nearfar.measuring.figures` makes them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nearfar import runs
from nearfar.answers import trained_images
from nearfar.data import ImageSet, load_splits
from nearfar.errors import InputError
from nearfar.runs.opening import Model, classes_of, labels_in, load_run, shape_of
from nearfar.search import NeighborIndex
from nearfar.splits import Splits, load_for

if TYPE_CHECKING:
    from nearfar.embedder import Embedder

Source = str | Path | ImageSet
Labels = npt.NDArray[np.int64]

THRESHOLD_ROWS = 5000  # gallery images that the pair threshold is chosen on where there are no validation images


@dataclass(frozen=True)
class Judged:
    """A run's model and index, and embedded images to judge them by."""

    folder: Path
    config: dict[str, Any]
    model: Embedder
    index: NeighborIndex
    source: str  # what the images are
    split: str  # which of its splits
    splits: Splits | None  # all parts, where the images are those that the run was made from
    classes: list[str]  # the run's, then those that only the images have
    queries: ImageSet
    labels: Labels  # [N], numbers of ``classes``; -1 where the images have no labels
    z: npt.NDArray[np.float32]  # [N, D]
    seconds: float  # that embedding them took
    same: bool  # the images are searched among themselves, each left out of its own search

    @property
    def told(self) -> bool:
        """Whether the images have labels."""
        return self.queries.labels is not None

    @cached_property
    def rows(self) -> Labels:
        """The rows of the index that are searched [M], ascending: where classes are asked for, those that have a label."""
        return np.flatnonzero(np.asarray(self.index.labels) >= 0) if self.told else np.arange(len(self.index))

    @cached_property
    def gallery(self) -> npt.NDArray[np.float32]:
        """What is searched, [M, D]."""
        if self.same:
            return self.z
        vectors = np.asarray(self.index.vectors)
        return vectors if len(self.rows) == len(vectors) else vectors[self.rows]

    @cached_property
    def gallery_labels(self) -> Labels:
        """Numbers of ``classes``, [M]."""
        return self.labels if self.same else np.asarray(self.index.labels)[self.rows]


def judge(run: str | Path, data: Source | None = None, *, device: str = "auto", skip_bad: bool = False) -> Judged:
    """Load a run and the images to judge it by, and embed them.

    The gallery is the run's index. Where the images have classes that the index lacks, they are searched among themselves,
    each left out of its own search.

    Args:
        run: the run folder.
        data: name, path or `ImageSet`; None: what the run was trained on. Its test split is taken; where there is none,
            its validation split; else all of it.
        device: "auto", "cpu" or "cuda".
        skip_bad: leave out images that cannot be read instead of refusing.

    Raises:
        InputError: the run or the data cannot be used.
    """
    folder = Path(run)
    model, index = load_run(folder, device=device)
    config = runs.read_config(folder)
    source, split, own, splits, queries = images_to_judge(model, config, data, skip_bad=skip_bad)
    classes = classes_of(model, index)
    labels = np.full(len(queries), -1) if queries.labels is None else labels_in(queries, classes)
    started = time.perf_counter()
    z = model.transform(queries)
    seconds = time.perf_counter() - started
    known = np.isin(labels, np.unique(np.asarray(index.labels)))
    return Judged(
        folder=folder,
        config=config,
        model=model,
        index=index,
        source=source,
        split=split,
        splits=splits,
        classes=[*classes, *(one for one in queries.classes if one not in classes)],
        queries=queries,
        labels=labels,
        z=z,
        seconds=seconds,
        same=bool((own and split == "train") or not (known.all() or queries.labels is None)),
    )


class Asked(NamedTuple):
    """Images to judge a run by."""

    source: str  # what they are
    split: str  # which of its splits
    own: bool  # whether that is what the run was made from
    splits: Splits | None  # all parts, where it is
    images: ImageSet


def images_to_judge(model: Model, config: Mapping[str, Any], data: Source | None = None, *, skip_bad: bool = False) -> Asked:
    """Read the images to judge a run by; ``data``, ``skip_bad`` and errors are those of `judge`.

    Args:
        model: of the run.
        config: of the run.
        data: as for `judge`.
        skip_bad: as for `judge`.
    """
    trained_on = config["data"].get("source")
    source = trained_on if data is None else (data.name if isinstance(data, ImageSet) else str(data))
    own, splits = source == trained_on, None
    if own:
        splits = load_for(source if data is None else data, model.recipe_.data, seed=config["seed"], skip_bad=skip_bad)
        found = splits.parts()
    else:
        found = load_splits(data, **shape_of(model), skip_bad=skip_bad)
    split = next(name for name in ("test", "validation", "train") if name in found)
    return Asked(source, split, own, splits, found[split])


def of_the_run(judged: Judged) -> dict[str, Any]:
    """What every ``metrics.json`` says of the run itself: ``training``, where it gave warnings, and ``timing``."""
    from nearfar.training.health import warnings_of

    training = judged.config.get("training", {})
    warnings = warnings_of(judged.model.history_)
    return {
        **({"training": {"warnings": warnings}} if warnings else {}),
        "timing": {
            "train_seconds": training.get("seconds"),
            "train_images_per_second": training.get("images_per_second"),
            "embed_seconds": judged.seconds,
            "images_per_second": len(judged.queries) / judged.seconds,
        },
    }


def gallery_images(judged: Judged, *, skip_bad: bool = False) -> ImageSet:
    """The images behind the rows of the gallery.

    Raises:
        InputError: they cannot be read, or are no longer those that the index was made from.
    """
    if judged.same:
        return judged.queries
    images = index_images(judged, skip_bad=skip_bad)
    return images if len(judged.rows) == len(images) else images.subset(judged.rows)


def index_images(judged: Judged, *, skip_bad: bool) -> ImageSet:
    """The images behind the rows of the index.

    Raises:
        InputError: they cannot be read, or are no longer those that the index was made from.
    """
    trained_on, recipe = judged.config["data"].get("source"), judged.model.recipe_
    if judged.splits is not None:
        images = judged.splits.train
    elif trained_on is None:
        raise InputError("the run does not say what it was trained on")
    else:
        images = load_for(trained_on, recipe.data, seed=judged.config["seed"], skip_bad=skip_bad).train
    if added := int((judged.index.ids >= trained_images(judged.config, judged.index)).sum()):
        raise InputError(f"{added:,} images were added to the index since, and only their vectors are kept")
    noted = judged.config["data"].get("train", {}).get("sha256")
    if images.ids.tolist() != judged.index.names["images"] or images.fingerprint() != noted:
        raise InputError(f"the training images in {trained_on} have changed since the run was made")
    return images


def gallery_or_reason(judged: Judged, *, skip_bad: bool = False) -> ImageSet | InputError:
    """As `gallery_images`, with the reason in place of an error."""
    try:
        return gallery_images(judged, skip_bad=skip_bad)
    except InputError as reason:
        return InputError(f"the images that it was trained on are not to be had: {reason}")


def threshold_rows(judged: Judged) -> tuple[npt.NDArray[np.float32], Labels, str] | None:
    """Embeddings and labels that thresholds are chosen on, and what they are: validation images, or else gallery images.

    None where the gallery has no labels either.
    """
    index, splits, model = judged.index, judged.splits, judged.model
    if splits is not None and splits.validation is not None and judged.split != "validation":
        return model.transform(splits.validation), labels_in(splits.validation, model.classes_), "validation images"
    rows = judged.rows[sampled_rows(len(judged.rows))]
    if not len(rows):
        return None
    return np.asarray(index.vectors[rows]), np.asarray(index.labels)[rows], "training images"


def sampled_rows(count: int) -> Labels:
    """The gallery rows, ascending, that thresholds are chosen on where there are no validation images."""
    return np.sort(np.random.default_rng(0).permutation(count)[:THRESHOLD_ROWS])
