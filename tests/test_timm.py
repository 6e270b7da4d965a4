"""Models of timm as encoders: the numbers are timm's own, frozen means frozen, weights come from safetensors alone."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import safetensors.torch
import torch
from fakehub import Hub
from samples import TINY, shapes
from torch import nn

import nearfar as nf
from nearfar import InputError, verbs
from nearfar.encoders import build_encoder, fuse, summary
from nearfar.encoders.timm_model import import_timm
from nearfar.recipe import Recipe
from nearfar.training import loop
from nearfar.training.loop import Fitted, fit
from nearfar.training.progress import Silent
from nearfar.training.weights import advice, begin, timm_model

timm = import_timm()
MODELS = ["test_resnet", "test_vit", "test_efficientnet", "test_byobnet", "test_vit_relpos"]
SIZE = (64, 64)


def reference(model: str) -> nn.Module:
    """timm's own model with stirred batch norms, in eval mode."""
    torch.manual_seed(5)
    size = {"img_size": SIZE} if timm.get_pretrained_cfg(model).fixed_input_size else {}
    found = timm.create_model(model, num_classes=1000, **size)
    for module in found.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 2)
            module.bias.data.uniform_(-1, 1)
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    return found.eval()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("weights")

    def of(model: str) -> Path:
        path = folder / f"{model}.safetensors"
        if not path.exists():
            safetensors.torch.save_file(reference(model).state_dict(), path)
        return path

    return of


def recipe(path: Path | str, changes: dict[str, Any] | None = None, **encoder: Any) -> Recipe:
    tree = {**TINY, "data": {}, "encoder": {"kind": "timm", "model": "test_resnet", "weights": str(path), **encoder}}
    return Recipe.from_dict(tree).with_changes(changes or {})


