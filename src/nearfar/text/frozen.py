"""A sentence model that stays as it is, as the reader of a text tower: each text becomes a vector that a learned map takes.

Knows the package ``sentence-transformers``, which is imported and whose model is opened when the first text is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nearfar.errors import InputError
from nearfar.text.checks import check_texts, need
from nearfar.torchvision import make_importable

_PROBE = "a photo of something"
_NEAR = 1e-2


class Sentences:
    """Reads texts as vectors float32 ``[N, E]`` of a frozen model.

    Args:
        model: a name on the hub, or the folder of a model; a folder needs no network.
        probe: the vector of one certain text, ``[E]``, by which another model under the same name is noticed.
    """

    def __init__(self, model: str, *, probe: Tensor | None = None) -> None:
        if not model:
            raise InputError(
                'text.kind "sentence" needs text.model, the name or the folder of a sentence-transformers model, '
                'e.g. model = "sentence-transformers/all-MiniLM-L6-v2"'
            )
        need("sentence_transformers", "sentence", 'text.kind "sentence"')
        self.model = model
        self._expected = probe
        self._opened: Any = None

    @property
    def width(self) -> int:
        """E; opens the model."""
        return len(self.probe())

    def probe(self) -> Tensor:
        """The vector of one certain text, ``[E]``."""
        return self._vectors([_PROBE])[0]

    def read(self, texts: Sequence[str]) -> tuple[Tensor, int]:
        """Vectors ``[N, E]``, and how many texts were longer than the model takes.

        Raises:
            InputError: a text is blank, or the model cannot be opened, or is another one than the tower learned with.
        """
        given = check_texts(texts)
        vectors = self._vectors(given)
        return vectors, self._too_long(given)

    def _vectors(self, texts: list[str]) -> Tensor:
        found: Tensor = self._open().encode(texts, convert_to_tensor=True, convert_to_numpy=False, show_progress_bar=False)
        return found.float().cpu().clone()  # a tensor that may learn comes of inference mode's by cloning

    def _too_long(self, texts: list[str]) -> int:
        model = self._open()
        most = model.get_max_seq_length()
        if most is None:
            return 0
        rows = model.tokenizer(texts, truncation=False, padding=False, verbose=False)["input_ids"]
        return sum(len(row) > most for row in rows)

    def _open(self) -> Any:
        if self._opened is None:
            make_importable()
            from sentence_transformers import SentenceTransformer

            try:
                # safetensors only: a model from a stranger must be safe to load.
                safe, there = {"use_safetensors": True}, Path(self.model).is_dir()
                model = SentenceTransformer(self.model, device="cpu", model_kwargs=safe, local_files_only=there)
            except Exception as error:  # whatever its many parts may raise
                reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
                raise InputError(
                    f"cannot open the sentence model {self.model!r}: {reason}; give the folder of a model, or a name on the hub"
                ) from error
            self._opened = model.eval().requires_grad_(False)
            self._check()
        return self._opened

    def _check(self) -> None:
        if self._expected is None:
            return
        found = self.probe()
        if found.shape != self._expected.shape or not torch.allclose(found, self._expected, atol=_NEAR * float(found.norm())):
            self._opened = None
            raise InputError(f"{self.model!r} is another sentence model than the one that this tower learned with")

    def __deepcopy__(self, memo: Any) -> Sentences:
        return self
