"""The map of a run, made once: points, positions, neighbours, and what these say of every label.

Knows a run and its images by ``subject``; positions come from ``layout``, the file is ``store``'s.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nearfar.answers import answer
from nearfar.calibrate import label_probability
from nearfar.classify import similarities, winners
from nearfar.cores import cores
from nearfar.errors import InputError
from nearfar.explore.layout import can_tsne, lay_out
from nearfar.explore.store import MAP, SPLITS, Map, content_hash, read_map, row_marks, write_map
from nearfar.explore.subject import Subject, open_subject
from nearfar.labelissues.scores import fit_kernel, judge, similarity_scale
from nearfar.training.progress import Silent, Watcher

NEIGHBORS = 20
"""Neighbours that are kept for each point, and judge its label."""
_PLACED_BY = ("model", "content", "images", "metric")  # of what a map is bound to, all that its positions come from
_PAIRS = 20_000  # of images at random, whose similarities show the scale

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Wide = npt.NDArray[np.float64]


def make_map(run: str | Path | Subject, *, device: str = "auto", skip_bad: bool = False, watcher: Watcher | None = None) -> Map:
    """The map of a run: that of its folder where it still holds, else a new one, which is kept there.

    The points are the images of the index and those that the run is judged by. For a prediction, a point of the index has the
    leave-one-out vote of its k nearest, and another what `nearfar.answers` says. The suspicion is one less the score of
    `nearfar.labelissues`, by the 20 nearest in the index. Images without a label have no say in either.

    Args:
        run: the run folder, or one that is open.
        device: "auto", "cpu" or "cuda".
        skip_bad: leave out images that cannot be read instead of refusing.
        watcher: is told how far it is, and where the map cannot be kept.

    Raises:
        InputError: the run cannot be used, or the file of its map is damaged.
    """
    watcher = watcher or Silent()
    subject = run if isinstance(run, Subject) else open_subject(run, device=device, skip_bad=skip_bad)
    earlier, bound_to = read_map(subject.folder), binding(subject)
    if earlier is not None and earlier.bound_to == bound_to and (earlier.method == "t-SNE" or not can_tsne()):
        return earlier
    if earlier is not None:
        watcher.note(f"{subject.folder / MAP} is {_why(earlier, bound_to)}: making a new one")
    made = _make(subject, bound_to, earlier, watcher)
    try:
        write_map(subject.folder, made)
    except InputError as reason:  # a run that may only be read is to be looked at all the same
        watcher.note(f"the map is not kept: {reason}")
    return made


def binding(subject: Subject) -> dict[str, Any]:
    """What a map holds for: the model, all of the index, the other images, how they vote, and the calibration."""
    voters = subject.voters
    numbers = None if voters is None else json.dumps(voters[1].to_dict()).encode()
    return {
        "model": subject.index.model_hash,
        "content": content_hash(subject.index),
        "images": {part.split: part.images.fingerprint() for part in subject.parts},
        "k": 0 if voters is None else voters[0].k,
        "vote": subject.model.recipe_.evaluate.vote,
        "metric": subject.metric,
        "calibration": None if numbers is None else hashlib.sha256(numbers).hexdigest(),
    }


def _why(earlier: Map, bound_to: dict[str, Any]) -> str:
    differing = [key for key in bound_to if earlier.bound_to.get(key) != bound_to[key]]
    what = {"model": "of another model", "content": "of another state of the index", "images": "of other images"}
    return next((what[key] for key in differing if key in what), "out of date")


def _positions(
    z: Floats, subject: Subject, bound_to: dict[str, Any], earlier: Map | None, watcher: Watcher
) -> tuple[Floats, str]:
    """Of all points [N, 2], and the method; where only what is said of them has changed, they stay where they are."""
    stays = earlier is not None and all(earlier.bound_to.get(key) == bound_to[key] for key in _PLACED_BY)
    if earlier is not None and stays and (earlier.method == "t-SNE" or not can_tsne()):
        return earlier.xy, earlier.method
    if not can_tsne():
        watcher.note("the map is a plain PCA; pip install 'nearfar[project]' gives a t-SNE, which parts the classes better")
    return lay_out(z, subject.metric, seed=subject.config["seed"], threads=cores(), note=watcher.note)


def _make(subject: Subject, bound_to: dict[str, Any], earlier: Map | None, watcher: Watcher) -> Map:
    index, parts = subject.index, subject.parts
    vectors = np.asarray(index.vectors)
    others = [np.asarray(subject.model.transform(part.images), dtype=np.float32) for part in parts]
    labels = np.concatenate([subject.labels, *(part.labels for part in parts)])
    rest = np.concatenate(others) if others else np.empty((0, vectors.shape[1]), np.float32)
    watcher.note(f"neighbours{'' if subject.voters is None else ' and votes'} of {len(labels):,} images")
    near = _near(subject, rest, NEIGHBORS)
    predictions, probability, suspicion = _opinions(subject, rest, near, labels)
    xy, method = _positions(np.concatenate([vectors, rest]), subject, bound_to, earlier, watcher)
    later = np.where(index.ids < subject.trained, SPLITS.index("gallery"), SPLITS.index("added"))
    apart = [np.full(len(part.images), SPLITS.index(part.split)) for part in parts]
    return Map(
        bound_to=bound_to,
        method=method,
        metric=subject.metric,
        classes=subject.classes,
        source=str(subject.config["data"].get("source") or ""),
        names=list(subject.names()),
        splits=np.concatenate([later, *apart]).astype(np.int8),
        labels=labels.astype(np.int32),
        predictions=predictions.astype(np.int32),
        probability=np.clip(probability, 0.0, 1.0).astype(np.float32),
        suspicion=suspicion.astype(np.float32),
        xy=xy,
        ids=np.concatenate([index.ids, np.full(len(rest), -1)]),
        marks=np.concatenate([row_marks(index.ids, vectors), np.zeros(len(rest), np.uint64)]),
        neighbors=near[1].astype(np.int32),
        scores=near[0],
    )


def _near(subject: Subject, rest: Floats, k: int, only: Ints | None = None) -> tuple[Floats, Ints]:
    """Scores and row numbers of the nearest k in the index, of rows of the index, themselves left out, and of ``rest`` [n, D].

    Args:
        subject: whose index is searched.
        rest: other vectors.
        k: how many at most.
        only: classes of the rows that are looked for; None: all rows.
    """
    index = subject.index
    there = len(index) if only is None else int((subject.labels >= 0).sum())
    k = min(k, there - 1)
    own = index.search_rows(np.asarray(index.vectors), k, exclude=index.ids, labels=only)
    other = index.search_rows(rest, k, labels=only) if len(rest) else (own[0][:0], own[1][:0])
    return np.concatenate([own[0], other[0]]), np.concatenate([own[1], other[1]])


def _opinions(subject: Subject, rest: Floats, near: tuple[Floats, Ints], labels: Ints) -> tuple[Ints, Wide, Wide]:
    """What those with a label say of every point [N]: a class, the probability that it is right, and how suspicious its own is.

    The class is -1 where nobody has a say, and what has no label is not suspicious.
    """
    predictions, probability, suspicion = np.full(len(labels), -1), np.zeros(len(labels)), np.zeros(len(labels))
    if subject.voters is None:
        return predictions, probability, suspicion
    gallery, calibration = subject.voters
    count, only = len(subject.index), None
    if (subject.labels < 0).any():
        only = np.unique(subject.labels[subject.labels >= 0])
        near = _near(subject, rest, NEIGHBORS, only)
    scores, rows = near
    wanted = scores[:count], rows[:count]
    if gallery.k > rows.shape[1]:
        wanted = _near(subject, rest[:0], gallery.k, only)
    codes, similar = gallery.labels[wanted[1][:, : gallery.k]], similarities(wanted[0][:, : gallery.k], gallery.metric)
    predictions[:count] = winners(codes, similar, gallery.vote)
    probability[:count] = label_probability(codes, similar, predictions[:count], calibration)
    if len(rest):
        said = answer(gallery, rest, calibration)
        predictions[count:], probability[count:] = said.labels, said.probability
    own = np.flatnonzero(labels >= 0)
    suspicion[own] = _suspicion(subject, similarities(scores[own], gallery.metric), rows[own], labels[own])
    return predictions, probability, suspicion


def _suspicion(subject: Subject, similar: Wide, rows: Ints, labels: Ints) -> Wide:
    """How strongly the neighbours in the index contradict each label, from 0 to 1; first come those that are rows of it."""
    inside = subject.labels[subject.labels >= 0]
    vectors, classes = np.asarray(subject.index.vectors), len(subject.classes)
    a, b = (vectors[side].astype(np.float64) for side in np.random.default_rng(0).integers(0, len(vectors), (2, _PAIRS)))
    apart = np.linalg.norm(a - b, axis=1) if subject.metric == "euclidean" else (a * b).sum(axis=1)
    scale = similarity_scale(similarities(apart, subject.metric))
    codes = subject.labels[rows]
    kernel = fit_kernel(codes[: len(inside)], similar[: len(inside)], inside, classes, scale)
    return 1.0 - judge(codes, kernel.weights(similar), np.full(len(rows), kernel.floor), labels, classes).score
