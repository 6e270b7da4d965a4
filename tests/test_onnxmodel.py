"""ONNX files from anyone: what is damaged, foreign, or reaches beyond itself is refused in one line, unopened."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from nearfar import onnxfile, onnxmodel
from nearfar.errors import InputError
from nearfar.onnxmodel import OnnxEmbedder
from nearfar.recipe import load_recipe
from nearfar.runs.opening import open_model

RECIPE = load_recipe("mnist-fast").to_dict()
WEIGHT = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


def said(**changes: Any) -> dict[str, Any]:
    return {
        "format": 1,
        "nearfar": "0.1.0",
        "model": "0" * 64,
        "quantize": None,
        "dimensions": 3,
        "metric": "cosine",
        "input": {"channels": 1, "size": [2, 2], "background": 255},
        "classes": ["a", "b"],
        "recipe": RECIPE,
        **changes,
    }


def small(about: Any = None, *, domain: str = "") -> onnx.ModelProto:
    """Four pixels times a matrix."""
    nodes = [
        helper.make_node("Cast", ["images"], ["wide"], to=TensorProto.FLOAT, domain=domain),
        helper.make_node("Flatten", ["wide"], ["rows"]),
        helper.make_node("MatMul", ["rows", "weight"], ["embedding"]),
    ]
    inputs = [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 1, 2, 2])]
    outputs = [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", 3])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(WEIGHT, "weight")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    helper.set_model_props(model, {"nearfar": json.dumps(said() if about is None else about)})
    return model


def refused(model: onnx.ModelProto, path: Path, message: str) -> None:
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=message) as caught:
        OnnxEmbedder.load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_of_our_kind_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(small().SerializeToString())
    model = open_model(path)
    pixels = np.arange(8, dtype=np.uint8).reshape(2, 1, 2, 2)
    np.testing.assert_allclose(model.embed_block(pixels), pixels.reshape(2, 4) @ WEIGHT, rtol=1e-6)
    assert (model.classes_, model.size_, model.head_) == (("a", "b"), (2, 2), None)


@pytest.mark.parametrize("count", [1, 64, 65, 100, 1000])
@pytest.mark.parametrize("largest", [0, 1 << 20])
def test_many_images_spread_over_cores_stay_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, largest: int
) -> None:
    monkeypatch.setattr(onnxmodel, "_TWICE", largest)
    path = tmp_path / "m.onnx"
    path.write_bytes(small().SerializeToString())
    model = OnnxEmbedder.load(path, threads=3)
    pixels = np.random.default_rng(1).integers(0, 256, (count, 1, 2, 2), dtype=np.uint8)
    np.testing.assert_allclose(model.transform(pixels), pixels.reshape(count, 4) @ WEIGHT, rtol=1e-5, atol=1e-4)


def test_several_cores_compute_at_once_where_there_are_many_images(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(small().SerializeToString())
    model = OnnxEmbedder.load(path, threads=3)
    together = threading.Barrier(3, timeout=20)  # breaks unless three pieces are under way at the same time
    inner = model._alone

    class Meeting:
        def run(self, names: list[str], given: dict[str, Any]) -> Any:
            together.wait()
            return inner.run(names, given)

    model.__dict__["_alone"] = Meeting()
    pixels = np.zeros((6 * 64, 1, 2, 2), dtype=np.uint8)
    assert not model.embed_block(pixels).any()


def test_another_models_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(small().SerializeToString())
    OnnxEmbedder.load(path, expect_model_hash="0" * 64)
    with pytest.raises(InputError, match="was exported from the model 000000000000, not from 111111111111"):
        OnnxEmbedder.load(path, expect_model_hash="1" * 64)


def external(tensor: TensorProto, location: Path) -> None:
    """Let the values of ``tensor`` lie in another file."""
    location.write_bytes(WEIGHT.tobytes())
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location.name)


def test_weights_in_another_file_are_not_read(tmp_path: Path) -> None:
    """Wherever a tensor may stand: among the weights, in a constant, in a branch, in a sparse one."""
    for place in ("weights", "constant", "branch", "sparse", "location alone"):
        model = small()
        tensor = numpy_helper.from_array(WEIGHT, "weight")
        if place == "location alone":
            model.graph.initializer[0].data_location = TensorProto.EXTERNAL
        else:
            external(tensor, tmp_path / "secret.bin")
        if place == "weights":
            model.graph.initializer[0].CopyFrom(tensor)
        elif place == "constant":
            model.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))
        elif place == "branch":
            branch = helper.make_graph([helper.make_node("Constant", [], ["c"], value=tensor)], "b", [], [])
            model.graph.node.append(helper.make_node("If", ["images"], ["c"], then_branch=branch, else_branch=branch))
        elif place == "sparse":
            model.graph.sparse_initializer.add().values.CopyFrom(tensor)
        refused(model, tmp_path / "m.onnx", "keeps weights in other files, which are not read")


def test_what_nearfar_does_not_write_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    refused(small(domain="com.example"), path, "uses operators of 'com.example'")
    model = small()
    model.functions.add(name="f", domain="d")
    refused(model, path, "holds a function")
    model = small()
    model.training_info.add().algorithm.name = "t"
    refused(model, path, "holds a training")
    model = small()
    del model.metadata_props[:]
    refused(model, path, "was not made by nearfar")
    path.write_bytes(b"")
    with pytest.raises(InputError, match="was not made by nearfar"):
        OnnxEmbedder.load(path)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ([], "not a JSON object"),
        ({}, "is not whole"),
        (said(format=2), "a later nearfar"),
        (said(classes=[1]), "is not whole"),
        (said(model=None), "is not whole"),
        (said(input={"channels": 2, "size": [2, 2]}), "is not whole"),
        (said(input={"channels": 1, "size": [2]}), "is not whole"),
        (said(input={"channels": 1, "size": [2, True]}), "is not whole"),
        (said(input={"channels": 3, "size": [2, 2]}), "does not take and give what it says"),
        (said(input={"channels": 1, "size": [2, 3]}), "does not take and give what it says"),
        (said(dimensions=4), "does not take and give what it says"),
    ],
)
def test_a_file_that_says_something_else_of_itself_is_refused(tmp_path: Path, about: Any, message: str) -> None:
    refused(small(about), tmp_path / "m.onnx", message)


def test_a_recipe_is_checked_as_everywhere(tmp_path: Path) -> None:
    recipe = {**RECIPE, "evaluate": {**RECIPE["evaluate"], "k": -1}}
    path = tmp_path / "m.onnx"
    path.write_bytes(small(said(recipe=recipe)).SerializeToString())
    with pytest.raises(InputError, match=r"evaluate\.k"):
        OnnxEmbedder.load(path)


def test_a_damaged_file_is_one_line_wherever_it_is_damaged(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Cut off anywhere, or with any byte turned around: it is refused, or still is a model; nothing is printed."""
    content, path, opened, lines = small().SerializeToString(), tmp_path / "m.onnx", 0, []
    random = np.random.default_rng(0)
    damaged = [content[:length] for length in range(0, len(content), 37)]
    for at in random.integers(len(content), size=150).tolist():
        damaged.append(content[:at] + bytes([content[at] ^ (1 << int(random.integers(8)))]) + content[at + 1 :])
    for each in damaged:
        path.write_bytes(each)
        try:
            OnnxEmbedder.load(path, threads=1)
            opened += 1
        except InputError as reason:
            lines.append(str(reason))
    assert not [line for line in lines if "\n" in line or len(line) > 600]
    assert opened < 150  # bytes of weights and of names may change
    assert capfd.readouterr() == ("", "")


def test_nesting_without_end_is_refused() -> None:
    inner = b""
    for _ in range(200):  # a graph in an attribute of a node of a graph, and so on
        for field in (6, 5, 1):
            inner = bytes([field << 3 | 2]) + varint(len(inner)) + inner
    with pytest.raises(InputError, match="nested too deeply"):
        onnxfile.about(bytes([7 << 3 | 2]) + varint(len(inner)) + inner, "m.onnx")


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def test_a_file_that_is_missing_or_too_large_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="is missing; make it with nearfar export"):
        OnnxEmbedder.load(tmp_path / "m.onnx")
    with pytest.raises(InputError, match="cannot be read"):
        OnnxEmbedder.load(tmp_path)
    path = tmp_path / "m.onnx"
    path.write_bytes(small().SerializeToString())
    monkeypatch.setattr(onnxfile, "LARGEST", 100)
    with pytest.raises(InputError, match="larger than"):
        OnnxEmbedder.load(path)
