"""The command line as people meet it: results, one-line errors with exit code 2, and earlier files left as they were."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from samples import TINY, shapes

from nearfar import __version__, files, verbs
from nearfar.cli import main
from nearfar.measuring.judging import judge
from nearfar.recipe import Recipe

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    write_images(folder.parent / "images")
    verbs.train(str(folder.parent / "images"), recipe=Recipe.from_dict(TINY), out=folder)
    return folder


def write_images(folder: Path) -> None:
    for split, seed, count in (("train", 1, 60), ("test", 2, 24)):
        images = shapes(count, seed=seed)
        for row, label in enumerate(images.require_labels()):
            target = folder / split / images.classes[label] / f"{row:03d}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images.images[row, 0]).save(target)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(result: tuple[int, str, str], *words: str) -> str:
    code, out, err = result
    assert code == 2, err
    assert out == ""
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    for word in words:
        assert word in lines[0], lines[0]
    return lines[0]


def test_help_and_version_name_every_verb(cli: Cli) -> None:
    code, out, _ = cli("--help")
    assert code == 0
    for verb in ("train", "evaluate", "embed", "search", "predict", "recipes", "data"):
        assert f" {verb} " in out
        assert cli(verb, "--help")[0] == 0
    assert cli("--version")[1].strip() == __version__


def test_the_command_line_imports_nothing_heavy() -> None:
    code = "import sys; from nearfar.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n" + (
        "print(sorted({'torch', 'numpy', 'sklearn', 'matplotlib', 'pyarrow'} & set(sys.modules)), file=sys.stderr)"
    )
    for arguments in (["--help"], ["train", "x", "--no-such-option"], ["recipes"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        assert done.stderr.splitlines()[-1] == "[]"


def test_one_query_from_the_shell_does_not_pay_for_scikit_learn(run: Path) -> None:
    image = next((run.parent / "images" / "test").rglob("*.png"))
    code = """
import sys
from nearfar.cli import main
for verb in ("search", "predict"):
    try:
        main([verb, *sys.argv[1:]])
    except SystemExit:
        print(sorted({"sklearn", "scipy", "matplotlib", "pandas"} & set(sys.modules)), "after", verb, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code, run, image], capture_output=True, text=True, check=True)
    assert done.stdout.count(image.name) == 2
    assert done.stderr.splitlines()[-2:] == ["[] after search", "[] after predict"]


