"""Verbs about a run's index: `nearfar index ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from nearfar.cli.options import AsJson, Device, Run, SkipBad
from nearfar.cli.root import app, show_result

index_app = App(
    name="index", help="Add images to a run's index, remove them, see what it holds, build it anew; or build another."
)
app.command(index_app)

Metric = Literal["cosine", "dot", "euclidean"]
Backend = Annotated[
    Literal["auto", "exact", "hnsw", "annoy", "milvus"],
    Parameter(help="What searches it: exact, or faster and nearly exact; auto takes exact up to 200,000 vectors, then hnsw."),
]


@index_app.command
def add(
    run: Run,
    images: str,
    /,
    *,
    label: str | None = None,
    device: Device = "auto",
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Add images to the index without training, also of classes that the run does not know; a few of each are enough.

    Parameters
    ----------
    images
        A folder with one sub-folder per class, or any labelled images that train takes; with --label any images.
    label
        The class of all of them.
    """
    from nearfar import show
    from nearfar.runs import indexing

    show_result(indexing.add_images(run, images, label=label, device=device, skip_bad=skip_bad), as_json, show.added)


@index_app.command
def remove(
    run: Run,
    /,
    *,
    label: str | None = None,
    ids: Annotated[tuple[str, ...], Parameter(name="--id", consume_multiple=True, negative="", show_default=False)] = (),
    as_json: AsJson = False,
) -> None:
    """Remove a class or single images from the index.

    Parameters
    ----------
    label
        The class, of which all images go.
    ids
        Images, by the ids that search and predict show.
    """
    from nearfar import show
    from nearfar.runs import indexing

    show_result(indexing.remove_images(run, label=label, ids=ids), as_json, show.removed)


@index_app.command
def build(
    embeddings: Path, /, *, out: Path, backend: Backend = "auto", metric: Metric | None = None, as_json: AsJson = False
) -> None:
    """Build an index of a folder of embeddings that embed wrote; search --index searches it.

    Parameters
    ----------
    embeddings
        The folder.
    out
        The folder of the index; one that is there stays in use until the new one takes its place, at once.
    metric
        What near means; by default as in the run that made the embeddings.
    """
    from nearfar import show
    from nearfar.embedding import build_index

    show_result(build_index(embeddings, out=out, backend=backend, metric=metric), as_json, show.index_built)


@index_app.command
def rebuild(run: Run, /, *, backend: Backend | None = None, as_json: AsJson = False) -> None:
    """Build the run's index anew from its vectors. Searches, a server and additions go on meanwhile; the switch is at once.

    Parameters
    ----------
    backend
        What is to search it; by default what searches it now.
    """
    from nearfar import show
    from nearfar.runs.rebuilding import rebuild_index

    show_result(rebuild_index(run, backend=backend), as_json, show.index_built)


@index_app.command
def info(run: Run, /, *, as_json: AsJson = False) -> None:
    """Say what the index holds: its classes, and how many of their images were added since training."""
    from nearfar import show
    from nearfar.runs import indexing

    show_result(indexing.index_info(run), as_json, show.index)
