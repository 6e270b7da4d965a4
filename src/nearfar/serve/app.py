"""The application: the interface, the page and its files, guarded. What serves it is another matter (`run.py`)."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi_offline import FastAPIOffline
from starlette.responses import FileResponse
from starlette.staticfiles import StaticFiles

import nearfar
from nearfar.serve import api, schemas
from nearfar.serve.guard import Guard
from nearfar.serve.service import Service
from nearfar.web import problems

STATIC = Path(__file__).with_name("static")
_ABOUT = (
    "Images to vectors, neighbours and classes. An image is sent as it is (image/png, ...), in a form (files in the field "
    "`image`), or in JSON as base64 (`image`, or `images` for several)."
)


def create_app(service: Service) -> FastAPI:
    """The ASGI application of a run in service."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPIOffline(
        redoc_url=None,
        title="nearfar",
        version=nearfar.__version__,
        description=_ABOUT,
        lifespan=lifespan,
        static_url="/static/docs",
        favicon_url="/static/icon.svg",
    )
    app.state.service = service
    problems.install(app)
    # Not by include_router, which builds the routes when the first request comes, beside threads that are at work by then.
    app.router.routes.extend([*api.v1.routes, *api.health.routes])

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})

    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]  # as FastAPI's documentation has it
    app.add_middleware(Guard, settings=service.settings, metrics=service.metrics)
    return app


def _described(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI description; bodies are read by hand, so their schemas are put in here."""
    if app.openapi_schema is None:
        tree = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        known = tree.setdefault("components", {}).setdefault("schemas", {})
        known |= {
            "Images": _one_of(schemas.Images.model_json_schema()),
            "NewItems": _one_of(schemas.NewItems.model_json_schema()),
            "ProblemBody": problems.ProblemBody.model_json_schema(),
        }
        for path, methods in tree["paths"].items():
            for method, operation in methods.items():
                # FastAPI says of its own what it would answer to a wrong option; here that is a problem too.
                said = operation["responses"].get("422")
                if said is not None:
                    said["content"] = problems.answers(422)[422]["content"]
                if (path == "/v1/items" and method == "post") or method == "delete":
                    operation["security"] = [{"key": []}, {}]
        tree["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for unused in ("HTTPValidationError", "ValidationError"):
            known.pop(unused, None)
        app.openapi_schema = tree
    return app.openapi_schema


def _one_of(schema: dict[str, Any]) -> dict[str, Any]:
    """Exactly one of ``image`` and ``images``, neither of them null."""
    text, several = ({"type": "string", "contentEncoding": "base64"}, schema["properties"]["images"]["anyOf"][0])
    schema["properties"] |= {"image": text, "images": several | {"items": text}}
    return schema | {"oneOf": [{"required": ["image"]}, {"required": ["images"]}]}
