from __future__ import annotations

import gzip

import numpy as np
import pytest

from nearfar.data import load_images, load_splits
from nearfar.errors import InputError


def pixels(count: int = 5, columns: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, columns), dtype=np.uint8)


def table(values: np.ndarray, labels: list[str] | None = None, header: str | None = None) -> str:
    rows = [",".join(([labels[row]] if labels else []) + [str(value) for value in image]) for row, image in enumerate(values)]
    return "\n".join(([header] if header else []) + rows) + "\n"


NAMES = ",".join(f"pixel{i}" for i in range(16))
LABELS = ["7", "10", "7", "9", "10"]


@pytest.mark.parametrize(
    "header",
    [
        "label," + NAMES,
        "Label," + NAMES.upper(),
        None,
        "label," + ",".join(map(str, range(16))),
        "label," + ",".join(f"{r}x{c}" for r in range(1, 5) for c in range(1, 5)),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_labelled_tables_with_and_without_header(tmp_path, header, packed):
    path = tmp_path / ("digits.csv" + ".gz" * packed)
    text = table(pixels(), LABELS, header).encode()
    path.write_bytes(gzip.compress(text) if packed else text)
    found = load_images(path)
    np.testing.assert_array_equal(found.images, pixels().reshape(5, 1, 4, 4))
    assert found.classes == ("7", "9", "10")
    assert found.labels.tolist() == [0, 2, 0, 1, 2]
    assert found.ids.tolist() == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("header", [NAMES, None, ",".join(map(str, range(16)))])
def test_unlabelled_tables(tmp_path, header):
    (tmp_path / "x.csv").write_text(table(pixels(), None, header))
    found = load_images(tmp_path / "x.csv")
    assert found.labels is None
    np.testing.assert_array_equal(found.images, pixels().reshape(5, 1, 4, 4))


def test_labels_may_be_text_stand_anywhere_and_have_ids_beside_them(tmp_path):
    rows = [[f"img{row}", *map(str, image), name] for row, (image, name) in enumerate(zip(pixels(3), "bab", strict=True))]
    text = "\n".join(",".join(row) for row in [["id", *NAMES.split(","), "class"], *rows])
    (tmp_path / "x.csv").write_text("\ufeff" + text)
    found = load_images(tmp_path / "x.csv")
    assert (found.classes, found.labels.tolist(), found.ids.tolist()) == (("a", "b"), [1, 0, 1], ["img0", "img1", "img2"])
    np.testing.assert_array_equal(found.images, pixels(3).reshape(3, 1, 4, 4))
    (tmp_path / "y.csv").write_text("\ufeff" + table(pixels(3), list("bab")))
    assert load_images(tmp_path / "y.csv").classes == ("a", "b")


def test_whole_numbers_may_be_written_as_fractions(tmp_path):
    text = table(pixels(), LABELS).replace(f",{pixels()[3, 5]},", f",{pixels()[3, 5]}.0,")
    (tmp_path / "x.csv").write_text(text)
    np.testing.assert_array_equal(load_images(tmp_path / "x.csv").images, pixels().reshape(5, 1, 4, 4))


def test_rows_that_are_not_square_need_a_size(tmp_path):
    (tmp_path / "x.csv").write_text(table(pixels(4, 12), None, ",".join(f"p{i}" for i in range(12))))
    with pytest.raises(InputError, match=r"has 12 pixel columns \(not a square; give size=\(height, width\)\)"):
        load_images(tmp_path / "x.csv")
    with pytest.raises(InputError, match=r"has 12 pixel columns \(size=\(5, 5\) has 25\)"):
        load_images(tmp_path / "x.csv", size=5)
    np.testing.assert_array_equal(load_images(tmp_path / "x.csv", size=(3, 4)).images[:, 0], pixels(4, 12).reshape(4, 3, 4))


def cell(row: int, column: int, value: str, header: bool = True) -> str:
    lines = table(pixels(40), [str(i % 3) for i in range(40)], "label," + NAMES if header else None).splitlines()
    cells = lines[row + header].split(",")
    cells[column] = value
    lines[row + header] = ",".join(cells)
    return "\n".join(lines)


@pytest.mark.parametrize("block", [8 << 20, 200])
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "is missing"),
        ("NA", "is missing"),
        ("nan", "is NaN"),
        ("NaN", "is NaN"),
        ("x", "is 'x', not a number"),
        ("1 2", "is '1 2', not a number"),
        ("256", "is 256, out of range"),
        ("-1", "is -1, out of range"),
        ("inf", "is inf, out of range"),
        ("0.5", r"is 0.5, a fraction \(multiply pixels in \[0, 1\] by 255\)"),
    ],
)
def test_a_bad_pixel_is_named_by_row_and_column(tmp_path, monkeypatch, value, reason, block):
    # Also when it is far from the first block.
    monkeypatch.setattr("nearfar.data.pixelcsv._BLOCK_BYTES", block)
    (tmp_path / "x.csv").write_text(cell(33, 6, value))
    with pytest.raises(InputError, match=rf"x\.csv: row 34 \(line 35\), column 'pixel5' {reason}"):
        load_images(tmp_path / "x.csv")
    (tmp_path / "y.csv").write_text(cell(0, 6, value, header=False))
    with pytest.raises(InputError, match=rf"y\.csv: row 1 \(line 1\), column 'column 7' {reason}"):
        load_images(tmp_path / "y.csv")


