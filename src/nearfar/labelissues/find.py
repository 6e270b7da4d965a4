"""The verb: judge the label of every image of a set, and leave ``issues.csv`` and ``issues.html``."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nearfar import runs
from nearfar.data import ImageSet, load_any, load_splits
from nearfar.embedder import Embedder
from nearfar.errors import InputError
from nearfar.files import write_text
from nearfar.labelissues.copies import Conflict, conflicting_copies
from nearfar.labelissues.gallery import Card, Shown, render
from nearfar.labelissues.neighbors import Part, by_folds, by_run
from nearfar.labelissues.scores import Judged, fit_kernel, judge
from nearfar.measuring.judging import Source
from nearfar.runs.opening import shape_of
from nearfar.splits import load_for
from nearfar.spreadsheet import csv_text
from nearfar.training.progress import Watcher

FOLDER, TABLE, GALLERY = "label-issues", "issues.csv", "issues.html"
NEAREST = 5  # neighbours that are named and shown

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Found:
    """Images, the neighbours and the verdict on each; N images, k neighbours."""

    images: ImageSet
    labels: Ints  # [N], numbers of ``classes``
    classes: list[str]
    rows: Ints  # of the neighbours [N, k], the nearest first
    verdict: Judged
    conflicts: list[Conflict]

    @cached_property
    def copies(self) -> dict[int, list[int]]:
        """The rows of each image's copies, itself among them, for those that are in a conflict."""
        found: dict[int, set[int]] = {}
        for conflict in self.conflicts:
            for row in conflict.rows:
                found.setdefault(row, set()).update(conflict.rows)
        return {row: sorted(others) for row, others in found.items()}

    def order(self) -> list[int]:
        """Rows of the images whose label a neighbour or a copy contradicts, the worst first."""
        listed = self.verdict.suggested != self.labels
        listed[list(self.copies)] = True
        rows = np.flatnonzero(listed)
        return rows[np.argsort(self.verdict.score[rows], kind="stable")].tolist()

    def entry(self, row: int) -> dict[str, Any]:
        """What is said of an image: its id, labels, score, the votes of its neighbours, the nearest, and its copies."""
        names, ids = self.classes, self.images.ids
        votes = Counter(names[number] for number in self.labels[self.rows[row]].tolist())
        return {
            "image": str(ids[row]),
            "given": names[self.labels[row]],
            "suggested": names[self.verdict.suggested[row]],
            "likely": bool(self.verdict.likely[row]),
            "score": float(f"{self.verdict.score[row]:.9g}"),
            "votes": dict(votes.most_common()),
            "nearest": [str(name) for name in ids[self.rows[row, :NEAREST]].tolist()],
            "copies": [str(ids[other]) for other in self.copies.get(row, []) if self.labels[other] != self.labels[row]],
        }


