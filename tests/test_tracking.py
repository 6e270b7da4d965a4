"""Events for TensorBoard, read back with TensorBoard's own reader: the numbers of history.jsonl, each once."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from PIL import Image
from samples import TINY, shapes
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from nearfar import InputError, tracking, verbs
from nearfar.cli import main
from nearfar.recipe import Recipe
from nearfar.training.progress import Silent

RECIPE = {**TINY, "data": {"size": [12, 12], "channels": 1, "validation": 0.2}, "train": {"epochs": 3.5, "learning_rate": 0.01}}


def read(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    return found


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found = read(folder)
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def expected(run: Path) -> dict[str, list[tuple[int, float]]]:
    """A plain walk over history.jsonl."""
    wanted: dict[str, list[tuple[int, float]]] = {}

    def walk(tree: dict[str, Any], path: tuple[str, ...], at: int) -> None:
        for key, value in tree.items():
            if isinstance(value, dict):
                walk(value, (*path, key), at)
            elif type(value) in (int, float) and (*path, key) != ("epoch",):
                wanted.setdefault("/".join((*path, key)), []).append((at, float(np.float32(value))))

    for line in (run / "history.jsonl").read_text().splitlines():
        row = json.loads(line)
        walk(row, (), math.ceil(row["epoch"]))
    return wanted


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "bars"
    verbs.train(shapes(120), recipe=Recipe.from_dict(RECIPE), out=folder, tensorboard=True)
    return folder


def test_every_number_of_the_history_is_there_by_epoch(run: Path) -> None:
    found = points(run / "tensorboard")
    assert found == expected(run)
    assert {"loss", "validation/loss", "learning_rate", "health/effective_rank", "images_per_second"} <= set(found)
    assert [at for at, _ in found["loss"]] == [1, 2, 3, 4]


def test_the_settings_are_there_once(run: Path) -> None:
    (event,) = read(run / "tensorboard").Tensors("settings")
    text = event.tensor_proto.string_val[0].decode()
    settings = json.loads(text)
    assert settings["recipe"]["loss"]["temperature"] == 0.2
    assert settings["seed"] == 0


class Stopped(Exception):
    pass


class StopAfter(Silent):
    """Interrupts training once it has told of so many epochs."""

    def __init__(self, epochs: int) -> None:
        self.left = epochs

    def epoch(self, row: dict[str, Any], epochs: float) -> None:
        self.left -= 1
        if self.left < 0:
            raise Stopped


@pytest.mark.parametrize("torn", [False, True])
def test_a_resumed_training_writes_each_epoch_once(run: Path, tmp_path: Path, torn: bool) -> None:
    folder = tmp_path / "again"
    with pytest.raises(Stopped):
        verbs.train(shapes(120), recipe=Recipe.from_dict(RECIPE), out=folder, tensorboard=True, watcher=StopAfter(2))
    assert [at for at, _ in points(folder / "tensorboard")["loss"]] == [1, 2]
    if torn:  # as by a kill in the middle of a write
        (events,) = (folder / "tensorboard").glob("events.out.tfevents.*")
        events.write_bytes(events.read_bytes()[:-7])
    verbs.train(shapes(120), out=folder, resume=True, tensorboard=True)
    again, whole = points(folder / "tensorboard"), points(run / "tensorboard")
    clocks = {"seconds", "images_per_second"}
    for tag in whole.keys() - clocks:
        if not torn:
            assert again[tag] == whole[tag]
        assert [at for at, _ in again[tag]] == sorted({at for at, _ in again[tag]}), "no epoch twice"
    if not torn:
        assert again == expected(folder)
    assert len(read(folder / "tensorboard").Tensors("settings")) == 1


def test_an_epoch_that_was_written_but_lost_by_the_checkpoint_is_not_written_twice(tmp_path: Path) -> None:
    for values in ([0.5, 0.4], [0.4, 0.3]):
        with tracking.TensorBoard(tmp_path / "events") as board:
            for value in values:
                board.add({"epoch": round(10 * (0.6 - value)), "loss": value})
    assert [at for at, _ in points(tmp_path / "events")["loss"]] == [1, 2, 3]


def test_the_projector_finds_all_files(run: Path) -> None:
    folder = run / "tensorboard"
    config = text_format.Parse((folder / "projector_config.pbtxt").read_text(), ProjectorConfig())
    (entry,) = config.embeddings
    vectors = np.loadtxt(folder / entry.tensor_path, delimiter="\t")
    count = json.loads((run / "config.json").read_text())["data"]["validation"]["images"]
    assert vectors.shape == (count, 8)
    table = (folder / entry.metadata_path).read_text().splitlines()
    assert table[0].split("\t") == ["label", "id", "row"]
    assert len(table) == count + 1
    assert {line.split("\t")[0] for line in table[1:]} == {"a", "b", "c"}
    with Image.open(folder / entry.sprite.image_path) as sheet:
        across, down = entry.sprite.single_image_dim
        assert (sheet.width // across) * (sheet.height // down) >= count


def test_the_projector_shows_some_of_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "POINTS", 30)
    images = shapes(90)
    z = np.random.default_rng(0).normal(size=(90, 4)).astype(np.float32)
    tracking.write_projector(tmp_path, z, images)
    found = np.loadtxt(tmp_path / "vectors.tsv", delimiter="\t").astype(np.float32)
    ids = [line.split("\t")[1] for line in (tmp_path / "metadata.tsv").read_text().splitlines()[1:]]
    rows = [images.ids.tolist().index(one) for one in ids]
    np.testing.assert_allclose(found, z[rows], rtol=1e-6)
    assert np.bincount(images.require_labels()[rows]).tolist() == [10, 10, 10]


def test_another_folder_and_another_watcher(tmp_path: Path) -> None:
    told: list[float] = []

    class Tell(Silent):
        def epoch(self, row: dict[str, Any], epochs: float) -> None:
            told.append(row["epoch"])

    out = tmp_path / "run"
    verbs.train(shapes(60), recipe=Recipe.from_dict(TINY), out=out, tensorboard=tmp_path / "logs", watcher=Tell())
    assert told == [1, 2, 3]
    assert points(tmp_path / "logs") == expected(out)
    assert not (out / "tensorboard").exists()


def test_what_is_not_a_number_is_left_out() -> None:
    row = {"epoch": 2, "loss": math.nan, "a": {"b": {"c": 1, "no": None, "text": "x", "flag": True}, "epoch": 3.0}}
    assert dict(tracking.scalars(row)) == {"a/b/c": 1.0, "a/epoch": 3.0}


def test_without_the_extra_nothing_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nearfar.tracking.importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'nearfar\[tracking\]'"):
        verbs.train(shapes(60), recipe=Recipe.from_dict(TINY), out=tmp_path / "run", tensorboard=True)
    with pytest.raises(SystemExit) as ended:
        main(["train", "digits", "--out", str(tmp_path / "run"), "--tensorboard"])
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="is a file, not a folder"):
        verbs.train(shapes(60), recipe=Recipe.from_dict(TINY), out=tmp_path / "run", tensorboard=tmp_path / "file" / "logs")
