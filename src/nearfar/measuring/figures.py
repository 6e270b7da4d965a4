"""The figures of a run: it and the images that it is judged by (`nearfar.measuring.judging`), measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nearfar import runs
from nearfar.answers import trained_images
from nearfar.data import ImageSet
from nearfar.errors import InputError
from nearfar.files import write_json
from nearfar.measuring.judging import (
    Judged,
    Source,
    gallery_or_reason,
    index_images,
    judge,
    of_the_run,
    sampled_rows,
    threshold_rows,
)
from nearfar.runs.card import write_card
from nearfar.runs.opening import labels_in

if TYPE_CHECKING:
    from nearfar.measuring.beside import Beside, Other, Side


def evaluate(
    run: str | Path,
    data: Source | None = None,
    *,
    baseline: str | None = None,
    device: str = "auto",
    skip_bad: bool = False,
) -> dict[str, Any]:
    """Measure a run and write ``metrics.json`` and the model card; the other arguments are those of `judge`.

    Images without labels are judged by views of them (`nearfar.measuring.unlabelled`), and by captions where they have any.

    Args:
        run: as for `judge`.
        data: as for `judge`.
        baseline: another run folder, or a model of timm, to be measured in the same way and stand beside; None: none does.
        device: as for `judge`.
        skip_bad: as for `judge`.

    Returns:
        The tree that ``metrics.json`` holds.

    Raises:
        InputError: as for `judge`; or the other model cannot be loaded.
    """
    from nearfar.measuring.certainty import keep_calibration

    other = beside_it(baseline, device)
    judged = judge(run, data, device=device, skip_bad=skip_bad)
    tree = figures(judged, other=other, skip_bad=skip_bad)
    keep_calibration(judged, tree)
    write_json(judged.folder / runs.METRICS, tree)
    write_card(judged.folder)
    return tree


def beside_it(baseline: str | None, device: str) -> Other | None:
    """The model that is to stand beside a run, by its name, for `figures`.

    Raises:
        InputError: it is neither a run nor a model that timm can load.
    """
    if baseline is None:
        return None
    from nearfar.measuring.othermodel import other_model

    return baseline, other_model(baseline, device=device)


def figures(judged: Judged, *, other: Other | None = None, skip_bad: bool = False) -> dict[str, Any]:
    """All figures of a judged run, as ``metrics.json`` holds them; classes that were kept apart under ``unseen``.

    ``other`` is what `beside_it` gave. Of images without labels they are those of `nearfar.measuring.unlabelled`.

    ``left_out`` says why there are no ``leaks`` or no ``baselines``, where there are none.
    """
    from nearfar.evaluation import evaluate_embeddings
    from nearfar.measuring.beside import Side
    from nearfar.measuring.certainty import certainty
    from nearfar.measuring.heads import add_head_accuracy, add_towers
    from nearfar.measuring.unlabelled import figures_of_views, look_for_views

    if not judged.told:
        return figures_of_views(judged, look_for_views(judged), other)
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
    beside = _beside(judged, gallery, other, skip_bad=skip_bad)
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
    facts = of_the_run(judged)
    return {**tree, **facts, "timing": {**tree.get("timing", {}), **facts["timing"]}}


def _index_is(judged: Judged) -> str:
    left_out = len(judged.index) - len(judged.rows)
    return f"the run's index without {left_out:,} images that have no label" if left_out else "the run's index"


def _among_all(apart: Side, seen: Side, beside: Beside, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of images of unseen classes, searched among one another and the gallery of the seen classes together."""
    from nearfar.evaluation.figures import finite, search_figures
    from nearfar.measuring.beside import Side
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


def _beside(judged: Judged, gallery: ImageSet | InputError, other: Other | None, *, skip_bad: bool) -> Beside:
    from nearfar.evaluation.baselines import Terms
    from nearfar.measuring.beside import Beside

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
        trained_on = index_images(judged, skip_bad=skip_bad)  # components need no labels
    return Beside(trained_on, judged.z.shape[1], terms, held, other)
