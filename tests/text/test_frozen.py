"""A frozen sentence model as text tower; the model is tiny and random, made in the test's folder.

Slow, since importing its package takes some seconds.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nearfar.errors import InputError
from nearfar.losses import CLIPLoss, of_towers
from nearfar.text import TextTower
from nearfar.torchvision import make_importable
from nearfar.training.checkpoint import load_tensors, save_tensors

CAPTIONS = ["a red shirt", "a blue bag", "one pair of boots", "a red shirt"]


@pytest.fixture(scope="module")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a random sentence model to a folder; one seed, one model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_importable()
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
        from transformers import BertConfig, BertModel, BertTokenizerFast

    def make(seed: int, width: int = 24) -> Path:
        folder = tmp_path_factory.mktemp("model")
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({word for one in CAPTIONS for word in one.split()})]
        (folder / "vocab.txt").write_text("\n".join([*words, "photo", "of", "something"]) + "\n")
        torch.manual_seed(seed)
        shape = {"hidden_size": width, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        bert = BertModel(BertConfig(vocab_size=len(words) + 3, max_position_embeddings=16, **shape))
        bert.save_pretrained(folder / "bert")
        BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=8).save_pretrained(folder / "bert")
        part = Transformer(str(folder / "bert"))
        SentenceTransformer(modules=[part, Pooling(part.get_embedding_dimension())], device="cpu").save(str(folder / "whole"))
        return folder / "whole"

    return make


@pytest.fixture(scope="module")
def model(make_model: Callable[..., Path]) -> Path:
    return make_model(0)


def tower_of(model: Path, **changes: Any) -> TextTower:
    torch.manual_seed(1)
    return TextTower.fit(CAPTIONS, **{"dim": 6, "kind": "sentence", "model": str(model)} | changes)


@pytest.mark.slow
def test_it_is_a_map_of_the_model_s_own_vectors(model: Path) -> None:
    from sentence_transformers import SentenceTransformer

    tower = tower_of(model)
    own = SentenceTransformer(str(model), device="cpu").encode(CAPTIONS, convert_to_tensor=True).float().cpu().clone()
    inputs = tower.prepare(CAPTIONS)
    assert inputs.shape == (4, 24)
    assert torch.allclose(inputs, own, atol=1e-6)
    assert torch.equal(inputs[0], inputs[3])
    weight, bias = tower.network[0].weight, tower.network[0].bias  # type: ignore[index]
    wanted = F.normalize(own @ weight.T + bias, dim=1).detach().numpy()
    assert np.allclose(tower.embed(CAPTIONS), wanted, atol=1e-6)


@pytest.mark.slow
def test_only_the_map_learns(model: Path) -> None:
    tower = tower_of(model)
    assert [tuple(one.shape) for one in tower.parameters()] == [(6, 24), (6,)]
    assert set(tower.state_dict()) == {"network.0.weight", "network.0.bias"}
    inputs, y, loss = tower.prepare(CAPTIONS), torch.tensor([0, 1, 2, 0]), CLIPLoss()
    places = F.normalize(torch.randn(4, 6), dim=1)[y]
    optimizer = torch.optim.Adam(tower.parameters(), lr=0.05)
    for _ in range(80):
        optimizer.zero_grad()
        of_towers(loss, places, tower(inputs), y).backward()
        optimizer.step()
    assert (tower.embed(CAPTIONS) @ places.numpy().T).argmax(axis=1).tolist() == [0, 1, 2, 0]
    assert torch.equal(tower.prepare(CAPTIONS), inputs)
    assert copy.deepcopy(tower).reader is tower.reader


@pytest.mark.slow
def test_long_texts_are_counted(model: Path) -> None:
    tower = tower_of(model)
    tower.prepare(["a red bag", "red " * 50, "red " * 50])
    assert tower.cut == 1


@pytest.mark.slow
def test_it_is_saved_without_the_model_and_finds_another_one_out(make_model: Callable[..., Path], tmp_path: Path) -> None:
    model, other = make_model(0), make_model(5)
    tower = tower_of(model)
    digest = tower.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["text.safetensors"]
    assert (tmp_path / "text.safetensors").stat().st_size < 5_000
    again = TextTower.load(tmp_path, digest)
    assert again.kind == "sentence"
    assert np.allclose(again.embed(CAPTIONS), tower.embed(CAPTIONS), atol=1e-6)
    assert again.save(tmp_path / "copy") == digest
    model.rename(model.parent / "aside")
    other.rename(model)
    with pytest.raises(InputError, match="is another sentence model than the one that this tower learned with"):
        TextTower.load(tmp_path).embed(CAPTIONS)


@pytest.mark.slow
def test_what_cannot_be_opened_is_one_line(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot open the sentence model '.*nothing here'") as refused:
        tower_of(tmp_path / "nothing here")
    assert "\n" not in str(refused.value)
    tower_of(model).save(tmp_path)
    weights, header = load_tensors(tmp_path / "text.safetensors")
    weights.pop("probe")
    save_tensors(tmp_path / "text.safetensors", weights, header)
    with pytest.raises(InputError, match="is damaged: 'sentence' is no kind of text tower"):
        TextTower.load(tmp_path)


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"sentence-transformers is not installed, .* run: pip install 'nearfar\[sentence\]'"):
        tower_of(Path("anywhere"))
