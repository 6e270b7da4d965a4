"""Texts as tokens: what is the same, what is cut, and what a file may not say."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearfar.errors import InputError
from nearfar.text.tokens import END, LEAST, PAD, Tokenizer

CAPTIONS = [
    f"a {size} {colour} {thing}" for size in ("small", "large") for colour in ("red", "Blue") for thing in ("shirt", "boots")
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.fit(CAPTIONS, 400)


def test_the_order_of_captions_does_not_matter() -> None:
    shuffled = CAPTIONS.copy()
    random.Random(3).shuffle(shuffled)
    assert Tokenizer.fit(shuffled, 300).to_json() == Tokenizer.fit(CAPTIONS, 300).to_json()
    assert Tokenizer.fit(CAPTIONS[:4], 300).to_json() != Tokenizer.fit(CAPTIONS, 300).to_json()


def test_frequent_words_are_one_token_and_the_size_is_kept(tokenizer: Tokenizer) -> None:
    assert tokenizer.words("a small shirt") == ["Ġa", "Ġsmall", "Ġshirt"]
    assert LEAST < tokenizer.size <= 400
    assert Tokenizer.fit(CAPTIONS, 262).size == 262
    assert Tokenizer.fit(["x"], 8192).size == LEAST  # nothing occurs twice


def test_rows_end_and_are_filled_up(tokenizer: Tokenizer) -> None:
    rows, cut = tokenizer.encode(["a red shirt", "boots"], 6)
    assert rows.shape == (2, 6)
    assert cut == 0
    assert rows[0, 3:].tolist() == [END, PAD, PAD]
    assert rows[1, 1:].tolist() == [END, PAD, PAD, PAD, PAD]
    assert rows.max() < tokenizer.size


def test_long_texts_are_cut_and_counted(tokenizer: Tokenizer) -> None:
    rows, cut = tokenizer.encode(["a red shirt", "a small red shirt", "a " * 1_000_000, "a" + " " * 1_000_000], 4)
    assert cut == 2
    assert rows[:, -1].tolist() == [END, END, END, PAD]
    assert rows[1, :3].tolist() == tokenizer.encode(["a small red"], 4)[0][0, :3].tolist()
    assert tokenizer.encode(["a red shirt"], 4)[1] == 0  # three tokens and the end: just so


def test_case_composition_and_white_space_do_not_matter(tokenizer: Tokenizer) -> None:
    rows, _ = tokenizer.encode(["a caf\u00e9 red", "  A\tCafe\u0301 \n RED ", "a caf\u00e9  red"], 16)
    assert (rows == rows[0]).all()


@pytest.mark.parametrize("text", ["⟨pad⟩", "⟨end⟩", "<pad>", "a ⟨end⟩ shirt", "\x00\x01", "\U0001f45f"])
def test_no_text_contains_the_marks(tokenizer: Tokenizer, text: str) -> None:
    rows, _ = tokenizer.encode([text], 40)
    ids = rows[0].tolist()
    end = ids.index(END)
    assert PAD not in ids[:end]
    assert ids[end + 1 :] == [PAD] * (39 - end)
    assert Tokenizer.fit([text] * 9 + CAPTIONS, 500).encode([text], 40)[0][0, 0] > END


@settings(max_examples=40, deadline=None, derandomize=True)
@given(texts=st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=40).filter(str.strip), min_size=1, max_size=5))
def test_any_text_comes_back_through_a_file(tokenizer: Tokenizer, texts: list[str]) -> None:
    again = Tokenizer.from_json(tokenizer.to_json())
    one, other = tokenizer.encode(texts, 24), again.encode(texts, 24)
    assert (one[0] == other[0]).all()
    assert one[1] == other[1]


def test_the_package_reads_the_file_as_well(tokenizer: Tokenizer) -> None:
    from tokenizers import Tokenizer as Theirs

    theirs = Theirs.from_str(tokenizer.to_json())
    text = "A  large BLUE shirt, caf\u00e9"
    ids = theirs.encode(text).ids
    assert tokenizer.encode([text], 40)[0][0, : len(ids)].tolist() == ids
    assert theirs.decode(ids).strip() == "a large blue shirt, caf\u00e9"


def spoil(change: Any) -> Any:
    def spoiled(content: str) -> str:
        tree = json.loads(content)
        change(tree)
        return json.dumps(tree)

    return spoiled


@pytest.mark.parametrize(
    "change",
    [
        lambda content: "",
        lambda content: content[: len(content) // 2],
        lambda content: "[]",
        lambda content: "[" * 200_000,
        lambda content: '{"model": 3}',
        lambda content: b"\xff\xfe" + content.encode(),
        spoil(lambda tree: tree["model"].pop("merges")),
        spoil(lambda tree: tree["model"]["merges"].append(["nowhere", "seen"])),
        spoil(lambda tree: tree["model"]["merges"].append(["⟨pad⟩", "a"])),
        spoil(lambda tree: tree["model"]["merges"].append([1, 2])),
        spoil(lambda tree: tree["model"]["merges"].append("a")),
        spoil(lambda tree: tree["model"]["merges"].pop()),
        spoil(lambda tree: tree["model"]["vocab"].update({"Ġa": 0})),
        spoil(lambda tree: tree["model"]["merges"].extend([["a" * 2**n, "a" * 2**n] for n in range(12)])),
        spoil(lambda tree: tree["model"]["merges"].extend([["a", "b"]] * 200_000)),
    ],
)
def test_a_damaged_file_is_one_line(tokenizer: Tokenizer, change: Any) -> None:
    with pytest.raises(InputError, match=r"RUN/tokenizer.json is damaged: ") as refused:
        Tokenizer.from_json(change(tokenizer.to_json()), "RUN/tokenizer.json")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


def test_what_else_a_file_says_is_not_taken(tokenizer: Tokenizer) -> None:
    tree = json.loads(tokenizer.to_json())
    tree["normalizer"] = {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}
    tree["added_tokens"] = [{"id": 5, "content": "red", "special": True}]
    again = Tokenizer.from_json(json.dumps(tree))
    assert again.to_json() == tokenizer.to_json()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: Tokenizer.fit([], 300), "there are no captions"),
        (lambda t: Tokenizer.fit(["a", " "], 300), r"captions\[1\] is ' ', an empty text"),
        (lambda t: Tokenizer.fit(["a"], 257), "text.vocabulary is 257; expected a whole number from 258 to"),
        (lambda t: t.encode(["a", ""], 8), r"texts\[1\] is '', an empty text"),
        (lambda t: t.encode(["a", None], 8), r"texts\[1\] is None, a NoneType"),
        (lambda t: t.encode("a shirt", 8), "texts is one string, 'a shirt'; give a list of strings"),
        (lambda t: t.encode(["\ud800"], 8), r"texts\[0\] is '\\ud800', which is not valid Unicode"),
        (lambda t: t.encode(["a"], 1), "text.length is 1; expected a whole number from 2"),
    ],
)
def test_wrong_input_is_named(tokenizer: Tokenizer, call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(tokenizer)


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"tokenizers is not installed, .* run: pip install 'nearfar\[text\]'"):
        Tokenizer.fit(CAPTIONS)
