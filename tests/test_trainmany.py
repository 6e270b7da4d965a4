"""`train --processes`: the run of one process, one line where it cannot be, and whole checkpoints whoever is killed."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from samples import CLIP, TINY, shapes, squares, write_parquet

from nearfar import trainmany, verbs
from nearfar.errors import InputError, ProcessLostError
from nearfar.files import read_json
from nearfar.recipe import Recipe
from nearfar.runs import read_history
from nearfar.training.progress import ProgressLine

LONG = {"train.epochs": 200, "train.checkpoint_seconds": 1000}


def write_recipe(path: Path, **changes: Any) -> str:
    """The tiny recipe as a TOML file, by SGD, which forgives no gradient."""
    sgd = {"train.optimizer": "sgd", "train.learning_rate": 0.05}
    tree = Recipe.from_dict(TINY).with_changes(sgd | changes).to_dict()
    lines = [f"{key} = {json.dumps(value)}" for key, value in tree.items() if not isinstance(value, dict)]
    for name, section in tree.items():
        if isinstance(section, dict) and (TINY.get(name) or name == "train"):
            lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in section.items() if value is not None)]
    path.write_text("\n".join(lines))
    assert Recipe.from_dict(tomllib.loads(path.read_text())).to_dict() == tree
    return str(path)


def write_images(path: Path) -> str:
    images = shapes(120)
    np.savez(path, x_train=images.images[:, 0], y_train=images.require_labels())
    return str(path)


@pytest.fixture
def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in, with images and a recipe; processes find the modules of the tests."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "images.npz")
    write_recipe(tmp_path / "tiny.toml")
    write_recipe(tmp_path / "long.toml", **LONG)
    return tmp_path


def weights(run: Path | str) -> np.ndarray:
    tensors = load_file(Path(run) / "model.safetensors")
    return np.concatenate([tensors[name].astype(np.float64).ravel() for name in sorted(tensors)])


def off(run: Path | str, wanted: Path | str) -> float:
    """The relative difference of the weights of two runs."""
    return float(np.linalg.norm(weights(run) - weights(wanted)) / np.linalg.norm(weights(wanted)))


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "nearfar", "train", "images.npz", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "COLUMNS": "80"}


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pids: list[int]) -> bool:
    """Whether all have ended within some seconds."""
    end = time.monotonic() + 40
    while time.monotonic() < end:
        if not any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids):
            return True
        time.sleep(0.05)
    return False


# ---- the run, and what is said


def test_the_run_and_what_is_said_are_those_of_one_process(ground: Path, cli: Callable[..., tuple[int, str, str]]) -> None:
    asked = ["train", "images.npz", "--recipe", "tiny.toml", "--seed", 3, "--set", "loss.temperature=0.3"]
    code, out, err = cli(*asked, "--out", "two", "--processes", 2)
    assert (code, out.count("\n")) == (0, 3)
    one_code, one_out, one_err = cli(*asked, "--out", "one")
    assert one_code == 0

    def words(text: str) -> str:
        """Without what is measured: speeds, seconds, memory, and the last digits of a loss."""
        text = re.sub(r"[\d,.]+ (images/s|s\b|images in|GiB|KiB|MiB|B\b)|\d+:\d\d|(?<=\.\d\d\d)\d+", "", text)
        return text.replace("two", "one").replace(" in each of 2 processes", "")

    assert words(out) == words(one_out)
    assert words(err) == words(one_err)
    assert "in each of 2 processes" in err
    assert off("two", "one") < 1e-5
    two, one = (read_json(Path(name) / "config.json") for name in ("two", "one"))
    assert {key: two[key] for key in ("recipe", "seed", "data", "classes")} == {
        key: one[key] for key in ("recipe", "seed", "data", "classes")
    }
    assert sorted(path.name for path in Path("two").iterdir()) == sorted(path.name for path in Path("one").iterdir())


# ---- refusals before any process is started


def test_what_cannot_be_is_refused_in_one_line_and_starts_nothing(
    ground: Path, cli: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("processes were started")

    monkeypatch.setattr(trainmany, "supervise", fail)
    monkeypatch.setattr(trainmany, "cores", lambda: 2)
    usual = "expected 1 to 64: as many as there are cores or GPUs, at most\n"
    asked = ["train", "images.npz", "--recipe", "tiny.toml", "--out", "run", "--processes"]
    for number in (0, -1, 65):
        assert cli(*asked, number) == (2, "", f"nearfar: --processes is {number}; {usual}")
    assert "unable to convert" in cli(*asked, "two")[2]
    two = [*asked, 2]
    assert "to resume, name the folder" in cli("train", "images.npz", "--processes", 2, "--resume")[2]
    assert "there is no run folder run" in cli(*two, "--resume")[2]
    assert "none.toml" in cli("train", "images.npz", "--processes", 2, "--recipe", "none.toml")[2]
    assert "train.epochs" in cli(*two, "--set", "train.epochs=-1")[2]
    (ground / "run").mkdir()
    (ground / "run" / "mine.txt").touch()
    code, out, err = cli(*two)
    assert (code, out, err) == (2, "", "nearfar: run holds something else than a run; choose an empty or a new folder\n")
    with pytest.raises(InputError, match="these are in memory; give a name or a path, or train in one process"):
        verbs.train(shapes(120), recipe="tiny.toml", processes=2)
    assert not (ground / "runs").exists()


def test_where_torchrun_has_started_processes_one_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "4"), ("MASTER_ADDR", "127.0.0.1")):
        monkeypatch.setenv(name, value)

    class Joined:
        def __init__(self, device: str) -> None: ...
        def __enter__(self) -> None: ...
        def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
            raise SystemExit(2)  # another process speaks

    monkeypatch.setattr("nearfar.distributed.joining.joined", Joined)
    with pytest.raises(SystemExit):
        trainmany.check_processes(2, "digits")
    trainmany.check_processes(1, "digits")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    trainmany.check_processes(2, "digits")


def test_more_processes_than_cores_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def supervise(work: str, argument: Any, *, hear: Callable[[str, list[Any]], None], **options: Any) -> list[Any]:
        given.update(argument, **options)
        hear("note", ["a note"])
        hear("log", [30, "%s", "50 % is fetched"])
        return [{"run": "x"}, {}, {}]

    monkeypatch.setattr(trainmany, "supervise", supervise)
    monkeypatch.setattr(trainmany, "cores", lambda: 2)
    text = io.StringIO()
    recipe = Recipe.from_dict(TINY)
    found = trainmany.train_in_processes(3, {"recipe": recipe, "out": Path("a/b"), "seed": 4}, ProgressLine(text))
    assert found == {"run": "x"}
    assert text.getvalue() == "warning: 3 processes share 2 cores; more than that make training slower\na note\n"
    assert given == {"recipe": recipe.to_dict(), "out": "a/b", "seed": 4, "processes": 3, "shown": True}

    def lost(*args: Any, **kwargs: Any) -> None:
        raise ProcessLostError("process 1 of 2 was ended by SIGKILL")

    monkeypatch.setattr(trainmany, "supervise", lost)
    with pytest.raises(ProcessLostError, match="was ended by SIGKILL; go on with the same command, --out and --resume"):
        trainmany.train_in_processes(2, {"recipe": recipe}, ProgressLine(text))


def test_what_is_logged_is_passed_on() -> None:
    heard: list[tuple[Any, ...]] = []
    logger = logging.Logger("nearfar")
    logger.addHandler(trainmany._Passing(lambda *words: heard.append(words)))
    logger.warning("%d %% of %s are fetched", 50, "mnist")
    assert heard == [("log", logging.WARNING, "%s", "50 % of mnist are fetched")]


# ---- ends


@pytest.mark.slow
def test_what_only_processes_find_out_is_one_line_and_leaves_nothing(ground: Path) -> None:
    for changed, said in (
        (["--recipe", "tiny.toml", "--unseen", "99"], "'99'"),
        (["--recipe", "tiny.toml", "--device", "cuda"], "GPU"),
    ):
        ended = subprocess.run(
            command(*changed, "--out", "run", "--processes", "2"), capture_output=True, text=True, env=environment()
        )
        assert ended.returncode == 2, ended.stderr
        assert ended.stdout == ""
        assert ended.stderr.startswith("nearfar: ")
        assert ended.stderr.count("\n") == 1
        assert said in ended.stderr
        assert not (ground / "run").exists()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The long training in one process, without a break."""
    folder = tmp_path_factory.mktemp("whole")
    recipe = write_recipe(folder / "long.toml", **LONG)
    verbs.train(write_images(folder / "images.npz"), recipe=recipe, out=folder / "one")
    return folder / "one"


