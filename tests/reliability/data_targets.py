"""Images, tables and archives of strangers: for each kind valid examples, and how it is read."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from reliability.target import Several, Target
from samples import shapes


def pictures(home: Path) -> Target:
    from nearfar.data import decode_image

    seeds = []
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (12, 10, 4), dtype=np.uint8)
    for kind, mode in (
        *(("PNG", "L"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "I;16"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("GIF", "P")),
        *(("BMP", "RGB"), ("TIFF", "RGB"), ("TIFF", "F"), ("WEBP", "RGB"), ("ICO", "RGBA"), ("PPM", "RGB"), ("TGA", "RGB")),
        *(("JPEG2000", "RGB"), ("AVIF", "RGB"), ("PCX", "P"), ("DIB", "RGB"), ("QOI", "RGB")),
    ):
        buffer = io.BytesIO()
        if mode in ("I;16", "F"):
            image = Image.fromarray(
                pixels[..., 0].astype(np.uint16 if mode == "I;16" else np.float32) / (1 if mode != "F" else 255)
            )
            image = image if mode == "F" else Image.fromarray(pixels[..., 0].astype(np.uint16))
        else:
            image = Image.fromarray(pixels).convert(mode)
        try:
            image.save(buffer, format=kind)
        except (KeyError, OSError):  # this Pillow cannot write it
            continue
        seeds.append(buffer.getvalue())
    for compression in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg"):
        buffer = io.BytesIO()
        Image.fromarray(pixels).convert("RGB").save(buffer, format="TIFF", compression=compression)
        seeds.append(buffer.getvalue())
    frames = io.BytesIO()
    Image.fromarray(pixels).convert("P").save(frames, format="GIF", save_all=True, append_images=[Image.new("P", (10, 12))])
    seeds.append(frames.getvalue())
    return Target(
        "pictures",
        home / "picture",
        seeds,
        lambda path: decode_image(path.read_bytes(), size=(8, 8), channels=3, name="picture"),
    )


def _source(name: str, file: str, seeds: Callable[[], list[bytes]]) -> Callable[[Path], Target]:
    def make(home: Path) -> Target:
        from nearfar.data import load_splits

        def read(path: Path) -> None:
            load_splits(path, size=(8, 8), channels=1, cache=home / "cache")

        return Target(name, home / file, seeds(), read)

    return make


def tables() -> list[bytes]:
    random = np.random.default_rng(0)
    rows = [",".join(["label", *(f"pixel{number}" for number in range(16))])]
    rows += [",".join([f"class {number % 3}", *map(str, random.integers(0, 256, 16))]) for number in range(6)]
    plain = "\n".join(rows).encode()
    bare = "\n".join(line.partition(",")[2] for line in rows[1:]).encode()
    return [
        plain,
        bare,
        gzip.compress(plain, mtime=0),
        plain.replace(b"label", b"id").replace(b"class ", b""),
        b"\xef\xbb\xbf" + plain,
    ]


def table(home: Path) -> Target:
    return _source("pixel table", "table.csv", tables)(home)


def idx_bytes(shape: tuple[int, ...]) -> bytes:
    values = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + values.tobytes()


def idx(home: Path) -> Several:
    (home / "idx").mkdir(exist_ok=True)
    seeds = [idx_bytes((5, 6, 6)), gzip.compress(idx_bytes((5, 6, 6)), mtime=0)]
    target = _source("idx", "idx/train-images-idx3-ubyte", lambda: seeds)(home)
    (home / "idx" / "train-images-idx3-ubyte").write_bytes(seeds[0])
    labels = Target("idx labels", home / "idx" / "train-labels-idx1-ubyte", [idx_bytes((5,))], lambda path: target.use())
    labels.restore()
    return Several("idx", [target, labels])


def archive_bytes(compressed: bool, **arrays: Any) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


def archives() -> list[bytes]:
    small = np.random.default_rng(0).integers(0, 256, (4, 6, 6), dtype=np.uint8)
    names = np.array(["a", "b", "a", "b"])
    return [
        archive_bytes(False, images=small, labels=np.arange(4)),
        archive_bytes(True, x=small, y=names),
        archive_bytes(False, images=(small / 255).astype(np.float32), labels=names),
        archive_bytes(False, x_train=small, y_train=np.arange(4), x_test=small, y_test=np.arange(4)),
    ]


def npz(home: Path) -> Target:
    return _source("npz", "archive.npz", archives)(home)


def _png(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 6), dtype=np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def _parquets() -> list[bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = []
    for structs, compression in ((True, "snappy"), (False, "none"), (True, "zstd"), (False, "gzip")):
        content = [_png(number) for number in range(4)]
        column = [{"bytes": one, "path": f"{number}.png"} for number, one in enumerate(content)] if structs else content
        columns = {"image": column, "label": pa.array(["a", "b", "a", "b"] if structs else [0, 1, 0, 1])}
        features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["no", "yes"]}}
        about = {} if structs else {"huggingface": json.dumps({"info": {"features": features}})}
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns).replace_schema_metadata(about), buffer, compression=compression)
        found.append(buffer.getvalue())
    return found


def parquet(home: Path) -> Target:
    return _source("parquet", "table.parquet", _parquets)(home)


def metadata(home: Path) -> Target:
    (home / "pets").mkdir(exist_ok=True)
    for number in range(3):
        (home / "pets" / f"{number}.png").write_bytes(_png(number))
    seeds = [b"file_name,label,split\n0.png,a,train\n1.png,b,train\n2.png,a,test\n", b"file_name\n0.png\n1.png\n"]
    target = _source("metadata", "pets/metadata.csv", lambda: seeds)(home)
    read = target.read
    target.read = lambda path: read(path.parent)
    return target


def recipes(home: Path) -> Target:
    from nearfar.data import load_images
    from nearfar.recipe import RECIPES, load_recipe
    from nearfar.training import parts

    seeds = [path.read_bytes() for path in sorted(RECIPES.glob("*.toml"))]
    few = {channels: shapes(40, size=28, channels=channels).with_texts(["a bar"] * 40) for channels in (1, 3)}

    def read(path: Path) -> None:
        recipe = load_recipe(path)
        given = few[1 if recipe.data.channels == 1 else 3]
        parts.check(recipe, load_images(given, size=recipe.data.size, channels=recipe.data.channels), seed=0)

    return Target("recipes", home / "recipe.toml", seeds, read)


def bodies(home: Path) -> Target:
    from nearfar.serve.bodies import _from_json
    from nearfar.web.problems import Problem

    text = json.dumps({"image": "iVBORw0KGgo=", "label": "nine"}).encode()
    more = json.dumps({"images": ["data:image/png;base64,iVBORw0KGgo=", "AAAA"]}).encode()
    return Target(
        "bodies", home / "body.json", [text, more], lambda path: _from_json(path.read_bytes()), as_json=False, fine=(Problem,)
    )


def packages(home: Path) -> Target:
    from nearfar.data.mirrors import Unavailable, read_deb

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as archive:
        for name in ("usr/share/train-images-idx3-ubyte", "../../etc/evil", "/abs/evil"):
            content = idx_bytes((2, 2))
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    inner = buffer.getvalue()
    head = f"{'data.tar.xz/':16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(inner):<10}`\n".encode()
    return Target("packages", home / "package.deb", [b"!<arch>\n" + head + inner], read_deb, fine=(Unavailable,))


def pickles(home: Path) -> Target:
    import pickle

    from nearfar.data.mirrors import read_arrays

    arrays = [(np.zeros((2, 4), np.float32), np.arange(2))] * 3
    seeds = [pickle.dumps(arrays, protocol=4)]
    # Whatever it raises is turned into one line by its caller; only what it does matters.
    return Target(
        "pickles",
        home / "arrays.pkl",
        seeds,
        lambda path: read_arrays(path.read_bytes()),
        fine=(Exception,),
    )


def decoded(home: Path) -> Target:
    from nearfar.data.store import open_images, write_images

    path = home / "images.bin"
    with write_images(path, (1, 4, 4)) as writer:
        writer.append(np.zeros((3, 1, 4, 4), np.uint8))

    def read(path: Path) -> None:
        found, _ = open_images(path)
        _ = found[: min(1, len(found))]

    return Target("decoded images", path, [path.read_bytes()], read)
