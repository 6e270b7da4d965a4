"""A run and the images that it is judged by, brought together; and the figures that come of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nearfar import runs
from nearfar.card import write_card
from nearfar.data import ImageSet, load_splits
from nearfar.embedder import Embedder
from nearfar.errors import InputError
from nearfar.files import write_json
from nearfar.search import NeighborIndex
from nearfar.splits import Splits, load_for

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
    labels: Labels  # [N], numbers of ``classes``
    z: npt.NDArray[np.float32]  # [N, D]
    seconds: float  # that embedding them took
    same: bool  # the images are searched among themselves, each left out of its own search

    @property
    def gallery(self) -> npt.NDArray[np.float32]:
        """What is searched, [M, D]."""
        return self.z if self.same else np.asarray(self.index.vectors)

    @property
    def gallery_labels(self) -> Labels:
        """Numbers of ``classes``, [M]."""
        return self.labels if self.same else np.asarray(self.index.labels)


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
    recipe, config = model.recipe_, runs.read_config(folder)
    trained_on = config["data"].get("source")
    source = trained_on if data is None else (data.name if isinstance(data, ImageSet) else str(data))
    own, splits = source == trained_on, None
    if own:
        splits = load_for(source if data is None else data, recipe.data, seed=config["seed"], skip_bad=skip_bad)
        found = splits.parts()
    else:
        found = load_splits(data, **shape_of(model), skip_bad=skip_bad)
    split = next(name for name in ("test", "validation", "train") if name in found)
    queries = found[split]
    labels = labels_in(queries, model.classes_)
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
        classes=[*model.classes_, *(one for one in queries.classes if one not in model.classes_)],
        queries=queries,
        labels=labels,
        z=z,
        seconds=seconds,
        same=bool((own and split == "train") or not known.all()),
    )


def evaluate(run: str | Path, data: Source | None = None, *, device: str = "auto", skip_bad: bool = False) -> dict[str, Any]:
    """Measure a run and write ``metrics.json`` and the model card; arguments and errors are those of `judge`.

    Returns:
        The tree that ``metrics.json`` holds.
    """
    judged = judge(run, data, device=device, skip_bad=skip_bad)
    tree = figures(judged)
    write_json(judged.folder / runs.METRICS, tree)
    write_card(judged.folder)
    return tree


def figures(judged: Judged) -> dict[str, Any]:
    """All figures of a judged run, as ``metrics.json`` holds them; classes that were kept apart under ``unseen``."""
    from nearfar.evaluation import evaluate_embeddings

    recipe, model = judged.model.recipe_, judged.model
    held = threshold_rows(judged)
    settings: dict[str, Any] = {
        "metric": recipe.evaluate.metric,
        "k": recipe.evaluate.k,
        "vote": recipe.evaluate.vote,
        "bootstrap": recipe.evaluate.bootstrap,
        "threshold": recipe.evaluate.threshold,
        "seed": judged.config["seed"],
        "validation": held[:2],
        "classes": judged.classes,
    }

    def measure(gallery: Any, gallery_labels: Any, z: Any, labels: Any, same: bool, **about: Any) -> dict[str, Any]:
        tree = evaluate_embeddings(gallery, gallery_labels, z, labels, same_set=same, **settings)
        tree["data"] = {**tree.get("data", {}), **about}
        tree["verification"]["threshold_best_from"] = held[2]
        if recipe.evaluate.threshold is None:
            tree["verification"]["threshold_from"] = held[2]
        return tree

    itself = "{} themselves, each left out of its own search"
    tree = measure(
        judged.gallery,
        judged.gallery_labels,
        judged.z,
        judged.labels,
        judged.same,
        source=judged.source,
        split=judged.split,
        gallery_is=itself.format("the queries") if judged.same else "the run's index",
        new_classes=int((~np.isin(np.unique(judged.labels), np.asarray(judged.index.labels))).sum()),
        skipped=list(judged.queries.skipped),
    )
    add_head_accuracy(tree, judged)
    if judged.splits is not None and (unseen := judged.splits.unseen) is not None:
        z, labels = model.transform(unseen), labels_in(unseen, model.classes_)
        about = {"gallery_is": itself.format("the images of the unseen classes"), "new_classes": len(np.unique(labels))}
        tree["unseen"] = measure(z, labels, z, labels, True, **about)
    training = judged.config.get("training", {})
    tree["timing"] = {
        **tree.get("timing", {}),
        "train_seconds": training.get("seconds"),
        "train_images_per_second": training.get("images_per_second"),
        "embed_seconds": judged.seconds,
        "images_per_second": len(judged.queries) / judged.seconds,
    }
    return tree


def add_head_accuracy(tree: dict[str, Any], judged: Judged) -> None:
    """Put what the run's linear head says beside what neighbours say, where it knows every class of the queries."""
    from nearfar.evaluation.bootstrap import bootstrap_intervals
    from nearfar.evaluation.figures import finite

    head = judged.model.head_
    if head is None or not {judged.classes[number] for number in np.unique(judged.labels)} <= set(head.classes):
        return
    numbers = np.array([judged.classes.index(name) for name in head.classes], dtype=np.int64)
    right = {"head_accuracy": (numbers[head.predict(judged.z)] == judged.labels).astype(np.float64)}
    tree["classification"]["head_accuracy"] = float(right["head_accuracy"].mean())
    samples = judged.model.recipe_.evaluate.bootstrap
    if samples:
        intervals = bootstrap_intervals(right, samples=samples, seed=judged.config["seed"])
        tree["confidence"]["classification"] |= finite(intervals)


def load_run(folder: Path, *, device: str = "auto") -> tuple[Embedder, NeighborIndex]:
    """The model and the index of a finished run.

    Raises:
        InputError: a part is missing or damaged, or the index was made by another model.
    """
    model = Embedder.load(folder, device=device)
    digest = runs.read_config(folder)["model"]["sha256"]
    index = NeighborIndex.load(folder / runs.INDEX, expect_model_hash=digest)
    if index.labels is None or len(index.names.get("images", [])) != len(index):
        raise InputError(f"{folder / runs.INDEX} is damaged: it lacks labels or names of images; train again")
    if np.asarray(index.labels).max() >= len(model.classes_):
        raise InputError(f"{folder / runs.INDEX} does not belong to {folder}: it has classes that the run lacks")
    return model, index


def threshold_rows(judged: Judged) -> tuple[npt.NDArray[np.float32], Labels, str]:
    """Embeddings and labels that thresholds are chosen on, and what they are: validation images, or else gallery images."""
    index, splits, model = judged.index, judged.splits, judged.model
    if splits is not None and splits.validation is not None and judged.split != "validation":
        return model.transform(splits.validation), labels_in(splits.validation, model.classes_), "validation images"
    rows = np.sort(np.random.default_rng(0).permutation(len(index))[:THRESHOLD_ROWS])
    return np.asarray(index.vectors[rows]), np.asarray(index.labels)[rows], "training images"


def shape_of(model: Embedder) -> dict[str, Any]:
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
