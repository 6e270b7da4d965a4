"""Another model beside a run: judged in the same way, as an oracle of its own embeddings shows; its absence is one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from samples import TINY, shapes

import nearfar as nf
from nearfar import show, verbs
from nearfar.encoders.timm_model import import_timm
from nearfar.evaluation import evaluate_embeddings
from nearfar.evaluation.baselines import asked_rows
from nearfar.measuring.judging import judge
from nearfar.measuring.othermodel import other_model
from nearfar.recipe import Recipe


def train(folder: Path, **evaluate: Any) -> Path:
    tree = {**TINY, "data": {"size": [12, 12], "test": 0.25}, "evaluate": {"k": 5, "bootstrap": 20, **evaluate}}
    verbs.train(shapes(120), recipe=Recipe.from_dict(tree), out=folder, seed=len(folder.name))
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("other") / "other")


def test_another_run_is_judged_as_the_run_is(tmp_path: Path, other: Path) -> None:
    run = train(tmp_path / "one")
    tree = verbs.evaluate(run, shapes(120), baseline=str(other))
    judged, model = judge(run, shapes(120)), nf.Embedder.load(other)
    assert judged.splits is not None
    near, asked = (model.transform(part) for part in (judged.splits.train, judged.queries))
    rows = asked_rows(judged.labels, judged.config["seed"])
    np.testing.assert_array_equal(rows, np.arange(len(asked)))
    alone = evaluate_embeddings(
        near, judged.splits.train.require_labels(), asked, judged.labels, k=5, seed=judged.config["seed"], bootstrap=20,
        classes=judged.classes,
    )  # fmt: skip
    found = tree["baselines"]["model"]
    assert found["name"] == str(other)
    assert found["dimensions"] == near.shape[1]
    assert found["retrieval"]["map@r"] == pytest.approx(alone["retrieval"]["map@r"])
    assert found["classification"]["accuracy"] == alone["classification"]["accuracy"]
    assert found["verification"]["auroc"] == pytest.approx(alone["verification"]["auroc"])
    assert str(other) in show.figures(tree)
    assert set(tree["baselines"]) == {"pixels", "pca", "model"}


def test_a_baseline_that_is_not_there_is_refused_before_anything_is_measured(
    other: Path, cli: Callable[..., tuple[int, str, str]]
) -> None:
    before = sorted(path.name for path in other.iterdir())
    for verb in ("evaluate", "report"):
        code, _, said = cli(verb, str(other), "--baseline", "resnet19")
        assert code == 2
        assert "the baseline is 'resnet19', neither a run folder nor a model that timm can load: timm " in said
        assert said.count("\n") == 1
    assert sorted(path.name for path in other.iterdir()) == before


def test_a_published_model_sees_images_as_its_weights_were_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timm = import_timm()
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=1000).eval()
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr("nearfar.runs.hub.fetch_file", lambda repo, name, instead: tmp_path / name)
    images = shapes(5, size=160, channels=3)  # their size, so that nothing is resized
    z = other_model("test_resnet.r160_in1k")(images)
    mean, std = (torch.tensor(model.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    model.reset_classifier(0)
    with torch.no_grad():
        want = model((torch.from_numpy(images.images[:]) / 255 - mean) / std)
    np.testing.assert_allclose(z, want / want.norm(dim=1, keepdim=True), atol=2e-5)
