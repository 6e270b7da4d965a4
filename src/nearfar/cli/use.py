"""Verbs that put a run to work: embed, search, predict, export."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from nearfar.cli.options import AsJson, Device, Images, Neighbors, Run, SkipBad
from nearfar.cli.root import app, show_result


@app.command
def embed(
    run: Run,
    data: str,
    /,
    *,
    out: Path,
    device: Device = "auto",
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Embed images into one .npz or .parquet file. RUN may also be an .onnx file that export wrote: it needs no run folder.

    Parameters
    ----------
    data
        The images: a name, an image file, a folder, or any file that train takes.
    out
        The file to write, with embedding, id and label; its name ends in .npz or .parquet.
    """
    from nearfar import show, verbs

    show_result(verbs.embed(run, data, out=out, device=device, skip_bad=skip_bad), as_json, show.embedded)


@app.command
def search(
    run: Run,
    images: Images,
    /,
    *,
    k: Neighbors = 10,
    device: Device = "auto",
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Find the nearest images of the run's index.

    Parameters
    ----------
    images
        Image files, folders, or any file that train takes.
    """
    from nearfar import show, verbs

    show_result(verbs.search(run, images, k=k, device=device, skip_bad=skip_bad), as_json, show.neighbors)


@app.command
def predict(
    run: Run,
    images: Images,
    /,
    *,
    out: Path | None = None,
    precision: float = 0.99,
    device: Device = "auto",
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Name the class of images by the vote of their nearest neighbours, or say unknown where that is not sure enough.

    Parameters
    ----------
    images
        Image files, folders, names of sets, or any file that train takes.
    out
        Write a CSV file instead of printing.
    precision
        Wanted share of right ones among the answers that are given; 0 answers everything.
    """
    from nearfar import show, verbs

    result = verbs.predict(run, images, out=out, precision=precision, device=device, skip_bad=skip_bad)
    show_result(result, as_json, show.written if out is not None else show.predictions)


@app.command
def export(
    run: Run,
    data: str | None = None,
    /,
    *,
    out: Path,
    to: Literal["onnx", "projector"] | None = None,
    quantize: Literal["int8"] | None = None,
    device: Device = "auto",
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Write the model as an ONNX file for any runtime, checked against PyTorch; or a folder for the Embedding Projector.

    Parameters
    ----------
    data
        The images to check the file on, or to show; by default those that the run is measured on.
    out
        The file to write, whose name ends in .onnx; or the folder.
    to
        What to write: onnx where the name ends in .onnx, else projector, which TensorBoard opens.
    quantize
        Compute the model's inner layers in whole numbers of 8 bits: faster, and not as exact.
    """
    from nearfar import show, verbs

    result = verbs.export(run, data, out=out, to=to, quantize=quantize, device=device, skip_bad=skip_bad)
    show_result(result, as_json, show.exported)
