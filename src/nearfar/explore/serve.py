"""The verb: make the map of a run if need be, and serve the page until Ctrl-C.

Knows sockets and the life of the server; what it answers is ``app``'s.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nearfar.explore.make import make_map
from nearfar.explore.store import MAP, SPLITS, Map
from nearfar.explore.subject import open_subject
from nearfar.training.progress import Silent, Watcher
from nearfar.web.sockets import is_loopback, listen, need, run_app


def explore(
    run: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8050,
    atlas: str | Path | None = None,
    map_only: bool = False,
    device: str = "auto",
    skip_bad: bool = False,
    watcher: Watcher | None = None,
) -> dict[str, Any]:
    """Make the map of a run where its folder has none that holds, and serve a page to look at it until Ctrl-C.

    Args:
        run: the run folder.
        host: the address to bind to. Whoever reaches it can look at the run and its images: there is no password.
        port: 0 takes a free one.
        atlas: a folder for a Parquet file that embedding-atlas opens, which is then started beside, where it is installed.
        map_only: make the map and end.
        device: "auto", "cpu" or "cuda".
        skip_bad: leave out images that cannot be read instead of refusing.
        watcher: is told how far it is, and the address.

    Returns:
        ``run``, ``map`` (its file), ``method``, ``points``, ``splits`` (how many of each), ``wrong`` (how many predictions
        are; None where no image has a label) and, with ``atlas``, the file for it.

    Raises:
        InputError: the run cannot be used, its map is damaged, the port is in use, or plotly, FastAPI or uvicorn is missing.
    """
    watcher = watcher or Silent()
    if not map_only:
        need({name: name for name in ("fastapi", "uvicorn", "plotly")}, "explore")
    listener = None if map_only else listen(host, port)  # before the work: a port in use is said at once
    try:
        subject = open_subject(run, device=device, skip_bad=skip_bad)
        for line in subject.notes:
            watcher.note(line)
        made = make_map(subject, watcher=watcher)
        result = _summary(Path(run), made)
        beside: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if atlas is not None:
            from nearfar.explore import atlas as other

            result["atlas"] = str(other.write(subject, made, Path(atlas)))
            if not map_only:
                beside = other.running(Path(result["atlas"]), watcher.note)
        if listener is not None:
            from nearfar.explore.app import make_app

            app = make_app(subject, made, host=host)
            if not is_loopback(host):
                watcher.note(f"warning: everyone who reaches {host} can look at this run and its images")
            with beside:
                run_app(app, listener, lambda address: watcher.note(f"look at {address}/   (Ctrl-C ends it)"))
    finally:
        if listener is not None:
            listener.close()
    return result


def _summary(run: Path, made: Map) -> dict[str, Any]:
    counts = {name: int((made.splits == number).sum()) for number, name in enumerate(SPLITS)}
    return {
        "run": str(run),
        "map": str(run / MAP),
        "method": made.method,
        "points": len(made),
        "splits": {name: count for name, count in counts.items() if count},
        "wrong": int(made.wrong.sum()) if (made.predictions >= 0).any() else None,
    }


def shown(result: Mapping[str, Any]) -> str:
    """What `explore` returned, as text for people."""
    splits = ", ".join(f"{count:,} {name}" for name, count in result["splits"].items())
    lines = [f"{result['method']} of {result['points']:,} images ({splits}): {result['map']}"]
    if result["wrong"] is not None:
        lines.append(f"{result['wrong']:,} of them are of another class than their neighbours say")
    return "\n".join([*lines, *([f"for embedding-atlas: {result['atlas']}"] if "atlas" in result else [])])
