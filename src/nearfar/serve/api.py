"""The interface: what each address takes and gives. It reads requests, asks the run in service, and writes answers."""

from __future__ import annotations

import json
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Path, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

import nearfar
from nearfar.errors import InputError
from nearfar.runs.indexing import check_class_name
from nearfar.serve import schemas
from nearfar.serve.bodies import IMAGES, Upload, decode_upload, read_upload
from nearfar.serve.guard import check_key
from nearfar.serve.metrics import MEDIA_TYPE as METRICS_TYPE
from nearfar.serve.service import Service
from nearfar.serve.state import Job, NoVotesError
from nearfar.web.problems import Problem, answers

MAP_POINTS = 4000
_LARGEST_ID = 2**53 - 1  # that a JavaScript number holds exactly
_TAKES_IMAGES = answers(400, 403, 408, 413, 415, 422, 503)
_NAMES_CLASSES = answers(400, 403, 408, 409, 413, 415, 422, 503)
_WRITES = answers(400, 401, 403, 408, 409, 413, 415, 422, 503, 507)

health = APIRouter(tags=["service"])
v1 = APIRouter(prefix="/v1")


async def service(request: Request) -> Service:
    """What answers behind the interface; a coroutine, since others would be called in a thread."""
    found: Service = request.app.state.service
    return found


Asked = Annotated[Service, Depends(service)]
Shown = Annotated[int, Query(ge=1, description="Neighbours of each image.")]
Id = Annotated[int, Path(alias="id", ge=0, le=_LARGEST_ID, description="Of an image, as neighbours have it.")]


@v1.post(
    "/embed", response_model=schemas.Embeddings, responses=_TAKES_IMAGES, openapi_extra=IMAGES, tags=["questions"]
)  # fmt: skip
async def embed(request: Request, asked: Asked) -> Response:
    """Embed images: a vector for each."""
    z = await _ask(request, asked, "embed", 1)
    # Nine digits give every float32 back.
    rows = ",".join("[" + ",".join(map(_digits, row)) + "]" for row in z.tolist())
    return Response(f'{{"model":"{asked.served.sha256}","embeddings":[{rows}]}}', media_type="application/json")


@v1.post("/search", response_model=schemas.SearchResults, responses=_TAKES_IMAGES, openapi_extra=IMAGES, tags=["questions"])
async def search(request: Request, asked: Asked, k: Shown = 10) -> Response:
    """Find the nearest images of the index."""
    found = await _ask(request, asked, "search", k)
    return _json({"results": [one.as_json() for one in found]})


@v1.post(
    "/predict",
    response_model=schemas.Predictions,
    responses=_TAKES_IMAGES | answers(409),
    openapi_extra=IMAGES,
    tags=["questions"],
)
async def predict(
    request: Request,
    asked: Asked,
    k: Shown = 10,
    precision: Annotated[
        float | None, Query(ge=0, lt=1, description="Wanted share of right answers among those given; 0 answers all.")
    ] = None,
) -> Response:
    """Name the class of images, or say 'unknown' where that is not sure enough; needs two labelled images in the index."""
    try:
        said = await _ask(request, asked, "predict", k, asked.settings.precision if precision is None else precision)
    except NoVotesError as error:
        raise Problem(409, str(error)) from None
    asked.metrics.unknown.inc(sum(not one.known for one in said))
    return _json({"results": [one.as_json() for one in said]})


@v1.post(
    "/items",
    status_code=201,
    response_model=schemas.Added,
    responses=_WRITES,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/NewItems"}},
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["image", "label"],
                        "properties": {
                            "image": {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}},
                            "label": {"type": "string", "minLength": 1, "maxLength": 200},
                        },
                    }
                },
            },
        }
    },
    tags=["items"],
)
async def add(
    request: Request,
    asked: Asked,
    label: Annotated[str | None, Query(description="The class, where the body is a plain image.")] = None,
) -> Response:
    """Add images of one class, known or new. What is answered outlasts a crash."""
    check_key(request.headers, asked.settings)
    upload = await read_upload(request, asked.settings)
    name = check_class_name(_label(upload, label))
    pixels = await decode_upload(upload, asked.served.form, asked.settings)
    items, new_class = await _change(lambda: asked.served.write(pixels, name))
    return _json({"items": items, "new_class": new_class}, 201)


@v1.get("/items", response_model=schemas.Items, responses=answers(403, 422, 503), tags=["items"])
async def items(
    asked: Asked,
    first: Annotated[int, Query(ge=0, le=_LARGEST_ID, description="How many to pass over.")] = 0,
    count: Annotated[int, Query(ge=1, le=1000, description="How many at most.")] = 100,
) -> Response:
    """The images that were added since training, newest first."""
    found, total = asked.served.items(first, count)
    return _json({"items": found, "total": total})


@v1.delete("/items/{id}", response_model=schemas.Removed, responses=answers(401, 403, 404, 409, 422, 503, 507), tags=["items"])
async def remove(request: Request, asked: Asked, number: Id) -> Response:
    """Remove an added image."""
    check_key(request.headers, asked.settings)
    if not await _change(lambda: asked.served.remove(number)):
        raise Problem(404, f"the index has no image {number}; /v1/items lists the added ones")
    return _json({"removed": number})


