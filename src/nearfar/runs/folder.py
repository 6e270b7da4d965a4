"""The run folder: what one training leaves, whole enough to be copied, checked and loaded by strangers. No pickle.

Knows names, the config and the history; weights are those of `nearfar.training.trained`, which alone needs PyTorch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nearfar
from nearfar.errors import InputError
from nearfar.exchange import stranded
from nearfar.files import LEFT_OVER, NOT_JSON, explain_os_errors, make_folder, read_json, write_json, write_text
from nearfar.heads import Head, load_head

FORMAT = 1
CONFIG, MODEL, HISTORY, METRICS, CARD = "config.json", "model.safetensors", "history.jsonl", "metrics.json", "README.md"
HEAD = "head.safetensors"
TEXT, TOKENIZER = "text.safetensors", "tokenizer.json"
INDEX, TEXTS, PLOTS = "index", "texts", "plots"
CHECKPOINT = Path("checkpoints") / "latest.safetensors"


def begin(folder: Path, config: Mapping[str, Any], *, resume: bool) -> None:
    """Claim ``folder`` for a training run.

    Args:
        folder: must be empty or not there yet; with ``resume``, the folder of an interrupted run.
        config: what `read_config` gives back; its recipe, seed and data must be those of the interrupted run.
        resume: go on with the run that ``folder`` holds.

    Raises:
        InputError: the folder holds something else, a finished run, or a run of another recipe, seed or data.
    """
    if not resume:
        must_be_free(folder)
    elif not (folder / CONFIG).exists():
        raise InputError(f"cannot resume: {folder} holds no run; leave out --resume to start one")
    else:
        earlier = read_config(folder)
        if earlier["state"] == "finished":
            raise InputError(f"cannot resume: the run in {folder} is finished; evaluate it, or choose another --out")
        for key in ("recipe", "seed", "data", "start"):
            if earlier.get(key) != config.get(key):
                raise InputError(f"cannot resume: {_difference(folder, key, earlier.get(key), config.get(key))}")
        if (folder / CHECKPOINT).exists():
            return
    with explain_os_errors(folder):
        make_folder(folder)
    write_json(folder / CONFIG, {"format": FORMAT, "nearfar": nearfar.__version__, "state": "training", **config})


def must_be_free(folder: Path) -> None:
    """Refuse a folder that holds anything.

    Raises:
        InputError: it holds a run or something else, or is a file.
    """
    if folder.is_file():
        raise InputError(f"{folder} is a file; choose a folder for the run")
    if not folder.is_dir() or all(LEFT_OVER.fullmatch(path.name) for path in folder.iterdir()):
        return  # what a writer left that was killed before the first file was whole is swept by the next
    if not (folder / CONFIG).exists():
        raise InputError(f"{folder} holds something else than a run; choose an empty or a new folder")
    state = read_config(folder)["state"]
    mend = "choose another folder, or delete this one"
    if state == "training":
        mend = f"go on with --resume, {mend}"
    raise InputError(f"{folder} holds a {'finished' if state == 'finished' else 'started'} run already; {mend}")


def free_folder(name: str) -> Path:
    """``runs/name``, or ``runs/name-2`` and so on when it is taken."""
    folder, number = Path("runs") / name, 1
    while folder.exists():
        number += 1
        folder = Path("runs") / f"{name}-{number}"
    return folder


def write_history(folder: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, one line an epoch."""
    write_text(folder / HISTORY, "".join(json.dumps(row, allow_nan=False) + "\n" for row in history))


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The rows of ``history.jsonl``, one an epoch; empty when there is no such file.

    Raises:
        InputError: the file is damaged.
    """
    path = folder / HISTORY
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except NOT_JSON as error:
        raise InputError(f"{path} is damaged: {error}") from None


def read_config(folder: Path) -> dict[str, Any]:
    """The checked ``config.json`` of a run.

    Raises:
        InputError: there is no run in ``folder``, or its config is damaged or of a later format.
    """
    if not folder.is_dir():
        if (old := stranded(folder)) is not None:
            raise InputError(f"{folder} was being replaced when its writer was killed; what it held is in {old}: rename that")
        raise InputError(f"there is no run folder {folder}; make one with nearfar train DATA --out {folder}")
    if not (folder / CONFIG).exists():
        raise InputError(f"{folder} is not a run: it has no {CONFIG}; make one with nearfar train DATA --out RUN")
    config = read_json(folder / CONFIG)
    version = config.get("format")
    if not isinstance(version, int):
        raise InputError(f"{folder / CONFIG} is not the config of a nearfar run: it names no format")
    if version > FORMAT:
        raise InputError(f"{folder} was written by a later nearfar (format {version}, known is {FORMAT}); update nearfar")
    for key, kind in (
        ("recipe", dict),
        ("seed", int),
        ("data", dict),
        ("classes", list),
        ("input", dict),
        ("state", str),
    ):
        if not isinstance(config.get(key), kind):
            raise InputError(f"{folder / CONFIG} is damaged: {key!r} is missing or not a {kind.__name__}")
    if not all(isinstance(name, str) for name in config["classes"]):
        raise InputError(f"{folder / CONFIG} is damaged: 'classes' are not all text")
    if not isinstance(config.get("training", {}), dict) or not isinstance(config["data"].get("source", ""), str | None):
        raise InputError(f"{folder / CONFIG} is damaged: 'training' or the source of 'data' is of the wrong kind")
    return config


def read_finished(folder: Path) -> dict[str, Any]:
    """The checked config of a finished run, which names its model and says what that takes.

    Raises:
        InputError: as `read_config`; or the run is not finished, or its config is damaged.
    """
    config = read_config(folder)
    if config["state"] != "finished" or not isinstance(config.get("model"), dict):
        raise InputError(f"the run in {folder} is not finished; go on with nearfar train DATA --out {folder} --resume")
    size, channels = config["input"].get("size"), config["input"].get("channels")
    if not (isinstance(size, list) and len(size) == 2 and all(isinstance(n, int) for n in [*size, channels])):
        raise InputError(f"{folder / CONFIG} is damaged: 'input' does not say channels and size")
    return config


def head_of(folder: Path, config: Mapping[str, Any]) -> Head | None:
    """The linear head of a finished run, or None where it has none.

    Raises:
        InputError: the file is missing, damaged, or of another run.
    """
    entry = config.get("head")
    return None if not isinstance(entry, dict) else load_head(folder / HEAD, str(entry.get("sha256")))


def _difference(folder: Path, key: str, earlier: Any, now: Any) -> str:
    if isinstance(earlier, dict) and isinstance(now, dict):
        for name in sorted(earlier.keys() | now.keys()):
            if earlier.get(name) != now.get(name):
                return _difference(folder, f"{key}.{name}", earlier.get(name), now.get(name))
    return f"the run in {folder} was started with {key} {earlier!r}, not {now!r}; give the same, or choose another --out"
