"""A look at data before anything is trained on it: what is there, what cannot be read, what is there twice.

Images are decoded one by one and forgotten; what stays is 16 bytes of hash for each.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nearfar.data.decode import BadImage, load_pixels, open_image, quiet_pillow, to_array
from nearfar.data.duplicates import digest, number_pictures
from nearfar.data.loading import name_of, open_source
from nearfar.data.pipeline import decoding_threads, in_order, numbered_pieces
from nearfar.data.pixels import Form, flatten
from nearfar.data.sources import ENCODED_ROWS, Chunk, Source, common_classes
from nearfar.data.texts import Texts

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_EXAMPLES = 5
_SIZES = 10
_CLASSES = 20
_AS_IT_IS = Form()


@dataclass(frozen=True)
class _Seen:
    """One image: (height, width) as stored, mode, hash of its decoded pixels; or why there are none."""

    size: tuple[int, int] = (0, 0)
    mode: str = ""
    digest: bytes = b""
    fault: tuple[str, str] | None = None


@dataclass(frozen=True)
class _Split:
    """What was found in one split; rows are those that can be read."""

    tree: dict[str, Any]
    ids: list[str]
    labels: npt.NDArray[np.int64] | None
    digests: npt.NDArray[np.uint64]  # [n, 2]


def check(source: Any, *, size: int | tuple[int, int] | None = None, cache: Path | str | None = None) -> dict[str, Any]:
    """Look through all splits of a data set; nothing is kept in memory or written.

    Duplicates are images with the same pixels after decoding, whatever their files look like.

    Args:
        source: a name or path, as for ``load_images``.
        size: (H, W) of the rows of a pixel table, if they are not square.
        cache: folder for fetched data.

    Returns:
        A tree that JSON can hold::

            {"source", "classes": number,
             "splits": {name: {"images", "readable", "labelled", "per_class": {class: images}, "single": [class, ...],
                               "sizes": [{"height", "width", "images"}, ...], "distinct_sizes", "modes": {mode: images},
                               "captions": None or {"images", "captions", "distinct", "without", "examples": [id, ...]},
                               "unreadable": [{"file", "reason"}, ...],
                               "duplicates": {"pictures", "images", "differing_labels", "examples": [[id, id], ...]}}},
             "across": [{"splits": [a, b], "pictures", "images", "differing_labels", "examples"}]}

        Of duplicates, ``pictures`` counts different pictures that occur more than once, ``images`` those that repeat an earlier
        one (across splits: images of b that are in a), ``differing_labels`` the pictures that do not have one label throughout.
        Of captions, ``images`` counts those that have one, ``captions`` all of them, ``distinct`` different ones, and
        ``without`` the images that have none, of which ``examples`` names a few; None where the data brings no captions.

    Raises:
        InputError: there is no such data, or a table or archive is damaged; image files that cannot be read are counted.
    """
    sources = open_source(source, Form.of(size).size, cache)
    classes = common_classes([found.rows for found in sources.values()])
    with quiet_pillow():
        splits = {split: _look(found, classes) for split, found in sources.items()}
    pairs = itertools.combinations(splits, 2)
    across = [{"splits": [a, b], **_shared(splits[a], splits[b])} for a, b in pairs]
    return {
        "source": name_of(source),
        "classes": len(classes),
        "splits": {split: found.tree for split, found in splits.items()},
        "across": across,
    }


def format_check(tree: Mapping[str, Any]) -> str:
    """Put what ``check`` found into lines for people to read."""
    lines = [f"{tree['source']}: {tree['classes']:,} classes" if tree["classes"] else f"{tree['source']}: no labels"]
    for split, found in tree["splits"].items():
        lines += _split_lines(split, found)
    for pair in tree["across"]:
        first, second = pair["splits"]
        shared = f"{pair['images']:,} images of {second} are in {first} too" if pair["images"] else "no image is in both"
        lines.append(f"{second} and {first}: {shared}{_pictures_of(pair)}")
        lines += [f"    {' = '.join(ids)}" for ids in pair["examples"]]
    return "\n".join(lines)


def _split_lines(split: str, found: Mapping[str, Any]) -> list[str]:
    lines = [f"{split}: {found['images']:,} images"]
    if found["per_class"]:
        counts = found["per_class"].values()
        lines.append(f"  per class    {min(counts):,} to {max(counts):,} images, {len(counts):,} classes")
        if len(counts) <= _CLASSES:
            lines += [f"    {name:<20} {count:>8,}" for name, count in found["per_class"].items()]
    if found["single"]:
        lines.append(f"  one image    {len(found['single']):,} classes have just one: {_some(found['single'])}")
    sizes = [f"{size['height']} x {size['width']} ({size['images']:,})" for size in found["sizes"][:_EXAMPLES]]
    lines.append(f"  sizes        {', '.join(sizes)}{_more(found['distinct_sizes'] - len(sizes))}, height x width")
    lines.append("  modes        " + ", ".join(f"{mode} ({count:,})" for mode, count in found["modes"].items()))
    if found["captions"]:
        lines.append(_captions_line(found["captions"]))
    lines.append(f"  unreadable   {len(found['unreadable']):,}")
    lines += [f"    {bad['file']}: {bad['reason']}" for bad in found["unreadable"][:_EXAMPLES]]
    if len(found["unreadable"]) > _EXAMPLES:
        lines.append(f"   {_more(len(found['unreadable']) - _EXAMPLES)}")
    twice = found["duplicates"]
    repeats = f"{twice['images']:,} repeat another image" if twice["images"] else "none"
    lines.append(f"  duplicates   {repeats}{_pictures_of(twice)}")
    return lines + [f"    {' = '.join(ids)}" for ids in twice["examples"]]


def _look(source: Source, classes: tuple[str, ...]) -> _Split:
    rows = source.rows.renumbered(classes)
    sizes: Counter[tuple[int, int]] = Counter()
    modes: Counter[str] = Counter()
    faults: list[tuple[str, str]] = []
    digests = np.zeros((len(rows), 2), dtype=np.uint64)
    readable = np.zeros(len(rows), dtype=bool)
    with contextlib.closing(in_order(_inspect, numbered_pieces(source.chunks(), ENCODED_ROWS), decoding_threads())) as pieces:
        for row, seen in enumerate(itertools.chain.from_iterable(pieces)):
            if seen.fault:
                faults.append(seen.fault)
            else:
                sizes[seen.size] += 1
                modes[seen.mode] += 1
                readable[row] = True
                digests[row] = np.frombuffer(seen.digest, dtype=np.uint64)
    counts = np.zeros(0, dtype=np.int64) if rows.labels is None else np.bincount(rows.labels, minlength=len(classes))
    kept = np.flatnonzero(readable)
    labels = None if rows.labels is None else rows.labels[kept]
    ids = rows.ids[kept].tolist()
    tree = {
        "images": len(rows),
        "readable": len(kept),
        "labelled": rows.labels is not None,
        "per_class": {classes[number]: int(counts[number]) for number in np.flatnonzero(counts)},
        "single": [classes[number] for number in np.flatnonzero(counts == 1)],
        "sizes": [{"height": h, "width": w, "images": count} for (h, w), count in sizes.most_common(_SIZES)],
        "distinct_sizes": len(sizes),
        "modes": dict(modes.most_common()),
        "captions": None if rows.texts is None else _captions(rows.texts, rows.ids.tolist()),
        "unreadable": [{"file": file, "reason": reason} for file, reason in faults],
        "duplicates": _repeated(ids, labels, digests[kept]),
    }
    return _Split(tree, ids, labels, digests[kept])


def _captions(texts: Texts, ids: Sequence[str]) -> dict[str, Any]:
    bare = [name for name, captions in zip(ids, texts, strict=True) if not captions]
    every = [caption for captions in texts for caption in captions]
    return {
        "images": len(texts) - len(bare),
        "captions": len(every),
        "distinct": len(set(every)),
        "without": len(bare),
        "examples": bare[:_EXAMPLES],
    }


def _captions_line(found: Mapping[str, Any]) -> str:
    bare = (
        f"; {found['without']:,} images have none: {_some_of(found['examples'], found['without'])}" if found["without"] else ""
    )
    return f"  captions     {found['captions']:,} of {found['images']:,} images, {found['distinct']:,} different ones{bare}"


def _inspect(piece: tuple[int, Chunk]) -> list[_Seen]:
    _, chunk = piece
    if isinstance(chunk, np.ndarray):
        block = flatten(chunk, _AS_IT_IS) if chunk.shape[1] in (2, 4) else chunk
        size, mode = (chunk.shape[2], chunk.shape[3]), _MODES[chunk.shape[1]]
        return [_Seen(size, mode, digest(image)) for image in block]
    return [_inspect_file(name, content) for name, content in chunk]


def _inspect_file(name: str, content: str | bytes) -> _Seen:
    try:
        with open_image(content, name) as image:
            size, mode = (image.height, image.width), image.mode
            return _Seen(size, mode, digest(to_array(load_pixels(image, name, _AS_IT_IS), _AS_IT_IS)))
    except BadImage as fault:
        return _Seen(fault=(fault.name, fault.reason))


def _repeated(ids: Sequence[str], labels: npt.NDArray[np.int64] | None, digests: npt.NDArray[np.uint64]) -> dict[str, Any]:
    pictures = number_pictures(digests)
    counts = np.bincount(pictures)
    several = counts > 1
    first = _first_rows(pictures, len(counts))
    repeats = np.flatnonzero(several[pictures] & (first[pictures] != np.arange(len(pictures))))
    return {
        "pictures": int(several.sum()),
        "images": len(repeats),
        "differing_labels": _differing_labels(pictures, labels, several),
        "examples": [[ids[first[pictures[row]]], ids[row]] for row in repeats[:_EXAMPLES]],
    }


def _shared(one: _Split, other: _Split) -> dict[str, Any]:
    pictures = number_pictures(np.concatenate([one.digests, other.digests]))
    mine, theirs = pictures[: len(one.ids)], pictures[len(one.ids) :]
    count = int(pictures.max(initial=-1)) + 1
    both = np.zeros(count, dtype=bool)
    both[np.intersect1d(mine, theirs)] = True
    first = _first_rows(mine, count)
    repeats = np.flatnonzero(both[theirs])
    labels = None if one.labels is None or other.labels is None else np.concatenate([one.labels, other.labels])
    return {
        "pictures": int(both.sum()),
        "images": len(repeats),
        "differing_labels": _differing_labels(pictures, labels, both),
        "examples": [[one.ids[first[theirs[row]]], other.ids[row]] for row in repeats[:_EXAMPLES]],
    }


def _first_rows(pictures: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """The first row of each picture (of those that have one)."""
    first = np.zeros(count, dtype=np.int64)
    first[pictures[::-1]] = np.arange(len(pictures))[::-1]
    return first


def _differing_labels(
    pictures: npt.NDArray[np.int64], labels: npt.NDArray[np.int64] | None, chosen: npt.NDArray[np.bool_]
) -> int:
    """How many of the chosen pictures have more than one label."""
    if labels is None:
        return 0
    low = np.full(len(chosen), np.iinfo(np.int64).max)
    high = np.full(len(chosen), -1)
    np.minimum.at(low, pictures, labels)
    np.maximum.at(high, pictures, labels)
    return int((chosen & (low != high)).sum())


def _some(names: Sequence[str]) -> str:
    return _some_of(names, len(names))


def _some_of(names: Sequence[str], count: int) -> str:
    return ", ".join(names[:_EXAMPLES]) + _more(count - _EXAMPLES)


def _more(count: int) -> str:
    return f" and {count:,} more" if count > 0 else ""


def _pictures_of(found: Mapping[str, Any]) -> str:
    """How many different pictures the duplicates are, and how many of these have several labels."""
    if not found["images"]:
        return ""
    pictures = f" ({found['pictures']:,} different {'picture' if found['pictures'] == 1 else 'pictures'}"
    return pictures + (f", {found['differing_labels']:,} labelled differently)" if found["differing_labels"] else ")")
