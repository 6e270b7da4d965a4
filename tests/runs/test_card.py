"""The model card: what hubs read of it is what was measured, whatever names and paths hold."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, metadata_load
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import TINY, shapes

from nearfar import verbs
from nearfar.errors import InputError
from nearfar.recipe import Recipe
from nearfar.runs.card import card, quoted, write_card

EVIL = 'a: [b]\n---\n"c" \\ #d\x85\u2028{e}\x7f\ufffe!!python/object:os.system &f *f'


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "bars"
    recipe = {**TINY, "name": "bars: tiny", "data": {"size": [12, 12], "channels": 1, "test": 0.3}}
    verbs.train(shapes(90, name="bars"), recipe=Recipe.from_dict(recipe), out=folder)
    verbs.evaluate(folder, shapes(60, seed=1, name="bars"))
    return folder


def parts(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    return json.loads((folder / "config.json").read_text()), json.loads((folder / "metrics.json").read_text())


def test_what_a_hub_reads_are_the_figures_of_the_run(run: Path) -> None:
    _, metrics = parts(run)
    data = ModelCard.load(run / "README.md").data
    assert data.library_name == "nearfar"
    assert data.pipeline_tag == "image-feature-extraction"
    assert data.model_name == "bars: tiny"
    found = {one.metric_type: one for one in data.eval_results}
    for section, key in (
        ("classification", "accuracy"),
        ("classification", "f1_macro"),
        ("retrieval", "recall@1"),
        ("retrieval", "map@r"),
        ("clustering", "nmi"),
        ("verification", "auroc"),
        ("verification", "eer"),
    ):
        one = found[key.replace("@", "_at_")]
        assert one.metric_value == metrics[section][key]
        assert (one.task_type, one.dataset_name, one.dataset_split) == ("image-feature-extraction", "bars", "test")
    assert len(data.eval_results) == len(found) == sum("| " in line for line in body_rows(run))
    assert metadata_load(run / "README.md")["model-index"][0]["name"] == "bars: tiny"


def body_rows(run: Path) -> list[str]:
    text = (run / "README.md").read_text()
    table = text[text.index("|---|---|") :].split("\n\n")[0]
    return table.splitlines()[1:]


def test_the_card_shows_the_same_figures_to_people(run: Path) -> None:
    shown = {row.split("|")[1].strip(): row.split("|")[2].split()[0] for row in body_rows(run)}
    for one in ModelCard.load(run / "README.md").data.eval_results:
        assert shown[one.metric_name] == f"{one.metric_value:.4f}"


def test_names_and_paths_of_strangers_stay_text(run: Path, tmp_path: Path) -> None:
    config, metrics = copy.deepcopy(parts(run))
    config["recipe"]["name"] = config["recipe"]["description"] = config["data"]["source"] = metrics["data"]["source"] = EVIL
    metrics["data"]["split"] = EVIL
    config["classes"] = [EVIL, "---", "x"]
    path = tmp_path / "README.md"
    path.write_text(card(config, metrics))
    data = ModelCard.load(path).data
    assert data.model_name == EVIL
    assert {one.dataset_split for one in data.eval_results} == {EVIL}
    assert data.eval_results[0].metric_value == metrics["classification"]["accuracy"]


def test_paths_are_not_told_to_strangers(run: Path, tmp_path: Path) -> None:
    config, metrics = copy.deepcopy(parts(run))
    metrics["data"]["source"] = "/home/someone/secret project/Birds of 2024"
    (tmp_path / "README.md").write_text(card(config, metrics))
    one = ModelCard.load(tmp_path / "README.md").data.eval_results[0]
    assert (one.dataset_name, one.dataset_type) == ("Birds of 2024", "birds-of-2024")


def test_a_run_that_was_not_measured_has_no_results(run: Path, tmp_path: Path) -> None:
    config, metrics = parts(run)
    for shown in (None, {"data": metrics["data"], "classification": {"accuracy": None}}):
        (tmp_path / "README.md").write_text(card(config, shown))
        assert ModelCard.load(tmp_path / "README.md").data.eval_results is None


@pytest.mark.parametrize("value", [1e-05, 1.5e-07, 0.0, 1.0, 1 / 3])
def test_small_figures_stay_numbers(run: Path, tmp_path: Path, value: float) -> None:
    config, metrics = copy.deepcopy(parts(run))
    metrics["verification"]["eer"] = value
    (tmp_path / "README.md").write_text(card(config, metrics))
    found = {one.metric_type: one.metric_value for one in ModelCard.load(tmp_path / "README.md").data.eval_results}
    assert found["eer"] == value
    assert isinstance(found["eer"], float)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back_from_yaml(text: str) -> None:
    line = f"key: {quoted(text)}"
    assert len(line.splitlines()) == 1
    assert yaml.safe_load(line) == {"key": text}


def test_an_interval_that_is_none_is_a_damaged_run(run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["confidence"]["classification"]["accuracy"] = [0.5]
    (folder / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(InputError, match="is damaged: what it says of its training or its figures is not whole"):
        write_card(folder)
