"""A trained embedding in other tools' formats: the folder that TensorBoard's Embedding Projector opens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearfar.errors import InputError
from nearfar.files import write_atomic, write_json, write_text
from nearfar.plots import sample_rows

SHEET_LIMIT = 8192  # pixels along an edge; the projector refuses a larger sprite sheet
POINT_LIMIT = 100_000  # TensorBoard's projector asks for no more points than these
THUMBNAIL = 64  # pixels along an edge; the projector draws them no larger
_CHUNK = 4096  # rows converted at once


def export_projector(
    z: ArrayLike,
    labels: ArrayLike | None,
    classes: Sequence[str],
    images: Any | None,
    folder: Path | str,
    ids: ArrayLike | None = None,
    *,
    seed: int = 0,
) -> list[Path]:
    """Write a folder that ``tensorboard --logdir FOLDER`` shows in its Projector tab, and the standalone projector loads.

    The folder holds ``vectors.tsv``, ``metadata.tsv`` (label, id, row), ``sprite.png``, ``projector_config.pbtxt`` for
    TensorBoard and ``config.json`` for the standalone projector. Tabs, line breaks and backslashes in names are
    written as ``\\t``, ``\\n``, ``\\r`` and ``\\\\``.

    Two limits of the projector are kept. Of more than 100,000 points, that many are drawn at random with the classes in
    proportion. Thumbnails keep their size up to 64 pixels along the longer edge, larger images are shrunk to that, and
    all of them further to the largest size with which the sheet stays within 8192 x 8192 pixels.

    Args:
        z: embeddings [N, D], D at least 2.
        labels: class numbers [N]; None for unlabelled images.
        classes: the class names, by number.
        images: uint8 [N, C, H, W] with 1 or 3 channels, in memory or on disk; None leaves the pictures out.
        folder: made if missing; files of the same names are replaced.
        ids: what identifies each row [N]; its number by default.
        seed: of the choice among more than 100,000 points.

    Returns:
        The paths written.

    Raises:
        InputError: shapes or lengths do not fit, a value is not finite, or the folder cannot be written to.
    """
    vectors = np.asarray(z)
    if vectors.ndim != 2 or vectors.dtype.kind not in "fiu":
        raise InputError(f"z has shape {list(vectors.shape)} and dtype {vectors.dtype}, expected numbers [N, D]")
    count, width = vectors.shape
    if not count:
        raise InputError("z has no rows, expected at least one embedding")
    if width < 2:
        raise InputError(f"z has {width} column, the projector needs at least 2 dimensions")
    numbers = _check_labels(labels, classes, count)
    names = np.arange(count).astype(str) if ids is None else np.asarray(ids).astype(str)
    if names.shape != (count,):
        raise InputError(f"ids has shape {list(names.shape)}, z has {count:,} rows")
    if images is not None:
        _check_images(images, count)
    rows = sample_rows(np.zeros(count, dtype=np.int64) if numbers is None else numbers, POINT_LIMIT, seed)

    folder = Path(folder)
    written = [folder / "vectors.tsv", folder / "metadata.tsv"]
    _write_vectors(written[0], vectors, rows)
    write_text(written[1], _metadata(rows, numbers, classes, names))
    entry: dict[str, Any] = {
        "tensorName": "nearfar",
        "tensorShape": [len(rows), width],
        "tensorPath": "vectors.tsv",
        "metadataPath": "metadata.tsv",
    }
    if images is not None:
        thumbnail = _write_sprite(folder / "sprite.png", images, rows)
        entry["sprite"] = {"imagePath": "sprite.png", "singleImageDim": list(thumbnail)}
        written.append(folder / "sprite.png")
    # Last, so that a configuration never names a file that is not there yet.
    written += [folder / "projector_config.pbtxt", folder / "config.json"]
    write_text(written[-2], _as_text_proto(entry))
    write_json(written[-1], {"embeddings": [entry]})
    return written


def _check_labels(labels: ArrayLike | None, classes: Sequence[str], count: int) -> NDArray[np.int64] | None:
    if labels is None:
        return None
    numbers = np.asarray(labels)
    if numbers.shape != (count,):
        raise InputError(f"labels has shape {list(numbers.shape)}, z has {count:,} rows")
    if numbers.dtype.kind not in "iu" or not 0 <= numbers.min() <= numbers.max() < len(classes):
        raise InputError(
            f"labels has dtype {numbers.dtype} and values {numbers.min()} to {numbers.max()}, expected the numbers of "
            f"{len(classes)} classes, 0 to {len(classes) - 1}"
        )
    return numbers.astype(np.int64)


def _check_images(images: Any, count: int) -> None:
    if len(images.shape) != 4 or images.dtype != np.uint8 or images.shape[1] not in (1, 3) or 0 in images.shape[1:]:
        raise InputError(
            f"images has shape {list(images.shape)} and dtype {images.dtype}, expected uint8 [N, C, H, W] with 1 or 3 channels"
        )
    if len(images) != count:
        raise InputError(f"images has {len(images):,} entries, z has {count:,} rows")


def _write_vectors(path: Path, vectors: NDArray[Any], rows: NDArray[np.int64]) -> None:
    """Write the rows as tab-separated numbers, in the fewest digits that give the same float32 back."""
    import pyarrow as pa
    from pyarrow import csv

    columns = [str(number) for number in range(vectors.shape[1])]
    schema = pa.schema([(column, pa.float32()) for column in columns])
    options = csv.WriteOptions(include_header=False, delimiter="\t")
    with write_atomic(path) as file, csv.CSVWriter(file, schema, write_options=options) as writer:
        for start in range(0, len(rows), _CHUNK):
            some = rows[start : start + _CHUNK]
            with np.errstate(over="ignore"):  # too large for float32 becomes infinite, which is reported below
                block = vectors[some].astype(np.float32)
            if not np.isfinite(block).all():
                row, column = (int(at) for at in np.argwhere(~np.isfinite(block))[0])
                raise InputError(f"z[{some[row]}, {column}] is {block[row, column]}, expected finite numbers")
            arrays = [pa.array(column) for column in np.ascontiguousarray(block.T)]
            writer.write_batch(pa.record_batch(arrays, schema=schema))


def _metadata(rows: NDArray[np.int64], numbers: NDArray[np.int64] | None, classes: Sequence[str], ids: NDArray[np.str_]) -> str:
    """The metadata table. Its row numbers make sure that no line is blank, since the projector skips those."""
    header = ["id", "row"] if numbers is None else ["label", "id", "row"]
    lines = ["\t".join(header)]
    escaped = [_escape(str(name)) for name in classes]
    for row in rows:
        fields = [_escape(str(ids[row])), str(row)]
        lines.append("\t".join(fields if numbers is None else [escaped[numbers[row]], *fields]))
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    for letter, written in (("\\", "\\\\"), ("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r")):
        text = text.replace(letter, written)
    return text.encode("utf-8", "backslashreplace").decode()  # a file name need not be valid text


def _write_sprite(path: Path, images: Any, rows: NDArray[np.int64]) -> tuple[int, int]:
    """Write the thumbnails line by line on one sheet; returns the width and height of one in pixels."""
    from PIL import Image

    channels, height, width = images.shape[1:]
    columns, wide, high = sheet_layout(len(rows), width, height)
    sheet = np.zeros((-(-len(rows) // columns) * high, columns * wide, channels), dtype=np.uint8)
    for line, start in enumerate(range(0, len(rows), columns)):
        pictures = np.moveaxis(np.asarray(images[rows[start : start + columns]]), 1, -1)
        for column, picture in enumerate(pictures):
            if (wide, high) != (width, height):
                flat = np.ascontiguousarray(picture if channels == 3 else picture[:, :, 0])
                small = np.asarray(Image.fromarray(flat).resize((wide, high), Image.Resampling.BOX))
                picture = small.reshape(high, wide, channels)
            sheet[line * high : (line + 1) * high, column * wide : (column + 1) * wide] = picture
    with write_atomic(path) as file:
        Image.fromarray(sheet if channels == 3 else sheet[:, :, 0]).save(file, format="PNG")
    return wide, high


def sheet_layout(count: int, width: int, height: int) -> tuple[int, int, int]:
    """Lay ``count`` images of ``width`` x ``height`` pixels out on a sheet as square as can be.

    Returns:
        How many stand in a line, and the width and height of each in pixels.
    """
    longest = max(width, height)
    for edge in range(min(longest, THUMBNAIL), 0, -1):
        wide, high = max(1, round(width * edge / longest)), max(1, round(height * edge / longest))
        columns = int(np.ceil(np.sqrt(count * high / wide)))
        columns = max(1, min(columns, count))
        if columns * wide <= SHEET_LIMIT and -(-count // columns) * high <= SHEET_LIMIT:
            return columns, wide, high
    raise InputError(f"{count:,} thumbnails do not fit on {SHEET_LIMIT} x {SHEET_LIMIT} pixels, expected fewer images")


def _as_text_proto(entry: dict[str, Any]) -> str:
    """The same configuration in protocol buffer text format; all its strings are plain."""
    lines = [
        "embeddings {",
        f'  tensor_name: "{entry["tensorName"]}"',
        *(f"  tensor_shape: {size}" for size in entry["tensorShape"]),
        f'  tensor_path: "{entry["tensorPath"]}"',
        f'  metadata_path: "{entry["metadataPath"]}"',
    ]
    if "sprite" in entry:
        lines += [
            "  sprite {",
            f'    image_path: "{entry["sprite"]["imagePath"]}"',
            *(f"    single_image_dim: {size}" for size in entry["sprite"]["singleImageDim"]),
            "  }",
        ]
    return "\n".join([*lines, "}"]) + "\n"
