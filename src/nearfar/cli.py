"""The command line: one verb a stage, no logic. Progress goes to stderr, results to stdout.

Exit codes: 0 done; 2 the input or the options are wrong, said in one line; 130 interrupted; 1 a defect of nearfar.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter

from nearfar import __version__
from nearfar.errors import InputError

app = App(
    name="nearfar",
    version=__version__,
    help="Teach a network what is near and what is far: from images to an embedding that you can search, classify with, "
    "measure, look at and ship.",
    suppress_keyboard_interrupt=False,  # `main` says how to go on
)
data_app = App(name="data", help="List, fetch and check image sets.")
app.command(data_app)

Flag = Parameter(negative="")
Device = Literal["auto", "cpu", "cuda"]


@app.command
def train(
    data: str,
    /,
    *,
    recipe: str | None = None,
    start: Annotated[Path | None, Parameter(name="--from")] = None,
    out: Path | None = None,
    seed: int = 0,
    epochs: int | None = None,
    device: Device = "auto",
    settings: Annotated[tuple[str, ...], Parameter(name="--set", consume_multiple=True, negative="", show_default=False)] = (),
    resume: Annotated[bool, Flag] = False,
    skip_bad: Annotated[bool, Flag] = False,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Train an embedding and leave a run folder.

    Parameters
    ----------
    data
        A name (mnist, fashion-mnist, digits), a folder with one sub-folder per class, a folder with metadata.csv, IDX
        files, a pixel CSV, .npz, or Parquet with an image column.
    recipe
        A name that `nearfar recipes` lists, or a .toml file; by default that of --from, or the one that suits the data.
    start
        A run folder whose encoder training begins with; --set train.mode=linear trains a linear classifier on it,
        train.mode=finetune both together.
    out
        The run folder; by default a new one below runs/.
    seed
        Everything random follows from it.
    epochs
        Instead of the recipe's.
    device
        Where to compute.
    settings
        Change the recipe, e.g. --set loss.temperature=0.2 train.epochs=5.
    resume
        Go on with the interrupted run in --out.
    skip_bad
        Leave out images that cannot be read, and count them, instead of refusing.
    as_json
        Print the result as JSON.
    """
    from nearfar import show, verbs
    from nearfar.progress import ProgressLine
    from nearfar.recipe import parse_changes

    result = verbs.train(
        data,
        recipe=recipe,
        start=start,
        out=out,
        seed=seed,
        epochs=epochs,
        device=device,
        changes=parse_changes(settings),
        resume=resume,
        skip_bad=skip_bad,
        watcher=ProgressLine(),
    )
    _print(result, as_json, show.trained)


