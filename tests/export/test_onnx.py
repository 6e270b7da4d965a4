"""Exported models against PyTorch: every encoder, the figures of the check by a slow loop, and what is not let through."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from samples import TINY, shapes
from torch import nn

import nearfar as nf
from nearfar import runs, verbs
from nearfar.answers import gallery_of
from nearfar.augment import normalize
from nearfar.cli import main
from nearfar.encoders import build_encoder
from nearfar.errors import InputError
from nearfar.export import onnx as exporting
from nearfar.export.graph import to_onnx
from nearfar.export.onnx import check
from nearfar.onnxmodel import OnnxEmbedder
from nearfar.recipe import EvaluateSection, Recipe
from nearfar.runs.opening import load_run
from nearfar.search import NeighborIndex

CONV: dict[str, Any] = {
    **TINY,
    "encoder": {"kind": "conv5", "filters": [4, 6], "hidden": 16, "dim": 8},
    "data": {"size": [16, 16], "test": 0.0},
}

OTHERS = shapes(30, size=16, seed=2, name="others")

ENCODERS: list[tuple[str, int, dict[str, Any]]] = [
    ("conv5", 1, {"filters": (4, 6), "hidden": 10, "dim": 5}),
    ("mlp", 1, {"hidden": (12, 6), "normalize": False}),
    ("conv2", 3, {"filters": (6, 6, 4), "dim": 5}),
    ("conv3", 1, {"filters": (3, 4), "tta": ("mirror",)}),
    ("residual-mlp", 3, {"width": 12, "blocks": (12, 8), "dim": 5}),
    ("resnet", 1, {"widths": (4, 6), "dim": 5, "pool": "none", "padding": 0, "stem": "pool", "tta": ("shift",)}),
    ("resnet", 3, {"widths": (4, 6), "blocks": (0, 2), "dim": 5, "pool": "average", "tta": ("mirror", "shift")}),
]


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def with_statistics(encoder: nn.Module) -> nn.Module:
    """Batch norms as after training: no two channels alike."""
    generator = torch.Generator().manual_seed(1)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.weight, module.bias, module.running_mean):
                value.data.normal_(generator=generator)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2.0, generator=generator)  # type: ignore[union-attr]
    return encoder.eval()


@pytest.mark.parametrize(
    ("kind", "channels", "params"),
    [*ENCODERS[:-1], pytest.param(*ENCODERS[-1], marks=pytest.mark.slow)],  # of ten views, nothing but slower to export
    ids=[f"{kind}-{i}" for i, (kind, _, _) in enumerate(ENCODERS)],
)
def test_every_encoder_gives_the_same_numbers(kind: str, channels: int, params: dict[str, Any]) -> None:
    """For one image and for several, in another number than the example that the graph was traced with."""
    torch.manual_seed(0)
    encoder = with_statistics(build_encoder(kind, channels=channels, size=(28, 24), **params))
    mean, std = ((0.5,), (0.3,)) if channels == 1 else ((0.2, 0.4, 0.6), (0.3, 0.2, 0.4))
    ready = session(to_onnx(encoder, channels=channels, size=(28, 24), mean=mean, std=std))
    for count in (1, 5):
        images = np.random.default_rng(count).integers(0, 256, (count, channels, 28, 24), dtype=np.uint8)
        (z,) = ready.run(["embedding"], {"images": images})
        with torch.no_grad():
            expected = encoder(normalize(torch.from_numpy(images), mean, std)).numpy()
        assert z.dtype == np.float32
        np.testing.assert_allclose(z, expected, rtol=1e-5, atol=2e-6)


def test_the_graph_says_nothing_of_the_machine_it_was_made_on() -> None:
    content = to_onnx(build_encoder("mlp", channels=1, size=(8, 8)).eval(), channels=1, size=(8, 8), mean=(0.5,), std=(0.5,))
    assert str(Path(nf.__file__).parent).encode() not in content.SerializeToString()
    assert b"site-packages" not in content.SerializeToString()
    assert (content.producer_name, content.producer_version) == ("nearfar", nf.__version__)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    verbs.train(shapes(90, size=16), recipe=Recipe.from_dict(CONV), out=folder)
    return folder


@pytest.fixture(scope="module")
def exported(run: Path) -> tuple[Path, dict[str, Any]]:
    path = run.parent / "model.onnx"
    return path, verbs.export(run, OTHERS, out=path)


@pytest.fixture
def traced(exported: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Callable[..., onnx.ModelProto]:
    """The graph of ``run`` as it was traced before, since that takes seconds."""
    kept = onnx.load(exported[0])
    del kept.metadata_props[:]

    def again(*given: Any, **named: Any) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(kept)
        return model

    monkeypatch.setattr(exporting, "to_onnx", again)
    return again


def test_the_file_is_checked_on_images_and_says_what_it_is(run: Path, exported: tuple[Path, dict[str, Any]]) -> None:
    path, said = exported
    assert {key: said[key] for key in ("out", "to", "quantize", "dim", "images")} == {
        "out": str(path), "to": "onnx", "quantize": None, "dim": 8, "images": 30,
    }  # fmt: skip
    assert said["difference"] < 1e-5
    assert (said["same_nearest"], said["same_class"]) == (1.0, 1.0)
    assert said["accuracy"] == said["accuracy_pytorch"]
    assert said["bytes"] == path.stat().st_size
    model, config = onnx.load(path), runs.read_config(run)
    (entry,) = model.metadata_props
    tree = json.loads(entry.value)
    assert entry.key == "nearfar"
    assert tree["model"] == config["model"]["sha256"]
    assert (tree["recipe"], tree["classes"]) == (config["recipe"], config["classes"])
    assert tree["input"] == {"channels": 1, "size": [16, 16], "background": 255}
    assert (tree["metric"], tree["nearfar"]) == ("cosine", nf.__version__)


def test_it_embeds_as_the_run_does(run: Path, exported: tuple[Path, dict[str, Any]]) -> None:
    """Images in other sizes and colours too, in several batches; and as a run's model, with its index."""
    model, index = load_run(run)
    ready, same = load_run(run, onnx=exported[0])
    other = shapes(150, size=21, channels=3, seed=5)
    np.testing.assert_allclose(ready.transform(other), model.transform(other), atol=1e-6)
    own = shapes(20, size=16, seed=3)
    np.testing.assert_allclose(ready.embed_block(own.images), model.embed_block(own.images), atol=1e-6)
    assert (ready.recipe_, ready.classes_, ready.channels_, ready.size_) == (model.recipe_, model.classes_, 1, (16, 16))
    np.testing.assert_array_equal(same.ids, index.ids)
    with pytest.raises(InputError, match=r"expected uint8 \[N, 1, 16, 16\]"):
        ready.embed_block(other.images)
    with pytest.raises(InputError, match="threads is 0"):
        OnnxEmbedder.load(exported[0], threads=0)


