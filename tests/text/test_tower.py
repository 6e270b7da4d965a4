"""The text tower trained from nothing: reading, learning, and what its two files may hold."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from nearfar.errors import InputError
from nearfar.files import hash_file
from nearfar.losses import CLIPLoss, of_towers
from nearfar.text import TextTower
from nearfar.text.tokens import PAD
from nearfar.text.transformer import TextTransformer
from nearfar.training.checkpoint import load_tensors, save_tensors

WORDS = ("shirt", "boots", "bag", "coat")
CAPTIONS = [form.format(word) for form in ("a {}", "the {} here", "one more {}") for word in WORDS]
SETTINGS: dict[str, Any] = {"dim": 6, "vocabulary": 300, "length": 8, "width": 16, "layers": 1, "heads": 2}


@pytest.fixture
def tower() -> TextTower:
    torch.manual_seed(0)
    return TextTower.fit(CAPTIONS, **SETTINGS)


def plain(net: TextTransformer, tokens: list[int]) -> Tensor:
    """One text without padding, by PyTorch's own layers and a loop over heads."""
    x = torch.stack([net.tokens.weight[token] + net.places[place] for place, token in enumerate(tokens)])
    for block in net.blocks:
        width, heads = x.shape[1], block.heads
        query, key, value = F.linear(block.norm_attention(x), block.mix.weight, block.mix.bias).split(width, dim=1)
        found = []
        for part in torch.arange(width).chunk(heads):
            weights = torch.softmax(query[:, part] @ key[:, part].T / len(part) ** 0.5, dim=1)
            found.append(weights @ value[:, part])
        x = x + block.join(torch.cat(found, dim=1))
        x = x + block.net[2](F.gelu(block.net[0](block.norm_net(x))))
    return F.normalize(net.out(net.norm(x).mean(0)), dim=0)


def test_the_transformer_is_the_plain_formula_whatever_the_padding() -> None:
    torch.manual_seed(1)
    net = TextTransformer(vocabulary=30, length=7, width=12, layers=2, heads=3, dim=5).double().eval()
    torch.nn.init.normal_(net.places)
    texts = [[5, 9, 29, 1], [7, 1], [2, 3, 4, 5, 6, 7, 1]]
    rows = torch.tensor([[*text, *[PAD] * (7 - len(text))] for text in texts])
    wanted = torch.stack([plain(net, text) for text in texts])
    assert torch.allclose(net(rows).double(), wanted, atol=1e-6)
    assert torch.allclose(net(rows[:2, :4]), net(rows[:2]), atol=1e-6)
    assert torch.allclose(torch.linalg.vector_norm(net(rows), dim=1), torch.ones(3))


def test_while_it_learns_a_share_of_tokens_is_exchanged_but_never_the_marks() -> None:
    torch.manual_seed(0)
    net = TextTransformer(vocabulary=1000, length=7, width=12, layers=0, heads=3, dim=5, dropout=0.3)
    rows, seen = torch.tensor([[5, 9, 29, 8, 1, 0, 0]]).expand(2000, 7), []
    net.tokens.register_forward_hook(lambda layer, arguments, out: seen.append(arguments[0]))
    net(rows)
    changed = seen[0] != rows[:, :5]
    assert changed[:, :4].double().mean() == pytest.approx(0.3, abs=0.03)
    assert not changed[:, 4].any()
    assert seen[0][:, :4].min() > 1
    assert seen[0].max() > 900
    net.eval()(rows)
    assert torch.equal(seen[1], rows[:, :5])


def test_padding_alone_is_a_finite_row() -> None:
    net = TextTransformer(vocabulary=30, length=7, width=12, layers=1, heads=3, dim=5).eval()
    assert torch.isfinite(net(torch.zeros(2, 7, dtype=torch.long))).all()


def test_prepare_and_forward_are_embed(tower: TextTower) -> None:
    texts = [CAPTIONS[3], CAPTIONS[0], CAPTIONS[3]]
    inputs = tower.prepare(texts)
    assert inputs.shape == (3, 8)
    assert inputs.dtype == torch.int64
    z = tower.eval()(inputs).detach().numpy()
    found = tower.train().embed(texts)
    assert found.dtype == np.float32
    assert np.allclose(found, z, atol=1e-6)
    assert np.array_equal(found[0], found[2])
    assert np.allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-6)
    assert tower.training  # as it was
    assert tower.embed([]).shape == (0, 6)


