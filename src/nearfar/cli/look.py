"""The verb to look at a run with one's own eyes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from nearfar.cli.options import AsJson, Device, Run, SkipBad, Switch
from nearfar.cli.root import app, show_result


@app.command
def explore(
    run: Run,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8050,
    atlas: Path | None = None,
    map_only: Switch = False,
    device: Device = "auto",
    skip_bad: SkipBad = False,
    as_json: Annotated[AsJson, Parameter(help="Print what the map holds as JSON.")] = False,
) -> None:
    """Walk about on a map of the embedding: a page with every image, its neighbours, and where labels and votes differ.

    Parameters
    ----------
    host
        The address to bind to; 127.0.0.1 is this machine alone.
    port
        The port; 0 takes any that is free.
    atlas
        A folder for a Parquet file that embedding-atlas opens; it is started beside where it is installed.
    map_only
        Make the map, RUN/map.parquet, and end.
    """
    from nearfar.explore.serve import explore as look
    from nearfar.explore.serve import shown
    from nearfar.training.progress import ProgressLine

    result = look(
        run,
        host=host,
        port=port,
        atlas=atlas,
        map_only=map_only,
        device=device,
        skip_bad=skip_bad,
        watcher=ProgressLine(),
    )
    if map_only or as_json:
        show_result(result, as_json, shown)
