"""What takes minutes: the figures that the README states, and a folder of very many small classes. Run by `make test-slow`."""

from __future__ import annotations

import json
import os
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nearfar import verbs
from nearfar.cli import main

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _all_cores() -> None:
    torch.set_num_threads(os.cpu_count() or 1)


def test_mnist_fast_reaches_its_figure_as_the_median_of_five_seeds(tmp_path: Path) -> None:
    accuracies = []
    for seed in range(5):
        verbs.train("mnist", recipe="mnist-fast", seed=seed, out=tmp_path / str(seed))
        accuracies.append(verbs.evaluate(tmp_path / str(seed))["classification"]["accuracy"])
    assert statistics.median(accuracies) >= 0.995, accuracies


def write_sprites(folder: Path, classes: int) -> None:
    """Four pictures each of many mirrored patterns of 8 x 8 cells: moved, turned, recoloured; RGBA and palette PNG, 64 x 64."""
    random = np.random.default_rng(0)
    for number in range(classes):
        shape, shade = (np.concatenate([half, half[:, ::-1]], axis=1) for half in random.random((2, 8, 4)) < 0.5)
        colours = random.integers(0, 256, (2, 3))
        target = folder / f"{number:04d}"
        target.mkdir(parents=True)
        for copy in range(4):
            cell = int(random.integers(5, 8))
            top, left = random.integers(0, 65 - 8 * cell, 2)
            tinted = np.clip(colours + random.integers(-25, 26, 3), 0, 255)
            picture = np.zeros((64, 64, 4), dtype=np.uint8)
            part = picture[top : top + 8 * cell, left : left + 8 * cell]
            block = np.ones((cell, cell), dtype=bool)
            part[..., :3] = np.where(np.kron(shade, block)[..., None], tinted[0], tinted[1])
            part[..., 3] = 255 * np.kron(shape, block)
            image = Image.fromarray(picture).rotate(float(random.uniform(-12, 12)))
            (image.quantize(16) if copy % 2 else image).save(target / f"{copy}.png")


def test_very_many_small_classes_train_embed_and_are_judged_on_classes_never_seen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sprites, run = tmp_path / "sprites", tmp_path / "run"
    write_sprites(sprites, 1852)

    def nearfar(*arguments: object) -> str:
        with pytest.raises(SystemExit) as ended:
            main([str(one) for one in arguments])
        out, err = capsys.readouterr()
        assert ended.value.code == 0, err
        return out

    nearfar("train", sprites, "--out", run, "--epochs", 8, "--set", "data.unseen=0.2")
    tree = json.loads(nearfar("evaluate", run, "--json"))
    assert tree["unseen"]["data"]["new_classes"] == 370
    assert tree["data"]["gallery"] + tree["data"]["queries"] + 4 * 370 == 4 * 1852
    report = json.loads(nearfar("report", run, "--json"))["figures"]
    pixels = report["baselines"]["pixels"]["retrieval"]["recall@1"]
    assert tree["retrieval"]["recall@1"] > pixels + 0.1
    assert tree["unseen"]["retrieval"]["recall@1"] > pixels + 0.1
    nearfar("embed", run, sprites, "--out", tmp_path / "z.npz")
    with np.load(tmp_path / "z.npz", allow_pickle=False) as arrays:
        assert arrays["embedding"].shape[0] == 4 * 1852
