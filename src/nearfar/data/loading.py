"""The doors into the package: one split, all splits, or images of any kind thrown together."""

from __future__ import annotations

import contextlib
import difflib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nearfar.data.catalog import known_sets, open_set
from nearfar.data.folders import SPLITS, is_image, split_named
from nearfar.data.imageset import ImageSet
from nearfar.data.pipeline import IN_MEMORY_BYTES, build
from nearfar.data.pixels import Form
from nearfar.data.readers import image_files, open_path
from nearfar.data.sources import ArraySource, FileSource, JoinedSource, Rows, Source, common_classes
from nearfar.errors import InputError, did_you_mean

Size = int | tuple[int, int] | None
Background = int | tuple[int, int, int]


def load_images(
    source: Any,
    split: str | None = None,
    *,
    size: Size = None,
    channels: int | None = None,
    background: Background = 255,
    skip_bad: bool = False,
    cache: Path | str | None = None,
    in_memory_bytes: int = IN_MEMORY_BYTES,
) -> ImageSet:
    """Load one split of a data set.

    All splits of one source share their ``classes`` (those of all splits together), so labels of one can be compared with
    labels of another.

    Args:
        source: a named set (``"mnist"``), a path (see the documentation of the layouts), an ``ImageSet``, or an array
            (uint8 or floats in [0, 1]; [N, H, W], [N, C, H, W] or [N, H, W, C]). A name wins over a file of that name;
            write ``./mnist`` for the file. An ``ImageSet`` or array is taken whole, whatever ``split`` says.
        split: "train", "validation" (or "val") or "test"; may be left out where there is only one. Data without splits is
            "train".
        size: (H, W), or one number for a square; None: as they are, and then all must be equal. The rows of a pixel table that
            are not square are taken to be of this size.
        channels: 1 (grey) or 3 (colour); None: colour as soon as one image is, else grey.
        background: grey value 0 to 255, or (red, green, blue), under transparent pixels.
        skip_bad: leave out files that cannot be read; ``ImageSet.skipped`` has a line for each.
        cache: folder for fetched and decoded data (default: ``$NEARFAR_DATA``, or ``~/.cache/nearfar``).
        in_memory_bytes: a set with more pixels than this is decoded to the cache, once, and read from there by rows.

    Returns:
        uint8 images [N, C, H, W] with labels, class names and ids.

    Raises:
        InputError: there is no such data or split, something in it cannot be read, or the disk is full.
    """
    form = Form.of(size, channels, background)
    how = {"skip_bad": skip_bad, "cache": cache, "in_memory_bytes": in_memory_bytes}
    if isinstance(source, ImageSet):
        return _reshaped(source, form, how)
    sources = open_source(source, form.size, cache)
    chosen = _choose(source, sources, split)
    return _built(source, {chosen: sources[chosen]}, sources, form, how)[chosen]


def load_splits(
    source: Any,
    *,
    size: Size = None,
    channels: int | None = None,
    background: Background = 255,
    skip_bad: bool = False,
    cache: Path | str | None = None,
    in_memory_bytes: int = IN_MEMORY_BYTES,
) -> dict[str, ImageSet]:
    """Load all splits that a data set has, by name: "train", "validation", "test"; data without splits is "train".

    Arguments and errors are those of ``load_images``. With ``channels=None`` the splits end alike: all colour as soon as one
    image of any of them is.
    """
    form = Form.of(size, channels, background)
    how = {"skip_bad": skip_bad, "cache": cache, "in_memory_bytes": in_memory_bytes}
    if isinstance(source, ImageSet):
        return {"train": _reshaped(source, form, how)}
    sources = open_source(source, form.size, cache)
    sets = _built(source, sources, sources, form, how)
    if len({found.channels for found in sets.values()}) > 1:
        colour = replace(form, channels=3)
        grey = {split: sources[split] for split, found in sets.items() if found.channels == 1}
        sets |= _built(source, grey, sources, colour, how)
    return sets