def start(ground: Path, **options: Any) -> tuple[subprocess.Popen[str], int]:
    """The long training with two processes at a terminal, once it has begun; and that terminal."""
    ours, theirs = pty.openpty()
    program = subprocess.Popen(
        command("--recipe", "long.toml", "--out", "run", "--processes", "2"),
        stdin=theirs, stdout=theirs, stderr=theirs, env=environment(), start_new_session=True, **options,
    )  # fmt: skip
    os.close(theirs)
    shown = ""
    while "epoch 8/" not in shown:
        shown += os.read(ours, 4096).decode()
    assert "loss" in shown
    return program, ours


def rest(terminal: int) -> str:
    """What is still shown until all have let go of the terminal."""
    shown = ""
    while True:
        try:
            piece = os.read(terminal, 4096)
        except OSError:  # no one is there any more
            break
        if not piece:
            break
        shown += piece.decode()
    os.close(terminal)
    return shown


def assert_goes_on(ground: Path, whole: Path, processes: int) -> None:
    """The interrupted run is whole, and goes on to the weights that it would have had."""
    config = read_json(ground / "run" / "config.json")
    assert config["state"] == "training"
    assert [path.name for path in (ground / "run" / "checkpoints").iterdir()] == ["latest.safetensors"]
    verbs.train("images.npz", recipe="long.toml", out="run", resume=True, processes=processes)
    assert off("run", whole) < 1e-4  # after 800 steps
    rows, wanted = (read_history(folder) for folder in (ground / "run", whole))
    assert [row["epoch"] for row in rows] == [row["epoch"] for row in wanted]
    np.testing.assert_allclose([row["loss"] for row in rows], [row["loss"] for row in wanted], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["group", "parent", "child"])
