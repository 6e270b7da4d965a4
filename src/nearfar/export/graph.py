"""A network as an ONNX graph, from pixels to embeddings: normalisation, views and unit length are inside.

Knows modules and numbers; no images, files or runs.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import nearfar
from nearfar.augment import normalize
from nearfar.encoders import Encoder, fuse
from nearfar.errors import InputError
from nearfar.files import explain_os_errors

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 20
"""Of onnxruntime 1.17 and later."""
_LARGEST = 1_000_000_000
"""Bytes of weights: the file must stay within what `nearfar.onnxfile` reads, and Protocol Buffers within 2 GiB."""


class Whole(nn.Module):
    """uint8 [N, C, H, W] to float32 [N, D], as an encoder in eval mode and what stands before it compute it.

    The views of the image go through the network side by side, as one batch. As the sum of one call each, as in `Encoder`,
    the graph is nine times as long for two kinds of views, and a fifth slower for a single image.
    """

    def __init__(self, encoder: Encoder, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.encoder, self.mean, self.std = encoder, tuple(mean), tuple(std)

    def forward(self, images: Tensor) -> Tensor:
        views = self.encoder.views(normalize(images, self.mean, self.std))
        if len(views) == 1:
            return self.encoder.finish(self.encoder.unit(self.encoder.net(views[0])))
        each = self.encoder.unit(self.encoder.net(torch.cat(views))).unflatten(0, (len(views), -1))
        return self.encoder.finish(self.encoder.unit(each.mean(0)))


def to_onnx(
    encoder: nn.Module, *, channels: int, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]
) -> ModelProto:
    """The graph of an encoder, from input ``images`` uint8 [N, C, H, W] to output ``embedding`` float32 [N, D].

    N is free. H and W are not: images come in the encoder's size. ONNX has a filter of its own to resize by, but what comes of
    it is not what Pillow makes, which every image of a run has gone through: with onnxruntime 1.32 pixels differ by up to 18.

    Args:
        encoder: what `nearfar.encoders.build_encoder` returns; stays as it is.
        channels: C.
        size: H and W.
        mean, std: of the recipe's data section.

    Raises:
        InputError: onnx or onnxscript is not installed, or the weights are more than a file holds.
    """
    onnx = require_onnx()
    weights = sum(value.numel() * value.element_size() for value in encoder.state_dict().values())
    if weights > _LARGEST:
        raise InputError(f"the encoder has {weights:,} bytes of weights, an ONNX file of nearfar's holds {_LARGEST:,}")
    fused = fuse(encoder).cpu()
    assert isinstance(fused, Encoder)
    whole = Whole(fused, mean, std).eval()
    example = torch.zeros((3, channels, *size), dtype=torch.uint8)
    # By torch.export ("dynamo"): the older exporter, by TorchScript, is ten times as fast, but writes twice the nodes for the
    # same speed, says that it is deprecated, and will be gone. What PyTorch's own code is warned of is not our user's concern.
    with torch.no_grad(), _quiet():
        try:
            program = torch.onnx.export(
                whole,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=["images"],
                output_names=["embedding"],
                dynamic_shapes={"images": {0: torch.export.Dim("N")}},
                external_data=False,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            # PyTorch keeps caches in the temporary folder, and hides what the system said behind errors of its own.
            for reason in _reasons(error):
                if isinstance(reason, FileNotFoundError):
                    raise InputError(
                        "no temporary folder can be written to, and PyTorch's exporter needs one: the disk is full, "
                        "or TMPDIR names none that is there"
                    ) from None
                if isinstance(reason, OSError):
                    with explain_os_errors(reason.filename or "PyTorch's caches"):
                        raise reason from None
            raise
    assert program is not None
    model: ModelProto = program.model_proto
    _tidy(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def _reasons(error: BaseException) -> Iterator[BaseException]:
    """What led to an error, the nearest first."""
    while reason := error.__cause__ or error.__context__:
        yield reason
        error = reason


def require_onnx() -> Any:
    """The module onnx, once what exporting needs is known to be there.

    Raises:
        InputError: onnx or onnxscript is not installed.
    """
    try:
        onnx, _ = (importlib.import_module(name) for name in ("onnx", "onnxscript"))  # PyTorch's exporter needs the latter
    except ImportError as error:
        raise InputError(
            f'exporting to ONNX needs {error.name or "onnx"}, which is not installed: pip install "nearfar[onnx]"'
        ) from None
    return onnx


def _tidy(model: ModelProto) -> None:
    """Take out what only says how PyTorch came to the graph: paths of source files among it."""
    del model.metadata_props[:], model.graph.metadata_props[:], model.graph.value_info[:]
    for number, node in enumerate(model.graph.node):
        del node.metadata_props[:]
        node.doc_string, node.name = "", f"{node.op_type}_{number}"
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""
    model.graph.name, model.graph.doc_string, model.doc_string = "nearfar", "", ""
    model.producer_name, model.producer_version = "nearfar", nearfar.__version__


@contextmanager
def _quiet() -> Iterator[None]:
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
