"""What strangers may write where many images are embedded: tar files, and folders of embeddings."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from reliability import jobs
from reliability.target import Several, Target

from nearfar.data.decode import decode_image
from nearfar.embedding import build_index, embed_stream
from nearfar.embedding.output import MANIFEST, NAMES, NOTES, SKIPPED, Embeddings
from nearfar.embedding.reading import read_shard
from nearfar.embedding.shards import make_plan
from nearfar.files import read_json, write_json, write_text


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def tar_bytes(form: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for number in range(3):
            files = {"png": png(number), "cls": b"cat", "txt": b"a cat", "json": b'{"label": 3, "more": [1]}'}
            for ending, content in files.items():
                about = tarfile.TarInfo(f"{'deep/' * 30 if number == 2 else ''}{number}.{ending}")
                about.size = len(content)
                archive.addfile(about, io.BytesIO(content))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return buffer.getvalue()


def tars(home: Path) -> Target:
    def read(path: Path) -> None:
        plan = make_plan(path, home / NAMES)
        for shard in plan.shards:
            for piece in read_shard(plan, shard, home / NAMES):
                for name, content in piece.images:
                    decode_image(content, size=(8, 8), channels=1, name=name)

    seeds = [tar_bytes(form) for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]
    return Target("tars", home / "shard.tar", seeds, read)


def embeddings(home: Path) -> Several:
    """A finished folder, of which an index is made; and one that was broken off, which is gone on with."""
    run, images, finished, begun = home / "run", home / "images", home / "finished", home / "begun"
    if not run.exists():
        jobs.train(run)
        (images / "a").mkdir(parents=True)
        for number in range(9):
            (images / "a" / f"{number}.png").write_bytes(png(number))
        (images / "a" / "bad.png").write_bytes(b"no picture")
        embed(run, images, finished)
        shutil.copytree(finished, begun)
        break_off(begun)
        shutil.copytree(begun, home / "kept")

    def use(path: Path) -> None:
        found = Embeddings(finished)
        for _ in found.batches():
            pass
        list(found.skipped())
        found.verify()
        build_index(finished, out=home / "index")

    def anew(path: Path) -> None:
        """Whatever an earlier input left is replaced, but for the file that was changed."""
        changed = path.read_bytes()
        shutil.rmtree(begun)
        shutil.copytree(home / "kept", begun)
        path.write_bytes(changed)
        embed(run, images, begun)

    def target(path: Path, as_json: bool, read: Any) -> Target:
        return Target(f"{path.parent.name} {path.name}", path, [path.read_bytes()], read, as_json=as_json)

    parts = sorted(finished.glob("part-*.parquet"))
    return Several(
        "embeddings",
        [
            target(finished / MANIFEST, True, use),
            *(target(path, False, use) for path in parts[:2]),
            target(begun / MANIFEST, True, anew),
            target(begun / NOTES, False, anew),
            target(begun / NAMES, False, anew),
            target(begun / parts[0].name, False, anew),
        ],
    )


def embed(run: Path, images: Path, out: Path) -> None:
    embed_stream(run, images, out=out, device="cpu", skip_bad=True, rows=4)


def break_off(folder: Path) -> None:
    """As a process leaves a folder that is killed after the second part."""
    tree = read_json(folder / MANIFEST)
    parts = tree.pop("parts")
    for part in parts[2:]:
        (folder / part["name"]).unlink()
    (folder / SKIPPED).unlink()
    kept = {key: value for key, value in tree.items() if key not in ("rows", "skipped")}
    write_json(folder / MANIFEST, kept | {"state": "running"})
    write_text(folder / NOTES, "".join(json.dumps(part) + "\n" for part in parts[:2]))
