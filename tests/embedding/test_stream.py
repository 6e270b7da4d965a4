"""A folder of embeddings: the same vectors as in memory, gone on with after a kill, refused where it is of something else."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embedding.stream_samples import (
    everything,
    labelled_tar,
    manifest,
    parts_of,
    png,
    train_tiny,
    write_folder,
    write_parquet,
    write_tar,
)
from samples import shapes

from nearfar import verbs
from nearfar.embedding import Embeddings, embed_stream, stream
from nearfar.embedding.output import MANIFEST, NOTES
from nearfar.errors import InputError

CLI = Callable[..., tuple[int, str, str]]


def in_memory(run: Path, data: Any, tmp_path: Path) -> dict[str, Any]:
    verbs.embed(run, data, out=tmp_path / "memory.npz")
    with np.load(tmp_path / "memory.npz") as found:
        return dict(found)


def make(kind: str, where: Path) -> Path:
    images = shapes(130)
    if kind == "images":
        return write_folder(where / "photos", images)
    if kind == "parquet":
        write_parquet(where / "table" / "0.parquet", images.subset(np.arange(70)), group=30)
        write_parquet(where / "table" / "1.parquet", images.subset(np.arange(70, 130)), group=45)
        return where / "table"
    labelled_tar(where / "tars" / "0.tar", images.subset(np.arange(70)))
    labelled_tar(where / "tars" / "1.tar", images.subset(np.arange(70, 130)))
    return where / "tars"


@pytest.mark.parametrize("kind", ["images", "parquet"])
@pytest.mark.parametrize("rows", [7, 60, 1000])
def test_it_holds_what_is_embedded_in_memory(run: Path, tmp_path: Path, kind: str, rows: int) -> None:
    data, out = make(kind, tmp_path), tmp_path / "out"
    said = embed_stream(run, data, out=out, rows=rows)
    z, ids, labels = everything(out)
    expected = in_memory(run, data, tmp_path)
    np.testing.assert_allclose(z, expected["embedding"], atol=1e-6)
    assert ids == expected["id"].tolist()
    assert labels == expected["label"].tolist()
    parts = [part["rows"] for part in manifest(out)["parts"]]
    assert max(parts) <= rows
    assert said == {
        "out": str(out),
        "images": 130,
        "dim": 8,
        "parts": len(parts),
        "computed": 130,
        "skipped": [],
        "skipped_images": 0,
    }


def test_captions_are_beside_their_vectors(run: Path, tmp_path: Path) -> None:
    images = shapes(30)
    captions = [[f"bar {row}", "a bar"] if row % 3 else None for row in range(30)]
    wanted = [f"bar {row}\na bar" if row % 3 else None for row in range(30)]
    structs = [{"bytes": png(image), "path": f"{row:02d}.png"} for row, image in enumerate(images.images)]
    pq.write_table(pa.table({"image": structs, "captions": captions}), tmp_path / "x.parquet", row_group_size=7)
    (tmp_path / "folder").mkdir()
    lines = ["file_name,text"]
    for row, struct in enumerate(structs):
        (tmp_path / "folder" / struct["path"]).write_bytes(struct["bytes"])
        lines += [f"{struct['path']},{caption}" for caption in captions[row] or [""]]
    (tmp_path / "folder" / "metadata.csv").write_text("\n".join(lines))
    for data in (tmp_path / "x.parquet", tmp_path / "folder", images.with_texts(captions)):
        out = tmp_path / f"out-{getattr(data, 'name', 'memory')}"
        embed_stream(run, data, out=out, rows=4)
        found = [
            text for part in sorted(out.glob("part-*")) for text in pq.read_table(part, columns=["text"])["text"].to_pylist()
        ]
        assert found == wanted


def test_tar_files_with_classes_and_texts(run: Path, tmp_path: Path) -> None:
    data, out = make("tar", tmp_path), tmp_path / "out"
    embed_stream(run, data, out=out, rows=50)
    z, ids, labels = everything(out)
    images = shapes(130)
    np.testing.assert_allclose(z, in_memory(run, images, tmp_path)["embedding"], atol=1e-6)
    assert labels == [images.classes[number] for number in images.require_labels()]
    assert ids == [f"0.tar/{row:06d}.png" for row in range(70)] + [f"1.tar/{row:06d}.png" for row in range(60)]
    texts = pq.read_table(sorted(out.glob("part-*"))[0], columns=["text"]).column("text").to_pylist()
    assert texts == [f"bar {label}" for label in labels[:50]]
    assert {(part["shard"], part["rows"]) for part in manifest(out)["parts"]} == {(0, 50), (0, 20), (1, 50), (1, 10)}


def test_named_sets_and_sets_in_memory_go_too(run: Path, tmp_path: Path) -> None:
    for number, data in enumerate(["digits", shapes(33)]):
        out = tmp_path / f"out{number}"
        embed_stream(run, data, out=out, rows=400)
        z, ids, labels = everything(out)
        expected = in_memory(run, data, tmp_path)
        np.testing.assert_allclose(z, expected["embedding"], atol=1e-6)
        assert ids == expected["id"].tolist()
        assert labels == expected["label"].tolist()


def test_the_manifest_says_what_the_parts_are(run: Path, tmp_path: Path) -> None:
    data, out = make("parquet", tmp_path), tmp_path / "out"
    embed_stream(run, data, out=out, rows=60)
    tree = manifest(out)
    assert tree["state"] == "finished"
    assert tree["rows"] == 130
    assert tree["model"]["sha256"] == json.loads((run / "config.json").read_text())["model"]["sha256"]
    assert tree["columns"]["embedding"] == "fixed_size_list<float>[8]"
    shards = [(one["name"], one["first"], one["rows"]) for one in tree["data"]["shards"]]
    assert shards == [("0.parquet", 0, 60), ("0.parquet", 60, 10), ("1.parquet", 70, 60)]
    size = (data / "0.parquet").stat().st_size
    assert tree["data"]["shards"][0]["stamp"].startswith(f"{size} ")
    schema = pq.read_schema(out / tree["parts"][0]["name"])
    written = {name: str(schema.field(name).type) for name in schema.names}
    assert {**tree["columns"], "embedding": written["embedding"]} == written
    assert sorted(path.name for path in out.iterdir()) == [MANIFEST, *(part["name"] for part in tree["parts"])]


def test_a_killed_process_is_gone_on_with(run: Path, tmp_path: Path) -> None:
    """Killed at no chosen moment: what is done stays, and in the end every part is there, to the byte."""
    data, out, whole = make("tar", tmp_path), tmp_path / "out", tmp_path / "whole"
    embed_stream(run, data, out=whole, rows=2)
    program = f"from nearfar.embedding import embed_stream; embed_stream({str(run)!r}, {str(data)!r}, out={str(out)!r}, rows=2)"
    child = subprocess.Popen([sys.executable, "-c", program])
    while child.poll() is None and noted(out) < 3:
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    seen = noted(out)
    assert 0 < seen < len(parts_of(whole))
    times = {path: path.stat().st_mtime_ns for path in out.glob("part-*")}
    said = embed_stream(run, data, out=out, rows=2)
    assert parts_of(out) == parts_of(whole)
    assert said["computed"] <= 130 - 2 * seen
    kept = [path for path, when in times.items() if path.stat().st_mtime_ns == when]
    assert len(kept) >= seen
    assert not list(out.glob(".*"))


def noted(out: Path) -> int:
    return (out / NOTES).read_bytes().count(b"\n") if (out / NOTES).exists() else 0


@pytest.mark.parametrize("kind", ["images", "parquet", "tar"])
def test_it_goes_on_wherever_it_broke_off(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """After each part, with the part written and not noted, and with the note torn."""
    data, whole = make(kind, tmp_path), tmp_path / "whole"
    embed_stream(run, data, out=whole, rows=25)
    count, write = len(parts_of(whole)), stream.write_part
    for end in range(1, count + 1):
        out = tmp_path / f"out{end}"
        written = 0

        def broken(*arguments: Any) -> Any:
            nonlocal written
            written += 1
            part = write(*arguments)
            if written == end:  # noqa: B023
                raise KeyboardInterrupt
            return part

        monkeypatch.setattr(stream, "write_part", broken)
        with pytest.raises(KeyboardInterrupt):
            embed_stream(run, data, out=out, rows=25)
        with open(out / NOTES, "ab") as file:
            file.write(b'{"name": "part-0000')
        with pytest.raises(InputError, match="are not finished; repeat the same nearfar embed"):
            Embeddings(out)
        monkeypatch.setattr(stream, "write_part", write)
        done = sum(part["rows"] for part in manifest(whole)["parts"][: end - 1])
        assert embed_stream(run, data, out=out, rows=25)["computed"] == 130 - done
        assert parts_of(out) == parts_of(whole)


def test_a_finished_folder_is_left_as_it_is(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = make("images", tmp_path), tmp_path / "out"
    first = embed_stream(run, data, out=out, rows=50)
    monkeypatch.setattr(stream, "write_part", None)
    assert embed_stream(run, data, out=out, rows=50) == {**first, "computed": 0}


@pytest.mark.parametrize("kind", ["images", "parquet", "tar"])
@pytest.mark.parametrize("change", ["changed", "gone", "come"])
def test_other_data_is_refused_by_name(run: Path, tmp_path: Path, kind: str, change: str) -> None:
    data, out = make(kind, tmp_path), tmp_path / "out"
    embed_stream(run, data, out=out, rows=40)
    before = parts_of(out)
    files = sorted(path for path in data.rglob("*") if path.is_file())
    name = files[-1].relative_to(data).as_posix()
    if change == "gone":
        files[-1].unlink()
    elif change == "changed":
        files[-1].write_bytes(files[0].read_bytes())
    else:
        files[-1].with_stem("9").write_bytes(files[-1].read_bytes())
        name = files[-1].with_stem("9").relative_to(data).as_posix()
    with pytest.raises(InputError) as caught:
        embed_stream(run, data, out=out, rows=40)
    said = str(caught.value)
    assert f"{out} was begun with other data: the {'image' if kind == 'images' else 'shard'} {name} has {change}" in said
    assert "\n" not in said
    assert parts_of(out) == before


def test_another_model_and_other_folders_are_refused(run: Path, tmp_path: Path) -> None:
    data, out = make("images", tmp_path), tmp_path / "out"
    embed_stream(run, data, out=out)
    other = train_tiny(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match=r"out was begun with another model: its sha256 is [0-9a-f]{12}, now [0-9a-f]{12}"):
        embed_stream(other, data, out=out)
    with pytest.raises(InputError, match=r"has parts of 10000 rows, not of 5; choose another --out"):
        embed_stream(run, data, out=out, rows=5)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="mine holds something else than embeddings"):
        embed_stream(run, data, out=tmp_path / "mine")
    with pytest.raises(InputError, match=r"letter\.txt is a file"):
        embed_stream(run, data, out=tmp_path / "mine" / "letter.txt")
    with pytest.raises(InputError, match="rows is 0"):
        embed_stream(run, data, out=tmp_path / "new", rows=0)


def test_bad_images_are_named_or_left_out(run: Path, tmp_path: Path) -> None:
    data, out = make("images", tmp_path), tmp_path / "out"
    bad = sorted(data.rglob("*.png"))[50]
    bad.write_bytes(b"no image")
    with pytest.raises(InputError, match=rf"{bad.name}: not an image.*--skip-bad"):
        embed_stream(run, data, out=out, rows=20)
    said = embed_stream(run, data, out=out, rows=20, skip_bad=True)  # goes on with what was done before the bad one
    assert (said["images"], said["computed"], said["skipped_images"]) == (129, 89, 1)
    assert said["skipped"] == [f"{bad}: not an image in a known format"]
    assert (out / "skipped.txt").read_text() == f"{bad}: not an image in a known format\n"
    z, ids, _ = everything(out)
    assert len(z) == 129
    assert bad.relative_to(data).as_posix() not in ids
    assert manifest(out)["skipped"] == 1
    nothing = write_tar(tmp_path / "nothing.tar", [{".png": b"x"}, {".png": b""}])
    with pytest.raises(InputError, match=r"none of its images can be read; the first: .*nothing\.tar, 000000\.png"):
        embed_stream(run, nothing, out=tmp_path / "none", skip_bad=True)


def test_damaged_parts_are_found(run: Path, tmp_path: Path) -> None:
    data, out = make("images", tmp_path), tmp_path / "out"
    embed_stream(run, data, out=out, rows=50)
    part = sorted(out.glob("part-*"))[1]
    content = part.read_bytes()
    part.write_bytes(content[:-400] + bytes(400))
    with pytest.raises(InputError, match=f"{part.name} is missing or damaged"):
        Embeddings(out).verify()
    with pytest.raises(InputError, match=f"{part.name} is damaged"):
        list(Embeddings(out).batches())
    part.unlink()
    with pytest.raises(InputError, match=f"cannot read .*{part.name}"):
        list(Embeddings(out).batches())


def test_on_the_command_line(run: Path, tmp_path: Path, cli: CLI) -> None:
    data, out = make("tar", tmp_path), tmp_path / "out"
    code, said, _ = cli("embed", run, data, "--out", out)
    assert code == 0
    assert "130 embeddings of 8 numbers" in said
    code, said, _ = cli("embed", run, data, "--out", out)
    assert "130 were there already" in said
    code, said, _ = cli("embed", run, data, "--out", out, "--json")
    assert json.loads(said)["computed"] == 0
    code, _, error = cli("embed", run, data, "--out", tmp_path / "x.csv")
    assert code == 2
    assert "must end in .npz or .parquet, or have no ending" in error
    code, _, error = cli("embed", run, data, "--out", tmp_path / "x.npz", "--ray", "auto")
    assert code == 2
    assert "give --out a name without an ending" in error


@pytest.mark.slow
def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    """Of 5,000 images of 128 x 128 in colour, whose pixels take 246 MB, it holds what it holds of 1,000, or so."""
    program = """
