"""A run and the images that it is judged by, brought together; and the figures that come of it."""

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
from nearfar.card import write_card
from nearfar.data import ImageSet, load_splits
from nearfar.errors import InputError
from nearfar.files import write_json
from nearfar.opening import Model, classes_of, labels_in, load_run, shape_of
from nearfar.search import NeighborIndex
from nearfar.splits import Splits, load_for

if TYPE_CHECKING:
    from nearfar.beside import Beside, Side
    from nearfar.embedder import Embedder

Source = str | Path | ImageSet
Labels = npt.NDArray[np.int64]

Opened = tuple[Path, dict[str, Any], "Embedder", NeighborIndex, "Asked"]

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

    @cached_property
    def rows(self) -> Labels:
        """The rows of the index that have a label [M], ascending: the others answer nothing, and are not searched."""
        return np.flatnonzero(np.asarray(self.index.labels) >= 0)

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
    return _judged(*_open(run, data, device=device, skip_bad=skip_bad))


def _open(run: str | Path, data: Source | None, *, device: str, skip_bad: bool) -> Opened:
    folder = Path(run)
    model, index = load_run(folder, device=device)
    config = runs.read_config(folder)
    return folder, config, model, index, images_to_judge(model, config, data, skip_bad=skip_bad)


def _judged(folder: Path, config: dict[str, Any], model: Embedder, index: NeighborIndex, asked: Asked) -> Judged:
    source, split, own, splits, queries = asked
    classes = classes_of(model, index)
    labels = labels_in(queries, classes)
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
        same=bool((own and split == "train") or not known.all()),
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


def evaluate(run: str | Path, data: Source | None = None, *, device: str = "auto", skip_bad: bool = False) -> dict[str, Any]:
    """Measure a run and write ``metrics.json`` and the model card; arguments and errors are those of `judge`.

    Of a run with a text tower, images that have captions and no labels will do: they and their captions are measured alone.

    Returns:
        The tree that ``metrics.json`` holds.
    """
    from nearfar.certainty import keep_calibration

    folder, config, model, index, asked = _open(run, data, device=device, skip_bad=skip_bad)
    if asked.images.labels is None and model.has_text and any(asked.images.texts or ()):
        from nearfar.captionfigures import captions_alone

        tree = captions_alone(model, asked.source, asked.split, asked.images, len(index))
    else:
        judged = _judged(folder, config, model, index, asked)
        tree = figures(judged, skip_bad=skip_bad)
        keep_calibration(judged, tree)
    write_json(folder / runs.METRICS, tree)
    write_card(folder)
    return tree


def figures(judged: Judged, *, skip_bad: bool = False) -> dict[str, Any]:
    """All figures of a judged run, as ``metrics.json`` holds them; classes that were kept apart under ``unseen``.

    ``left_out`` says why there are no ``leaks`` or no ``baselines``, where there are none.
    """
    from nearfar.beside import Side
    from nearfar.certainty import certainty
    from nearfar.evaluation import evaluate_embeddings
    from nearfar.headfigures import add_head_accuracy, add_towers
    from nearfar.health import warnings_of

    recipe, model = judged.model.recipe_, judged.model
    held = threshold_rows(judged)
    settings: dict[str, Any] = {
        "metric": recipe.evaluate.metric,
        "k": recipe.evaluate.k,
        "vote": recipe.evaluate.vote,
        "bootstrap": recipe.evaluate.bootstrap,
        "threshold": recipe.evaluate.threshold,
        "seed": judged.config["seed"],
        "validation": None if held is None else held[:2],
        "classes": judged.classes,
    }
    gallery = gallery_or_reason(judged, skip_bad=skip_bad)
    beside = _beside(judged, gallery, skip_bad=skip_bad)
    there = () if isinstance(gallery, InputError) else (gallery,)

    def measure(near: Side, asked: Side, same: bool, **about: Any) -> dict[str, Any]:
        copies = beside.copies(near, asked, same)
        parts = beside.parts(copies)
        tree = evaluate_embeddings(near.z, near.labels, asked.z, asked.labels, same_set=same, parts=parts, **settings)
        tree["data"] = {**tree.get("data", {}), **about}
        if held is not None:
            tree["verification"]["threshold_best_from"] = held[2]
            if recipe.evaluate.threshold is None:
                tree["verification"]["threshold_from"] = held[2]
        beside.add(tree, near, asked, same, copies)
        return tree

    itself = "{} themselves, each left out of its own search"
    tree = measure(
        Side(judged.gallery, judged.gallery_labels, there),
        Side(judged.z, judged.labels, (judged.queries,)),
        judged.same,
        source=judged.source,
        split=judged.split,
        gallery_is=itself.format("the queries") if judged.same else _index_is(judged),
        new_classes=int((~np.isin(np.unique(judged.labels), np.asarray(judged.index.labels))).sum()),
        skipped=list(judged.queries.skipped),
    )
    add_head_accuracy(tree, judged)
    add_towers(tree, judged)
    strange = None
    if judged.splits is not None and (unseen := judged.splits.unseen) is not None:
        apart = Side(model.transform(unseen), labels_in(unseen, judged.classes), (unseen,))
        strange = (apart.z, apart.labels)
        about = {
            "gallery_is": itself.format("the images of the unseen classes"),
            "new_classes": len(np.unique(apart.labels)),
        }
        tree["unseen"] = measure(apart, apart, True, **about)
        if not judged.same:
            # Not the images that were added to the index since: those of the unseen classes would be there twice.
            rows = np.asarray(judged.index.ids)[judged.rows] < trained_images(judged.config, judged.index)
            seen = Side(judged.gallery[rows], judged.gallery_labels[rows], there)
            tree["unseen"]["with_seen"] = _among_all(apart, seen, beside, settings)
    left_out = dict(beside.left_out)
    try:
        tree |= certainty(judged, held[:2] if held is not None and held[2] == "validation images" else None, strange)
    except InputError as reason:
        left_out["calibration"] = str(reason)
    if left_out:
        tree["left_out"] = left_out
    if warnings := warnings_of(model.history_):
        tree["training"] = {"warnings": warnings}
    training = judged.config.get("training", {})
    tree["timing"] = {
        **tree.get("timing", {}),
        "train_seconds": training.get("seconds"),
        "train_images_per_second": training.get("images_per_second"),
        "embed_seconds": judged.seconds,
        "images_per_second": len(judged.queries) / judged.seconds,
    }
    return tree


