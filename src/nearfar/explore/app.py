"""What the page asks and what it is answered: points as one buffer, names, pictures, neighbours, and a search by image.

Knows a map, its subject and HTTP; how a map is made or a socket is opened is elsewhere. Nothing here changes the run.
"""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, JSONResponse, Response

from nearfar.answers import UNKNOWN, answer
from nearfar.classify import similarities
from nearfar.data import ImageSet
from nearfar.data.decode import decode_image, open_image, quiet_pillow
from nearfar.errors import InputError
from nearfar.explore import guard
from nearfar.explore.positions import place
from nearfar.explore.store import SPLITS, Map
from nearfar.explore.subject import Subject
from nearfar.web.bodies import read_body
from nearfar.web.problems import Problem

PIXELS = 25_000_000
_STATIC = Path(__file__).with_name("static")
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_FILE = re.compile(r"[a-z][a-z-]*\.(css|js|svg)")
_PLACED_BY = 10  # neighbours
_FRESH = {"cache-control": "no-cache"}
_FOREVER = {"cache-control": "private, max-age=86400, immutable"}  # the address names the map


def make_app(subject: Subject, made: Map, *, host: str = "127.0.0.1", plotly: Path | None = None) -> FastAPI:
    """The application that serves the page.

    Args:
        subject: the run and its images.
        made: the map of just these.
        host: that it is bound to, for `nearfar.web.admission`.
        plotly: the file plotly.min.js; None: that of the Python package.

    Raises:
        InputError: plotly is not installed.
    """
    script, version = plotly or plotly_script(), made.bound_to["content"][:16]
    columns = {name: column for name, column in _columns(made)}
    buffer, names, alone = b"".join(column.tobytes() for column in columns.values()), made.names, threading.Lock()
    deepest = made.neighbors.shape[1]
    app = FastAPI(title="nearfar explore", docs_url=None, redoc_url=None, openapi_url=None)
    guard.install(app, host=host)

    @app.get("/")
    def page() -> Response:
        return FileResponse(_STATIC / "index.html", media_type="text/html", headers=_FRESH)

    @app.get("/static/plotly.min.js")
    def drawing() -> Response:
        return FileResponse(script, media_type="text/javascript", headers=_FRESH)

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        if not _FILE.fullmatch(name) or not (_STATIC / name).is_file():
            raise Problem(404, f"there is no file {name!r}")
        return FileResponse(_STATIC / name, media_type=_KINDS[Path(name).suffix], headers=_FRESH)

    @app.get("/about")
    def about() -> Response:
        offsets, start = [], 0
        for name, column in columns.items():
            offsets.append({"name": name, "type": column.dtype.str, "offset": start})
            start += column.nbytes
        tree = {
            "run": subject.folder.resolve().name,
            "recipe": subject.model.recipe_.name,
            "source": made.source,
            "method": made.method,
            "metric": made.metric,
            "version": version,
            "points": len(made),
            "gallery": made.gallery,
            "classes": made.classes,
            "splits": SPLITS,
            "columns": offsets,
            "neighbors": deepest,
            "votes": 0 if subject.voters is None else subject.voters[0].k,
            "image": {"channels": subject.model.channels_, "size": list(subject.model.size_)},
            "limits": {"body_bytes": guard.BODY_BYTES, "pixels": PIXELS},
            "notes": subject.notes,
        }
        return JSONResponse(tree, headers=_FRESH)

    @app.get("/points")
    def points() -> Response:
        return Response(buffer, media_type="application/octet-stream", headers=_FRESH)

    @app.get("/names")
    def all_names() -> Response:
        return JSONResponse(names, headers=_FRESH)

    @app.get("/points/{point}/image")
    def image(point: int) -> Response:
        _check_point(point, len(made))
        picture = subject.picture(point)
        if picture is None:
            raise Problem(404, f"the picture of point {point} is not to be had; only its vector is kept")
        return Response(picture, media_type="image/png", headers=_FOREVER)

    @app.get("/points/{point}/neighbors")
    def neighbors(point: int, k: Annotated[int, Query(ge=1)] = 10) -> Response:
        _check_point(point, len(made))
        if k > deepest:
            raise Problem(422, f"k is {k}, and {deepest} neighbours of each point are kept; ask for at most as many")
        near = _listed(made, made.neighbors[point, :k], made.scores[point, :k])
        return JSONResponse({"id": point, "neighbors": near})

    @app.post("/search")
    async def search(request: Request, k: Annotated[int, Query(ge=1, le=100)] = 10) -> Response:
        content = await read_body(request, guard.BODY_BYTES, guard.BODY_SECONDS)
        if not content:
            raise Problem(422, "the body is empty; send the bytes of an image file")
        return JSONResponse(await run_in_threadpool(find, content, k))

    def find(content: bytes, k: int) -> dict[str, Any]:
        with alone:  # one image at a time: PyTorch computes with all cores as it is
            pixels = _decoded(content, subject)
            z = np.asarray(subject.model.transform(ImageSet(pixels[None])), dtype=np.float32)
            said = None if subject.voters is None else answer(subject.voters[0], z, subject.voters[1])
            wanted = min(max(k, _PLACED_BY), len(subject.index))
            scores, rows = subject.index.search_rows(z, wanted)
        near = slice(0, min(_PLACED_BY, wanted))
        at = place(made.xy[rows[:, near]], similarities(scores[:, near], subject.metric))[0]
        voted = None if said is None else made.classes[said.labels[0]]
        return {
            "label": voted if said is None or said.known[0] else UNKNOWN,
            "voted": voted,
            "probability": None if said is None else round(float(said.probability[0]), 6),
            "position": [float(at[0]), float(at[1])],
            "neighbors": _listed(made, rows[0, :k], scores[0, :k]),
        }

    return app


