"""A run's model as one ONNX file that says what it is; checked against PyTorch on real images before it is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import nearfar
from nearfar import onnxfile
from nearfar.answers import Gallery
from nearfar.classify import similarities, winners
from nearfar.data import ImageSet
from nearfar.errors import InputError
from nearfar.export.graph import to_onnx
from nearfar.export.int8 import IMAGES, to_int8
from nearfar.files import write_bytes
from nearfar.onnxmodel import FORMAT, OnnxEmbedder, runtime
from nearfar.search.scoring import Gallery as Rows
from nearfar.search.scoring import score_pairs
from nearfar.search.vectors import unit_rows

if TYPE_CHECKING:
    from onnx import ModelProto

    from nearfar.embedder import Embedder

CHECKED = 2000
"""Images that the file is checked on, at most."""
NEIGHBORS = 10
DIFFERENCE = 1e-4
"""What embeddings may differ by from PyTorch's, as a share of the largest number in them where that is above 1."""
AGREEMENT = {None: 0.999, "int8": 0.9}
"""Share of the images whose nearest gallery image must stay the same."""
_ROUNDING = 1e-5
"""Similarities that differ by less, as a share of the largest, are equal but for rounding."""

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


def export_onnx(
    model: Embedder,
    path: Path,
    *,
    model_hash: str,
    images: ImageSet,
    labels: Ints | None,
    gallery: Gallery,
    exclude: Ints | None = None,
    training: ImageSet | None = None,
) -> dict[str, Any]:
    """Write a model to an ONNX file that any runtime can use, and `nearfar.onnxmodel.OnnxEmbedder` without the run.

    Input ``images`` uint8 [N, C, H, W], output ``embedding`` float32 [N, D]; C, H and W are the model's own.

    Args:
        model: trained or loaded.
        path: the file; it appears once it has passed.
        model_hash: SHA-256 of the model's weights.
        images: to check it on, of which at most 2,000 are taken.
        labels: their classes, as numbers of the gallery; -1, or None for all, where they are not known.
        gallery: what they are searched in.
        exclude: for each image the id of a row that is not its neighbour, or -1.
        training: quantise to 8 bits, with ranges from these images; None: float32.

    Returns:
        ``out``, ``to``, ``quantize``, ``bytes``, ``dim``, ``images`` (that it was checked on), ``difference`` (the largest
        one from PyTorch's embeddings), ``same_nearest`` (share of the images whose nearest gallery image stays the same, or is
        one as near up to rounding), ``overlap`` (share of the 10 nearest that are the same), where the gallery has labels
        ``same_class`` (share that gets the same class by vote), and where classes are known ``accuracy`` and
        ``accuracy_pytorch`` of that vote.

    Raises:
        InputError: the extra is not installed, or the file does not do what the model does; then none is left.
    """
    runtime()
    data, quantize = model.recipe_.data, None if training is None else "int8"
    graph = to_onnx(model.encoder_, channels=model.channels_, size=model.size_, mean=data.mean, std=data.std)
    if training is not None:
        graph = to_int8(graph, np.asarray(model.conform(training.subset(_spread(len(training), IMAGES))).images[:]))
    _describe(graph, model, model_hash, quantize)
    content = graph.SerializeToString()
    chosen = _spread(len(images), CHECKED)
    some = model.conform(images.subset(chosen))
    said = check(
        OnnxEmbedder(content, str(path)).transform(some),
        model.transform(some),
        gallery,
        labels=None if labels is None else labels[chosen],
        exclude=None if exclude is None else exclude[chosen],
    )
    limit = DIFFERENCE * max(1.0, said.pop("largest"))
    if quantize is None and said["difference"] > limit:
        raise InputError(
            f"the ONNX file does not compute what the model does: embeddings differ by {said['difference']:.1e}, expected at "
            f"most {limit:.0e}; no file was written"
        )
    if said["same_nearest"] < AGREEMENT[quantize]:
        mend = "no file was written" if quantize is None else "no file was written; leave out --quantize int8"
        raise InputError(
            f"with the ONNX file {said['same_nearest']:.2%} of {len(chosen):,} images keep their nearest image, expected at "
            f"least {AGREEMENT[quantize]:.1%}; {mend}"
        )
    write_bytes(path, content)
    about = {"out": str(path), "to": "onnx", "quantize": quantize, "bytes": len(content)}
    return {**about, "dim": said.pop("dim"), "images": len(chosen), **said}