def test_other_faults_are_named(tmp_path):
    path = tmp_path / "x.csv"
    for text, message in [
        (cell(9, 0, " "), r"row 10 \(line 11\), column 'label' is empty"),
        (cell(9, 5, "1,1"), r"row 10 \(line 11\) has 18 columns, expected 17"),
        ("", "is empty; expected a table"),
        ("label," + NAMES + "\n", "holds no images"),
        ("a;b;c\n1;2;3\n", "column 'a;b;c' is '1;2;3', not a number"),
        ("a,b\n1,2\n", "has 2 pixel columns"),
    ]:
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            load_images(path)


def test_a_torn_gzip_file_is_named(tmp_path):
    path = tmp_path / "x.csv.gz"
    whole = gzip.compress(table(pixels(2000), [str(i % 7) for i in range(2000)]).encode())
    for content in (whole[: len(whole) // 2], whole[:5000] + bytes(50) + whole[5050:]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"x\.csv\.gz"):
            load_images(path)


def test_a_folder_of_tables_is_splits(tmp_path):
    (tmp_path / "fashion_train.csv").write_text(table(pixels(5), LABELS, "label," + NAMES))
    (tmp_path / "fashion_test.csv").write_text(table(pixels(3, seed=1), None, NAMES))
    (tmp_path / "sample_submission.csv").write_text("ImageId,Label\n1,0\n")
    sets = load_splits(tmp_path)
    assert list(sets) == ["train", "test"]
    assert len(sets["train"]) == 5
    assert sets["test"].labels is None
    (tmp_path / "train.csv").write_text(table(pixels(5), LABELS))
    with pytest.raises(InputError, match=r"holds two train splits, fashion_train\.csv and train\.csv"):
        load_splits(tmp_path)


def test_tables_without_a_split_in_their_names(tmp_path):
    (tmp_path / "digits.csv").write_text(table(pixels()))
    with pytest.raises(InputError, match=r"holds digits\.csv; expected train\.csv and test\.csv"):
        load_splits(tmp_path)


def test_many_blocks_end_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr("nearfar.data.pixelcsv._BLOCK_BYTES", 1000)
    (tmp_path / "x.csv").write_text(table(pixels(500), [str(i % 7) for i in range(500)]))
    found = load_images(tmp_path / "x.csv")
    np.testing.assert_array_equal(found.images[:, 0], pixels(500).reshape(500, 4, 4))
    np.testing.assert_array_equal(found.labels, np.arange(500) % 7)