def plotly_script() -> Path:
    """plotly.min.js of the installed Python package.

    Raises:
        InputError: it is not installed.
    """
    import importlib.util

    found = importlib.util.find_spec("plotly")
    path = None if found is None or found.origin is None else Path(found.origin).parent / "package_data" / "plotly.min.js"
    if path is None or not path.is_file():
        raise InputError("plotly is not installed, which draws the map; run: pip install 'nearfar[explore]'")
    return path


def _columns(made: Map) -> list[tuple[str, np.ndarray]]:
    """What the page holds of every point, little-endian, the widest numbers first so that each column is aligned."""
    return [
        ("x", made.xy[:, 0].astype("<f4")),
        ("y", made.xy[:, 1].astype("<f4")),
        ("probability", made.probability.astype("<f4")),
        ("suspicion", made.suspicion.astype("<f4")),
        ("label", made.labels.astype("<i4")),
        ("prediction", made.predictions.astype("<i4")),
        ("split", made.splits.astype("|u1")),
    ]


def _listed(made: Map, rows: np.ndarray, scores: np.ndarray) -> list[dict[str, Any]]:
    return [
        {"id": row, "name": made.names[row], "label": made.class_of(made.labels[row]), "score": round(score, 6)}
        for row, score in zip(rows.tolist(), scores.tolist(), strict=True)
    ]


def _check_point(point: int, count: int) -> None:
    if not 0 <= point < count:
        raise Problem(404, f"there is no point {point}; they are numbered from 0 to {count - 1}")


def _decoded(content: bytes, subject: Subject) -> np.ndarray:
    """An image as the model takes it, uint8 [C, H, W]; its size is looked at before its pixels are."""
    with quiet_pillow(), open_image(content, "the image") as image:
        width, height = image.size
    if width * height > PIXELS:
        raise Problem(413, f"the image has {width:,} x {height:,} pixels, and {PIXELS:,} are the most; send a smaller one")
    return decode_image(
        content,
        size=subject.model.size_,
        channels=subject.model.channels_,
        background=subject.model.recipe_.data.background,
        name="the image",
    )
