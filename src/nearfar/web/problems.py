"""What goes wrong with a request, as the standard says it (RFC 9457): a status, a title, and a line on how to mend it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response

from nearfar.errors import InputError

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """A request that is refused; ``detail`` is for a person, and says what to mend."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, dict(headers or {})


class ProblemBody(BaseModel):
    """How a refusal looks (RFC 9457)."""

    title: str
    status: int
    detail: str


def answers(*codes: int) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI is to say of the refusals that a route may give."""
    return {
        code: {
            "description": HTTPStatus(code).phrase,
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemBody"}}},
        }
        for code in codes
    }


def response(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """The refusal itself."""
    body = json.dumps({"title": HTTPStatus(status).phrase, "status": status, "detail": detail}, ensure_ascii=False)
    # A body may quote what was sent, and half of a pair of surrogates has no UTF-8.
    return Response(body.encode("utf-8", "backslashreplace"), status, dict(headers or {}), MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Let every refusal of ``app`` look alike, also those of the framework."""

    def problem(_: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)
        return response(error.status, error.detail, error.headers)

    def wrong_input(_: Request, error: Exception) -> Response:
        return response(422, str(error))

    def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        place = first["loc"][-1] if first["loc"] else "the request"
        given = "" if first.get("input") is None else f", got {str(first['input'])[:80]!r}"
        return response(422, f"{place}: {first['msg']}{given}")

    def framework(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        details = {
            404: "there is nothing at this address; see /docs",
            405: "this address does not take that method; see /docs",
        }
        return response(error.status_code, details.get(error.status_code, str(error.detail)), error.headers)

    app.add_exception_handler(Problem, problem)
    app.add_exception_handler(InputError, wrong_input)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, framework)
