"""What strangers may write beside a run with a text tower: the tower, its vocabulary, the captions, a file of prompts."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reliability.target import Several, Target
from samples import CLIP, squares

from nearfar import runs, textsearch, verbs
from nearfar.files import hash_file, read_json
from nearfar.recipe import Recipe
from nearfar.runs.card import write_card
from nearfar.runs.opening import load_run
from nearfar.search.storage import MANIFEST
from nearfar.tensorfile import header_of


def run_in(home: Path) -> Path:
    run = home / "captioned"
    if not run.exists():
        recipe = Recipe.from_dict({**CLIP, "train": {**CLIP["train"], "epochs": 1}})
        verbs.train(squares(80), recipe=recipe, out=run, seed=3, device="cpu")
    return run


def open_all(run: Path) -> None:
    """Whatever such a run is asked for: images for words, captions for images and for words, classes by prompts."""
    model, index = load_run(run, device="cpu")
    images = squares(3, seed=2)
    index.search_rows(textsearch.embed_texts(model, ["a bright square", "dim"]), k=2)
    textsearch.nearest_captions(run, model, images, k=2)
    textsearch.classify(model, images, textsearch.prompts_from(model, None, ["a {} square"], None))
    write_card(run)


def agree(run: Path) -> None:
    """Make all that names a hash or a length name the right one, as an enemy would."""
    with contextlib.suppress(Exception):
        path = run / runs.TEXT
        content = path.read_bytes()
        at = content.index(b'\\"tokenizer\\":') if b'\\"tokenizer\\":' in content else content.index(b'"tokenizer":')
        start = next(place for place in range(at + 12, at + 40) if content[place : place + 64].isalnum())
        path.write_bytes(content[:start] + hash_file(run / runs.TOKENIZER).encode() + content[start + 64 :])
    with contextlib.suppress(Exception):
        config = read_json(run / runs.CONFIG)
        config["text"]["sha256"] = hash_file(run / runs.TEXT)
        (run / runs.CONFIG).write_text(json.dumps(config))
    with contextlib.suppress(Exception):
        manifest = read_json(run / runs.TEXTS / MANIFEST)
        for entry in manifest["files"].values():
            path = run / runs.TEXTS / entry["name"]
            entry["bytes"], entry["sha256"] = path.stat().st_size, hash_file(path)
        (run / runs.TEXTS / MANIFEST).write_text(json.dumps(manifest))


def _targets(home: Path, names: Callable[[Path], list[str]], as_json: bool) -> list[Target]:
    run = run_in(home)
    return [
        Target(
            name,
            run / name,
            [(run / name).read_bytes()],
            lambda path: open_all(run),
            as_json=as_json,
            after=(lambda: None) if name == runs.CONFIG or name.endswith(MANIFEST) else (lambda: agree(run)),
        )
        for name in names(run)
    ]


def _in_index(run: Path, pattern: str) -> list[str]:
    return [path.relative_to(run).as_posix() for path in sorted((run / runs.TEXTS).glob(pattern))]


def json_of_captions(home: Path) -> Several:
    def names(run: Path) -> list[str]:
        return [runs.CONFIG, runs.TOKENIZER, f"{runs.TEXTS}/{MANIFEST}", *_in_index(run, "names-*.json")]

    return Several("json of captions", [*_targets(home, names, as_json=True), Header(run_in(home))])


def tensors_of_captions(home: Path) -> Several:
    def names(run: Path) -> list[str]:
        return [runs.TEXT, runs.TOKENIZER, *_in_index(run, "*-*")]

    return Several("tensors of captions", _targets(home, names, as_json=False))


class Header(Target):
    """The settings in the header of the tower's file, changed as the tree that they are; the rest stays whole."""

    def __init__(self, run: Path) -> None:
        path = run / runs.TEXT
        content = path.read_bytes()
        size = int.from_bytes(content[:8], "little")
        self.tree, self.body = json.loads(content[8 : 8 + size]), content[8 + size :]
        self.key = next(iter(header_of({"text": 1})))
        settings = json.dumps(json.loads(self.tree["__metadata__"][self.key])).encode()
        super().__init__("settings of the tower", path, [settings], lambda path: open_all(run), as_json=True)
        self.run = run

    def check(self) -> None:
        self.read(self.path)

    def change(self, dice: Any) -> None:
        super().change(dice)
        self._write(self.path.read_bytes())

    def restore(self) -> None:
        self._write(self.seeds[0])

    def _write(self, settings: bytes) -> None:
        text = settings.decode("utf-8", "replace")
        head = json.dumps(self.tree | {"__metadata__": {self.key: text}}).encode()
        self.path.write_bytes(len(head).to_bytes(8, "little") + head + self.body)
        agree(self.run)


def prompts(home: Path) -> Target:
    seeds = [b'shirt = ["a shirt", "a blouse"]\nbag = "a bag"\n', 'a = ["Ü {}"]\n"b c" = [\'x\']\n'.encode()]

    def read(path: Path) -> None:
        textsearch.read_prompts(path)

    return Target("prompts", home / "prompts.toml", seeds, read)