@v1.get(
    "/items/{id}/image",
    response_class=Response,
    responses={200: {"content": {"image/png": {}}, "description": "The picture."}, **answers(403, 404, 422, 503)},
    tags=["items"],
)
async def picture(asked: Asked, number: Id) -> Response:
    """The picture of an image of the index, as the model sees it."""
    there = asked.served.now.row_of(number) is not None
    content = await run_in_threadpool(asked.album.png, number) if there else None
    if content is None:
        why = "its picture is not to be had" if there else "the index has no such image"
        raise Problem(404, f"image {number}: {why}")
    # The id of an added image may be that of another one later.
    kept = "private, max-age=3600" if number < asked.served.now.trained else "no-cache"
    return Response(content, media_type="image/png", headers={"Cache-Control": kept})


@v1.get("/map", response_model=schemas.Map, responses=answers(403, 503), tags=["items"])
async def plane(asked: Asked) -> Response:
    """Points of the index on its map, or on its first two principal components where there is no map; at most 4,000."""
    now = asked.served.now
    rows = now.sample(MAP_POINTS)
    xy = np.round(now.positions.xy[rows].astype(np.float64), 4)
    return _json(
        {
            "method": now.positions.method,
            "classes": now.classes,
            "x": xy[:, 0].tolist(),
            "y": xy[:, 1].tolist(),
            "label": now.labels[rows].tolist(),
            "id": now.index.ids[rows].tolist(),
        }
    )


@v1.get("/model", response_model=schemas.ModelInfo, responses=answers(403, 503), tags=["service"])
async def model(asked: Asked) -> Response:
    """What is in service, what it takes, and what its limits are."""
    served, now, settings = asked.served, asked.served.now, asked.settings
    numbers, counts = np.unique(now.labels[now.labels >= 0], return_counts=True)
    trained = set(served.config["classes"])
    return _json(
        {
            "name": served.folder.resolve().name,
            "recipe": served.model.recipe_.name,
            "model": served.sha256,
            "engine": served.engine,
            "nearfar": nearfar.__version__,
            "dimensions": now.index.n_features_in_,
            "metric": served.metric,
            "input": {"channels": served.model.channels_, "size": list(served.model.size_), "ink": asked.album.ink},
            "classes": [
                {"name": now.classes[number], "images": count, "trained": now.classes[number] in trained}
                for number, count in zip(numbers.tolist(), counts.tolist(), strict=True)
            ],
            "images": len(now.index),
            "added": len(now.added),
            "k": now.votes,
            "precision": settings.precision,
            "needs_key": settings.api_key is not None,
            "limits": {
                "body_bytes": settings.max_body,
                "pixels": settings.max_pixels,
                "images": settings.max_images,
                "k": min(settings.max_k, len(now.index)),
            },
            "data": served.config["data"].get("source"),
        }
    )


@health.get("/healthz", response_model=schemas.Health)
async def healthz() -> Response:
    """The process answers."""
    return _json({"status": "ok"})


@health.get("/readyz", response_model=schemas.Health, responses={503: {"model": schemas.Health}})
async def readyz(asked: Asked) -> Response:
    """The run answers, and its folder can be followed."""
    trouble = asked.served.trouble
    return _json({"status": "ok"}) if trouble is None else _json({"status": "behind", "detail": trouble}, 503)


@health.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}, "description": "Counters."}})
async def metrics(asked: Asked) -> Response:
    """Counters for Prometheus."""
    return Response(asked.metrics.text(), media_type=METRICS_TYPE)


async def _ask(request: Request, asked: Service, kind: Any, k: int, precision: float = 0.0) -> Any:
    most = min(asked.settings.max_k, len(asked.served.now.index))
    if k > most:
        raise Problem(422, f"k is {k}, expected 1 to {most:,}")
    upload = await read_upload(request, asked.settings)
    if upload.words:
        name = next(iter(upload.words))
        raise Problem(400, f"{name[:80]!r} has no meaning here; options such as k stand in the address: ?k=10")
    pixels = await decode_upload(upload, asked.served.form, asked.settings)
    return await asked.batcher.submit(Job(kind, pixels, k, precision))


async def _change(change: Any) -> Any:
    """Do what writes to the run folder, in a thread."""
    try:
        return await run_in_threadpool(change)
    except InputError as error:
        full = isinstance(error.__cause__, OSError)
        raise Problem(507 if full else 409, str(error)) from None


def _label(upload: Upload, label: str | None) -> str:
    given = upload.words.pop("label", label)
    if given is None:
        raise Problem(422, "label is missing: the class that the images are to be of")
    if upload.words:
        raise Problem(400, f"{next(iter(upload.words))[:80]!r} has no meaning here; there are 'image' or 'images', and 'label'")
    return given


def _json(tree: Any, status: int = 200) -> Response:
    text = json.dumps(tree, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Response(text.encode("utf-8", "backslashreplace"), status, media_type="application/json")


def _digits(value: float) -> str:
    return f"{value:.9g}"