def check(
    z: Floats, expected: Floats, gallery: Gallery, *, labels: Ints | None = None, exclude: Ints | None = None
) -> dict[str, Any]:
    """Compare the embeddings of an exported model with those of the model.

    Args:
        z: [N, D].
        expected: [N, D].
        gallery: what both are searched in.
        labels: classes [N] as numbers, -1 where they are not known; None: of none.
        exclude: for each row the id of a row that is not its neighbour, or -1; None: none for all.

    Returns:
        ``dim``, ``largest`` (number in the expected ones), and the figures of `export_onnx`.
    """
    spare = exclude is not None and bool((exclude >= 0).any())
    wide = replace(gallery, k=min(max(NEIGHBORS, gallery.k), len(gallery.voting) - spare))
    scores, rows = wide.search(z, exclude)
    right_scores, right_rows = wide.search(expected, exclude)
    count = min(NEIGHBORS, rows.shape[1])
    both = [len(set(a) & set(b)) for a, b in zip(rows[:, :count].tolist(), right_rows[:, :count].tolist(), strict=True)]
    # Of images that lie on top of one another any may come first: what is as near by the expected embedding is as right.
    queries = unit_rows(expected, "z") if gallery.metric == "cosine" else expected
    as_near = score_pairs(queries, Rows(gallery.index.vectors), np.arange(len(z)), rows[:, 0], gallery.metric)
    slack = _ROUNDING * max(1.0, float(np.abs(right_scores).max()))
    figures: dict[str, Any] = {
        "dim": z.shape[1],
        "largest": float(np.abs(expected).max()),
        "difference": float(np.abs(z - expected).max()),
        "same_nearest": float((np.abs(as_near - right_scores[:, 0]) <= slack).mean()),
        "overlap": float(np.mean(both)) / count,
    }
    if not (gallery.labels[gallery.voting] >= 0).all():  # see `nearfar.answers.unlabelled_gallery`
        return figures
    votes = []
    for found, near in ((scores, rows), (right_scores, right_rows)):
        k = min(gallery.k, near.shape[1])
        votes.append(winners(gallery.labels[near[:, :k]], similarities(found[:, :k], gallery.metric), gallery.vote))
    figures["same_class"] = float((votes[0] == votes[1]).mean())
    if labels is not None and (known := labels >= 0).any():
        for name, vote in zip(("accuracy", "accuracy_pytorch"), votes, strict=True):
            figures[name] = float((vote[known] == labels[known]).mean())
    return figures


def _describe(graph: ModelProto, model: Embedder, model_hash: str, quantize: str | None) -> None:
    """Put what the model is into the file's metadata."""
    dimensions = graph.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    entry = graph.metadata_props.add()
    entry.key = onnxfile.KEY
    entry.value = json.dumps(
        {
            "format": FORMAT,
            "nearfar": nearfar.__version__,
            "model": model_hash,
            "quantize": quantize,
            "dimensions": dimensions,
            "metric": model.recipe_.evaluate.metric,
            "input": {
                "channels": model.channels_,
                "size": list(model.size_),
                "background": model.recipe_.data.background,
            },
            "classes": list(model.classes_),
            "recipe": model.recipe_.to_dict(),
        },
        ensure_ascii=False,
        allow_nan=False,
    )


def _spread(count: int, most: int) -> Ints:
    """At most so many of ``count`` rows, ascending, always the same ones."""
    rows = np.arange(count)
    return rows if count <= most else np.sort(np.random.default_rng(0).permutation(rows)[:most])
