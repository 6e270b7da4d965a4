"""A shard read from front to back: images still encoded, with ids, labels and texts, a few megabytes at a time.

It decodes no pixel. A shard may be begun behind rows that are done already; where the format allows it they are not read.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from nearfar.data.folders import is_image
from nearfar.data.loading import open_source
from nearfar.data.parquet import described, row_groups
from nearfar.data.sources import ENCODED_ROWS, Chunk, FileSource, file_stamp, readable
from nearfar.embedding.shards import Plan, Shard, listed_images, visible
from nearfar.errors import InputError
from nearfar.files import NOT_JSON

_BYTES = 16 << 20
"""Encoded images held together, where one is not larger by itself."""
_BESIDE = (".cls", ".txt", ".json")
_SAID = 1 << 20
"""Bytes of a file beside an image that are read."""


@dataclass(frozen=True)
class Piece:
    """Some rows of a shard, in order.

    Attributes:
        images: encoded, or uint8 [n, C, H, W].
        ids, labels, texts: of each row; None where there is none.
    """

    images: Chunk
    ids: list[str]
    labels: list[str | None]
    texts: list[str | None]

    def __len__(self) -> int:
        return len(self.ids)

    def between(self, start: int, end: int) -> Piece:
        """Rows ``start`` to ``end``."""
        part = slice(start, end)
        return Piece(self.images[part], self.ids[part], self.labels[part], self.texts[part])


def read_shard(plan: Plan, shard: Shard, names: Path, *, skip: int = 0, data: Any = None) -> Iterator[Piece]:
    """The rows of a shard but for the first ``skip``.

    Args:
        plan: what the shard belongs to.
        shard: one of its shards.
        names: the list of images, for "images".
        skip: rows to pass over.
        data: the data itself, where it has no name (an `ImageSet`).

    Raises:
        InputError: a file is missing, damaged, or has changed since it was listed.
    """
    if shard.kind == "images":
        return _listed(plan, shard, names, skip)
    if shard.kind == "set":
        return _of_set(plan, shard, skip, data)
    path = Path(plan.root) / shard.name
    if file_stamp(path) != shard.stamp:
        raise InputError(f"{path} has changed while it was read; embed again into another folder")
    return _of_parquet(path, shard, skip) if shard.kind == "parquet" else _of_tar(path, shard, skip)


def _listed(plan: Plan, shard: Shard, names: Path, skip: int) -> Iterator[Piece]:
    listed = listed_images(names, shard)[skip:]
    root = Path(plan.root)
    for start in range(0, len(listed), ENCODED_ROWS):
        paths = [path for path, _ in listed[start : start + ENCODED_ROWS]]
        ids, labels = [visible(path) for path in paths], [_class_of(path, plan.depth) for path in paths]
        yield Piece([(str(root / path), str(root / path)) for path in paths], ids, labels, [None] * len(paths))


def _class_of(path: str, depth: int) -> str | None:
    """The folder that a path's image is of; None where it lies above those."""
    parts = path.split("/", depth + 1)
    return visible(parts[depth]) if len(parts) > depth + 1 else None