def _index_is(judged: Judged) -> str:
    left_out = len(judged.index) - len(judged.rows)
    return f"the run's index without {left_out:,} images that have no label" if left_out else "the run's index"


def _among_all(apart: Side, seen: Side, beside: Beside, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of images of unseen classes, searched among one another and the gallery of the seen classes together."""
    from nearfar.beside import Side
    from nearfar.evaluation.figures import finite, search_figures
    from nearfar.search.vectors import unit_rows

    images = (*apart.images, *seen.images) if seen.images else ()
    both = Side(np.concatenate([apart.z, seen.z]), np.concatenate([apart.labels, seen.labels]), images)
    copies = beside.copies(both, apart, True)
    scaled = [unit_rows(side.z, "images") if settings["metric"] == "cosine" else side.z for side in (both, apart)]
    tree: dict[str, Any] = finite(
        search_figures(
            scaled[0],
            both.labels,
            scaled[1],
            apart.labels,
            names=settings["classes"],
            exclude=np.arange(len(apart.labels)),
            k=min(settings["k"], len(both.labels) - 1),
            parts=beside.parts(copies),
            **{name: settings[name] for name in ("metric", "vote", "seed", "bootstrap")},
        )
    )
    tree["data"] = {
        "gallery": len(both.labels),
        "queries": len(apart.labels),
        "gallery_is": "the images of the unseen classes and the run's index, each left out of its own search",
    }
    beside.add(tree, both, apart, True, copies)
    # Averages over classes count the seen ones that an image was taken for, of which none was asked about.
    for each in (tree, *tree.get("baselines", {}).values()):
        for name in ("precision_macro", "recall_macro", "f1_macro"):
            del each["classification"][name]
    return tree


def _beside(judged: Judged, gallery: ImageSet | InputError, *, skip_bad: bool) -> Beside:
    from nearfar.beside import Beside
    from nearfar.evaluation.baselines import Terms

    settings, splits, held = judged.model.recipe_.evaluate, judged.splits, None
    if splits is not None and splits.validation is not None and judged.split != "validation":
        held = splits.validation, labels_in(splits.validation, judged.model.classes_)
    elif (
        not isinstance(gallery, InputError)
        and len(gallery) == (len(judged.index) if judged.same else len(judged.rows))
        and (splits is not None or not judged.same)
    ):
        rows = sampled_rows(len(gallery))  # the same images that the run's own threshold is chosen on
        held = gallery.subset(rows), judged.gallery_labels[rows]
    terms = Terms(
        names=judged.classes,
        metric=settings.metric,
        k=settings.k,
        vote=settings.vote,
        seed=judged.config["seed"],
        bootstrap=settings.bootstrap,
    )
    trained_on = gallery
    if not isinstance(gallery, InputError) and not judged.same and len(judged.rows) < len(judged.index):
        trained_on = _index_images(judged, skip_bad=skip_bad)  # components need no labels
    other: tuple[str, Any] | None = None
    if settings.baseline:
        from nearfar.othermodel import other_model

        try:
            other = settings.baseline, other_model(settings.baseline, device=judged.model.device)
        except InputError as reason:  # the run may be judged where the other is not
            other = settings.baseline, reason
    return Beside(trained_on, judged.z.shape[1], terms, held, other)


def gallery_images(judged: Judged, *, skip_bad: bool = False) -> ImageSet:
    """The images behind the rows of the gallery.

    Raises:
        InputError: they cannot be read, or are no longer those that the index was made from.
    """
    if judged.same:
        return judged.queries
    images = _index_images(judged, skip_bad=skip_bad)
    return images if len(judged.rows) == len(images) else images.subset(judged.rows)


def _index_images(judged: Judged, *, skip_bad: bool) -> ImageSet:
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
