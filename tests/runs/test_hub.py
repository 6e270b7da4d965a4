"""Runs on a hub: what comes down is what went up, to the bit; nothing else goes up; what goes wrong is one line."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
from fakehub import TOKEN, Hub
from samples import TINY, shapes

import nearfar as nf
from nearfar import InputError, verbs
from nearfar.cli import main
from nearfar.recipe import Recipe
from nearfar.runs import hub


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "bars"
    verbs.train(
        shapes(90), recipe=Recipe.from_dict({**TINY, "data": {"size": [12, 12], "channels": 1, "test": 0.3}}), out=folder
    )
    verbs.evaluate(folder, shapes(90))
    (folder / "plots").mkdir()
    (folder / "plots" / "loss.png").write_bytes(b"a plot")
    return folder


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty hub, which huggingface_hub takes for the real one, with a cache of its own and a token."""
    served = Hub()
    point_to(served.url, monkeypatch)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield served
    served.close()


def point_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", url)


def test_a_run_that_went_up_comes_down_the_same(run: Path, there: Hub, tmp_path: Path) -> None:
    said = hub.push(run, "me/bars", private=True)
    assert said["url"] == f"{there.url}/me/bars/commit/{1:040x}"
    assert there.private["me/bars"] is True
    assert len(there.commits) == 1
    back = hub.fetch("me/bars", cache_dir=tmp_path / "mine")
    assert tmp_path / "mine" in back.parents
    for name in said["files"]:
        assert (back / name).read_bytes() == (run / name).read_bytes()
    assert {"config.json", "model.safetensors", "metrics.json", "README.md", "plots/loss.png", "index/index.json"} <= set(
        said["files"]
    )
    asked = shapes(20, seed=3)
    own, fetched = nf.Embedder.load(run), nf.Embedder.from_pretrained("me/bars")
    np.testing.assert_array_equal(fetched.transform(asked), own.transform(asked))
    near = nf.NeighborIndex.load(back / "index").search(own.transform(asked), k=3)
    for one, other in zip(near, nf.NeighborIndex.load(run / "index").search(own.transform(asked), k=3), strict=True):
        np.testing.assert_array_equal(one, other)


