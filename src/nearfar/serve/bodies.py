"""What a request brings: encoded images and a few words beside, out of JSON, a form or the plain file; then pixels.

Knows nothing of the run but the form that its images must have.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from nearfar.data.decode import BadImage, load_pixels, open_image, to_array
from nearfar.data.pixels import Form
from nearfar.files import NOT_JSON
from nearfar.serve.settings import Settings
from nearfar.web.bodies import chunks, read_body
from nearfar.web.problems import Problem

_QUICK = 1 << 16
"""Pixels, and four times the bytes, up to which decoding takes less time than handing it to a thread."""
_WORDS = 4096  # bytes of a field of a form that is no file

IMAGES = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/Images"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {"image": {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}}},
                }
            },
            "image/png": {"schema": {"type": "string", "format": "binary"}},
            "image/jpeg": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
"""What OpenAPI is to say of a body with images."""


@dataclass(frozen=True)
class Upload:
    """Encoded images, with what messages call them, and the words that came beside."""

    images: list[tuple[str, bytes]]
    words: dict[str, str] = field(default_factory=dict)


async def read_upload(request: Request, settings: Settings) -> Upload:
    """Read the images of a request.

    Raises:
        Problem: the body is too large, too slow, of another type, or not what its type says.
    """
    content = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content == "multipart/form-data":
        upload = await _form(request, settings)
    elif content == "application/json" or content.endswith("+json"):
        upload = _from_json(await read_body(request, settings.max_body, settings.timeout))
    elif content.startswith("image/") or content == "application/octet-stream":
        upload = Upload([("the image", await read_body(request, settings.max_body, settings.timeout))])
    else:
        given = f"is {content!r}" if content else "is missing"
        raise Problem(
            415, f"the content type {given}; send an image as image/png, a form with files in 'image', or JSON with 'image'"
        )
    if not upload.images:
        raise Problem(400, "there is no image in the request; give at least one, in the field 'image'")
    if len(upload.images) > settings.max_images:
        raise Problem(413, f"{len(upload.images):,} images in one request, at most {settings.max_images:,} are taken")
    return upload


async def decode_upload(upload: Upload, form: Form, settings: Settings) -> npt.NDArray[np.uint8]:
    """The pixels of the images, uint8 [N, C, H, W] in ``form``, whose size and channels are given.

    Raises:
        Problem: one of them is no image, is damaged, or claims too many pixels.
    """
    small = all(len(content) <= 4 * _QUICK for _, content in upload.images)
    if small and len(upload.images) <= 4:
        images = [_decode(content, name, form, settings, quick=True) for name, content in upload.images]
        if all(image is not None for image in images):
            return np.stack([image for image in images if image is not None])
    return await run_in_threadpool(
        lambda: np.stack([_decode(content, name, form, settings) for name, content in upload.images])  # type: ignore[misc]  # None comes of quick alone
    )


def _decode(content: bytes, name: str, form: Form, settings: Settings, *, quick: bool = False) -> npt.NDArray[np.uint8] | None:
    """Decode an image; with ``quick`` None where that would take long."""
    try:
        with open_image(content, name) as image:
            width, height = image.size
            if width * height > settings.max_pixels:
                raise Problem(
                    413, f"{name} has {width:,} x {height:,} pixels, at most {settings.max_pixels:,} are taken; make it smaller"
                )
            if quick and width * height > _QUICK:
                return None
            return to_array(load_pixels(image, name, form), form)
    except BadImage as error:
        status = 413 if "pixels" in error.reason else 422
        raise Problem(status, f"{error.name}: {error.reason}; send a PNG, JPEG or another picture that opens") from None


async def _form(request: Request, settings: Settings) -> Upload:
    parser = MultiPartParser(
        request.headers,
        chunks(request, settings.max_body, settings.timeout),
        max_files=settings.max_images + 1,
        max_fields=16,
        max_part_size=_WORDS,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        status = 413 if "exceeded" in error.message.lower() or "too many" in error.message.lower() else 400
        raise Problem(status, f"the form cannot be read: {error.message}") from None
    except (KeyError, UnicodeError, ValueError) as error:
        raise Problem(400, f"the form cannot be read: {error}") from None
    images: list[tuple[str, bytes]] = []
    words: dict[str, str] = {}
    try:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name not in ("image", "images"):
                    raise Problem(400, f"the form has a file in the field {name[:80]!r}; the field of images is 'image'")
                images.append((f"image {len(images) + 1}", await value.read()))
            else:
                words[name] = value
    finally:
        await form.close()
    return Upload(images, words)


def _from_json(body: bytes) -> Upload:
    try:
        tree = json.loads(body)
    except NOT_JSON as error:
        raise Problem(400, f"the body is not valid JSON: {str(error)[:200]}") from None
    if not isinstance(tree, dict):
        raise Problem(400, f'the body is a JSON {_kind(tree)}, expected an object such as {{"image": "<base64>"}}')
    given = [name for name in ("image", "images") if name in tree]
    if len(given) != 1:
        both = "both 'image' and 'images'" if given else "neither 'image' nor 'images'"
        raise Problem(400, f"the body has {both}; give one of them, with base64 text or a list of such texts")
    texts = tree[given[0]]
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list):
        raise Problem(400, f"{given[0]!r} is {_kind(texts)}, expected base64 text or a list of such texts")
    images = [(f"image {number}", _from_base64(text, number)) for number, text in enumerate(texts, start=1)]
    words = {}
    for name, value in tree.items():
        if name not in given:
            if not isinstance(value, str):
                raise Problem(400, f"{name[:80]!r} is {_kind(value)}, expected text")
            words[name] = value
    return Upload(images, words)


def _from_base64(text: Any, number: int) -> bytes:
    if not isinstance(text, str):
        raise Problem(400, f"image {number} is {_kind(text)}, expected base64 text")
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Problem(400, f"image {number} is not valid base64; encode the bytes of the file, without line breaks") from None


def _kind(value: Any) -> str:
    return {dict: "object", list: "list", str: "text", bool: "boolean", type(None): "null"}.get(type(value), "number")
