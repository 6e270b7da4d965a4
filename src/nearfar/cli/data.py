"""Verbs about image sets: `nearfar data ...`."""

from __future__ import annotations

from pathlib import Path

from cyclopts import App

from nearfar.cli.options import AsJson, Device, Run, SkipBad
from nearfar.cli.root import app, show_result

data_app = App(name="data", help="List, fetch and check image sets; find wrong labels.")
app.command(data_app)


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
def check_data(path: str, /, *, as_json: AsJson = False) -> None:
    """Look for trouble before training: unreadable files, duplicates, lonely classes, sizes and modes.

    Parameters
    ----------
    path
        A name, a folder or a file, as for train.
    """
    from nearfar.data import check, format_check

    show_result(check(path), as_json, format_check)


@data_app.command(name="issues")
def find_label_issues(
    run: Run,
    data: str | None = None,
    /,
    *,
    out: Path | None = None,
    folds: int = 0,
    device: Device = "auto",
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Rank images whose label their neighbours contradict, and find copies with different labels.

    Parameters
    ----------
    data
        The labelled images, all splits of them; by default those that the run was trained on.
    out
        The folder for issues.csv and issues.html; by default RUN/label-issues.
    folds
        Train the run's recipe anew without each of so many folds, and judge a fold's images by the others; 0 searches in
        the embedding of the run, which saw every label.
    """
    from nearfar import show
    from nearfar.labelissues import label_issues
    from nearfar.training.progress import ProgressLine

    result = label_issues(run, data, out=out, folds=folds, device=device, skip_bad=skip_bad, watcher=ProgressLine())
    show_result(result, as_json, show.label_issues)