def test_only_files_of_the_run_go_up_and_stale_ones_go_away(run: Path, there: Hub, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "bars")
    for name in ("checkpoints/latest.safetensors", ".secret", "index/.hidden.json", "plots/.loss.png", "notes.txt", "evil.pkl"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("stays here")
    (folder / "plots" / "link.png").symlink_to("/etc/hostname")
    files = hub.push(folder, "bars")["files"]
    assert set(there.branches["me/bars", "main"]) == {*files, ".gitattributes"}
    assert not any(
        part.startswith(".") or part in ("checkpoints", "notes.txt", "link.png") for n in files for part in n.split("/")
    )
    assert "evil.pkl" not in files
    there.branches["me/bars", "main"] |= {"theirs.txt": b"", "index/vectors-0123456789abcdef.npy": b"", "plots/old.svg": b""}
    (folder / "plots" / "loss.png").write_bytes(b"another plot")
    hub.push(folder, "bars", commit_message="Anew")
    assert there.commits[1]["summary"] == "Anew"
    assert sorted(there.commits[1]["deleted"]) == ["index/vectors-0123456789abcdef.npy", "plots/old.svg"]
    assert set(there.branches["me/bars", "main"]) == {*files, ".gitattributes", "theirs.txt"}


def test_only_files_of_a_run_come_down(run: Path, there: Hub) -> None:
    hub.push(run, "me/bars")
    there.branches["me/bars", "main"] |= {"modeling.py": b"boom", "evil.pkl": b"boom", "index/evil.pkl": b"boom"}
    back = hub.fetch("me/bars")
    assert {path.suffix for path in back.rglob("*") if path.is_file()} <= {
        ".json",
        ".jsonl",
        ".safetensors",
        ".md",
        ".npy",
        ".png",
    }
    alone = hub.fetch("me/bars", model_only=True, cache_dir=back.parents[4] / "other")
    assert not (alone / "index").exists()


def test_branches_tags_and_pull_requests(run: Path, there: Hub) -> None:
    hub.push(run, "me/bars", revision="second")
    assert "config.json" not in there.branches["me/bars", "main"]
    assert (hub.fetch("me/bars", revision="second") / "config.json").exists()
    said = hub.push(run, "me/bars", create_pr=True)
    assert said["url"] == f"{there.url}/me/bars/discussions/1"
    assert "config.json" not in there.branches["me/bars", "main"]
    with pytest.raises(InputError, match="has no revision 'third'"):
        hub.fetch("me/bars", revision="third")
    with pytest.raises(InputError, match=r"me/bars is not a nearfar run: it has no config.json"):
        hub.fetch("me/bars")


def test_a_model_alone_goes_up_and_comes_down(run: Path, there: Hub, tmp_path: Path) -> None:
    model = nf.Embedder.load(run)
    assert model.push_to_hub("me/alone", commit_message="First").endswith(f"/commit/{1:040x}")
    assert there.commits[0]["summary"] == "First"
    assert set(there.commits[0]["files"]) == {"config.json", "model.safetensors", "history.jsonl", "README.md"}
    asked = shapes(20, seed=3)
    z = model.transform(asked)
    np.testing.assert_array_equal(nf.Embedder.from_pretrained("me/alone", token=TOKEN).transform(asked), z)
    url = model.save_pretrained(tmp_path / "kept", push_to_hub=True, private=True)
    assert url == f"{there.url}/me/kept/commit/{2:040x}"
    np.testing.assert_array_equal(nf.Embedder.from_pretrained(tmp_path / "kept").transform(asked), z)
    with pytest.raises(InputError, match="finished run already"):
        model.save_pretrained(tmp_path / "kept")
    assert model.save_pretrained(tmp_path / "kept", overwrite=True) is None


def test_what_was_fetched_is_there_without_the_network(run: Path, there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.push(run, "me/bars")
    first = hub.fetch("me/bars")
    there.branches.clear()
    there.snapshots.clear()
    assert hub.fetch("me/bars", local_files_only=True) == first
    with pytest.raises(InputError, match="me/other is not in the cache"):
        hub.fetch("me/other", local_files_only=True)


def test_weights_that_changed_on_the_hub_are_refused(run: Path, there: Hub) -> None:
    hub.push(run, "me/bars")
    files = there.branches["me/bars", "main"]
    files["model.safetensors"] = files["model.safetensors"][:-4] + b"\0\1\2\3"
    with pytest.raises(InputError, match=r"model.safetensors"):
        nf.Embedder.from_pretrained("me/bars")


def test_a_local_folder_needs_no_hub(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub, "_hub", lambda: pytest.fail("asked for huggingface_hub"))
    assert hub.fetch(run) == run
    model = nf.Embedder.from_pretrained(str(run))
    model.save_pretrained(tmp_path / "kept")
    assert (tmp_path / "kept" / "README.md").exists()
    with pytest.raises(InputError, match="is a folder, which has no revision 'main'"):
        hub.fetch(run, revision="main")
    for name in ("./nothing", "/nothing/here", "a/b/c"):
        with pytest.raises(InputError, match="no run folder"):
            nf.Embedder.from_pretrained(name)


def test_without_the_extra_there_is_one_line(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("nearfar.runs.hub.importlib.import_module", missing)
    for call in (lambda: hub.push(run, "me/bars"), lambda: nf.Embedder.from_pretrained("me/bars")):
        with pytest.raises(InputError, match=r"pip install 'nearfar\[hub\]'"):
            call()


@pytest.mark.parametrize("name", ["me/b ars", "", "-x", "me/ba:rs", "a--b", "me/\u00fc", "name.git"])
def test_bad_names_are_refused(run: Path, there: Hub, name: str) -> None:
    with pytest.raises(InputError, match="names no model; expected OWNER/NAME") as caught:
        hub.push(run, name)
    assert len(str(caught.value).splitlines()) == 1
    assert there.commits == []


def test_what_a_hub_refuses_is_one_line(run: Path, there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"there is no model me/none on http.*, or it is private"):
        nf.Embedder.from_pretrained("me/none")
    hub.push(run, "me/bars")
    there.gated.add("me/bars")
    with pytest.raises(InputError, match="asks for consent"):
        hub.fetch("me/bars")
    with pytest.raises(InputError, match=r"refuses me/bars without the right token \(status 401\)"):
        hub.push(run, "me/bars", token="hf_wrong")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError, match=r"log in with `hf auth login`"):
        hub.push(run, "me/bars")


def test_an_unfinished_run_does_not_go_up(run: Path, there: Hub, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "bars")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "state": "training"}))
    with pytest.raises(InputError, match="not finished"):
        hub.push(folder, "me/bars")
    with pytest.raises(InputError, match="no run folder"):
        hub.push(tmp_path / "none", "me/bars")
    assert there.private == {}


def test_nobody_at_home(run: Path, there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    point_to(url, monkeypatch)
    with pytest.raises(InputError, match=f"cannot reach {url}"):
        hub.push(run, "me/bars")
    with pytest.raises(InputError, match="cannot be reached"):
        hub.fetch("me/bars")


def test_the_command_line_says_where_the_run_is(run: Path, there: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    for words, code in ((["--private", "--revision", "one"], 0), (["--json"], 0)):
        with pytest.raises(SystemExit) as ended:
            main(["push", str(run), "me/bars", *words])
        assert ended.value.code == code
    out, _ = capsys.readouterr()
    first, second = out.splitlines()
    assert first.startswith("pushed ")
    assert first.endswith(f"{there.url}/me/bars/commit/{1:040x}")
    assert json.loads(second)["repo"] == "me/bars"
    with pytest.raises(SystemExit) as ended:
        main(["push", str(run), "not a name"])
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
