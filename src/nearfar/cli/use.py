"""Verbs that put a run to work: embed, search, predict, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

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
    ray: str | None = None,
    as_json: AsJson = False,
) -> None:
    """Embed images into one file, or any number of them into a folder of Parquet parts, in bounded memory.

    RUN may also be an .onnx file that export wrote: it needs no run folder. When a folder of parts was broken off, the same
    command goes on with it.

    Parameters
    ----------
    data
        The images: a name, an image file, a folder, or any file that train takes; for a folder of parts also a .tar file, or a
        folder of them.
    out
        A file ending in .npz or .parquet, made in memory; or a name without an ending: a folder of parts.
    ray
        Compute on a Ray cluster, into a folder of parts: auto (the one that runs here), local (start one), or host:port.
    """
    from nearfar import show, verbs

    show_result(verbs.embed(run, data, out=out, device=device, skip_bad=skip_bad, ray=ray), as_json, show.embedded)


@app.command
def search(
    run: Run,
    images: Images,
    /,
    *,
    k: Neighbors = 10,
    to: Literal["images", "text"] = "images",
    index: Path | None = None,
    device: Device = "auto",
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Find the nearest images of the run's index, for images or, where the run learned from captions, for a text.

    Parameters
    ----------
    images
        Image files, folders, or any file that train takes; or texts, such as "a striped shirt".
    to
        What to find: images, or the captions of the training images.
    index
        Search another index that the run's model made: a folder that index build wrote.
    """
    from nearfar import show, verbs

    result = verbs.search(run, images, k=k, to=to, index=index, device=device, skip_bad=skip_bad)
    show_result(result, as_json, show.neighbors)


@app.command
def predict(
    run: Run,
    images: Images,
    /,
    *,
    out: Path | None = None,
    precision: float = 0.99,
    classes: str | None = None,
    templates: Annotated[
        tuple[str, ...], Parameter(name="--template", consume_multiple=True, negative="", show_default=False)
    ] = (),
    prompts: Path | None = None,
    device: Device = "auto",
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Name the class of images by the vote of their nearest neighbours, or say unknown where that is not sure enough.

    A run that learned from captions also knows classes by their names alone: --classes, --template or --prompts.

    Parameters
    ----------
    images
        Image files, folders, names of sets, or any file that train takes.
    out
        Write a CSV file instead of printing.
    precision
        Wanted share of right ones among the answers that are given; 0 answers everything.
    classes
        Names of classes with commas between them, of any number and not only those that were trained on.
    templates
        Texts that the names are put into, e.g. "a photo of a {}."; without --classes, the names of the run's classes.
    prompts
        Instead of both, a TOML file of lines like shirt = ["a shirt", "a photo of a shirt"].
    """
    from nearfar import show, verbs

    named = None if classes is None else [name.strip() for name in classes.split(",")]
    result = verbs.predict(
        run,
        images,
        out=out,
        precision=precision,
        classes=named,
        templates=templates,
        prompts=prompts,
        device=device,
        skip_bad=skip_bad,
    )
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