def load_any(
    paths: Sequence[str | Path | ImageSet] | str | Path | ImageSet,
    *,
    size: Size = None,
    channels: int | None = None,
    background: Background = 255,
    skip_bad: bool = False,
    cache: Path | str | None = None,
    in_memory_bytes: int = IN_MEMORY_BYTES,
) -> ImageSet:
    """Load images of any kind as one set, in the order given: image files, folders, tables, archives, named sets.

    All splits of each are taken. The set is labelled when all of it is. Ids are the paths as given for image files, else as in
    ``load_images``, with the name of their source before them where there are several.

    Arguments and errors are those of ``load_images``.
    """
    form = Form.of(size, channels, background)
    given = [paths] if isinstance(paths, (str, Path, ImageSet)) else list(paths)
    if not given:
        raise InputError("no images were given; name image files, folders or data sets")
    parts: list[tuple[str, Source]] = []
    for files, group in itertools.groupby(given, _is_file):
        if files:
            parts.append(("", image_files([str(_place(path)) for path in group if isinstance(path, (str, Path))])))
            continue
        for path in group:
            sources = open_source(path, form.size, cache, flat=True)
            for split, source in sources.items():
                # The ids of files in folders for splits have the split in them.
                apart = len(sources) > 1 and not isinstance(source, FileSource)
                parts.append(("/".join([name_of(path)] * (len(given) > 1) + [split] * apart), source))
    name = ", ".join(map(name_of, given[:3])) + (f" and {len(given) - 3} more" if len(given) > 3 else "")
    joined = JoinedSource(name, parts)
    return build(joined, form, skip_bad=skip_bad, cache=cache, in_memory_bytes=in_memory_bytes)


def open_source(
    source: Any, size: tuple[int, int] | None = None, cache: Path | str | None = None, *, flat: bool = False
) -> dict[str, Source]:
    """The splits of anything that ``load_images`` takes, nothing decoded yet.

    Raises:
        InputError: there is no such data; the nearest names are suggested.
    """
    if isinstance(source, ImageSet):
        return {"train": ArraySource(source.name, source.images, Rows(source.ids, source.labels, source.classes, source.texts))}
    if isinstance(source, np.ndarray):
        return open_source(ImageSet.from_arrays(source))
    if not isinstance(source, (str, Path)):
        raise InputError(f"data is a {type(source).__name__}; expected a name, a path, an ImageSet or a NumPy array")
    if isinstance(source, str) and source in known_sets():
        return open_set(source, cache)
    path = _place(source)
    if not str(source) or not path.exists():
        raise InputError(f"{str(source)!r} is neither a known data set nor a path that exists{_nearest(str(source), path)}")
    return open_path(path, size=size, flat=flat)


def _built(
    source: Any, sources: Mapping[str, Source], all_of_it: Mapping[str, Source], form: Form, how: Mapping[str, Any]
) -> dict[str, ImageSet]:
    """Decode ``sources``, a part of ``all_of_it``, whose classes they get."""
    classes = common_classes([found.rows for found in all_of_it.values()])
    sets = {}
    for split, found in sources.items():
        made = build(found, form, **how)
        rows = Rows(made.ids, made.labels, made.classes).renumbered(classes)
        name = f"{name_of(source)}/{split}" if len(all_of_it) > 1 else name_of(source)
        sets[split] = replace(made, labels=rows.labels, classes=rows.classes, name=name)
    return sets


def _reshaped(images: ImageSet, form: Form, how: Mapping[str, Any]) -> ImageSet:
    if form.size in (None, images.size) and form.channels in (None, images.channels):
        return images
    made = build(open_source(images)["train"], form, **how)
    return replace(images, images=made.images)


def _choose(source: Any, sources: Mapping[str, Source], split: str | None) -> str:
    held = " and ".join(repr(name) for name in sources)
    if split is None:
        if len(sources) > 1:
            raise InputError(f"{name_of(source)} has the splits {held}; choose one, such as split={next(iter(sources))!r}")
        return next(iter(sources))
    if (known := split_named(str(split))) in sources:
        return str(known)
    near = "" if known else did_you_mean(str(split), SPLITS)
    raise InputError(f"{name_of(source)} has no split {split!r}; it has {held}{near}")


def name_of(source: Any) -> str:
    """What messages and sets call a source: the name of a set, or of a file or folder without those above it."""
    if isinstance(source, (str, Path)):
        return str(source) if source in known_sets() else Path(source).name or Path(source).resolve().name
    return source.name if isinstance(source, ImageSet) else "images"


def _is_file(given: Any) -> bool:
    """Whether it is one image file."""
    return isinstance(given, (str, Path)) and is_image(str(given)) and _place(given).is_file()


def _place(path: str | Path) -> Path:
    return Path(path).expanduser()


def _nearest(text: str, path: Path) -> str:
    names = dict.fromkeys(known_sets())
    with contextlib.suppress(OSError):
        names |= {str(Path(text).with_name(found.name)): None for found in itertools.islice(path.parent.iterdir(), 1000)}
    near = difflib.get_close_matches(text, names, n=3, cutoff=0.6)
    return did_you_mean(text, near or known_sets())