class Told(Silent):
    """Random weights make poor embeddings, of which one is warned."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def trained(*arguments: Any, **options: Any) -> Fitted:
    return fit(*arguments, watcher=Told(), **options)


# ---- the numbers are timm's


@pytest.mark.parametrize("model", MODELS)
def test_features_are_those_of_timm_also_when_fused_and_for_grey_images(model: str, weights: Callable[[str], Path]) -> None:
    grey = torch.randn(2, 1, *SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = reference(model)
        features.reset_classifier(0)
        want = features(grey.expand(-1, 3, -1, -1))
        unit = want / want.norm(dim=1, keepdim=True)
        for channels in (1, 3):
            encoder = build_encoder("timm", channels=channels, size=SIZE, model=model, weights=str(weights(model)))
            begin(encoder)
            z = encoder.eval()(grey.expand(-1, channels, -1, -1))
            torch.testing.assert_close(z, unit, atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(fuse(encoder)(grey.expand(-1, channels, -1, -1)), unit, atol=5e-5, rtol=1e-3)


def test_a_run_is_loaded_without_the_weights_file_and_with_what_timm_keeps_out_of_files(
    tmp_path: Path, weights: Callable[[str], Path]
) -> None:
    """test_vit_relpos works out positions when it is built, and does not write them."""
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(weights("test_vit_relpos").read_bytes())
    data = shapes(12, size=64)
    model = nf.Embedder(recipe(copy, model="test_vit_relpos", frozen=True, dim=4), epochs=1).fit(data, watcher=Told())
    assert any(name not in model.encoder_.state_dict() for name, _ in model.encoder_.named_buffers())
    z = model.transform(data)
    model.save(tmp_path / "run")
    copy.unlink()
    np.testing.assert_allclose(nf.Embedder.load(tmp_path / "run").transform(data), z, atol=1e-6)


def test_its_layers_are_summed_up(weights: Callable[[str], Path]) -> None:
    encoder = build_encoder("timm", channels=1, size=SIZE, model="test_resnet", dim=7)
    assert sum(row.parameters for row in summary(encoder, (1, *SIZE))) == sum(p.numel() for p in encoder.parameters())


# ---- frozen, and learned


def test_frozen_and_without_a_layer_on_top_a_run_is_an_index_of_the_features(
    tmp_path: Path, weights: Callable[[str], Path]
) -> None:
    data = shapes(60, size=32)
    bare = nf.ImageSet(images=data.images, name="bare")
    data_section = {"data.test": 0.0, "data.mean": [0.4], "data.std": [0.2]}
    for name, images in (("run", data), ("bare", bare)):
        told = verbs.train(images, recipe=recipe(weights("test_resnet"), data_section, frozen=True), out=tmp_path / name)
        assert told["epochs"] == 0
        features = reference("test_resnet")
        features.reset_classifier(0)
        x = (torch.from_numpy(images.images[:]) / 255 - 0.4) / 0.2
        with torch.no_grad():
            want = features(x.expand(-1, 3, -1, -1))
        index = nf.NeighborIndex.load(tmp_path / name / "index")
        np.testing.assert_allclose(index.vectors, want / want.norm(dim=1, keepdim=True), atol=2e-5)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["training"]["learned"] is False
    assert config["training"]["weights"]["license"] == "apache-2.0"
    card = (tmp_path / "run" / "README.md").read_text()
    assert "nothing was trained" in card
    assert "`test_resnet`" in card
    assert "`apache-2.0`" in card
    assert verbs.evaluate(tmp_path / "run", shapes(30, size=32, seed=4))["classification"]["accuracy"] > 0.5
    changes = {"train.mode": "linear"}
    head = verbs.train(data, start=tmp_path / "run", changes=changes, out=tmp_path / "head", watcher=Told())
    assert head["epochs"] > 0
    config = json.loads((tmp_path / "head" / "config.json").read_text())
    assert config["training"]["weights"]["model"] == "test_resnet"  # and so the licence


@pytest.mark.parametrize("changes", [{}, {"sampling.kind": "pairs", "loss.kind": "contrastive"}, {"train.average": 0.5}])
def test_a_frozen_body_sees_every_image_once_and_the_layer_learns_as_if_it_saw_them_always(
    changes: dict[str, Any], weights: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, held = shapes(60, size=32), shapes(30, size=32, seed=3)
    wanted = recipe(weights("test_resnet"), changes, frozen=True, dim=4)
    once = trained(wanted, data, held)
    body = timm_model(once.encoder).body  # type: ignore[union-attr]
    for name, value in reference("test_resnet").state_dict().items():
        if name in body.state_dict() and "conv1.0" not in name:
            assert torch.equal(body.state_dict()[name], value), name
    monkeypatch.setattr(loop, "still", lambda *_: None)
    always = trained(wanted, data, held)
    for key, value in always.encoder.state_dict().items():
        torch.testing.assert_close(once.encoder.state_dict()[key], value, atol=1e-3, rtol=1e-2, msg=key)
    for one, other in zip(once.history, always.history, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
        assert one["validation"]["loss"] == pytest.approx(other["validation"]["loss"], rel=1e-2)


def test_with_changed_images_a_frozen_body_is_asked_in_every_step_and_stays(weights: Callable[[str], Path]) -> None:
    tree = recipe(weights("test_resnet"), frozen=True, dim=4).to_dict() | {"augment": {"flip": True}}
    fitted = trained(Recipe.from_dict(tree), shapes(60, size=32))
    model = timm_model(fitted.encoder)
    assert model is not None
    for name, value in reference("test_resnet").state_dict().items():
        if name in model.body.state_dict() and "conv1.0" not in name:
            assert torch.equal(model.body.state_dict()[name], value), name


def test_fine_tuned_all_of_it_learns_and_resumes_to_the_same_weights(tmp_path: Path, weights: Callable[[str], Path]) -> None:
    data, plan = shapes(60, size=32), recipe(weights("test_resnet"), dim=4)
    whole = trained(plan, data, checkpoint=tmp_path / "a")
    before = reference("test_resnet").state_dict()
    body = timm_model(whole.encoder).body.state_dict()  # type: ignore[union-attr]
    assert all(not torch.equal(body[name], before[name]) for name in body if name.endswith("conv2.weight"))
    trained(plan.with_changes({"train.epochs": 1}), data, checkpoint=tmp_path / "b")
    again = trained(plan, data, checkpoint=tmp_path / "b", resume=True)
    for name, value in whole.encoder.state_dict().items():
        assert torch.equal(value, again.encoder.state_dict()[name]), name


def test_other_pixels_than_the_weights_were_made_with_are_told(weights: Callable[[str], Path]) -> None:
    encoder = build_encoder("timm", channels=3, size=SIZE, model="resnet18.a1_in1k", weights="x.safetensors")
    said = advice(encoder, (0.5,), (0.5,))
    assert said is not None
    assert said.endswith("--set data.mean=[0.485,0.456,0.406] data.std=[0.229,0.224,0.225]")
    assert advice(encoder, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) is None
    grey = build_encoder("timm", channels=1, size=SIZE, model="resnet18.a1_in1k", weights="x.safetensors")
    assert advice(grey, (0.449,), (0.226,)) is None
    told = Told()
    fit(recipe(weights("test_resnet"), {"data.mean": [0.1]}, frozen=True, dim=2), shapes(40, size=32), watcher=told)
    assert "data.mean=[0.1] data.std=[0.5]; for theirs: --set data.mean=[0.5]" in told.warnings[0]


# ---- where weights come from


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    served = Hub()
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", served.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", served.url)
    yield served
    served.close()


def test_published_weights_are_fetched_once(there: Hub, weights: Callable[[str], Path]) -> None:
    encoder = build_encoder("timm", channels=3, size=SIZE, model="test_resnet.r160_in1k", weights="pretrained")
    with pytest.raises(InputError, match=r"^the weights of test_resnet.r160_in1k are not at hand: timm/"):
        begin(encoder)
    there.branches["timm/test_resnet.r160_in1k", "main"] = {"model.safetensors": weights("test_resnet").read_bytes()}
    begin(encoder)
    there.branches.clear()
    again = build_encoder("timm", channels=3, size=SIZE, model="test_resnet.r160_in1k", weights="pretrained")
    begin(again)
    want = reference("test_resnet").state_dict()["fc.weight"]
    assert want.shape[0] == 1000
    for name, value in timm_model(again).body.state_dict().items():  # type: ignore[union-attr]
        assert torch.equal(value, reference("test_resnet").state_dict()[name]), name


class Bomb:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("exploded"),))


@pytest.mark.parametrize("name", ["w.pth", "w.bin", "w.pt", "w.safetensors"])
def test_nothing_is_unpickled(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError, match=r"only .safetensors is read|does not hold weights of test_resnet"):
        fit(recipe(name, dim=2), shapes(40, size=32))
    assert not Path("exploded").exists()


def test_weights_of_another_model_are_refused_though_timm_would_take_them(weights: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match=r"does not hold weights of test_resnet for 1 channels: \d+ of \d+ matrices"):
        fit(recipe(weights("test_vit"), dim=2), shapes(40, size=32))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "needs encoder.model"),
        ({"model": "resnet19"}, "has no model 'resnet19'; did you mean 'resnet18'"),
        ({"model": "resnet18.a1_in2k"}, "no weights 'a1_in2k' of resnet18; did you mean 'a1_in1k'"),
        ({"model": "local-dir:/etc"}, "has no model 'local-dir:/etc'; timm.list_pretrained"),
        ({"model": 3}, "encoder.model is 3; expected the name"),
        ({"model": "test_vit"}, "does not take 1 x 28 x 28 numbers an image.*divisible"),
        ({"model": "test_resnet", "frozen": "yes"}, "encoder.frozen is 'yes'; expected true or false"),
        ({"model": "test_resnet", "dim": -1}, "encoder.dim is -1"),
        ({"model": "test_resnet", "weights": 5}, "encoder.weights is 5"),
        ({"model": "test_resnet", "weights": "random", "frozen": True}, "nothing would ever be learned"),
        ({"model": "test_resnet", "froze": True}, "no parameter 'froze'; did you mean 'frozen'"),
    ],
)
def test_wrong_parameters_are_one_line(params: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build_encoder("timm", channels=1, size=(28, 28), **params)
    assert "\n" not in str(caught.value)


def test_no_file_and_no_timm_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"there is no file of weights .*none.safetensors"):
        fit(recipe(tmp_path / "none.safetensors", dim=2), shapes(40, size=32))
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"timm is not installed.*pip install 'nearfar\[timm\]'"):
        build_encoder("timm", channels=1, size=(28, 28), model="test_resnet")

    def broken() -> None:
        raise RuntimeError("operator torchvision::roi_of_the_future does not exist\nand more")

    monkeypatch.setattr("nearfar.encoders.timm_model.make_importable", broken)
    with pytest.raises(InputError, match=r"cannot be imported: operator torchvision::roi_of_the_future does not exist; "):
        build_encoder("timm", channels=1, size=(28, 28), model="test_resnet")
