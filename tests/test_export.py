"""The projector's folder, read back the way the projector reads it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nearfar.errors import InputError
from nearfar.export import export_projector, projector, sheet_layout

CLASSES = ("cat", "tab\there\nand\\line\r", "", "日本語 $x_1$")


def make(count: int = 11, channels: int = 1, size: tuple[int, int] = (5, 7)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(count)
    z = (rng.normal(size=(count, 3)) * 10.0 ** rng.integers(-20, 20, (count, 3))).astype(np.float32)
    return z, np.arange(count) % len(CLASSES), rng.integers(0, 256, (count, channels, *size), dtype=np.uint8)


def read_table(path: Path) -> list[list[str]]:
    """Split as the projector does: at line feeds and tabs alone, and lines with nothing to see are left out."""
    return [line.split("\t") for line in path.read_bytes().decode().split("\n") if line.strip()]


def unescape(text: str) -> str:
    return re.sub(r"\\(.)", lambda found: {"t": "\t", "n": "\n", "r": "\r", "\\": "\\"}[found[1]], text)


def read_text_proto(text: str) -> dict[str, list]:
    """A reader for the few kinds of lines in the configuration: messages, numbers and quoted strings."""
    root: dict[str, list] = {}
    stack = [root]
    for line in text.splitlines():
        word = line.strip()
        if word.endswith("{"):
            stack.append({})
            stack[-2].setdefault(word[:-1].strip(), []).append(stack[-1])
        elif word == "}":
            stack.pop()
        else:
            key, value = word.split(": ", 1)
            stack[-1].setdefault(key, []).append(json.loads(value))
    assert stack == [root]
    return root


@pytest.mark.parametrize("channels", [1, 3])
def test_everything_reads_back(tmp_path: Path, channels: int) -> None:
    z, labels, images = make(channels=channels)
    ids = [f"folder\t{row}\\.png" for row in range(11)]
    written = export_projector(z, labels, CLASSES, images, tmp_path / "out", ids)
    names = {"vectors.tsv", "metadata.tsv", "sprite.png", "projector_config.pbtxt", "config.json"}
    assert {path.name for path in written} == {path.name for path in (tmp_path / "out").iterdir()} == names

    config = json.loads((tmp_path / "out/config.json").read_text())["embeddings"][0]
    vectors = np.array(read_table(tmp_path / "out" / config["tensorPath"]), dtype=np.float32)
    assert list(vectors.shape) == config["tensorShape"] == [11, 3]
    assert (vectors == z).all()  # to the last bit

    header, *rows = read_table(tmp_path / "out" / config["metadataPath"])
    assert header == ["label", "id", "row"]
    assert [unescape(row[0]) for row in rows] == [CLASSES[label] for label in labels]
    assert [unescape(row[1]) for row in rows] == ids
    assert [int(row[2]) for row in rows] == list(range(11))

    wide, high = config["sprite"]["singleImageDim"]
    assert (wide, high) == (7, 5)
    with Image.open(tmp_path / "out" / config["sprite"]["imagePath"]) as picture:
        assert picture.mode == ("L" if channels == 1 else "RGB")
        sheet = np.asarray(picture).reshape(picture.height, picture.width, channels)
    across = sheet.shape[1] // wide
    for row, image in enumerate(images):
        top, left = row // across * high, row % across * wide
        assert (sheet[top : top + high, left : left + wide] == np.moveaxis(image, 0, -1)).all()


def test_both_configurations_say_the_same(tmp_path: Path) -> None:
    z, labels, images = make()
    export_projector(z, labels, CLASSES, images, tmp_path)
    entry = json.loads((tmp_path / "config.json").read_text())["embeddings"][0]
    assert read_text_proto((tmp_path / "projector_config.pbtxt").read_text()) == {
        "embeddings": [
            {
                "tensor_name": [entry["tensorName"]],
                "tensor_shape": entry["tensorShape"],
                "tensor_path": ["vectors.tsv"],
                "metadata_path": ["metadata.tsv"],
                "sprite": [{"image_path": ["sprite.png"], "single_image_dim": entry["sprite"]["singleImageDim"]}],
            }
        ]
    }


def test_unlabelled_and_without_pictures(tmp_path: Path) -> None:
    z, _, _ = make(4)
    export_projector(z, None, (), None, tmp_path)
    assert read_table(tmp_path / "metadata.tsv") == [["id", "row"], *([str(row)] * 2 for row in range(4))]
    assert "sprite" not in json.loads((tmp_path / "config.json").read_text())["embeddings"][0]
    assert not (tmp_path / "sprite.png").exists()


def test_blank_names_do_not_shift_the_rows(tmp_path: Path) -> None:
    export_projector(np.eye(3), [2, 2, 0], CLASSES, None, tmp_path, ["", " ", "\udcff"])
    rows = read_table(tmp_path / "metadata.tsv")[1:]
    assert rows == [["", "", "0"], ["", " ", "1"], ["cat", r"\udcff", "2"]]


def test_too_many_points_are_sampled_in_proportion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projector, "POINT_LIMIT", 40)
    z, labels, images = make(100)
    labels = np.repeat([0, 3], [75, 25])
    export_projector(z, labels, CLASSES, images, tmp_path)
    rows = read_table(tmp_path / "metadata.tsv")[1:]
    kept = [int(row[2]) for row in rows]
    assert [row[0] for row in rows] == ["cat"] * 30 + [CLASSES[3]] * 10
    assert kept == sorted(set(kept))
    vectors = np.array(read_table(tmp_path / "vectors.tsv"), dtype=np.float32)
    assert (vectors == z[kept]).all()
    with Image.open(tmp_path / "sprite.png") as picture:
        sheet = np.asarray(picture)
    across = sheet.shape[1] // 7
    place = 37
    top, left = place // across * 5, place % across * 7
    assert (sheet[top : top + 5, left : left + 7] == images[kept[place], 0]).all()


def test_large_pictures_are_shrunk(tmp_path: Path) -> None:
    images = np.zeros((2, 3, 200, 100), dtype=np.uint8)
    images[1, 0] = 200
    export_projector(np.eye(2), None, (), images, tmp_path)
    with Image.open(tmp_path / "sprite.png") as picture:
        assert picture.size == (64, 64)
        assert picture.getpixel((0, 0)) == (0, 0, 0)
        assert picture.getpixel((32, 0)) == (200, 0, 0)
    entry = json.loads((tmp_path / "config.json").read_text())["embeddings"][0]
    assert entry["sprite"]["singleImageDim"] == [32, 64]


@pytest.mark.parametrize("count", [1, 2, 7, 1000, 16_384, 60_000, 100_000])
@pytest.mark.parametrize(("width", "height"), [(28, 28), (1, 1), (224, 224), (640, 360), (10, 900)])
def test_sheets_stay_within_the_limit_and_lose_no_size_needlessly(count: int, width: int, height: int) -> None:
    columns, wide, high = sheet_layout(count, width, height)
    rows = -(-count // columns)
    assert 1 <= columns <= count
    assert columns * wide <= 8192
    assert rows * high <= 8192
    assert max(wide, high) <= min(64, max(width, height))
    assert wide * height == pytest.approx(high * width, rel=0.6 if min(wide, high) < 8 else 0.1)
    if max(wide, high) < min(64, max(width, height)):  # shrunk for the sheet's sake: one step larger would not fit
        larger = (max(wide, high) + 1) / max(width, height)
        area = count * width * larger * height * larger
        assert area > 0.9 * 8192**2 or min(width, height) * larger < 1


def test_mnist_keeps_its_size() -> None:
    assert sheet_layout(60_000, 28, 28)[1:] == (28, 28)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"z": np.zeros((3, 1))}, "z has 1 column, the projector needs at least 2"),
        ({"z": np.zeros((0, 2))}, "z has no rows"),
        ({"z": np.zeros(3)}, r"z has shape \[3\]"),
        ({"z": np.array([["a", "b"]] * 3)}, "expected numbers"),
        ({"z": np.array([[0, 1], [2, np.nan], [0, 0]])}, r"z\[1, 1\] is nan"),
        ({"z": np.array([[0, 1], [2, 1e300], [0, 0]])}, r"z\[1, 1\] is inf"),
        ({"labels": [0, 1]}, r"labels has shape \[2\], z has 3 rows"),
        ({"labels": [0, 1, 2]}, "values 0 to 2, expected the numbers of 2 classes"),
        ({"labels": [0.0, 1.0, 1.0]}, "labels has dtype float64"),
        ({"images": np.zeros((3, 2, 4, 4), np.uint8)}, "1 or 3 channels"),
        ({"images": np.zeros((3, 1, 4, 4))}, "expected uint8"),
        ({"images": np.zeros((2, 1, 4, 4), np.uint8)}, "images has 2 entries, z has 3 rows"),
        ({"ids": ["a"]}, r"ids has shape \[1\], z has 3 rows"),
    ],
)
def test_bad_input_is_one_clear_line_and_writes_no_configuration(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    given = {"z": np.eye(3), "labels": [0, 1, 0], "classes": "ab", "images": None, "folder": tmp_path, **changes}
    with pytest.raises(InputError, match=message):
        export_projector(**given)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_earlier_export_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    z, labels, images = make()
    export_projector(z, labels, CLASSES, images, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nearfar.files.os.fsync", full)
    with pytest.raises(InputError, match=r"vectors\.tsv: the disk is full"):
        export_projector(z * 2, labels, CLASSES, images, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
