"""How a run is made again: its recipe as TOML, the command, and what it ran on."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nearfar.errors import InputError
from nearfar.recipe import load_recipe, parse_changes, recipe_names

_MOST_SETTINGS = 10  # more of them are easier read in a file


def recipe_toml(recipe: Mapping[str, Any]) -> str:
    """A recipe, as ``Recipe.to_dict`` gives it, as the TOML file that `load_recipe` reads it back from.

    What is None, the default wherever None is allowed, is left out, and so is the name, which is the file's.
    """
    lines = [f"description = {_value(recipe['description'])}"]
    for section, table in recipe.items():
        if isinstance(table, Mapping) and table:
            lines += ["", f"[{section}]"]
            lines += [f"{_key(key)} = {_value(value)}" for key, value in table.items() if value is not None]
    return "\n".join(lines) + "\n"


def recipe_file(recipe: Mapping[str, Any]) -> str:
    """The name of the TOML file that keeps the recipe's name."""
    return (re.sub(r"[^\w.-]+", "-", recipe["name"]).strip("-.") or "recipe") + ".toml"


def train_command(config: Mapping[str, Any], out: str) -> tuple[str, bool]:
    """The shell command that trains the run again.

    Args:
        config: the run's ``config.json``.
        out: the run folder to name.

    Returns:
        The command, and whether it needs the recipe as a file. It does not where few settings on top of a recipe that
        comes with nearfar make the same.
    """
    recipe = config["recipe"]
    words = ["nearfar", "train", str(config["data"].get("source", "DATA"))]
    settings = _settings(recipe)
    if settings is None:
        words += ["--recipe", recipe_file(recipe)]
    else:
        words += ["--recipe", recipe["name"]]
    if isinstance(config.get("start"), Mapping):
        words += ["--from", str(config["start"].get("run"))]
    words += ["--seed", str(config["seed"]), "--out", out]
    if settings:
        words += ["--set", *settings]
    return shlex.join(" ".join(word.split()) for word in words), settings is None


def machine(device: str) -> dict[str, str]:
    """What computed: versions, system, processor; no names of hosts or users."""
    import numpy
    import torch

    import nearfar

    processor = _processor() or platform.machine()
    about = {
        "nearfar": nearfar.__version__,
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
        "NumPy": numpy.__version__,
        "System": f"{platform.system()} {platform.machine()}",
        "Processor": f"{processor}, {os.cpu_count()} cores, {torch.get_num_threads()} in use",
    }
    if device.startswith("cuda"):
        about["GPU"] = torch.cuda.get_device_name(device)
    return about


def _settings(recipe: Mapping[str, Any]) -> list[str] | None:
    """What ``--set`` makes this recipe of the one of its name that comes with nearfar; None: nothing does, or not briefly."""
    if recipe["name"] not in recipe_names():
        return None
    known = load_recipe(recipe["name"]).to_dict()
    settings = [
        f"{section}.{key}={'none' if value is None else _value(value)}"
        for section, table in recipe.items()
        if isinstance(table, Mapping)
        for key, value in table.items()
        if key not in known.get(section, {}) or known[section][key] != value
    ]
    try:
        made = load_recipe(recipe["name"], parse_changes(settings)).to_dict()
    except InputError:
        return None
    same = {**made, "description": ""} == {**recipe, "description": ""}
    return settings if same and len(settings) <= _MOST_SETTINGS else None


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _value(key)


def _value(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)} = {_value(inner)}" for key, inner in value.items() if inner is not None) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(inner) for inner in value) + "]"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.processor()
