"""A model that was exported to ONNX, with the face of an `Embedder`; computed by onnxruntime on the CPU, without PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from nearfar import onnxfile
from nearfar.blocks import check_block, check_finite
from nearfar.cores import share_of
from nearfar.data import ImageSet, load_images
from nearfar.errors import InputError
from nearfar.heads import Head
from nearfar.recipe import Recipe
from nearfar.search.arithmetic import threads as cores

FORMAT = 1
BATCH = 64  # images at once: more are no faster, and their maps no longer fit into a core's cache (docs/export.md)
_TWICE = 64 << 20  # bytes of a file that may be opened a second time, for many images; what is larger is slow by its own work

Floats = npt.NDArray[np.float32]


class OnnxEmbedder:
    """Turns images into vectors as the run does that it was exported from; `load`, `transform`, `embed_block`.

    Attributes:
        recipe_, classes_, channels_, size_: as of an `Embedder`.
        head_: the run's linear classifier, where the file was opened with its run; else None.
        dim_: D, the length of a vector.
        model_hash_: SHA-256 of the weights that it was exported from.
        quantize_: "int8" where it computes in whole numbers, else None.
    """

    def __init__(self, content: bytes, where: str, *, threads: int | None = None) -> None:
        """Args:
            content: of an ONNX file.
            where: what an error calls it.
            threads: to compute with; None: one for each core.

        Raises:
            InputError: it is damaged, not nearfar's, refers to other files, or onnxruntime is not installed.
        """
        said = _checked(onnxfile.about(content, where), where)
        self.recipe_ = Recipe.from_dict(said["recipe"])
        self.classes_: tuple[str, ...] = tuple(said["classes"])
        self.channels_: int = said["input"]["channels"]
        self.size_: tuple[int, int] = (said["input"]["size"][0], said["input"]["size"][1])
        self.dim_: int = said["dimensions"]
        self.model_hash_: str = said["model"]
        self.quantize_: str | None = said.get("quantize")
        self.head_: Head | None = None
        self._where = where
        self._threads = _checked_threads(threads)
        self._session = _open(content, where, self._threads)
        self._content = content if self._threads > 1 and len(content) <= _TWICE else None
        self._check_graph()

    @classmethod
    def load(cls, path: Path | str, *, expect_model_hash: str | None = None, threads: int | None = None) -> Self:
        """Open an exported model; nothing in it is executed but the operators of ONNX itself, and no other file is read.

        Args:
            path: what ``nearfar export RUN --out FILE.onnx`` wrote.
            expect_model_hash: refuse a file that was exported from another model.
            threads: to compute with; None: one for each core.

        Raises:
            InputError: it is missing, damaged, not nearfar's or of another model, or onnxruntime is not installed.
        """
        path = Path(path)
        model = cls(onnxfile.read_file(path), str(path), threads=threads)
        if expect_model_hash is not None and model.model_hash_ != expect_model_hash:
            raise InputError(
                f"{path} was exported from the model {model.model_hash_[:12]}, not from {expect_model_hash[:12]}; "
                "export the run again"
            )
        return model

    def transform(self, X: ImageSet | npt.ArrayLike) -> Floats:
        """Embed images: float32 [N, D], unit rows where the recipe says so.

        Raises:
            InputError: the images cannot be brought to its size and channels.
        """
        images = self.conform(X).images
        if not len(images):
            raise InputError("there are no images to embed")
        return self._run(images)

    def conform(self, X: ImageSet | npt.ArrayLike) -> ImageSet:
        """Images brought to the size and channels that it takes."""
        images = X if isinstance(X, ImageSet) else ImageSet.from_arrays(X)
        return load_images(images, size=self.size_, channels=self.channels_)

    def embed_block(self, pixels: npt.NDArray[np.uint8]) -> Floats:
        """Embed uint8 [N, C, H, W], of its own size and channels: float32 [N, D]. Several threads may call it at once.

        Raises:
            InputError: another shape or type.
        """
        check_block(pixels, self.channels_, self.size_)
        return self._run(pixels)

    def _run(self, images: Any) -> Floats:
        """Embed images [N, C, H, W] of an array or on disk, some at a time; of many each core takes some for itself."""
        share = share_of(len(images), self._threads, most=BATCH) if len(images) > BATCH and self._content else None
        session, size = (self._session, BATCH) if share is None else (self._alone, share)

        def work(at: int) -> Floats:
            found: Floats = session.run(["embedding"], {"images": np.ascontiguousarray(images[at : at + size])})[0]
            return found

        starts = range(0, len(images), size)
        if share is None:
            parts = [work(at) for at in starts]
        else:
            with ThreadPoolExecutor(self._threads) as pool:
                parts = list(pool.map(work, starts))
        z: Floats = np.concatenate(parts)
        check_finite(z)
        return z

    @cached_property
    def _alone(self) -> Any:
        """The same network for calls that compute with one core each; opened when there first are many images."""
        assert self._content is not None
        return _open(self._content, self._where, 1)

    def _check_graph(self) -> None:
        """Refuse a graph that does not take and give what the file says of it."""
        given, got = self._session.get_inputs(), self._session.get_outputs()
        shapes = [[side if isinstance(side, int) else None for side in one.shape] for one in (*given, *got)]
        wanted = [[None, self.channels_, *self.size_], [None, self.dim_]]
        names = [(one.name, one.type) for one in (*given, *got)]
        if names != [("images", "tensor(uint8)"), ("embedding", "tensor(float)")] or shapes != wanted:
            raise InputError(f"{self._where} is damaged: its graph does not take and give what it says; export the run again")


def runtime() -> Any:
    """The module onnxruntime.

    Raises:
        InputError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise InputError('ONNX needs onnxruntime, which is not installed: pip install "nearfar[onnx]"') from None
    return onnxruntime


def _checked_threads(threads: int | None) -> int:
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise InputError(f"threads is {threads!r}, expected a whole number of at least 1")
    return cores() if threads is None else threads


def _open(content: bytes, where: str, threads: int) -> Any:
    ort = runtime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A thread that has nothing to do sleeps: spinning would take the cores from whatever else runs, the web server say.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # what goes wrong comes as an exception
    try:
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions have no common class but this one
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{where} cannot be opened by onnxruntime {ort.__version__}: {reason}; export the run again") from None


def _checked(said: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """What a file says of itself, every part of the kind that it must be."""
    version = said.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise InputError(f"{where} was written by a later nearfar (format {version}, known is {FORMAT}); update nearfar")
    kinds: tuple[tuple[str, type], ...] = (
        ("format", int),
        ("model", str),
        ("recipe", dict),
        ("classes", list),
        ("input", dict),
        ("dimensions", int),
    )
    whole = all(isinstance(said.get(key), kind) for key, kind in kinds)
    if whole:
        channels, size = said["input"].get("channels"), said["input"].get("size")
        sides = isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)
        whole = channels in (1, 3) and sides and all(isinstance(name, str) for name in said["classes"])
    if not whole:
        raise InputError(f"{where} is damaged: what it says of itself is not whole; export the run again")
    return said
