"""How sure a run is of its answers, and how it fares with classes that it never saw: two sections of ``metrics.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from nearfar.answers import (
    Answers,
    Gallery,
    answer,
    calibrate,
    fitted_in,
    gallery_of,
    read_calibration,
    trained_images,
    write_calibration,
)
from nearfar.calibrate import PRECISION, expected_calibration_error
from nearfar.evaluation.figures import finite
from nearfar.evaluation.openset import open_set_figures
from nearfar.measuring.judging import Judged

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int64]

_KEPT = ("images", "images_are", "accuracy", "before", "after", "fitted")


def certainty(judged: Judged, validation: tuple[Floats, Codes] | None, unseen: tuple[Floats, Codes] | None) -> dict[str, Any]:
    """Calibrate a run where it is not yet, and measure what it says of the queries and of images of unseen classes.

    Args:
        judged: the run and its queries.
        validation: vectors and class numbers of images to calibrate on; None: training images.
        unseen: vectors and class numbers of images of classes kept from training.

    Returns:
        ``calibration`` and, where there are images of classes that the index lacks, ``open_set``; see docs/unknown.md. Queries
        that were trained on are asked nothing: the run has the answers.

    Raises:
        InputError: the index is too small, or the run's calibration is damaged.
    """
    gallery = _gallery(judged)
    record = None if _on_validation(judged) else read_calibration(judged.folder, gallery)
    if record is None or (validation is not None and record["images_are"] != "validation images"):
        record = calibrate(gallery, validation)
    fitted = fitted_in(record)
    line = fitted.threshold(PRECISION)
    answered, precision = fitted.at(line)
    tree: dict[str, Any] = {
        **record,
        "precision_wanted": PRECISION,
        "threshold": line,
        "answered": answered,
        "precision": precision,
    }
    parts = [] if judged.splits is not None and judged.split == "train" else [(judged.z, judged.labels)]
    known = np.unique(gallery.labels)
    later = np.unique(gallery.labels[gallery.later])
    asked = [(z, labels, np.isin(labels, known)) for z, labels in parts]
    if asked and asked[0][2].any():
        z, labels, here = asked[0]
        said = answer(gallery, z[here], fitted)
        tree["queries"] = _said(said, labels[here])
    if unseen is not None:
        asked.append((*unseen, np.isin(unseen[1], known)))
    fresh = [answer(gallery, z[np.isin(labels, later)], fitted) for z, labels, _ in asked if np.isin(labels, later).any()]
    if fresh:
        truth = np.concatenate([labels[np.isin(labels, later)] for _, labels, _ in asked])
        right = np.concatenate([each.labels for each in fresh]) == truth
        tree["added_classes"] = {"classes": len(later), "images": len(truth), "accuracy": float(right.mean())}
    sections = {"calibration": finite(tree)}
    strange = [z[~here] for z, _, here in asked if not here.all()]
    if strange and "queries" in tree:
        other = answer(gallery, np.concatenate(strange), fitted)
        sections["open_set"] = finite(open_set_figures(said.probability, other.probability, line))
    return sections


def keep_calibration(judged: Judged, tree: Mapping[str, Any]) -> None:
    """Write what `certainty` found to the run folder, where `predict` looks for it."""
    if "calibration" in tree and not _on_validation(judged):
        write_calibration(judged.folder, _gallery(judged), {key: tree["calibration"][key] for key in _KEPT})


def _on_validation(judged: Judged) -> bool:
    """Whether the queries are the images that a calibration would be made on: then it is made on others, and not kept."""
    return judged.splits is not None and judged.split == "validation"


def _gallery(judged: Judged) -> Gallery:
    return gallery_of(judged.index, judged.model.recipe_.evaluate, trained_images(judged.config, judged.index))


def _said(said: Answers, truth: Codes) -> dict[str, Any]:
    """What the answers to queries of known classes are worth."""
    right = said.labels == truth
    return {
        "images": len(truth),
        "accuracy": float(right.mean()),
        "ece_before": expected_calibration_error(np.clip(said.votes, 0.0, 1.0), right),
        "ece_after": expected_calibration_error(said.probability, right),
        "answered": float(said.known.mean()),
        "precision": float(right[said.known].mean()) if said.known.any() else None,
    }
