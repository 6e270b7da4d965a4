from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data.pictures import encoded, grey, save

from nearfar.data import load_images, load_splits
from nearfar.errors import InputError

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(path, columns: dict[str, Any], types: dict[str, pa.DataType], features: dict[str, Any] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    note = {b"huggingface": json.dumps({"info": {"features": features}}).encode()} if features else None
    schema = pa.schema(list(types.items()), metadata=note)
    pq.write_table(pa.table(columns, schema=schema), path, row_group_size=3)


def structs(count: int = 5, path: bool = True) -> list[dict[str, Any]]:
    return [{"bytes": encoded(grey(seed=seed)), "path": f"{seed}.png" if path else None} for seed in range(count)]


def expected(count: int = 5) -> np.ndarray:
    return np.stack([grey(seed=seed)[None] for seed in range(count)])


CLASSES = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["zebra", "ant", "moth"]}}


def test_hugging_face_style(tmp_path):
    write(
        tmp_path / "x.parquet",
        {"image": structs(), "label": [1, 0, 1, 0, 0]},
        {"image": STRUCT, "label": pa.int64()},
        CLASSES,
    )
    found = load_images(tmp_path / "x.parquet")
    np.testing.assert_array_equal(found.images, expected())
    # The order of the names is theirs, since the numbers refer to it.
    assert found.classes == ("zebra", "ant", "moth")
    assert found.labels.tolist() == [1, 0, 1, 0, 0]
    assert found.ids.tolist() == [f"{seed}.png" for seed in range(5)]


@pytest.mark.parametrize(
    ("type_", "labels", "classes"),
    [
        (pa.string(), ["b", "a", "b", "b", "a"], ("a", "b")),
        (pa.int16(), [10, 9, 10, 10, 9], ("9", "10")),
        (pa.dictionary(pa.int8(), pa.string()), ["b", "a", "b", "b", "a"], ("a", "b")),
    ],
)
def test_plain_bytes_and_other_labels(tmp_path, type_, labels, classes):
    columns = {"id": list("vwxyz"), "picture": [row["bytes"] for row in structs()], "label": pa.array(labels, type_)}
    write(tmp_path / "x.parquet", columns, {"id": pa.string(), "picture": pa.large_binary(), "label": type_})
    found = load_images(tmp_path / "x.parquet")
    np.testing.assert_array_equal(found.images, expected())
    assert found.classes == classes
    assert found.labels.tolist() == [1, 0, 1, 1, 0]
    assert found.ids.tolist() == ["0", "1", "2", "3", "4"]


def test_a_folder_of_shards_with_splits_in_their_names(tmp_path):
    types = {"image": STRUCT, "label": pa.int64()}
    for shard in range(2):
        columns = {"image": structs(3, path=False), "label": [shard] * 3}
        write(tmp_path / "data" / f"train-0000{shard}-of-00002.parquet", columns, types, CLASSES)
    write(tmp_path / "data" / "test-00000-of-00001.parquet", {"image": structs(2), "label": [-1, -1]}, types, CLASSES)
    sets = load_splits(tmp_path)
    np.testing.assert_array_equal(sets["train"].images, np.concatenate([expected(3)] * 2))
    assert sets["train"].labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert sets["train"].ids.tolist() == list("012345")
    assert sets["test"].labels is None
    write(tmp_path / "more.parquet", {"image": structs(2), "label": [0, 0]}, types, CLASSES)
    with pytest.raises(InputError, match=r"more\.parquet names no split, but files beside it do"):
        load_splits(tmp_path)


def test_files_that_name_no_split_are_one_set(tmp_path):
    for name in ("part-0.parquet", "part-1.parquet"):
        write(tmp_path / name, {"image": structs(2)}, {"image": STRUCT})
    found = load_images(tmp_path)
    assert found.ids.tolist() == ["0.png", "1.png", "0.png#2", "1.png#2"]
    assert found.labels is None


def test_files_that_are_only_named_are_not_opened(tmp_path):
    save(tmp_path / "a.png", grey(seed=0))
    for name in ("a.png", str(tmp_path / "a.png")):
        write(tmp_path / "x.parquet", {"image": [{"bytes": None, "path": name}]}, {"image": STRUCT})
        with pytest.raises(InputError, match=r"row 0 \(from 0\), .*a\.png: there is nothing in it"):
            load_images(tmp_path / "x.parquet")


def test_a_bad_image_is_named_by_its_row(tmp_path):
    rows = structs()
    rows[1] = {"bytes": rows[1]["bytes"][:60], "path": "torn.png"}
    rows[3] = {"bytes": None, "path": None}
    write(tmp_path / "x.parquet", {"image": rows, "label": list("abcde")}, {"image": STRUCT, "label": pa.string()})
    with pytest.raises(InputError, match=r"x\.parquet, row 1 \(from 0\), torn\.png: the image is damaged"):
        load_images(tmp_path / "x.parquet")
    found = load_images(tmp_path / "x.parquet", skip_bad=True)
    np.testing.assert_array_equal(found.images, expected()[[0, 2, 4]])
    assert found.labels.tolist() == [0, 2, 4]
    assert ["row 1" in found.skipped[0], "row 3" in found.skipped[1]] == [True, True]


@pytest.mark.parametrize(
    ("columns", "types", "features", "message"),
    [
        ({"text": ["a"]}, {"text": pa.string()}, None, "has the columns text; expected one image column"),
        ({"a": [b"x"], "b": [b"y"]}, {"a": pa.binary(), "b": pa.binary()}, None, "has the columns a, b; expected one image"),
        (
            {"image": structs(3), "label": ["a", None, "b"]},
            {"image": STRUCT, "label": pa.string()},
            None,
            r"row 1 \(from 0\) has no label",
        ),
        (
            {"image": structs(3), "label": [0, 3, 1]},
            {"image": STRUCT, "label": pa.int64()},
            CLASSES,
            r"row 1 \(from 0\) has the label 3, and the file names 3 classes",
        ),
        (
            {"image": structs(3), "label": [0, -1, 1]},
            {"image": STRUCT, "label": pa.int64()},
            CLASSES,
            "has the label -1",
        ),
    ],
)
def test_columns_that_do_not_serve(tmp_path, columns, types, features, message):
    write(tmp_path / "x.parquet", columns, types, features)
    with pytest.raises(InputError, match=message):
        load_images(tmp_path / "x.parquet")


def test_damaged_files_are_named(tmp_path):
    write(tmp_path / "x.parquet", {"image": structs()}, {"image": STRUCT})
    whole = (tmp_path / "x.parquet").read_bytes()
    torn = bytearray(whole)
    torn[40:80] = b"x" * 40
    for content in (whole[:-20], b"", b"PAR1", bytes(torn)):
        (tmp_path / "x.parquet").write_bytes(content)
        with pytest.raises(InputError, match=r"x\.parquet"):
            load_images(tmp_path / "x.parquet")


def test_shards_with_other_classes_are_not_mixed(tmp_path):
    types = {"image": STRUCT, "label": pa.int64()}
    other = CLASSES | {"label": {"_type": "ClassLabel", "names": ["x", "y"]}}
    for name, features in (("a.parquet", CLASSES), ("b.parquet", other)):
        write(tmp_path / name, {"image": structs(2), "label": [0, 1]}, types, features)
    with pytest.raises(InputError, match="differ in their label column or class names"):
        load_images(tmp_path)
