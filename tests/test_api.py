"""The public face: the names, and the example of the README on real images."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import nearfar as nf


def test_every_public_name_is_there_and_nothing_heavy_comes_with_the_package() -> None:
    for name in nf.__all__:
        assert getattr(nf, name) is not None
    assert set(dir(nf)) == set(nf.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        nf.nothing  # noqa: B018 - to ask for it is what is tested
    code = "import sys, nearfar; print(sorted({'torch', 'sklearn', 'numpy', 'pyarrow', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_evaluate_stays_a_function_whatever_is_imported_first() -> None:
    code = "import nearfar.evaluation.retrieval, nearfar.cli, nearfar.measuring.judging\n"
    code += "import nearfar as nf; assert callable(nf.evaluate)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_example_runs_as_it_stands_on_real_digits(tmp_path: Path) -> None:
    train = nf.load_images("mnist", split="train").subset(slice(0, 2000))
    test = nf.load_images("mnist", split="test").subset(slice(0, 400))
    model = nf.Embedder(recipe="mnist-fast", seed=0, epochs=1).fit(train)
    z = model.transform(test)
    assert z.dtype == np.float32
    assert np.allclose(np.linalg.norm(z, axis=1), 1, atol=1e-5)
    index = nf.NeighborIndex(metric="cosine", backend="exact").fit(model.transform(train), train.labels)
    scores, ids = index.search(z, k=10)
    assert scores.shape == ids.shape == (400, 10)
    assert (np.diff(scores, axis=1) <= 0).all()
    labels = nf.NeighborClassifier(index, k=10).predict(z)
    figures = nf.evaluate(model, gallery=train, queries=test)
    assert figures["classification"]["accuracy"] == np.mean(labels == test.labels) > 0.8
    model.save(tmp_path / "run")
    assert np.array_equal(nf.Embedder.load(tmp_path / "run").transform(test), z)
    points = torch.from_numpy(z).requires_grad_()
    loss = nf.losses.SupConLoss(temperature=0.1)(points, torch.from_numpy(test.require_labels()))
    loss.backward()
    assert points.grad is not None
    assert torch.isfinite(points.grad).all()