def test_each_distinct_text_is_read_once(tower: TextTower, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(tower.reader, "read", lambda texts, real=tower.reader.read: (read.extend(texts), real(texts))[1])
    tower.prepare(CAPTIONS * 50)
    assert read == CAPTIONS
    assert len(tower.embed(["a bag"] * 1000)) == 1000
    assert read[len(CAPTIONS) :] == ["a bag"]


def test_long_texts_are_counted_once_each(tower: TextTower) -> None:
    tower.prepare(["one more " * 20, "a bag", "one more " * 20])
    assert tower.cut == 1
    tower.embed(["a bag"])
    assert tower.cut == 0


def test_the_same_seed_and_captions_make_the_same_tower(tower: TextTower) -> None:
    torch.manual_seed(0)
    again = TextTower.fit(CAPTIONS[::-1], **SETTINGS)
    assert np.array_equal(again.embed(CAPTIONS), tower.embed(CAPTIONS))


def test_a_deep_copy_learns_on_its_own(tower: TextTower) -> None:
    other = copy.deepcopy(tower)
    before = tower.embed(CAPTIONS)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(0.1)
    assert np.array_equal(tower.embed(CAPTIONS), before)
    assert not np.allclose(other.embed(CAPTIONS), before)


def test_it_learns_where_its_captions_belong_and_an_unseen_form_of_them(tower: TextTower) -> None:
    places = F.normalize(torch.randn(len(WORDS), 6), dim=1)
    labels, inputs, loss = torch.arange(len(CAPTIONS)) % len(WORDS), tower.prepare(CAPTIONS), CLIPLoss()
    optimizer = torch.optim.Adam([*tower.parameters(), *loss.parameters()], lr=0.01)
    tower.train()
    for _ in range(60):
        optimizer.zero_grad()
        of_towers(loss, places[labels], tower(inputs), labels).backward()
        optimizer.step()
    found = tower.embed([f"one {word} here" for word in WORDS]) @ places.numpy().T
    assert found.argmax(axis=1).tolist() == [0, 1, 2, 3]


def test_two_files_hold_it_whole(tower: TextTower, tmp_path: Path) -> None:
    digest = tower.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.safetensors", "tokenizer.json"]
    assert digest == hash_file(tmp_path / "text.safetensors")
    again = TextTower.load(tmp_path, digest)
    assert not again.training
    assert again.kind == "transformer"
    assert again.dim == 6
    assert np.array_equal(again.embed(CAPTIONS), tower.embed(CAPTIONS))
    assert again.save(tmp_path / "copy") == digest


def reheader(folder: Path, change: Any) -> None:
    weights, header = load_tensors(folder / "text.safetensors")
    change(weights, header)
    save_tensors(folder / "text.safetensors", weights, header)


def cut_short(folder: Path) -> None:
    path = folder / "text.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def other_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tree = json.loads(path.read_text())
    path.write_text(json.dumps(tree))


def bare(folder: Path) -> None:
    safetensors.torch.save_file({"a": torch.zeros(2)}, folder / "text.safetensors")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / "text.safetensors").unlink(), "text.safetensors is missing"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (cut_short, "text.safetensors is damaged"),
        (other_tokenizer, "tokenizer.json does not belong to .*text.safetensors: its hash differs"),
        (bare, "is no text tower that this nearfar knows"),
        (lambda folder: reheader(folder, lambda w, h: h.update(text=2)), "is no text tower that this nearfar knows"),
        (lambda folder: reheader(folder, lambda w, h: h["settings"].update(kind="magic")), "'magic' is no kind of text tower"),
        (lambda folder: reheader(folder, lambda w, h: h["settings"].pop("heads")), "its settings make no text tower"),
        (lambda folder: reheader(folder, lambda w, h: h["settings"].update(width=10**9)), "settings make no text tower"),
        (lambda folder: reheader(folder, lambda w, h: h["settings"].update(width=64)), "does not belong to this network"),
        (lambda folder: reheader(folder, lambda w, h: h["settings"].update(width="big")), "settings make no text tower"),
        (lambda folder: reheader(folder, lambda w, h: w.update(places=w["places"].long())), "its weights are not numbers"),
        (lambda folder: reheader(folder, lambda w, h: w.update(more=torch.zeros(3))), "does not belong to this network"),
    ],
)
def test_a_damaged_tower_is_one_line(tower: TextTower, tmp_path: Path, harm: Any, message: str) -> None:
    tower.save(tmp_path)
    harm(tmp_path)
    with pytest.raises(InputError, match=message) as refused:
        TextTower.load(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_tower_of_another_run_is_refused(tower: TextTower, tmp_path: Path) -> None:
    tower.save(tmp_path)
    with pytest.raises(InputError, match="does not belong to this run: its hash differs"):
        TextTower.load(tmp_path, "0" * 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "transfomer"}, "text.kind is 'transfomer'; did you mean 'transformer'"),
        ({"heads": 3}, "text.heads is 3, which does not divide text.width, 16"),
        ({"width": 0}, "text.width is 0; expected a whole number from 1"),
        ({"length": 5000}, "text.length is 5000"),
        ({"dropout": 1.0}, "text.dropout is 1.0; expected a number from 0 to 0.9"),
        ({"dim": True}, "text.dim is True"),
        ({"kind": "sentence"}, 'text.kind "sentence" needs text.model'),
    ],
)
def test_settings_are_checked(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TextTower.fit(CAPTIONS, **{**SETTINGS, **change})


def test_blank_texts_are_named(tower: TextTower) -> None:
    with pytest.raises(InputError, match=r"captions\[1\] is '\\n', an empty text"):
        tower.prepare(["a bag", "\n"])
    with pytest.raises(InputError, match=r"texts\[0\] is ''"):
        tower.embed([""])


def test_broken_weights_are_one_line(tower: TextTower) -> None:
    with torch.no_grad():
        next(tower.parameters()).fill_(float("nan"))
    with pytest.raises(InputError, match="its weights are broken"):
        tower.embed(["a bag"])