def test_a_signal_stops_all_after_the_same_step_with_a_whole_checkpoint(ground: Path, whole: Path, to: str) -> None:
    program, terminal = start(ground)
    pids = children(program.pid)
    assert len(pids) == 2
    if to == "group":  # a Ctrl-C at the terminal
        os.killpg(program.pid, signal.SIGINT)
    else:
        os.kill(program.pid if to == "parent" else pids[1], signal.SIGTERM)
    shown = rest(terminal)
    assert program.wait() == 130
    assert shown.splitlines()[-1].endswith("nearfar: interrupted; go on with the same command, --out and --resume")
    assert "Traceback" not in shown, shown
    assert gone(pids)
    assert_goes_on(ground, whole, 2 if to == "parent" else 1)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed_ends_all_with_one_line(ground: Path, whole: Path, rank: int) -> None:
    program, terminal = start(ground)
    pids = children(program.pid)
    os.kill(pids[rank], signal.SIGKILL)
    shown = rest(terminal)
    assert program.wait() == 1
    last = shown.splitlines()[-1]
    said = f"process {rank} of 2 was ended by SIGKILL; go on with the same command, --out and --resume"
    assert last.rpartition("nearfar: ")[2] == said
    assert "Traceback" not in shown, shown
    assert gone(pids)
    assert_goes_on(ground, whole, 1)


@pytest.mark.slow
def test_where_the_parent_is_killed_the_others_stop_with_a_whole_checkpoint(ground: Path, whole: Path) -> None:
    program, terminal = start(ground)
    pids = children(program.pid)
    program.kill()
    program.wait()
    rest(terminal)
    assert gone(pids)
    assert_goes_on(ground, whole, 1)


# ---- captions


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "chunk"), [("clip", 0), ("siglip", 0), ("siglip", 24)])
def test_towers_end_in_the_weights_of_one_process(tmp_path: Path, kind: str, chunk: int) -> None:
    write_parquet(squares(200), tmp_path / "squares.parquet")
    sgd = {"train.optimizer": "sgd", "train.learning_rate": 0.02 if kind == "clip" else 0.001}
    recipe = Recipe.from_dict(CLIP).with_changes(sgd | {"train.epochs": 4, "train.chunk": chunk, "loss.kind": kind})
    for processes in (1, 2):
        found = verbs.train(tmp_path / "squares.parquet", recipe=recipe, out=tmp_path / str(processes), processes=processes)
        assert found["captions"] > 4
    assert off(tmp_path / "2", tmp_path / "1") < 1e-5
    one, two = (load_file(tmp_path / name / "text.safetensors") for name in ("1", "2"))
    for name, wanted in one.items():
        np.testing.assert_allclose(two[name], wanted, rtol=1e-4, atol=1e-5)
    temperatures = [read_json(tmp_path / name / "config.json")["text"]["temperature"] for name in ("1", "2")]
    assert temperatures[0] == pytest.approx(temperatures[1], rel=1e-5)
    assert temperatures[0] < 2
