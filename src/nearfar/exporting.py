"""The verb `export`: what of a run goes to other tools, and the images that it is shown on or checked with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nearfar import runs
from nearfar.answers import can_vote, gallery_of, trained_images, unlabelled_gallery
from nearfar.errors import InputError
from nearfar.measuring.judging import Source, images_to_judge, judge
from nearfar.runs.opening import classes_of, labels_in, load_run


def export(
    run: str | Path,
    data: Source | None = None,
    *,
    out: str | Path,
    to: str | None = None,
    quantize: str | None = None,
    device: str = "auto",
    skip_bad: bool = False,
) -> dict[str, Any]:
    """Write a run's embedding, or its model, for other tools.

    Args:
        run: the run folder.
        data: the images to show, or to check the exported model on; None: those that the run is judged by.
        out: the folder or the file to write.
        to: "projector", a folder for TensorBoard's Embedding Projector, or "onnx", the model as one file; None: "onnx" where
            ``out`` ends in .onnx, else "projector".
        quantize: "int8": the model's inner layers in whole numbers of 8 bits, with ranges from the training images.
        device: "auto", "cpu" or "cuda".
        skip_bad: leave out images that cannot be read instead of refusing.

    Returns:
        out, images, and of the projector files, of ONNX what `nearfar.export.onnx.export_onnx` returns.

    Raises:
        InputError: the run, the data or ``out`` cannot be used, or the exported model does not do what the run's does.
    """
    out = Path(out)
    to = ("onnx" if out.suffix == ".onnx" else "projector") if to is None else to
    if to not in ("projector", "onnx"):
        raise InputError(f"cannot export to {to!r}; known are 'projector' and 'onnx'")
    if quantize not in (None, "int8"):
        raise InputError(f"cannot quantize to {quantize!r}; known is 'int8'")
    if to == "onnx":
        return _export_onnx(Path(run), data, out, quantize, device, skip_bad)
    if quantize is not None:
        raise InputError("quantize is for the model, not for its embeddings; give it with a file that ends in .onnx")
    from nearfar.export import export_projector

    judged = judge(run, data, device=device, skip_bad=skip_bad)
    queries, labels = judged.queries, judged.labels if judged.told else None
    files = export_projector(judged.z, labels, judged.classes, queries.images, out, ids=queries.ids.tolist())
    return {"out": str(out), "images": len(queries), "files": [path.name for path in files]}


def _export_onnx(
    run: Path, data: Source | None, out: Path, quantize: str | None, device: str, skip_bad: bool
) -> dict[str, Any]:
    from nearfar.export.graph import require_onnx
    from nearfar.export.onnx import export_onnx

    require_onnx()
    if out.suffix != ".onnx":
        raise InputError(f"cannot write a model to {out}; its name must end in .onnx")
    config = runs.read_finished(run)
    model, index = load_run(run, device=device)
    asked = images_to_judge(model, config, data, skip_bad=skip_bad)
    labels = exclude = training = None
    if asked.images.labels is not None:
        labels = labels_in(asked.images, classes_of(model, index))
    if asked.own and asked.split == "train":  # each is in the index itself
        ids = dict(zip(index.names["images"], index.ids.tolist(), strict=True))
        exclude = np.array([ids.get(name, -1) for name in asked.images.ids.tolist()], dtype=np.int64)
    gallery_in = gallery_of if can_vote(index) else unlabelled_gallery
    if quantize is not None:
        splits = asked.splits or images_to_judge(model, config, skip_bad=skip_bad).splits
        training = None if splits is None else splits.train
    return export_onnx(
        model,
        out,
        model_hash=config["model"]["sha256"],
        images=asked.images,
        labels=labels,
        gallery=gallery_in(index, model.recipe_.evaluate, trained_images(config, index)),
        exclude=exclude,
        training=training,
    )
