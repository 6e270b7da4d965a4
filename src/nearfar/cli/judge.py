"""Verbs that say how good a run is, or which recipe is better."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from nearfar.cli.options import AsJson, Device, Run, Settings, SkipBad, Switch
from nearfar.cli.root import app, show_result


@app.command
def evaluate(
    run: Run,
    data: str | None = None,
    /,
    *,
    baseline: str | None = None,
    device: Device = "auto",
    skip_bad: SkipBad = False,
    as_json: Annotated[AsJson, Parameter(help="Print the whole tree as JSON.")] = False,
) -> None:
    """Measure a run on the test images; also written to RUN/metrics.json and RUN/README.md.

    Parameters
    ----------
    data
        Other images to measure it on; classes that the run does not know are searched among themselves. Images without labels
        are looked for by changed views of them.
    baseline
        Another run, or the name of a model of timm, to be measured in the same way and stand beside.
    """
    from nearfar import show, verbs

    show_result(verbs.evaluate(run, data, baseline=baseline, device=device, skip_bad=skip_bad), as_json, show.figures)


@app.command
def report(
    run: Run,
    data: str | None = None,
    /,
    *,
    baseline: str | None = None,
    device: Device = "auto",
    skip_bad: SkipBad = False,
    as_json: Annotated[AsJson, Parameter(help="Print what was written, and the whole tree of figures, as JSON.")] = False,
) -> None:
    """Measure a run and draw it: RUN/report.html, one page with every figure and plot, and RUN/plots.

    Parameters
    ----------
    data
        Other images to report on, as for evaluate.
    baseline
        Another run, or the name of a model of timm, to stand beside, as for evaluate.
    """
    from nearfar import show
    from nearfar.report import report as make

    show_result(make(run, data, baseline=baseline, device=device, skip_bad=skip_bad), as_json, show.reported)


@app.command
def compare(
    data: str,
    /,
    *,
    recipes: str,
    seeds: int = 3,
    fractions: str = "1",
    epochs: float | None = None,
    seconds: float | None = None,
    out: Path | None = None,
    settings: Settings = (),
    device: Device = "auto",
    resume: Switch = False,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
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
    resume
        Go on with the interrupted comparison in --out; give the same options.
    """
    from nearfar import compare, show
    from nearfar.recipe import parse_changes
    from nearfar.training.progress import ProgressLine

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
    show_result(result, as_json, show.compared)
