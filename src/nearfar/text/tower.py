"""The text tower: what reads texts, and the network that learns. One face for one trained from nothing and a frozen one.

Knows texts, tensors and its own two files; never images, labels or losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from nearfar.encoders import UnitNorm
from nearfar.errors import InputError, did_you_mean, reason_of
from nearfar.files import hash_file, write_text
from nearfar.text.checks import check_number, check_texts
from nearfar.text.frozen import Sentences
from nearfar.text.tokens import LONGEST, Tokenizer
from nearfar.text.transformer import TextTransformer
from nearfar.training.checkpoint import load_tensors, load_weights, save_tensors

KINDS = ("transformer", "sentence")
WEIGHTS, TOKENIZER = "text.safetensors", "tokenizer.json"
_FORMAT = 1
_TOGETHER = 512
_TOKENIZER_BYTES = 32 << 20


class Reader(Protocol):
    """What turns texts into the inputs of a network."""

    def read(self, texts: Sequence[str]) -> tuple[Tensor, int]:
        """Inputs ``[N, ...]``, and how many texts were longer than the tower takes."""


class Tokens:
    """Reads texts as tokens int64 ``[N, length]``."""

    def __init__(self, tokenizer: Tokenizer, length: int) -> None:
        self.tokenizer, self.length = tokenizer, length

    def read(self, texts: Sequence[str]) -> tuple[Tensor, int]:
        return self.tokenizer.encode(texts, self.length)


class TextTower(nn.Module):
    """Texts to unit rows ``[N, D]``. Make one by `fit` or `load`.

    Its parameters are those that learn; a frozen sentence model is not among them, nor is it in the run folder.
    """

    def __init__(self, reader: Reader, network: nn.Module, settings: dict[str, Any]) -> None:
        """Args:
        reader: turns texts into inputs.
        network: inputs to unit rows.
        settings: what `load` makes the two from: ``kind`` and ``dim`` among them.
        """
        super().__init__()
        self.reader, self.network, self.settings = reader, network, settings
        self.cut = 0
        """How many of the distinct texts that were read last were longer than the tower takes, and were cut."""

    @classmethod
    def fit(
        cls,
        captions: Sequence[str],
        *,
        dim: int,
        kind: str = "transformer",
        vocabulary: int = 8192,
        length: int = 32,
        width: int = 128,
        layers: int = 2,
        heads: int = 4,
        dropout: float = 0.1,
        model: str = "",
    ) -> TextTower:
        """A tower with random weights, and a vocabulary learned from captions.

        The same captions in any order give the same vocabulary; weights come from PyTorch's generator.

        Args:
            captions: those of training.
            dim: D, as the image tower's.
            kind: "transformer" (trained from nothing) or "sentence" (a frozen sentence model, and a learned map to D).
            vocabulary: tokens at most; for a transformer, as all that follow but ``model``.
            length: tokens of a text at most, its end among them; what is longer is cut.
            width: of the transformer.
            layers: of the transformer.
            heads: of its attention.
            dropout: share of values set to zero, and of tokens exchanged for others, while it learns.
            model: name or folder of a sentence model; for the kind "sentence".

        Raises:
            InputError: a setting is out of range, a caption is blank, or a package is not installed.
        """
        check_number("dim", dim, least=1, most=1 << 16)
        if kind == "transformer":
            check_number("length", length, least=2, most=LONGEST)
            tokenizer = Tokenizer.fit(captions, vocabulary)
            shape = {"length": length, "width": width, "layers": layers, "heads": heads, "dim": dim, "dropout": dropout}
            network = TextTransformer(vocabulary=tokenizer.size, **shape)  # type: ignore[arg-type]  # whole numbers and a share, by name
            return cls(Tokens(tokenizer, length), network, {"kind": kind, **shape})
        if kind == "sentence":
            sentences = Sentences(model)
            return cls(sentences, _projection(sentences.width, dim), {"kind": kind, "dim": dim, "model": model})
        raise InputError(f"text.kind is {kind!r}{did_you_mean(kind, KINDS)}")

    @property
    def kind(self) -> str:
        """ "transformer" or "sentence"."""
        return str(self.settings["kind"])

    @property
    def dim(self) -> int:
        """D, the width of what comes out."""
        return int(self.settings["dim"])

    def prepare(self, captions: Sequence[str]) -> Tensor:
        """The network's inputs for all captions, to be kept in memory and indexed: tokens ``[N, L]`` or vectors ``[N, E]``.

        Each distinct text is read once. ``cut`` then says how many were too long.

        Raises:
            InputError: a caption is blank.
        """
        distinct, places = _distinct(check_texts(captions, "captions"))
        inputs, self.cut = self.reader.read(distinct)
        return inputs[places]

    def forward(self, inputs: Tensor) -> Tensor:
        """What `prepare` gave ``[B, ...]`` to unit rows ``[B, D]``, with a gradient for the weights."""
        z: Tensor = self.network(inputs)
        return z

    @torch.no_grad()
    def embed(self, texts: Sequence[str], device: str | None = None) -> npt.NDArray[np.float32]:
        """Embed texts as in use: no dropout, each distinct text once. ``cut`` then says how many were too long.

        Args:
            texts: N of them, none blank.
            device: where to compute, and where the weights then are; None: where they are.

        Returns:
            float32 ``[N, D]``, unit rows.

        Raises:
            InputError: a text is blank, or the weights are broken.
        """
        given = check_texts(texts)
        if not given:
            return np.empty((0, self.dim), dtype=np.float32)
        distinct, places = _distinct(given)
        inputs, self.cut = self.reader.read(distinct)
        if device is not None:
            self.to(device)
        at = next(self.network.parameters()).device
        training = self.training
        self.eval()
        try:
            parts = [self.network(part.to(at)).float().cpu() for part in inputs.split(_TOGETHER)]
        finally:
            self.train(training)
        z: npt.NDArray[np.float32] = torch.cat(parts)[places].numpy()
        if not np.isfinite(z).all():
            raise InputError("the text tower gives NaN or infinity: its weights are broken; train again with a lower rate")
        return z

    def save(self, folder: Path | str) -> str:
        """Write ``text.safetensors``, and ``tokenizer.json`` where there is one; returns the hash of the former.

        It names the hash of the other and all settings in its header.
        """
        folder = Path(folder)
        tokenizer = None
        if isinstance(self.reader, Tokens):
            write_text(folder / TOKENIZER, self.reader.tokenizer.to_json())
            tokenizer = hash_file(folder / TOKENIZER)
        header = {"text": _FORMAT, "settings": self.settings, "tokenizer": tokenizer}
        weights = self.network.state_dict()
        if isinstance(self.reader, Sentences):
            weights = weights | {"probe": self.reader.probe()}
        save_tensors(folder / WEIGHTS, weights, header)
        return hash_file(folder / WEIGHTS)

    @classmethod
    def load(cls, folder: Path | str, digest: str | None = None) -> TextTower:
        """Read what `save` wrote, in eval mode. A frozen sentence model is only opened when the first text is read.

        Args:
            folder: the run folder.
            digest: the hash that ``text.safetensors`` must have; None: any.

        Raises:
            InputError: a file is missing, damaged, or not the one that belongs here.
        """
        folder = Path(folder)
        path = folder / WEIGHTS
        weights, header = load_tensors(path)
        if digest is not None and hash_file(path) != digest:
            raise InputError(f"{path} does not belong to this run: its hash differs; copy the run folder again")
        settings = header.get("settings")
        if header.get("text") != _FORMAT or not isinstance(settings, dict):
            raise InputError(f"{path} is no text tower that this nearfar knows; update nearfar, or copy the run folder again")
        probe = weights.pop("probe", None)
        try:
            reader: Reader
            if settings.get("kind") == "transformer":
                shape = {key: settings[key] for key in ("length", "width", "layers", "heads", "dim", "dropout")}
                tokenizer = _read_tokenizer(folder / TOKENIZER, header.get("tokenizer"))
                with torch.device("meta"):  # no memory is taken on the word of a header
                    network: nn.Module = TextTransformer(vocabulary=tokenizer.size, **shape)
                reader = Tokens(tokenizer, shape["length"])
            elif settings.get("kind") == "sentence" and probe is not None:
                with torch.device("meta"):
                    network = _projection(int(weights["0.weight"].shape[1]), int(settings["dim"]))
                reader = Sentences(str(settings["model"]), probe=probe)
            else:
                raise InputError(f"{path} is damaged: {settings.get('kind')!r} is no kind of text tower")
        except (KeyError, TypeError, ValueError, IndexError, RuntimeError, OverflowError, MemoryError) as error:
            if isinstance(error, InputError) and str(folder) in str(error):
                raise  # it names its file already
            raise InputError(f"{path} is damaged: its settings make no text tower ({reason_of(error)})") from None
        if not all(value.is_floating_point() for value in weights.values()):
            raise InputError(f"{path} is damaged: its weights are not numbers with a point")
        load_weights(network, weights, path)
        return cls(reader, network, settings).eval()


def _projection(width: int, dim: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, dim), UnitNorm())


def _distinct(texts: list[str]) -> tuple[list[str], Tensor]:
    """The distinct texts in order of their first place, and which of them each text is ``[N]``."""
    numbers: dict[str, int] = {}
    places = [numbers.setdefault(text, len(numbers)) for text in texts]
    return list(numbers), torch.tensor(places, dtype=torch.long)


def _read_tokenizer(path: Path, digest: Any) -> Tokenizer:
    try:
        size = path.stat().st_size
        content = path.read_bytes() if size <= _TOKENIZER_BYTES else b""
    except FileNotFoundError:
        raise InputError(f"{path} is missing; copy the run folder again") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if size > _TOKENIZER_BYTES:
        raise InputError(f"{path} is damaged: it has {size:,} bytes, a tokenizer has {_TOKENIZER_BYTES:,} at most")
    if hash_file(path) != digest:
        raise InputError(f"{path} does not belong to {path.parent / WEIGHTS}: its hash differs; copy the run folder again")
    return Tokenizer.from_json(content, str(path))