def test_images_are_embedded_from_the_file_alone_without_pytorch(exported: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    shutil.copy(exported[0], tmp_path / "alone.onnx")
    images = shapes(12, size=20, seed=4)
    np.savez(tmp_path / "images.npz", images=images.images, labels=images.require_labels())
    code = (
        "import sys; from nearfar import verbs; verbs.embed('alone.onnx', 'images.npz', out='z.npz'); "
        "assert 'torch' not in sys.modules, 'PyTorch was imported'"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = np.load(tmp_path / "z.npz")
    np.testing.assert_allclose(found["embedding"], OnnxEmbedder.load(exported[0]).transform(images), atol=1e-6)
    assert len(found["label"]) == 12


@pytest.mark.usefixtures("traced")
def test_images_of_the_index_itself_are_left_out_of_their_own_search(run: Path, tmp_path: Path) -> None:
    """A run without images held out is checked on its training images; each would be its own nearest."""
    said = verbs.export(run, shapes(90, size=16), out=tmp_path / "m.onnx")
    model, index = load_run(run)
    z = model.transform(shapes(90, size=16))
    _, rows = index.search_rows(z, 6, exclude=index.ids)
    labels = np.asarray(index.labels)
    votes = [np.bincount(labels[row[:5]]).argmax() for row in rows]
    assert said["accuracy_pytorch"] == pytest.approx(np.mean(votes == labels), abs=0.05)
    assert said["same_nearest"] == 1.0


def points(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_the_figures_are_those_of_a_slow_loop(metric: str) -> None:
    gallery, labels = points(0, 40), np.arange(40) % 3
    index = NeighborIndex(metric).fit(gallery, labels)
    near = gallery_of(index, EvaluateSection(metric=metric, k=3), 40)  # type: ignore[arg-type]
    expected, truth = points(1, 25), np.arange(25) % 3
    truth[:4] = -1
    z = expected + 0.3 * points(2, 25)
    exclude = np.arange(-1, 24)
    found = check(z, expected, near, labels=truth, exclude=exclude)

    def slow(queries: np.ndarray) -> list[list[int]]:
        order = []
        for row, query in enumerate(queries.astype(np.float64)):
            scores = []
            for at, vector in enumerate(gallery.astype(np.float64)):
                product = query @ vector
                cosine = product / np.linalg.norm(query) / np.linalg.norm(vector)
                away = -np.linalg.norm(query - vector)
                scores.append((-{"cosine": cosine, "dot": product, "euclidean": away}[metric], at))
            order.append([at for _, at in sorted(scores) if at != exclude[row]][:10])
        return order

    a, b = slow(z), slow(expected)
    assert found["same_nearest"] == pytest.approx(np.mean([one[0] == two[0] for one, two in zip(a, b, strict=True)]))
    assert found["overlap"] == pytest.approx(np.mean([len({*one} & {*two}) / 10 for one, two in zip(a, b, strict=True)]))
    assert found["difference"] == pytest.approx(np.abs(z - expected).max())
    assert 0.0 < found["same_nearest"] < 1.0
    same = check(expected, expected, near, labels=truth, exclude=exclude)
    assert (same["same_nearest"], same["overlap"], same["same_class"], same["difference"]) == (1.0, 1.0, 1.0, 0.0)
    assert same["accuracy"] == found["accuracy_pytorch"]
    votes = [np.bincount(labels[one[:3]], minlength=3) for one in b]
    clear = [row for row, vote in enumerate(votes) if (vote == vote.max()).sum() == 1 and truth[row] >= 0]
    apart = check(expected[clear], expected[clear], near, labels=truth[clear], exclude=exclude[clear])
    assert apart["accuracy"] == pytest.approx(np.mean([votes[row].argmax() == truth[row] for row in clear]))


def test_an_image_as_near_but_for_rounding_is_as_right() -> None:
    gallery = np.concatenate([points(0, 10), points(0, 10) * (1.0 + 1e-7)]).astype(np.float32)
    near = gallery_of(NeighborIndex("euclidean").fit(gallery, np.arange(20) % 2), EvaluateSection(metric="euclidean", k=3), 20)
    expected = gallery[:10] - 1e-7
    assert check(gallery[10:] + 1e-7, expected, near)["same_nearest"] == 1.0


@pytest.mark.parametrize(("size", "message"), [(1e-3, "embeddings differ by"), (0.5, "embeddings differ by")])
def test_a_file_that_computes_something_else_is_not_kept(
    run: Path,
    traced: Callable[..., onnx.ModelProto],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    size: float,
    message: str,
) -> None:
    def wrong(*given: Any, **named: Any) -> onnx.ModelProto:
        model = traced()
        weights = next(one for one in model.graph.initializer if len(one.dims) == 4)
        values = onnx.numpy_helper.to_array(weights) + np.float32(size)
        weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))
        return model

    monkeypatch.setattr(exporting, "to_onnx", wrong)
    with pytest.raises(InputError, match=message):
        verbs.export(run, OTHERS, out=tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("traced")
def test_neighbours_that_change_are_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "AGREEMENT", {None: 1.1, "int8": 1.1})
    for quantize in (None, "int8"):
        with pytest.raises(InputError, match="keep their nearest image"):
            verbs.export(run, shapes(90, size=16), out=tmp_path / "m.onnx", quantize=quantize)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("traced")
def test_in_eight_bits_the_inner_layers_are_whole_numbers(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "AGREEMENT", {"int8": 0.5})  # it is trained for a second, and near is not yet far from far
    said = verbs.export(run, shapes(90, size=16), out=tmp_path / "m.onnx", quantize="int8")
    model = onnx.load(tmp_path / "m.onnx")
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    whole = {one.name for one in model.graph.initializer if one.data_type == onnx.TensorProto.INT8 and len(one.dims) > 1}
    narrowed = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in whole}
    assert [layer.input[1] in narrowed for layer in layers] == [False, True, True, False]
    assert said["quantize"] == "int8"
    assert 0.0 < said["difference"] < 0.2
    assert said["same_class"] > 0.8
    assert said["images"] == 90
    ready = OnnxEmbedder.load(tmp_path / "m.onnx")
    assert ready.quantize_ == "int8"
    z = load_run(run)[0].transform(shapes(90, size=16))
    assert np.abs(ready.transform(shapes(90, size=16)) - z).max() == pytest.approx(said["difference"], rel=1e-3)