@app.command
def evaluate(
    run: Path,
    data: str | None = None,
    /,
    *,
    device: Device = "auto",
    skip_bad: Annotated[bool, Flag] = False,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Measure a run on the test images; also written to RUN/metrics.json and RUN/README.md.

    Parameters
    ----------
    run
        A run folder.
    data
        Other images to measure it on; classes that the run does not know are searched among themselves.
    device
        Where to compute.
    skip_bad
        Leave out images that cannot be read, and count them, instead of refusing.
    as_json
        Print the whole tree as JSON.
    """
    from nearfar import show, verbs

    _print(verbs.evaluate(run, data, device=device, skip_bad=skip_bad), as_json, show.figures)


@app.command
def report(
    run: Path,
    data: str | None = None,
    /,
    *,
    device: Device = "auto",
    skip_bad: Annotated[bool, Flag] = False,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Measure a run and draw it: RUN/report.html, one page with every figure and plot, and RUN/plots.

    Parameters
    ----------
    run
        A run folder.
    data
        Other images to report on, as for evaluate.
    device
        Where to compute.
    skip_bad
        Leave out images that cannot be read, and count them, instead of refusing.
    as_json
        Print what was written, and the whole tree of figures, as JSON.
    """
    from nearfar import show
    from nearfar.report import report as make

    _print(make(run, data, device=device, skip_bad=skip_bad), as_json, show.reported)


@app.command
def embed(
    run: Path,
    data: str,
    /,
    *,
    out: Path,
    device: Device = "auto",
    skip_bad: Annotated[bool, Flag] = False,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Embed images into one .npz or .parquet file.

    Parameters
    ----------
    run
        A run folder.
    data
        The images: a name, an image file, a folder, or any file that train takes.
    out
        The file to write, with embedding, id and label; its name ends in .npz or .parquet.
    device
        Where to compute.
    skip_bad
        Leave out images that cannot be read, and count them, instead of refusing.
    as_json
        Print the result as JSON.
    """
    from nearfar import show, verbs

    _print(verbs.embed(run, data, out=out, device=device, skip_bad=skip_bad), as_json, show.embedded)


@app.command
def search(
    run: Path,
    images: Annotated[tuple[str, ...], Parameter(negative="")],
    /,
    *,
    k: Annotated[int, Parameter(name=("-k", "--k"))] = 10,
    device: Device = "auto",
    skip_bad: Annotated[bool, Flag] = False,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Find the nearest images of the run's index.

    Parameters
    ----------
    run
        A run folder.
    images
        Image files, folders, or any file that train takes.
    k
        How many neighbours for each.
    device
        Where to compute.
    skip_bad
        Leave out images that cannot be read, and count them, instead of refusing.
    as_json
        Print the result as JSON.
    """
    from nearfar import show, verbs

    _print(verbs.search(run, images, k=k, device=device, skip_bad=skip_bad), as_json, show.neighbors)


@app.command
def predict(
    run: Path,
    images: Annotated[tuple[str, ...], Parameter(negative="")],
    /,
    *,
    out: Path | None = None,
    device: Device = "auto",
    skip_bad: Annotated[bool, Flag] = False,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Name the class of images by the vote of their nearest neighbours.

    Parameters
    ----------
    run
        A run folder.
    images
        Image files, folders, names of sets, or any file that train takes.
    out
        Write a CSV file instead of printing.
    device
        Where to compute.
    skip_bad
        Leave out images that cannot be read, and count them, instead of refusing.
    as_json
        Print the result as JSON.
    """
    from nearfar import show, verbs

    result = verbs.predict(run, images, out=out, device=device, skip_bad=skip_bad)
    _print(result, as_json, show.written if out is not None else show.predictions)


@app.command
def compare(
    data: str,
    /,
    *,
    recipes: str,
    seeds: int = 3,
    fractions: str = "1",
    epochs: int | None = None,
    seconds: float | None = None,
    out: Path | None = None,
    settings: Annotated[tuple[str, ...], Parameter(name="--set", consume_multiple=True, negative="", show_default=False)] = (),
    device: Device = "auto",
    resume: Annotated[bool, Flag] = False,
    skip_bad: Annotated[bool, Flag] = False,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Train several recipes on the same images and say which does better, and by how much.

    Parameters
    ----------
    data
        The images, as for train; those of the test split are judged, or one image in five where there is none.
    recipes
        Names or .toml files with commas between them.
    seeds
        How many seeds each recipe is trained with.
    fractions
        Shares of the training images with commas between them, e.g. 0.01,0.1,1.
    epochs
        For every training, instead of each recipe's own.
    seconds
        For every training, instead of epochs: as many epochs as fit, measured beforehand.
    out
        The folder for tables, plots and comparison.json; by default a new one below runs/.
    settings
        Change all recipes, e.g. --set evaluate.k=5.
    device
        Where to compute.
    resume
        Go on with the interrupted comparison in --out; give the same options.
    skip_bad
        Leave out images that cannot be read, and count them, instead of refusing.
    as_json
        Print the result as JSON.
    """
    from nearfar import compare, show
    from nearfar.progress import ProgressLine
    from nearfar.recipe import parse_changes

    progress = ProgressLine()
    result = compare.compare(
        data,
        recipes=compare.parse_names(recipes),
        seeds=seeds,
        fractions=compare.parse_fractions(fractions),
        epochs=epochs,
        seconds=seconds,
        out=out,
        changes=parse_changes(settings),
        device=device,
        resume=resume,
        skip_bad=skip_bad,
        watcher=progress,
        note=progress.note,
    )
    _print(result, as_json, show.compared)


@app.command
def export(
    run: Path,
    data: str | None = None,
    /,
    *,
    out: Path,
    to: Literal["projector"] = "projector",
    device: Device = "auto",
    skip_bad: Annotated[bool, Flag] = False,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Write the embedding for another tool: a folder that TensorBoard's Embedding Projector opens.

    Parameters
    ----------
    run
        A run folder.
    data
        The images to show; by default those that the run is measured on.
    out
        The folder to write to.
    to
        The tool.
    device
        Where to compute.
    skip_bad
        Leave out images that cannot be read, and count them, instead of refusing.
    as_json
        Print the result as JSON.
    """
    from nearfar import show, verbs

    _print(verbs.export(run, data, out=out, to=to, device=device, skip_bad=skip_bad), as_json, show.exported)


@app.command
def recipes(name: str | None = None, /) -> None:
    """List the recipes, or show one whole.

    Parameters
    ----------
    name
        The recipe to show, as TOML; save it to a file to make your own of it.
    """
    from nearfar import recipe, show

    print(recipe.recipe_text(name).rstrip() if name is not None else show.recipes())


@data_app.command(name="list")
def list_data() -> None:
    """List the named sets."""
    from nearfar import show

    print(show.known_sets())


@data_app.command(name="fetch")
def fetch_data(name: str, /) -> None:
    """Fetch a named set into the cache (~/.cache/nearfar, or $NEARFAR_DATA), checked by its hashes.

    Parameters
    ----------
    name
        A name that `nearfar data list` shows.
    """
    from nearfar.data import fetch

    print(fetch(name))


@data_app.command(name="check")
def check_data(path: str, /, *, as_json: Annotated[bool, Parameter(name="--json", negative="")] = False) -> None:
    """Look for trouble before training: unreadable files, duplicates, lonely classes, sizes and modes.

    Parameters
    ----------
    path
        A name, a folder or a file, as for train.
    as_json
        Print the result as JSON.
    """
    from nearfar.data import check, format_check

    _print(check(path), as_json, format_check)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and end the process with its exit code."""
    logger = logging.getLogger("nearfar")
    if not logger.handlers:  # long fetching and decoding say how far they are
        logger.addHandler(logging.StreamHandler())
        logger.setLevel(logging.INFO)
    try:
        app(arguments, exit_on_error=False, print_error=False)
        sys.stdout.flush()
    except (InputError, CycloptsError) as error:
        _fail(" ".join(str(error).split()), 2)
    except KeyboardInterrupt:
        _fail("interrupted; go on with the same command, --out and --resume", 130)
    except BrokenPipeError:
        # Whoever read our output has left, `head` say; Python must not complain again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    sys.exit(0)


def _print(result: Any, as_json: bool, form: Any) -> None:
    print(json.dumps(result, ensure_ascii=False, allow_nan=False) if as_json else form(result))


def _fail(message: str, code: int) -> None:
    print(f"nearfar: {message}", file=sys.stderr)
    sys.exit(code)
