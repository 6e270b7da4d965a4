"""Data too large to hold, as shards: which there are, and whether they are still what they were. It decodes no pixel.

A shard is what one worker reads from front to back: some images of a folder, some row groups of a Parquet file, a tar file, or
a whole data set of another kind (named, IDX, pixel table, .npz, a folder with metadata.csv). Listing looks at names, sizes,
times and Parquet footers only. What it holds grows by some 300 bytes a shard, not by the image: the names of a folder's
images go to a file as they are found.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from nearfar.data import ImageSet
from nearfar.data.catalog import known_sets
from nearfar.data.folders import METADATA, is_image, split_named, walk_files
from nearfar.data.idx import idx_name
from nearfar.data.loading import name_of, open_source
from nearfar.data.parquet import row_groups
from nearfar.data.sources import Source, file_stamp, readable
from nearfar.errors import InputError

ROWS = 10_000
"""Images of a part of the output, and of a shard where the data lets us choose."""
PARQUET = (".parquet", ".pq")
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")


@dataclass(frozen=True)
class Shard:
    """What one worker reads from front to back.

    Attributes:
        kind: "images", "parquet", "tar" or "set".
        name: what messages call it; a path relative to the data where it is a file.
        first: the number of its first image among all of the data; of a tar file, where only reading tells, 0.
        rows: how many images; None where only reading tells.
        start, end: of "images" the bytes of its names in the list of images; of "parquet" its row groups.
        stamp: another one once its files have other names, sizes or times of change.
    """

    kind: str
    name: str
    first: int
    rows: int | None
    start: int
    end: int
    stamp: str


@dataclass(frozen=True)
class Plan:
    """All shards of some data, in order.

    Attributes:
        source: the data as it was given.
        root: the folder that names are relative to, of "set" the data itself; "" where the data is no path.
        kind: of all of its shards.
        depth: of "images", which folder of a path is the class: the first, or the second below folders for splits.
        shards: in the order of the data.
    """

    source: str
    root: str
    kind: str
    depth: int
    shards: tuple[Shard, ...]

    @property
    def rows(self) -> int | None:
        """How many images there are; None where only reading tells."""
        counts = [shard.rows for shard in self.shards]
        return None if None in counts else sum(count for count in counts if count is not None)

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self) | {"shards": [asdict(shard) for shard in self.shards]}

    @classmethod
    def from_dict(cls, tree: dict[str, Any]) -> Plan:
        """What `to_dict` gave.

        Raises:
            TypeError, KeyError: a part is missing, or of the wrong kind.
        """
        shards = tuple(Shard(**shard) for shard in tree["shards"])
        for shard in shards:
            counts = (shard.first, shard.start, shard.end, 0 if shard.rows is None else shard.rows)
            texts = (shard.kind, shard.name, shard.stamp)
            if not all(type(one) is int and 0 <= one < 1 << 53 for one in counts) or not all(
                isinstance(one, str) for one in texts
            ):
                raise TypeError(f"the shard {str(shard.name)[:100]!r} is described wrongly")
        return cls(**{key: tree[key] for key in ("source", "root", "kind", "depth")}, shards=shards)


def make_plan(data: str | Path | ImageSet, names: Path, *, rows: int = ROWS) -> Plan:
    """List the shards of some data.

    Args:
        data: a name, a path or an `ImageSet`.
        names: where the list of images of a folder goes; written for "images" only.
        rows: images of a shard, where that can be chosen.

    Raises:
        InputError: there is no such data, it holds no images, or a Parquet file is damaged.
    """
    path = None if isinstance(data, ImageSet) or str(data) in known_sets() else Path(data).expanduser()
    if path is None or not path.exists():
        return _set_plan(data, open_source(data, flat=True))  # says what is near, where there is no such data
    if path.is_file():
        return _plan_of_file(path, rows)
    return _plan_of_folder(path, names, rows)


def _plan_of_file(path: Path, rows: int) -> Plan:
    lower = path.name.lower()
    if lower.endswith(_PACKED):
        raise InputError(f"{path} is a packed tar file, which can be read from its front only; unpack it to a .tar file first")
    if lower.endswith(".tar"):
        return _plan(path, path.parent, "tar", [_tar_shard(path.parent, path.name)])
    if lower.endswith(PARQUET):
        return _plan(path, path.parent, "parquet", list(_parquet_shards(path.parent, [path.name], rows)))
    return _set_plan(path, open_source(path, flat=True))


def _plan_of_folder(root: Path, names: Path, rows: int) -> Plan:
    """What a folder is, by what lies in it, in one walk; its images are listed as they are passed."""
    parquet: list[str] = []
    tars: list[str] = []
    packed: list[str] = []
    described = table = False  # by metadata.csv, by IDX files or pixel tables
    pending = names.with_name(f"{names.name}-pending")
    try:
        with pending.open("wb") as file:
            listing = _Listing(root, file, rows)
            for path in walk_files(root):
                lower = path.lower()
                if is_image(path):
                    listing.add(path)
                elif lower.endswith(PARQUET):
                    parquet.append(path)
                elif lower.endswith(_PACKED):
                    packed.append(path)
                elif lower.endswith(".tar"):
                    tars.append(path)
                elif path == METADATA or (path.count("/") == 1 and path.endswith(f"/{METADATA}")):
                    described = described or path == METADATA or split_named(path.partition("/")[0]) is not None
                elif "/" not in path:
                    table = table or idx_name(path) is not None or lower.endswith((".csv", ".csv.gz"))
            shards = listing.finish()
        if described or (table and not (parquet or tars or shards)):
            return _set_plan(root, open_source(root, flat=True))
        if parquet:
            return _plan(root, root, "parquet", list(_parquet_shards(root, parquet, rows)))
        if tars:
            return _plan(root, root, "tar", [_tar_shard(root, path) for path in tars])
        if packed:
            return _plan_of_file(root / packed[0], rows)
        if not shards:
            open_source(root, flat=True)  # says what it saw instead
            raise InputError(f"{root} holds no images")
        os.replace(pending, names)
        return _plan(root, root, "images", shards, depth=listing.depth)
    finally:
        with contextlib.suppress(FileNotFoundError):
            pending.unlink()


def _plan(source: Path, root: Path, kind: str, shards: list[Shard], *, depth: int = 0) -> Plan:
    return Plan(str(source), str(root.resolve()), kind, depth, tuple(shards))


class _Listing:
    """Image files to shards, their names to a file: one line ``size time path`` an image, ended by a zero byte."""

    def __init__(self, root: Path, file: BinaryIO, rows: int) -> None:
        self._root, self._file, self._most = root, file, rows
        self._shards: list[Shard] = []
        self._splits = True
        self._at = self._start = self._count = 0
        self._digest = hashlib.sha256()
        self._names = ("", "")

    def add(self, path: str) -> None:
        line = os.fsencode(f"{file_stamp(self._root / path)} {path}") + b"\0"
        self._file.write(line)
        self._digest.update(line)
        self._splits = self._splits and split_named(path.partition("/")[0]) is not None
        self._names = (self._names[0] or path, path)
        self._at, self._count = self._at + len(line), self._count + 1
        if self._count == self._most:
            self._close()

    def finish(self) -> list[Shard]:
        if self._count:
            self._close()
        return self._shards

    @property
    def depth(self) -> int:
        return int(self._splits)

    def _close(self) -> None:
        first = self._shards[-1].first + (self._shards[-1].rows or 0) if self._shards else 0
        name, stamp = visible(" to ".join(dict.fromkeys(self._names))), self._digest.hexdigest()[:32]
        self._shards.append(Shard("images", name, first, self._count, self._start, self._at, stamp))
        self._start, self._count, self._digest, self._names = self._at, 0, hashlib.sha256(), ("", "")


def listed_images(names: Path, shard: Shard) -> list[tuple[str, str]]:
    """(path, stamp) of each image of a shard.

    Raises:
        InputError: the list cannot be read, or is not the one that the shard was made with.
    """
    with readable(names), open(names, "rb") as file:
        length = min(shard.end, os.fstat(file.fileno()).st_size) - shard.start
        file.seek(shard.start)
        content = file.read(max(0, length))
    if hashlib.sha256(content).hexdigest()[:32] != shard.stamp:
        raise InputError(f"{names} is damaged; delete the folder {names.parent}, and embed again")
    lines = (os.fsdecode(line).split(" ", 2) for line in content.split(b"\0")[:-1])
    return [(path, f"{size} {time}") for size, time, path in lines]


def visible(path: str) -> str:
    """A path as text that every file can hold, also where its name is no UTF-8."""
    return os.fsencode(path).decode(errors="replace")


def _tar_shard(root: Path, path: str) -> Shard:
    return Shard("tar", path, 0, None, 0, 0, file_stamp(root / path))


def _parquet_shards(root: Path, paths: list[str], rows: int) -> Iterator[Shard]:
    """Whole row groups, together as many rows as a shard may have; a larger group is a shard by itself."""
    total = 0
    for path in paths:
        start, count, stamp = 0, 0, file_stamp(root / path)
        groups = row_groups(root / path)
        for number, (more, _) in enumerate(groups):
            if count and count + more > rows:
                yield Shard("parquet", path, total, count, start, number, stamp)
                total, start, count = total + count, number, 0
            count += more
        if count:
            yield Shard("parquet", path, total, count, start, len(groups), stamp)
            total += count


def _set_plan(data: str | Path | ImageSet, sources: dict[str, Source]) -> Plan:
    """Sets of other kinds are one shard for each split; their ids and labels are held, their pixels are not."""
    shards: list[Shard] = []
    first = 0
    for split, source in sources.items():
        digest = hashlib.sha256()
        for line in source.stamp():
            digest.update(line.encode(errors="surrogateescape") + b"\n")
        rows = len(source.rows)
        name = f"{name_of(data)}, {split}" if len(sources) > 1 else name_of(data)
        shards.append(Shard("set", name, first, rows, len(shards), len(shards) + 1, digest.hexdigest()[:32]))
        first += rows
    given = data.name if isinstance(data, ImageSet) else str(data)
    root = "" if isinstance(data, ImageSet) or given in known_sets() else str(Path(data).expanduser().resolve())
    return Plan(given, root, "set", 0, tuple(shards))


def check_same(before: Plan, now: Plan, names: Path, names_now: Path) -> None:
    """Refuse data that is not what it was.

    Args:
        before, now: the plans.
        names, names_now: their lists of images, if they are "images".

    Raises:
        InputError: it names the first shard, and of a folder of images the first image, that is another.
    """
    if (before.kind, before.depth) == (now.kind, now.depth) and before.shards == now.shards:
        return
    mend = "choose another --out, or delete it to begin anew"
    where = f"{names.parent} was begun with other data"
    if before.kind != now.kind:
        raise InputError(f"{where}: {before.source} was read as {before.kind}, {now.source} is read as {now.kind}; {mend}")
    for number in range(max(len(before.shards), len(now.shards))):
        old = before.shards[number] if number < len(before.shards) else None
        new = now.shards[number] if number < len(now.shards) else None
        if old == new:
            continue
        if before.kind == "images":
            raise InputError(f"{where}: {_first_difference(old, new, names, names_now)}; {mend}")
        if old is not None and new is not None and old.name == new.name:
            raise InputError(
                f"{where}: the shard {new.name} has changed since (it had {_about(old)}, now {_about(new)}); {mend}"
            )
        there = {shard.name for shard in now.shards}
        if old is not None and old.name not in there:
            raise InputError(f"{where}: the shard {old.name} has gone; {mend}")
        raise InputError(f"{where}: the shard {new.name if new else ''} has come; {mend}")
    raise InputError(f"{where}: its folders are of other classes; {mend}")


def _first_difference(old: Shard | None, new: Shard | None, names: Path, names_now: Path) -> str:
    """The first image of two lists that differ."""
    was = dict(listed_images(names, old)) if old else {}
    now = dict(listed_images(names_now, new)) if new else {}
    for path, stamp in now.items():
        if path in was and was[path] != stamp:
            return f"the image {path} has changed since"
    come = [path for path in now if path not in was]
    gone = [path for path in was if path not in now]
    # What moved over the end of a shard has neither come nor gone: the earliest name tells.
    first = min(come[:1] + gone[:1], default="")
    return f"the image {first} has {'gone' if first in gone[:1] else 'come'}"


def _about(shard: Shard) -> str:
    rows = "" if shard.rows is None else f"{shard.rows:,} images, "
    size = shard.stamp.split()[0]
    return f"{rows}{int(size):,} bytes" if size.isdecimal() and shard.kind != "set" else f"{rows}stamp {shard.stamp[:8]}"
