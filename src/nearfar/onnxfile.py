"""What an ONNX file holds, looked at before any runtime sees it: its metadata, and whether it is the kind that nearfar writes.

A runtime follows what a file says: weights may lie in another file that it names, and operators may be anyone's. So the
file's own bytes are gone through here, message by message as Protocol Buffers lay them out, and only files that stand for
themselves are let through. Numbers of fields are those of onnx.proto3.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nearfar.errors import InputError
from nearfar.files import NOT_JSON

KEY = "nearfar"
"""Of the entry of the file's metadata that says what the model is; it holds a JSON object."""
LARGEST = 1 << 30
"""Bytes of a file that are read: it is held in memory twice while it is opened. Protocol Buffers end at twice that."""
_DEEPEST = 16

# Messages by name: the fields that are messages of their own, and of what kind.
_PARTS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 14: "entry", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "function": {7: "node", 11: "attribute"},
    "training": {1: "graph", 2: "graph"},
    "tensor": {},
    "entry": {},
}
_DOMAINS = (b"", b"ai.onnx")


class _Damaged(Exception):
    pass


def read_file(path: Path) -> bytes:
    """The bytes of a file that is not too large.

    Raises:
        InputError: it is missing, a folder, cannot be read, or is larger than 1 GiB.
    """
    try:
        with path.open("rb") as file:
            content = file.read(min(os.fstat(file.fileno()).st_size, LARGEST) + 1)  # what is asked for is taken at once
    except FileNotFoundError:
        raise InputError(f"{path} is missing; make it with nearfar export RUN --out {path}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    if len(content) > LARGEST:
        raise InputError(f"{path} is larger than 1 GiB, which no model of nearfar's is")
    return content


def about(content: bytes, where: str) -> dict[str, Any]:
    """What nearfar wrote about the model in the bytes of an ONNX file, once these are found to stand for themselves.

    Raises:
        InputError: they are no ONNX file, are damaged, refer to other files or to foreign operators, or are not nearfar's.
    """
    try:
        entries = dict(_check(memoryview(content), "model", where, 0))
    except _Damaged as reason:
        raise InputError(f"{where} is damaged, or no ONNX file: {reason}; export the run again") from None
    if KEY not in entries:
        raise InputError(f"{where} was not made by nearfar: it does not say what images it takes; use nearfar export RUN")
    try:
        tree = json.loads(entries[KEY])
    except NOT_JSON:
        tree = None
    if not isinstance(tree, Mapping):
        raise InputError(f"{where} is damaged: what it says of itself is not a JSON object; export the run again")
    return dict(tree)


def _check(message: memoryview, kind: str, where: str, depth: int) -> Iterator[tuple[str, bytes]]:
    """Go through a message and all within it; yields the entries of the metadata.

    Raises:
        InputError: there is something that nearfar does not write, and that could reach beyond the file.
    """
    if depth > _DEEPEST:
        raise _Damaged("it is nested too deeply")
    if kind in ("function", "training"):
        raise InputError(f"{where} holds a {kind}, which nearfar does not write; it is not opened")
    entry = {1: b"", 2: b""}
    for number, value in _fields(message):
        if isinstance(value, memoryview):
            part = _PARTS[kind].get(number)
            if part is not None:
                yield from _check(value, part, where, depth + 1)
            elif kind == "entry" and number in entry:
                entry[number] = bytes(value)
        if kind == "tensor" and (number == 13 or (number == 14 and value != 0)):
            raise InputError(f"{where} keeps weights in other files, which are not read; export the run again")
        if kind == "node" and number == 7 and bytes(_as_bytes(value)) not in _DOMAINS:
            name = bytes(_as_bytes(value))[:40].decode("utf-8", "replace")
            raise InputError(f"{where} uses operators of {name!r}, which nearfar does not write; it is not opened")
    if kind == "entry":
        yield entry[1].decode("utf-8", "replace"), entry[2]


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """The fields of a message: number and value; what has a length as bytes, else as a whole number."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, form = tag >> 3, tag & 7
        if number == 0:
            raise _Damaged("a field has no number")
        if form == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if form == 2:
            size, at = _varint(message, at)
        elif form in (1, 5):
            size = 8 if form == 1 else 4
        else:
            raise _Damaged("a field has an unknown form")
        if at + size > len(message):
            raise _Damaged("it ends in the middle of a field")
        yield number, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A whole number in groups of seven bits, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise _Damaged("it ends in the middle of a number")
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise _Damaged("a number is too long")


def _as_bytes(value: memoryview | int) -> memoryview | bytes:
    return b"?" if isinstance(value, int) else value
