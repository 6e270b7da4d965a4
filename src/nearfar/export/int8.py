"""An ONNX graph with the layers in its midst in whole numbers of 8 bits."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nearfar.errors import InputError
from nearfar.onnxmodel import runtime

if TYPE_CHECKING:
    from onnx import ModelProto

IMAGES = 1000
"""Training images that the ranges of the numbers are taken from."""
_BATCH = 50
_LAYERS = ("Conv", "Gemm", "MatMul")


def to_int8(model: ModelProto, images: npt.NDArray[np.uint8]) -> ModelProto:
    """Quantise the layers of a graph between the first and the last one: weights by channel, activations by tensor.

    The first and the last layer stay in float32. The first one's channels differ in range as those within the network, behind
    batch norms, do not: with it in 8 bits the nearest image stays the same for 8 % of MNIST's test images, without for 91 %
    (docs/export.md). The last one makes the embedding itself, and takes little of the time.

    Args:
        model: of `nearfar.export.graph.to_onnx`.
        images: uint8 [N, C, H, W], such as it was trained on: ranges of activations are the least and the greatest value.

    Raises:
        InputError: there is no layer between, or onnxruntime is not installed.
    """
    runtime()
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self._blocks = iter([images[at : at + _BATCH] for at in range(0, len(images), _BATCH)])

        def get_next(self) -> dict[str, Any] | None:
            block = next(self._blocks, None)
            return None if block is None else {"images": np.ascontiguousarray(block)}

    with tempfile.TemporaryDirectory(prefix="nearfar-") as folder, _quiet():
        given, plain, quantised = (Path(folder) / name for name in ("given.onnx", "plain.onnx", "int8.onnx"))
        onnx.save(model, str(given))
        quant_pre_process(str(given), str(plain), skip_symbolic_shape=True)
        layers = [node.name for node in onnx.load(str(plain)).graph.node if node.op_type in _LAYERS]
        if len(layers) < 3:
            raise InputError(
                f"the encoder has {len(layers)} layers, of which the first and the last stay as they are; there is nothing to "
                "quantize"
            )
        quantize_static(
            str(plain),
            str(quantised),
            Images(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
            op_types_to_quantize=[*_LAYERS, "MaxPool", "Relu"],
            nodes_to_exclude=[layers[0], layers[-1]],
        )
        found: ModelProto = onnx.load(str(quantised))
    del found.metadata_props[:]
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """onnxruntime's tools advise through the root logger, and set it up where it is not: both are kept from the user."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    handler = logging.NullHandler()
    logging.root.addHandler(handler)
    try:
        yield
    finally:
        logging.root.removeHandler(handler)
        logging.disable(before)