def test_too_few_layers_are_not_quantised(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    verbs.train(shapes(60), recipe=Recipe.from_dict(TINY), out=folder)
    with pytest.raises(InputError, match="has 2 layers"):
        verbs.export(folder, shapes(60), out=tmp_path / "m.onnx", quantize="int8")


@pytest.mark.usefixtures("traced")
def test_the_command_line_tells_what_was_checked(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "q.npz", images=OTHERS.images, labels=OTHERS.require_labels())

    def cli(*words: Any) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        return int(ended.value.code or 0), *capsys.readouterr()

    code, out, err = cli("export", run, tmp_path / "q.npz", "--out", tmp_path / "m.onnx")
    assert (code, err) == (0, "")
    assert "checked on 30 images against PyTorch" in out
    assert "the nearest image is the same for 100.00%" in out
    for words, message in (
        (("--out", tmp_path / "m.txt", "--to", "onnx"), "its name must end in .onnx"),
        (("--out", tmp_path / "folder", "--quantize", "int8"), "ends in .onnx"),
    ):
        code, out, err = cli("export", run, tmp_path / "q.npz", *words)
        assert (code, out) == (2, "")
        assert message in err
        assert err.count("\n") == 1


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_extra_is_one_line(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(InputError, match=rf'needs {missing}.*pip install "nearfar\[onnx\]"'):
        verbs.export(run, OTHERS, out=tmp_path / "m.onnx")
