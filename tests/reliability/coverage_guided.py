"""A parser under Atheris: ``python coverage_guided.py PARSER FOLDER -runs=10000``. The first defect ends it."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["nearfar", "tomllib", "zipfile"]):
    import nearfar.data.idx
    import nearfar.data.npz
    import nearfar.data.pixelcsv
    import nearfar.onnxfile
    import nearfar.recipe
    import nearfar.tensorfile

from reliability import data_targets

from nearfar import onnxfile, tensorfile
from nearfar.data.idx import read_idx
from nearfar.data.npz import npz_sources
from nearfar.data.pixelcsv import CsvSource
from nearfar.errors import InputError
from nearfar.recipe import load_recipe


def archive(path: Path) -> None:
    for source in npz_sources(path).values():
        _ = source.rows
        for _ in source.chunks():
            pass


def table(path: Path) -> None:
    source = CsvSource(path)
    _ = source.rows
    for _ in source.chunks():
        pass


def tensors() -> list[bytes]:
    import numpy as np
    import safetensors.numpy

    return [safetensors.numpy.save({"a": np.zeros((2, 3), np.float32)}, tensorfile.header_of({"classes": ["x"]}))]


PARSERS = {
    "recipe": ("r.toml", load_recipe, lambda: [path.read_bytes() for path in nearfar.recipe.RECIPES.glob("*.toml")]),
    "idx": ("train-labels-idx1-ubyte", read_idx, lambda: [data_targets.idx_bytes((3, 2, 2)), data_targets.idx_bytes((4,))]),
    "table": ("t.csv", table, data_targets.tables),
    "npz": ("a.npz", archive, data_targets.archives),
    "onnx": (
        "m.onnx",
        lambda path: onnxfile.about(path.read_bytes(), "m.onnx"),
        lambda: [bytes.fromhex("080a3a020a0072040a027b7d")],
    ),
    "tensors": ("t.safetensors", tensorfile.load_arrays, tensors),
}


def main() -> None:
    name, home = sys.argv[1], Path(sys.argv[2])
    file, read, seeds = PARSERS[name]
    corpus = home / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds()):
        (corpus / str(number)).write_bytes(seed)

    def one(content: bytes) -> None:
        path = home / file
        path.write_bytes(content)
        with contextlib.suppress(InputError):
            read(path)

    atheris.Setup([sys.argv[0], str(corpus), f"-artifact_prefix={home}/", "-rss_limit_mb=2048", *sys.argv[3:]], one)
    atheris.Fuzz()


main()
