"""The figure that the documentation states: labels of MNIST flipped at random are found. Run by `make test-slow`."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

import nearfar as nf
from nearfar import verbs
from nearfar.data import ImageSet
from nearfar.labelissues import label_issues

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("seed", [0, 1])
def test_two_percent_of_flipped_labels_of_mnist_are_found(tmp_path: Path, seed: int) -> None:
    torch.set_num_threads(os.cpu_count() or 1)
    images = nf.load_images("mnist", split="train")
    random = np.random.default_rng(seed)
    labels = images.require_labels().copy()
    wrong = random.permutation(len(labels))[: len(labels) // 50]
    labels[wrong] = (labels[wrong] + random.integers(1, 10, len(wrong))) % 10
    flipped = ImageSet(images.images, labels, images.classes, images.ids, "mnist-flipped")
    verbs.train(flipped, recipe="mnist-fast", seed=seed, out=tmp_path / "run")
    found = label_issues(tmp_path / "run", flipped)
    with open(found["table"], newline="", encoding="utf-8") as file:
        scores = {row["image"]: float(row["score"]) for row in csv.DictReader(file)}
    ranked = [-scores.get(name, 1.0) for name in images.ids.tolist()]
    assert average_precision_score(np.isin(np.arange(len(labels)), wrong), ranked) >= 0.95
    assert Path(found["gallery"]).stat().st_size < 3_000_000