def label_issues(
    run: str | Path,
    data: Source | None = None,
    *,
    out: str | Path | None = None,
    folds: int = 0,
    device: str = "auto",
    skip_bad: bool = False,
    watcher: Watcher | None = None,
) -> dict[str, Any]:
    """Rank the images whose label their neighbours contradict, and find copies with different labels.

    Args:
        run: the run folder whose embedding, or recipe, is used.
        data: name, path or `ImageSet` with labels, all splits of it that have some; None: the images that the run was
            trained on. Each image is searched among the others of the set.
        out: the folder to write to; None: ``label-issues`` in the run folder.
        folds: 0: neighbours in the embedding of the run. 2 or more: the images are cut into so many folds, and each is judged
            in an embedding that was trained, by the run's recipe, on the others.
        device: "auto", "cpu" or "cuda".
        skip_bad: leave out images that cannot be read instead of refusing.
        watcher: is told how training goes.

    Returns:
        ``run``, ``source``, ``images``, ``classes``; ``new_classes``, that the run does not know; ``alone``, images without
        another of their class; ``unlabelled``, images left out; ``skipped``, ``k`` and ``folds``; ``likely``, the number of
        labels that are likely wrong, and ``listed``, that of all rows of the table; ``conflicts``: groups of copies with
        different labels, each with ``likeness`` and ``images``; ``near_sought``; ``issues``: the likely ones, the worst
        first, as in the table; ``table``, ``gallery``, ``shown``; ``seconds``.

    Raises:
        InputError: the run or the data cannot be used, the data has fewer than two classes or no labels, or ``out`` cannot
            be written to.
    """
    started = time.perf_counter()
    model = Embedder.load(run, device=device)
    source, images, unlabelled = _images(Path(run), model, data, skip_bad)
    present, labels = np.unique(images.require_labels(), return_inverse=True)
    if len(present) < 2:
        raise InputError(f"{images.name} has one class only; a label can be wrong where there are at least two")
    labels = labels.astype(np.int64)
    classes = [images.classes[number] for number in present]
    read = time.perf_counter()
    parts = by_folds(model, images, labels, folds, device=device, watcher=watcher) if folds else by_run(model, images)
    embedded = time.perf_counter()
    rows, verdict = _verdict(parts, labels, len(classes))
    judged = time.perf_counter()
    conflicts, near_sought = conflicting_copies(images, labels)
    compared = time.perf_counter()
    found = Found(images, labels, classes, rows, verdict, conflicts)
    order = found.order()
    folder = Path(out) if out is not None else Path(run) / FOLDER
    entries = [found.entry(row) for row in order]
    likely = [entry for entry in entries if entry["likely"]]
    copies = [
        {
            "likeness": round(conflict.likeness, 6),
            "images": [{"image": str(images.ids[row]), "label": classes[labels[row]]} for row in conflict.rows],
        }
        for conflict in conflicts
    ]
    how = f"{folds} folds" if folds else "the embedding of the run"
    cards = (_card(found, row) for row in order if verdict.likely[row])
    groups = (_group(found, conflict) for conflict in conflicts)
    page, shown = render(cards, groups, likely=len(likely), images=len(images), source=source, how=how)
    write_text(folder / TABLE, _table(entries))
    write_text(folder / GALLERY, page)
    return {
        "run": str(run),
        "source": source,
        "images": len(images),
        "classes": len(classes),
        "new_classes": len(set(classes) - set(model.classes_)),
        "alone": int((np.bincount(labels) == 1).sum()),
        "unlabelled": unlabelled,
        "skipped": list(images.skipped),
        "k": rows.shape[1],
        "folds": folds,
        "likely": len(likely),
        "listed": len(entries),
        "conflicts": copies,
        "near_sought": near_sought,
        "issues": likely,
        "table": str(folder / TABLE),
        "gallery": str(folder / GALLERY),
        "shown": shown,
        "seconds": {
            "read": round(read - started, 3),
            "embed": round(embedded - read, 3),
            "judge": round(judged - embedded, 3),
            "copies": round(compared - judged, 3),
        },
    }


def _images(run: Path, model: Embedder, data: Source | None, skip_bad: bool) -> tuple[str, ImageSet, int]:
    """What the images are, the images, and how many were left out since they have no labels."""
    if data is not None:
        source = data.name if isinstance(data, ImageSet) else str(data)
        splits = list(load_splits(data, **shape_of(model), skip_bad=skip_bad).values())
        labelled = [part for part in splits if part.labels is not None] or splits[:1]  # which then say that they have none
        images = labelled[0] if len(labelled) == 1 else load_any(labelled)
        return source, images, sum(map(len, splits)) - len(images)
    config = runs.read_config(run)
    trained_on = config["data"].get("source")
    if trained_on is None:
        raise InputError(f"{run} does not say what it was trained on; name the labelled images: nearfar data issues {run} DATA")
    return trained_on, load_for(trained_on, model.recipe_.data, seed=config["seed"], skip_bad=skip_bad).train, 0


def _verdict(parts: list[Part], labels: Ints, classes: int) -> tuple[Ints, Judged]:
    """Each image's neighbours [N, k], and what they say of its label."""
    count, k = len(labels), parts[0].rows.shape[1]
    rows, votes, floors = np.empty((count, k), dtype=np.int64), np.empty((count, k)), np.empty(count)
    for part in parts:
        kernel = fit_kernel(labels[part.rows], part.similarity, labels[part.held], classes, part.scale)
        rows[part.held], votes[part.held], floors[part.held] = part.rows, kernel.weights(part.similarity), kernel.floor
    return rows, judge(labels[rows], votes, floors, labels, classes)


def _table(entries: list[dict[str, Any]]) -> str:
    names = ["image", "given", "suggested", "likely", "score", "votes", "nearest", "copies"]
    rows = []
    for entry in entries:
        lists = {key: json.dumps(entry[key], ensure_ascii=False) for key in ("votes", "nearest", "copies")}
        rows.append(entry | lists | {"likely": "yes" if entry["likely"] else "no"})
    return csv_text(names, rows)


def _card(found: Found, row: int) -> Card:
    near = found.rows[row, :NEAREST]
    entry = found.entry(row)
    return Card(
        image=found.images.images[row],
        id=entry["image"],
        given=entry["given"],
        suggested=entry["suggested"],
        score=entry["score"],
        votes=entry["votes"],
        near=_shown(found, near),
    )


def _group(found: Found, conflict: Conflict) -> tuple[float, list[Shown]]:
    return conflict.likeness, _shown(found, np.array(conflict.rows))


def _shown(found: Found, rows: Ints) -> list[Shown]:
    names = [found.classes[number] for number in found.labels[rows]]
    return list(zip(found.images.images[rows], map(str, found.images.ids[rows].tolist()), names, strict=True))