def test_train_and_evaluate_leave_a_whole_run_folder(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    small = ["--set", "encoder.kind=conv3", "encoder.dim=8", "sampling.kind=shuffle", "data.size=16", "train.epochs=2"]
    code, out, err = cli("train", "images", *small, "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["run"] == "runs/images-images"
    assert (result["images"], result["classes"], result["epochs"], result["skipped"]) == (60, 3, 2, [])
    assert "epoch 2/2" in err
    code, out, err = cli("evaluate", result["run"], "--json")
    assert code == 0, err
    tree = json.loads(out)
    folder = tmp_path / result["run"]
    assert tree == json.loads((folder / "metrics.json").read_text())
    assert tree["data"]["queries"] == 24
    assert tree["data"]["gallery"] == 60
    for key in ("classification", "retrieval", "clustering", "verification", "geometry", "timing", "confidence"):
        assert tree[key]
    card = (folder / "README.md").read_text()
    assert f"| {tree['classification']['accuracy']:.4f} (" in card
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "calibration.json",
        "config.json",
        "history.jsonl",
        "index",
        "metrics.json",
        "model.safetensors",
    ]
    assert json.loads((folder / "index" / "index.json").read_text())["model_hash"] == files.hash_file(
        folder / "model.safetensors"
    )
    code, out, _ = cli("evaluate", result["run"])
    assert f"{tree['classification']['accuracy']:.4f}" in out
    assert cli("train", "images", *small)[1].splitlines()[1] == "run folder: runs/images-images-2"


def test_search_returns_the_image_itself_first_and_agrees_with_a_slow_loop(cli: Cli, run: Path) -> None:
    image = run.parent / "images" / "train" / "a"
    image = sorted(image.iterdir())[0]
    code, out, _ = cli("search", run, image, "-k", 7, "--json")
    assert code == 0
    found = json.loads(out)[0]
    assert found["query"] == str(image)
    assert found["neighbors"][0]["id"].endswith(f"a/{image.name}")
    model, index = verbs.load_run(run)
    z = model.transform(np.asarray(Image.open(image))[None])[0].astype(np.float64)
    scores = sorted((float(z @ row) for row in np.asarray(index.vectors, dtype=np.float64)), reverse=True)
    assert [one["score"] for one in found["neighbors"]] == pytest.approx(scores[:7], abs=1e-6)
    assert image.name in cli("search", run, image, "-k", 3)[1]


def test_predict_takes_files_folders_and_tables_and_writes_csv(cli: Cli, run: Path, tmp_path: Path) -> None:
    folder = run.parent / "images" / "test" / "b"
    code, out, _ = cli("predict", run, folder, "--json")
    assert code == 0
    results = json.loads(out)
    assert [result["voted"] for result in results].count("b") > len(results) * 0.8
    assert all(0 < result["votes"] <= 1 and 0 < result["probability"] < 1 for result in results)
    assert all(result["label"] in (result["voted"], "unknown") for result in results)
    everything = json.loads(cli("predict", run, folder, "--precision", 0, "--json")[1])
    assert [one["label"] for one in everything] == [one["voted"] for one in everything] == [one["voted"] for one in results]
    table = tmp_path / "pixels.csv"
    images = shapes(6, seed=2)
    with table.open("w") as file:
        csv.writer(file).writerows(images.images.reshape(6, -1).tolist())
    target = tmp_path / "out.csv"
    assert cli("predict", run, table, "--out", target)[0] == 0
    rows = list(csv.DictReader(target.read_text().splitlines()))
    assert len(rows) == 6
    assert {"image", "label", "voted", "votes", "probability", "nearest", "score"} == set(rows[0])
    labelled = json.loads(cli("predict", run, run.parent / "images", "--json")[1])
    assert len(labelled) == 24  # the test split alone: the others are in the index
    assert all(result["true_label"] in "abc" for result in labelled)
    assert "of 24 with a label are right" in cli("predict", run, run.parent / "images")[1]


def test_embed_writes_npz_and_parquet_alike(cli: Cli, run: Path, tmp_path: Path) -> None:
    data = run.parent / "images"
    assert cli("embed", run, data, "--out", tmp_path / "z.npz")[0] == 0
    assert cli("embed", run, data, "--out", tmp_path / "z.parquet")[0] == 0
    with np.load(tmp_path / "z.npz", allow_pickle=False) as arrays:
        z, ids, labels = arrays["embedding"], arrays["id"], arrays["label"]
    assert z.shape == (84, 8)
    assert z.dtype == np.float32
    table = pq.read_table(tmp_path / "z.parquet").to_pydict()
    assert np.array_equal(np.array(table["embedding"], dtype=np.float32), z)
    assert table["id"] == ids.tolist()
    assert table["label"] == labels.tolist()
    refused(cli("embed", run, data, "--out", tmp_path / "z.txt"), "z.txt", ".npz", ".parquet")


def test_export_leaves_a_folder_that_the_projector_opens(cli: Cli, run: Path, tmp_path: Path) -> None:
    code, out, err = cli("export", run, "--to", "projector", "--out", tmp_path / "p", "--json")
    assert code == 0, err
    assert json.loads(out)["images"] == 24
    assert {path.name for path in (tmp_path / "p").iterdir()} == set(json.loads(out)["files"])
    vectors = np.loadtxt(tmp_path / "p" / "vectors.tsv", delimiter="\t")
    assert vectors == pytest.approx(judge(run).z, abs=1e-6)
    refused(cli("export", run, "--to", "word", "--out", tmp_path / "q"), "word", "projector")


def test_images_of_any_mode_and_size_are_queries(cli: Cli, run: Path, tmp_path: Path) -> None:
    picture = np.asarray(shapes(1, size=40).images)[0, 0]
    for mode in ("RGB", "RGBA", "P", "1", "CMYK", "LA", "I;16"):
        image = Image.fromarray(picture.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(picture).convert(mode)
        image.save(tmp_path / f"{mode.replace(';', '')}.{'jpg' if mode == 'CMYK' else 'png'}")
    code, out, err = cli("predict", run, tmp_path, "--json")
    assert code == 0, err
    assert len(json.loads(out)) == 7


def test_classes_that_were_not_trained_on_are_measured_apart(cli: Cli, tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    settings = ["encoder.kind=mlp", "encoder.dim=8", "sampling.kind=shuffle", "data.size=12", "data.channels=1"]
    settings += ["data.mean=0.5", "data.std=0.5", "data.unseen=['c']", "train.epochs=1"]
    assert cli("train", tmp_path / "images", "--out", tmp_path / "run", "--set", *settings)[0] == 0
    code, out, _ = cli("evaluate", tmp_path / "run", "--json")
    assert code == 0
    tree = json.loads(out)
    assert tree["unseen"]["data"]["queries"] == 28  # the 20 training and 8 test images of class c
    assert tree["data"]["queries"] == 16
    assert "never trained on" in cli("evaluate", tmp_path / "run")[1]
    apart = tmp_path / "images" / "test"
    other = json.loads(cli("evaluate", tmp_path / "run", apart, "--json")[1])
    assert other["data"]["new_classes"] == 1
    assert other["data"]["gallery"] == 24


def test_bad_options_are_one_line(cli: Cli, run: Path, tmp_path: Path) -> None:
    refused(cli("trian"), "trian", "train")
    refused(cli("train"), "DATA")
    refused(cli("train", "digits", "--epochs", "x"), "--epochs", '"x"')
    refused(cli("train", "digits", "--recipe", "mnist-fats"), "mnist-fats", "mnist-fast")
    refused(cli("train", "digits", "--set", "loss.margn=1"), "margn")
    refused(cli("train", "digits", "--set", "nonsense"), "section.key=value")
    refused(cli("train", "digits", "--epochs", 0), "train.epochs", "0")
    refused(cli("train", "digits", "--seed", "-1"), "seed")
    refused(cli("train", "digits", "--device", "tpu"), "tpu")
    refused(cli("train", "digits", "--resume"), "--out")
    refused(cli("train", "minst"), "minst", "mnist")
    refused(cli("recipes", "nope"), "nope")
    refused(cli("data", "fetch", "nope"), "nope", "mnist")
    image = next((run.parent / "images").rglob("*.png"))
    refused(cli("search", run, image, "-k", 0), "k is 0")
    refused(cli("search", run, image, "-k", 61), "61", "60")
    refused(cli("search", run, tmp_path / "none.png"), "none.png")
    refused(cli("predict", run, image, "--precision", 1), "precision is 1.0", "0 (answer everything)")
    refused(cli("evaluate", tmp_path / "none"), "none", "nearfar train")


def test_data_that_cannot_be_learned_from_is_refused_and_nothing_is_written(cli: Cli, tmp_path: Path) -> None:
    folder, out = tmp_path / "images", tmp_path / "run"
    folder.mkdir()
    refused(cli("train", folder, "--out", out), str(folder))
    write_images(folder)
    bad = folder / "train" / "a" / "bad.png"
    bad.write_bytes(b"not an image")
    refused(cli("train", folder, "--out", out), "bad.png", "--skip-bad")
    good = sorted((folder / "train" / "a").glob("0*.png"))[0]
    bad.write_bytes(good.read_bytes()[:60])
    refused(cli("train", folder, "--out", out), "bad.png", "--skip-bad")
    huge = good.read_bytes()
    header = b"IHDR" + (50_000).to_bytes(4, "big") * 2 + huge[24:29]
    bad.write_bytes(huge[:12] + header + zlib.crc32(header).to_bytes(4, "big") + huge[33:])
    refused(cli("train", folder, "--out", out), "bad.png", "pixels", "--skip-bad")
    bad.unlink()
    one = tmp_path / "one"
    (one / "a").mkdir(parents=True)
    (one / "a" / "1.png").write_bytes(good.read_bytes())
    (one / "a" / "2.png").write_bytes(good.read_bytes())
    refused(cli("train", one, "--out", out, "--set", "data.test=0"), "one class only")
    (one / "b").mkdir()
    (one / "b" / "1.png").write_bytes(good.read_bytes())
    pairs = ["--set", "sampling.kind=pairs", "loss.kind=contrastive", "data.test=0"]
    refused(cli("train", one, "--out", out, *pairs), "'b'", "one image")
    assert not out.exists()
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("images", "one")] == []


def test_bad_images_can_be_left_out_and_are_counted(cli: Cli, tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    (tmp_path / "images" / "train" / "a" / "bad.png").write_bytes(b"not an image")
    recipe = tmp_path / "tiny.toml"
    recipe.write_text('[encoder]\nkind = "mlp"\ndim = 8\n[loss]\nkind = "supcon"\n[data]\nsize = 12\n[train]\nepochs = 1\n')
    code, out, err = cli("train", tmp_path / "images", "--recipe", recipe, "--out", tmp_path / "run", "--skip-bad", "--json")
    assert code == 0, err
    assert json.loads(out)["images"] == 60
    assert len(json.loads(out)["skipped"]) == 1
    assert "bad.png" in json.loads(out)["skipped"][0]


def test_an_output_folder_with_something_in_it_is_left_alone(cli: Cli, run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("keep")
    refused(cli("train", "digits", "--out", tmp_path / "mine"), "something else")
    assert contents(tmp_path / "mine") == {"thesis.txt": b"keep"}
    before = contents(run)
    refused(cli("train", "digits", "--out", run), "finished run")
    refused(cli("train", run.parent / "images", "--out", run, "--resume"), "finished")
    assert contents(run) == before
    (tmp_path / "file").write_text("keep")
    refused(cli("train", "digits", "--out", tmp_path / "file"), "is a file")


@pytest.mark.parametrize("part", ["config.json", "model.safetensors", "index/index.json", "index/vectors"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_run_with_a_missing_or_corrupt_part_is_refused(cli: Cli, run: Path, tmp_path: Path, part: str, damage: str) -> None:
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    path = next(copy.glob(f"{part}*"))
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-7])
    image = next((run.parent / "images").rglob("*.png"))
    for command in (("search", copy, image), ("evaluate", copy)):
        refused(cli(*command), str(copy))


def test_an_index_of_another_model_is_refused(cli: Cli, run: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(run, tmp_path / "run")
    other = tmp_path / "other"
    verbs.train(str(run.parent / "images"), recipe=Recipe.from_dict(TINY), out=other, seed=9)
    shutil.rmtree(tmp_path / "run" / "index")
    shutil.copytree(other / "index", tmp_path / "run" / "index")
    refused(cli("evaluate", tmp_path / "run"), "index", "model")


def test_a_full_disk_is_one_line_and_loses_nothing(
    cli: Cli, run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = contents(run)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    refused(cli("evaluate", run), "disk is full")
    assert contents(run) == before
    refused(cli("train", run.parent / "images", "--out", tmp_path / "new"), "disk is full")


def start(arguments: list[str | Path]) -> subprocess.Popen[str]:
    code = "from nearfar.cli import main; main()"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


LONG = (
    '[encoder]\nkind = "conv5"\ndim = 8\n[loss]\nkind = "supcon"\n[data]\nsize = 28\nchannels = 1\nrows = 400\n'
    "[sampling]\nbatch_size = 20\n[train]\nepochs = 4\ncheckpoint_seconds = 0.05\n[evaluate]\nbootstrap = 0\n"
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `LONG` as it is when nobody disturbs it."""
    home = tmp_path_factory.mktemp("undisturbed")
    (home / "long.toml").write_text(LONG)
    with pytest.raises(SystemExit) as ended:
        main(["train", "mnist", "--recipe", str(home / "long.toml"), "--out", str(home / "run")])
    assert not ended.value.code
    return home / "run"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_killed_run_resumes_to_the_same_weights(cli: Cli, tmp_path: Path, undisturbed: Path, number: signal.Signals) -> None:
    (tmp_path / "long.toml").write_text(LONG)
    command = ["train", "mnist", "--recipe", tmp_path / "long.toml", "--out", tmp_path / "run"]
    process = start(command)
    checkpoint = tmp_path / "run" / "checkpoints" / "latest.safetensors"
    deadline = time.monotonic() + 60
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130), err
    assert checkpoint.exists()
    refused(cli("evaluate", tmp_path / "run"), "not finished", "--resume")
    refused(cli(*command), "--resume")
    refused(cli(*command, "--resume", "--seed", 5), "seed")
    code, _, err = cli(*command, "--resume")
    assert code == 0, err
    assert files.hash_file(tmp_path / "run" / "model.safetensors") == files.hash_file(undisturbed / "model.safetensors")
    assert not checkpoint.exists()
    rows = [
        [json.loads(line)["loss"] for line in (run / "history.jsonl").read_text().splitlines()]
        for run in (tmp_path / "run", undisturbed)
    ]
    assert rows[0] == rows[1]