import resource, sys
from pathlib import Path
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
from samples import TINY, shapes
from embedding.stream_samples import png
from nearfar import verbs
from nearfar.data import ImageSet
from nearfar.embedding import embed_stream
from nearfar.recipe import Recipe

home = Path(sys.argv[1])
recipe = Recipe.from_dict(TINY | {"data": {"size": [128, 128], "channels": 3}})
verbs.train(shapes(30, size=128, channels=3), recipe=recipe, out=home / "run", epochs=1)
contents = [png(image) for image in shapes(50, size=8).images]

def peak(count):
    schema = pa.schema({"image": pa.binary()})
    with pq.ParquetWriter(home / f"{count}.parquet", schema) as writer:  # row groups of 2,000
        for start in range(0, count, 2000):
            rows = range(start, min(count, start + 2000))
            writer.write_table(pa.table({"image": [contents[row % 50] for row in rows]}, schema=schema))
    said = embed_stream(home / "run", home / f"{count}.parquet", out=home / f"out{count}", rows=500)
    assert said["images"] == count
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

print(peak(1000), peak(5000))
"""
    tests = [str(Path(__file__).parents[1])]
    source = str(Path(stream.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join([source, *tests]), "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    few, many = map(float, done.stdout.split()[-2:])
    assert many - few < 60, f"{few:.0f} MiB for 1,000 images, {many:.0f} for 5,000"
