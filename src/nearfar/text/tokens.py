"""Texts as numbers: byte-level byte-pair encoding (Sennrich, Haddow, Birch 2016; Radford et al. 2019), fitted to captions.

Lower-cased, NFC, runs of white space taken as one space. Every text can be encoded, since single bytes are in the
vocabulary. Numbers 0 and 1 are padding and the end, and no text can contain them. Knows texts and numbers; no tensors'
meaning, no network.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nearfar.errors import InputError
from nearfar.files import NOT_JSON
from nearfar.text.checks import check_number, check_texts, need

PAD, END = 0, 1
LEAST, MOST = 258, 1 << 17
"""Sizes that a vocabulary may have: two marks and 256 bytes at least."""
LONGEST = 1024
"""How many tokens a text may have."""
_MARKS = ("\N{MATHEMATICAL LEFT ANGLE BRACKET}pad\N{MATHEMATICAL RIGHT ANGLE BRACKET}",
          "\N{MATHEMATICAL LEFT ANGLE BRACKET}end\N{MATHEMATICAL RIGHT ANGLE BRACKET}")  # fmt: skip
"""Their names hold characters that no byte is written as, so that no pair of tokens ever becomes one of them."""
_BYTES_READ = 32 << 20


class Tokenizer:
    """A vocabulary and its merges; never changed once made.

    Make one with `fit` or `from_json`.
    """

    def __init__(self, merges: Sequence[tuple[str, str]]) -> None:
        """Args:
        merges: pairs of tokens in the order in which they become one token.

        Raises:
            InputError: a merge is of tokens that do not exist yet, or ``tokenizers`` is not installed.
        """
        need("tokenizers", "text", "a text tower")
        self._merges = [(left, right) for left, right in merges]
        vocabulary = _vocabulary(self._merges)
        self._coder = _coder(vocabulary, self._merges)
        self.size = len(vocabulary)
        """How many tokens there are, the two marks among them."""
        self._widest = max(len(token) for token in vocabulary)

    @classmethod
    def fit(cls, captions: Sequence[str], vocabulary: int = 8192) -> Tokenizer:
        """Learn the pairs of bytes that occur most often.

        Args:
            captions: texts, whose order does not matter.
            vocabulary: how many tokens to learn at most, the 256 bytes and two marks among them; few captions give fewer.

        Raises:
            InputError: a caption is blank, there is none, or ``vocabulary`` is out of range.
        """
        need("tokenizers", "text", "a text tower")
        from tokenizers import models, pre_tokenizers, trainers

        check_number("vocabulary", vocabulary, least=LEAST, most=MOST)
        texts = check_texts(captions, "captions")
        if not texts:
            raise InputError("there are no captions to make a vocabulary of; give the training captions")
        coder = _coder({}, [])
        coder.model = models.BPE()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary - len(_MARKS),
            min_frequency=2,
            max_token_length=64,
            initial_alphabet=alphabet,
            show_progress=False,
        )
        coder.train_from_iterator(sorted(texts), trainer)  # in one order, so that equal counts are settled alike
        return cls(_merges(json.loads(coder.to_str())["model"]))

    def encode(self, texts: Sequence[str], length: int) -> tuple[Tensor, int]:
        """Return tokens int64 ``[N, length]``, each row ended by 1 and filled up with 0, and how many texts were cut.

        Raises:
            InputError: a text is blank, or ``length`` is out of range.
        """
        check_number("length", length, least=2, most=LONGEST)
        # What lies beyond the most that so many tokens can hold is not looked at. A character is one byte at least.
        longest = 4 * length * self._widest
        short = [" ".join(text.split())[:longest] for text in check_texts(texts)]
        rows = torch.full((len(short), length), PAD)
        places, cut = rows.numpy(), 0
        for start in range(0, len(short), 4096):
            for number, one in enumerate(self._coder.encode_batch_fast(short[start : start + 4096]), start):
                ids = one.ids
                cut += len(ids) >= length
                del ids[length - 1 :]
                ids.append(END)
                places[number, : len(ids)] = ids
        return rows, cut

    def words(self, text: str) -> list[str]:
        """The tokens of ``text`` as bytes are written, for looking at."""
        tokens: list[str] = self._coder.encode(" ".join(text.split())).tokens
        return tokens

    def to_json(self) -> str:
        """The whole as JSON, in the form that the package ``tokenizers`` reads as well."""
        tree = json.loads(self._coder.to_str())
        return json.dumps(tree, ensure_ascii=False, indent=1) + "\n"

    @classmethod
    def from_json(cls, content: str | bytes, name: str = "tokenizer.json") -> Tokenizer:
        """Read what `to_json` wrote. Only vocabulary and merges are taken from it; they must agree.

        Raises:
            InputError: it is damaged, too large, or another kind of tokenizer; ``name`` is said in the message.
        """
        if len(content) > _BYTES_READ:
            raise InputError(f"{name} is damaged: it has {len(content):,} bytes, a tokenizer has {_BYTES_READ:,} at most")
        try:
            tree = json.loads(content)
            model = tree["model"]
            merges, vocabulary = _merges(model), model["vocab"]
        except (*NOT_JSON, KeyError, TypeError) as error:
            raise InputError(f"{name} is damaged: {type(error).__name__}, {str(error)[:80]}") from None
        if len(merges) > MOST - LEAST:
            raise InputError(f"{name} is damaged: it has {len(merges):,} merges, {MOST - LEAST:,} is the most")
        try:
            if vocabulary != _vocabulary(merges):
                raise InputError("its vocabulary is not that of its merges")
            return cls(merges)
        except InputError as error:
            raise InputError(f"{name} is damaged: {error}") from None

    def __deepcopy__(self, memo: Any) -> Tokenizer:
        return self


def _merges(model: Any) -> list[tuple[str, str]]:
    """The merges of a model as ``tokenizers`` writes it; ValueError where they are none."""
    found = []
    for pair in model["merges"]:
        pair = pair.split(" ") if isinstance(pair, str) else pair
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(one, str) for one in pair)):
            raise ValueError(f"a merge is {str(pair)[:40]!r}, not two tokens")
        found.append((pair[0], pair[1]))
    return found


def _vocabulary(merges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Tokens and their numbers: marks, bytes, and what the merges make."""
    from tokenizers import pre_tokenizers

    tokens = [*_MARKS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    numbers = {token: number for number, token in enumerate(tokens)}
    for number, (left, right) in enumerate(merges):
        if left in _MARKS or right in _MARKS or left not in numbers or right not in numbers:
            raise InputError(f"merge {number} is of {left[:20]!r} and {right[:20]!r}, which are not both tokens by then")
        if len(left) + len(right) > LONGEST:
            raise InputError(f"merge {number} makes a token of more than {LONGEST:,} bytes")
        numbers.setdefault(left + right, len(numbers))
    return numbers


def _coder(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    coder = Tokenizer(models.BPE(vocabulary, merges))
    coder.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    # A space before the first word too: a word is the same token wherever it stands.
    coder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)
    coder.decoder = decoders.ByteLevel()
    return coder