def _of_parquet(path: Path, shard: Shard, skip: int) -> Iterator[Piece]:
    """Row groups that lie before ``skip`` altogether are not read."""
    groups = row_groups(path)
    start, passed = shard.start, 0
    while start < shard.end and passed + groups[start][0] <= skip:
        passed, start = passed + groups[start][0], start + 1
    count, size = (sum(group[part] for group in groups[start : shard.end]) for part in (0, 1))
    most = max(1, min(ENCODED_ROWS, _BYTES * count // max(size, 1)))
    row = shard.first + skip
    for found in described(path, range(start, shard.end), skip=skip - passed, rows=most):
        ids = [name or str(row + number) for number, name in enumerate(found.names)]
        yield Piece(found.images, ids, found.labels, [_together(captions) for captions in found.texts])
        row += len(ids)


def _together(captions: Sequence[str]) -> str | None:
    """The captions of an image as one text, a line for each; None where it has none."""
    return "\n".join(captions) or None


def _of_set(plan: Plan, shard: Shard, skip: int, data: Any) -> Iterator[Piece]:
    sources = open_source((plan.root or plan.source) if data is None else data, flat=True)
    split, source = list(sources.items())[shard.start]
    # As `load_any` has it: the ids of files in folders for splits have the split in them.
    prefix = f"{split}/" if len(sources) > 1 and not isinstance(source, FileSource) else ""
    rows, at = source.rows, 0
    for chunk in source.chunks():
        passed = min(len(chunk), max(0, skip - at))
        at += len(chunk)
        if passed == len(chunk):
            continue
        part = slice(at - len(chunk) + passed, at)
        ids = [prefix + text for text in rows.ids[part].tolist()]
        numbers = None if rows.labels is None else rows.labels[part].tolist()
        labels = [None] * len(ids) if numbers is None else [rows.classes[number] for number in numbers]
        captions = [()] * len(ids) if rows.texts is None else rows.texts[part]
        texts = [_together(one) for one in captions]
        yield Piece(chunk[passed:], ids, labels, texts)


def _of_tar(path: Path, shard: Shard, skip: int) -> Iterator[Piece]:
    """Samples of a tar file: an image, and the files beside it that share its name up to the first dot of the last part.

    Files of one sample follow each other, as webdataset writes them. Rows that are skipped are not read, only passed.
    """
    images: list[tuple[str, str | bytes]] = []
    ids: list[str] = []
    labels: list[str | None] = []
    texts: list[str | None] = []
    held = 0
    for sample in _samples(path):
        if skip:
            skip -= 1
            continue
        name, content, label, text = sample.read()
        images.append((f"{path}, {name}", content))
        ids.append(visible(f"{shard.name}/{name}"))
        labels.append(label)
        texts.append(text)
        held += len(content)
        if held >= _BYTES or len(ids) == ENCODED_ROWS:
            yield Piece(images, ids, labels, texts)
            images, ids, labels, texts, held = [], [], [], [], 0
    if ids:
        yield Piece(images, ids, labels, texts)


@dataclass
class _Sample:
    """Where the files of a sample stand in a tar file."""

    file: IO[bytes]
    archive: str
    image: tarfile.TarInfo
    beside: dict[str, tarfile.TarInfo]

    def read(self) -> tuple[str, bytes, str | None, str | None]:
        """(name, content, label, text); the label is that of the .cls file, else of the .json file."""
        about = self._json()
        label = self._said(".cls")
        if label is None:
            found = next((about[key] for key in ("label", "class", "cls") if key in about), None)
            label = None if found is None or isinstance(found, (dict, list)) else str(found)
        return self.image.name, self._content(self.image), label, self._said(".txt")

    def _content(self, member: tarfile.TarInfo) -> bytes:
        self.file.seek(member.offset_data)
        return self.file.read(member.size)

    def _said(self, suffix: str) -> str | None:
        member = self.beside.get(suffix)
        if member is None:
            return None
        if member.size > _SAID:
            raise InputError(f"{self.archive}, {member.name} has {member.size:,} bytes, expected at most {_SAID:,}")
        return self._content(member).decode(errors="replace").strip()

    def _json(self) -> dict[str, Any]:
        text = self._said(".json")
        try:
            about = json.loads(text) if text else {}
        except NOT_JSON:
            raise InputError(f"{self.archive}, {self.beside['.json'].name} is damaged: not valid JSON") from None
        return about if isinstance(about, dict) else {}


def _samples(path: Path) -> Iterator[_Sample]:
    with readable(path), open(path, "rb") as file:
        key, image, beside = "", None, dict[str, tarfile.TarInfo]()
        for member in _members(path, file):
            folder, slash, last = member.name.rpartition("/")
            stem, _, suffix = last.partition(".")
            suffix, own = f".{suffix.lower()}", f"{folder}{slash}{stem}"
            if own != key:
                if image is not None:
                    yield _Sample(file, str(path), image, beside)
                key, image, beside = own, None, {}
            if is_image(last):
                if image is not None:  # two images of one name are two rows
                    yield _Sample(file, str(path), image, beside)
                image = member
            elif suffix in _BESIDE:
                beside[suffix] = member
        if image is not None:
            yield _Sample(file, str(path), image, beside)


def _members(path: Path, file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """Plain files in a tar file, in order; links and devices are passed over, nothing is unpacked to the disk."""
    whole = os.fstat(file.fileno()).st_size
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                vars(archive)["members"] = []  # it would keep them all
                name = member.name.rpartition("/")[2]
                if member.isreg() and not name.startswith(".") and not member.issparse():
                    if member.size < 0 or member.offset_data + member.size > whole:
                        raise InputError(f"{path} is damaged: {visible(member.name)[:200]!r} goes beyond its end")
                    yield member
            # It takes a header that it does not understand for the end, too.
            file.seek(archive.offset)
            end = file.read(tarfile.BLOCKSIZE)
            if len(end) < tarfile.BLOCKSIZE or any(end):
                raise InputError(f"{path} is damaged: it ends or breaks off at byte {archive.offset:,}")
    except (tarfile.TarError, OverflowError) as error:  # a place that no number of the system names
        raise InputError(f"{path} is damaged: {error}") from None
