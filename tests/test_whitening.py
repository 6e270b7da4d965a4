"""Whitening against covariances by NumPy: alone, within an encoder, after training, from a run, and exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from samples import TINY, shapes
from sklearn.covariance import ledoit_wolf

from nearfar import verbs
from nearfar.encoders import Encoder, build_encoder, fuse
from nearfar.encoders.whitening import Whitening, shrunk_covariance
from nearfar.errors import InputError
from nearfar.export.graph import to_onnx
from nearfar.inference import embed, fit_whitening
from nearfar.recipe import Recipe
from nearfar.runs.opening import load_run
from nearfar.training.loop import fit


@pytest.mark.parametrize("power", [0.3, 1.0])
def test_the_covariance_is_raised_to_what_is_left_of_the_power(power: float) -> None:
    random = np.random.default_rng(0)
    z = random.normal(size=(4000, 6)) @ random.normal(size=(6, 6)) + 3
    whitening = Whitening(6, power).eval()
    same = torch.from_numpy(z).float()
    assert torch.equal(whitening(same), same)
    whitening.fit(same)
    found = np.cov(whitening(same).double().numpy().T)
    variances, directions = np.linalg.eigh(np.cov(z.T))
    wanted = directions * variances ** (1 - power) @ directions.T
    assert np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max()  # what the covariance is shrunk by, for 4,000
    assert abs(whitening(same).mean(0)).max() < 1e-3
    assert torch.equal(whitening.train()(same), same)


@pytest.mark.parametrize(("count", "dim"), [(2, 5), (30, 64), (500, 20), (4000, 6)])
def test_the_covariance_is_shrunk_as_scikit_learn_does(count: int, dim: int) -> None:
    random = np.random.default_rng(0)
    z = random.normal(size=(count, dim)) @ random.normal(size=(dim, dim)) + 3
    np.testing.assert_allclose(shrunk_covariance(torch.from_numpy(z)), ledoit_wolf(z)[0], rtol=1e-9, atol=1e-12)
    assert torch.equal(shrunk_covariance(torch.ones(5, dim)), torch.zeros(dim, dim))


def test_few_embeddings_of_many_numbers_are_not_stretched_along_noise() -> None:
    z = torch.from_numpy(np.random.default_rng(0).normal(size=(30, 64))).float()
    whitening = Whitening(64, 1.0).eval()
    whitening.fit(z)
    stretched = torch.linalg.svdvals(whitening.map)
    assert stretched[0] < 2 * stretched[-1]


def test_directions_without_variance_stay_finite() -> None:
    z = torch.randn(50, 3) @ torch.randn(3, 8)
    whitening = Whitening(8, 1.0).eval()
    whitening.fit(z)
    assert torch.isfinite(whitening(z)).all()
    same = Whitening(8, 1.0).eval()
    same.fit(torch.ones(5, 8))
    assert torch.equal(same(z), z)


def recipe(**encoder: Any) -> Recipe:
    return Recipe.from_dict({**TINY, "encoder": {**TINY["encoder"], **encoder}})


@pytest.mark.parametrize("tta", [[], ["mirror"]])
def test_training_is_the_same_and_its_embeddings_are_whitened(tta: list[str]) -> None:
    images = shapes(120)
    plain, white = (fit(recipe(tta=tta, **more), images, seed=1).encoder for more in ({}, {"whiten": 0.7}))
    for name, value in plain.state_dict().items():
        assert torch.equal(white.state_dict()[name], value)
    section = recipe().data
    assert isinstance(plain, Encoder)
    z, alone = (embed(one, images, section).astype(np.float64) for one in (plain, plain.plain()))
    assert np.array_equal(z, alone) is not bool(tta)
    variances, directions = np.linalg.eigh(ledoit_wolf(alone)[0])
    wanted = (z - alone.mean(0)) @ (directions * variances**-0.35) @ directions.T
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(embed(white, images, section), wanted, atol=2e-3)


def test_of_many_images_some_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nearfar.inference._WHITENED", 10)
    a, b, c = (build_encoder("mlp", channels=1, size=(12, 12), hidden=[8], dim=4, whiten=1.0).eval() for _ in range(3))
    for one, seed in ((a, 0), (b, 0), (c, 1)):
        one.load_state_dict(a.state_dict())
        one.whitening = Whitening(4, 1.0).eval()
        fit_whitening(one, shapes(120), recipe().data, seed=seed)
    rows = np.sort(np.random.default_rng(0).permutation(120)[:40])  # ten for each of the four numbers
    first, same, other = (one.state_dict()["whitening.map"] for one in (a, b, c))
    a.whitening = None
    wanted = Whitening(4, 1.0)
    wanted.fit(torch.from_numpy(embed(a, shapes(120).subset(rows), recipe().data)))
    torch.testing.assert_close(first, wanted.map, rtol=1e-3, atol=1e-3)
    assert torch.equal(first, same)
    assert not torch.allclose(first, other, rtol=1e-2)


def test_a_run_keeps_it_for_a_head_and_begins_anew_for_other_training(tmp_path: Path) -> None:
    first = tmp_path / "first"
    verbs.train(shapes(90), recipe=recipe(whiten=0.5), out=first, seed=1)
    begun = load_run(first)[0].encoder_.state_dict()["whitening.map"]
    assert not torch.equal(begun, torch.eye(len(begun)))
    for mode, same in (("linear", True), ("finetune", False)):
        out = tmp_path / mode
        verbs.train(shapes(90), start=first, out=out, seed=2, changes={"train.mode": mode, "loss.kind": "cross-entropy"})
        assert torch.equal(load_run(out)[0].encoder_.state_dict()["whitening.map"], begun) is same


def test_it_is_in_the_graph(tmp_path: Path) -> None:
    import onnxruntime

    torch.manual_seed(0)  # of random weights a few make all embeddings nearly one, which whitening then blows up
    encoder = build_encoder("conv5", channels=1, size=(16, 16), filters=[4, 6], hidden=8, dim=5, dropout=0.0, whiten=0.5)
    images = shapes(60, size=16)
    fit_whitening(encoder, images, recipe().data, seed=0)
    model = to_onnx(encoder, channels=1, size=(16, 16), mean=[0.5], std=[0.5])
    session = onnxruntime.InferenceSession(model.SerializeToString())
    x = (torch.from_numpy(images.images) / 255 - 0.5) / 0.5
    with torch.no_grad():
        wanted = encoder.double().eval()(x.double())
        torch.testing.assert_close(fuse(encoder)(x.double()), wanted)
    (found,) = session.run(None, {"images": images.images})
    # Rounding is whitened too: the smallest direction becomes up to 1e-6 ** -0.25 = 32 times larger against the largest.
    np.testing.assert_allclose(found, wanted.numpy(), atol=32 * 3e-6)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"whiten": 2}, "encoder.whiten is 2; expected a number from 0 to 1, e.g. 0.5"),
        ({"whiten": True}, "encoder.whiten is True"),
    ],
)
def test_wrong_powers(params: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_encoder("mlp", channels=1, size=(12, 12), hidden=[8], dim=4, **params)
