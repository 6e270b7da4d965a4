"""A recipe says everything about a training run: a TOML file with one section per stage, checked when it is read.

Knows names, numbers and their ranges. Does not know images, networks or formulas: the sections ``encoder``, ``loss`` and
``augment`` hold the arguments of the classes they name, which check them when they are built.
"""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from nearfar.errors import InputError, did_you_mean

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True, kw_only=True)
class DataSection:
    """Which rows are used for what, and how pixels become numbers."""

    size: tuple[int, int] | None = None  # height, width in pixels that every image is resized to; None: as they are
    channels: int | None = None  # 1 grey, 3 colour; None: as the images are
    background: int = 255  # grey value 0..255 that shows through transparent images
    mean: tuple[float, ...] = (0.5,)  # subtracted from pixels in [0, 1], one number or one per channel
    std: tuple[float, ...] = (0.5,)  # divided by afterwards
    rows: int | None = None  # use no more than the first so many training images
    fraction: float = 1.0  # then only this share of them, stratified by class
    labelled: float = 1.0  # share of the training images whose label is used, stratified by class; the others have none
    validation: float = 0.0  # share (below 1) or number of training images held out for validation figures
    validation_from: Literal["random", "stratified", "first", "last"] = "stratified"
    test: float = 0.2  # share of the images held out when the data brings no test split; stratified by class
    unseen: float | tuple[str, ...] = 0.0  # share of the classes, or their names, kept from training and evaluated apart

    def __post_init__(self) -> None:
        _check("data.size", self.size, self.size is None or min(self.size) >= 1, "two positive numbers, height and width")
        _check("data.channels", self.channels, self.channels in (None, 1, 3), "1 (grey) or 3 (colour)")
        _check("data.background", self.background, 0 <= self.background <= 255, "a grey value from 0 to 255")
        _check("data.std", self.std, len(self.std) in (1, 3) and min(self.std, default=0) > 0, "1 or 3 positive numbers")
        _check("data.mean", self.mean, len(self.mean) in (1, 3), "1 or 3 numbers")
        _check("data.rows", self.rows, self.rows is None or self.rows >= 1, "a positive number of images")
        _check("data.fraction", self.fraction, 0 < self.fraction <= 1, "a share above 0, at most 1")
        _check("data.labelled", self.labelled, 0 < self.labelled <= 1, "a share above 0, at most 1")
        whole = self.validation < 1 or self.validation == int(self.validation)
        _check("data.validation", self.validation, self.validation >= 0 and whole, "a share below 1 or a whole number")
        _check("data.test", self.test, 0 <= self.test < 1, "a share from 0 up to, not including, 1")
        if isinstance(self.unseen, float):
            _check("data.unseen", self.unseen, 0 <= self.unseen < 1, "a share of the classes below 1, or class names")


@dataclass(frozen=True, kw_only=True)
class SamplingSection:
    """How training images are put together into batches."""

    kind: Literal["shuffle", "pairs", "class-batches", "views", "captions"] = "shuffle"
    batch_size: int = (
        128  # images a batch, before they are seen `views` times; pairs where kind is "pairs"; not used by "class-batches"
    )
    partner: Literal["fixed", "fresh"] = "fresh"  # pairs: drawn once before training, or anew in every epoch
    pairing: Literal["half", "both"] = "half"  # pairs: one partner, same class half the time; or one of each kind
    linked: int = 1  # pairs: so many in a row that have images in common, each of which is embedded once; 1: a random order
    classes: int = 8  # class-batches: classes in a batch (P)
    per_class: int = 16  # class-batches: images of each class (K)
    views: int = 2  # views: how often each image is in a batch, changed anew each time
    instances: Literal["all", "unlabelled"] = "all"  # views: which images are a class of their own; others are of their label's
    drop_last: bool = False  # shuffle, views, captions: leave out a last batch that is not full

    def __post_init__(self) -> None:
        _check("sampling.views", self.views, self.views >= 2, "at least 2")
        for name in ("batch_size", "linked", "classes", "per_class"):
            _check(f"sampling.{name}", getattr(self, name), getattr(self, name) >= 1, "a positive whole number")


@dataclass(frozen=True, kw_only=True)
class TextSection:
    """The tower that turns captions into vectors; used where ``sampling.kind`` is "captions"."""

    kind: Literal["transformer", "sentence"] = "transformer"  # trained from nothing; or a frozen model and a map from it
    vocabulary: int = 8192  # transformer: pieces that captions are cut into, at most
    length: int = 32  # transformer: pieces that are read of a text; what is longer is cut
    width: int = 128  # transformer: numbers for each piece
    layers: int = 2  # transformer: blocks
    heads: int = 4  # transformer: heads of attention, which divide the width
    dropout: float = 0.1  # transformer: share of numbers left out in training
    model: str = ""  # sentence: name or folder of a sentence-transformers model

    def __post_init__(self) -> None:
        _check("text.vocabulary", self.vocabulary, 258 <= self.vocabulary <= 1 << 17, "258 (single bytes) to 131,072")
        _check("text.length", self.length, 2 <= self.length <= 1024, "2 to 1024")
        for name in ("width", "heads"):
            _check(f"text.{name}", getattr(self, name), getattr(self, name) >= 1, "a positive whole number")
        _check("text.layers", self.layers, self.layers >= 0, "zero or a positive number")
        _check("text.heads", self.heads, self.width % self.heads == 0, f"a divisor of text.width, {self.width}")
        _check("text.dropout", self.dropout, 0 <= self.dropout < 1, "from 0 up to, not including, 1")


@dataclass(frozen=True, kw_only=True)
class TrainSection:
    """What is learned, the optimiser and its schedule."""

    mode: Literal["embedding", "linear", "finetune"] = "embedding"  # on a run's encoder: a linear head, or both together
    epochs: float = 10.0  # passes over the images; 2.5: the last one ends in its middle
    optimizer: Literal["adam", "adamw", "sgd", "muon"] = "adam"
    learning_rate: float = 1e-3
    vector_rate: float = 3e-3  # muon: the highest rate of what is not a matrix, and of the loss's own parameters
    weight_decay: float = 0.0
    momentum: float = 0.9  # sgd, muon
    beta2: float = 0.999  # adam, adamw: decay of the second moment
    schedule: Literal["constant", "step", "exponential", "one-cycle"] = "constant"
    step_epochs: int = 1  # step: the rate is multiplied by `factor` every so many epochs
    factor: float = 1.0  # step: see above; exponential: what the rate is multiplied by over the whole run
    warmup: float = 0.3  # one-cycle: share of all steps in which the rate rises (Smith and Topin 2018)
    start_factor: float = 0.04  # one-cycle: first rate over the highest
    final_factor: float = 0.0001  # one-cycle: last rate over the highest
    average: float = 0.0  # decay per step of the exponential moving average of the weights; 0: none
    clip: float = 0.0  # largest norm of the gradient; 0: not clipped
    projector: tuple[int, ...] = ()  # widths of a net between encoder and loss that goes after training; (): none
    chunk: int = 0  # images that pass through the encoder at once (gradient caching); 0: the whole batch
    precision: Literal["auto", "float32", "bfloat16"] = "float32"  # of the encoder's arithmetic; auto measures
    checkpoint_seconds: float = 60.0  # a checkpoint at least this often, besides every epoch's end

    def __post_init__(self) -> None:
        for name in ("epochs", "learning_rate", "vector_rate"):
            _check(f"train.{name}", getattr(self, name), getattr(self, name) > 0, "a positive number")
        _check("train.weight_decay", self.weight_decay, self.weight_decay >= 0, "zero or a positive number")
        _check("train.momentum", self.momentum, 0 <= self.momentum < 1, "from 0 up to, not including, 1")
        _check("train.beta2", self.beta2, 0 < self.beta2 < 1, "between 0 and 1")
        _check("train.step_epochs", self.step_epochs, self.step_epochs >= 1, "a positive whole number")
        for name in ("factor", "start_factor", "final_factor"):
            _check(f"train.{name}", getattr(self, name), getattr(self, name) > 0, "a positive number")
        _check("train.warmup", self.warmup, 0 <= self.warmup <= 1, "a share from 0 to 1")
        _check("train.average", self.average, 0 <= self.average < 1, "from 0 (none) up to, not including, 1")
        _check("train.projector", self.projector, min(self.projector, default=1) >= 1, "a list of positive widths")
        _check("train.chunk", self.chunk, self.chunk >= 0, "zero (the whole batch) or a positive number of images")
        _check("train.clip", self.clip, self.clip >= 0, "zero (none) or a positive number")
        _check("train.checkpoint_seconds", self.checkpoint_seconds, self.checkpoint_seconds > 0, "a positive number")


@dataclass(frozen=True, kw_only=True)
class EvaluateSection:
    """How the embedding is judged."""

    metric: Literal["cosine", "dot", "euclidean"] = "cosine"
    backend: Literal["auto", "exact", "hnsw", "annoy", "milvus"] = "auto"  # what searches the run's index; docs/search.md
    k: int = 10  # neighbours that vote
    vote: Literal["majority", "similarity"] = "majority"
    threshold: float | None = None  # distance below which a pair counts as the same; None: the best on validation pairs
    bootstrap: int = 1000  # resamples of the queries behind every confidence interval
    templates: tuple[str, ...] = ()  # captions: texts with {} for a class's name, by which images are classified; (): not

    def __post_init__(self) -> None:
        _check("evaluate.k", self.k, self.k >= 1, "a positive whole number")
        _check("evaluate.bootstrap", self.bootstrap, self.bootstrap >= 0, "zero (no intervals) or a positive number")
        _check("evaluate.templates", self.templates, all("{}" in one for one in self.templates), "texts with {} for the class")


@dataclass(frozen=True, kw_only=True)
class Part:
    """A class by its name in the recipe, and its arguments."""

    kind: str
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run, whole."""

    name: str
    description: str
    encoder: Part
    loss: Part
    data: DataSection = field(default_factory=DataSection)
    sampling: SamplingSection = field(default_factory=SamplingSection)
    augment: dict[str, Any] = field(default_factory=dict)
    train: TrainSection = field(default_factory=TrainSection)
    evaluate: EvaluateSection = field(default_factory=EvaluateSection)
    text: TextSection | None = None

    def __post_init__(self) -> None:
        if self.text is None and self.sampling.kind == "captions":
            object.__setattr__(self, "text", TextSection())

    def to_dict(self) -> dict[str, Any]:
        """The recipe as nested dicts of plain values, every default spelled out; `from_dict` reads it back."""
        tree = _plain(dataclasses.asdict(self))
        for part in ("encoder", "loss"):
            tree[part] = {"kind": tree[part]["kind"], **tree[part]["params"]}
        if self.text is None:
            del tree["text"]
        return tree

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any], *, name: str | None = None) -> Recipe:
        """Check ``tree`` and make a recipe of it.

        Raises:
            InputError: a section or key is unknown, missing, of the wrong type, or out of range.
        """
        tree = dict(tree)
        known = [one.name for one in dataclasses.fields(cls)]
        for key in tree:
            if key not in known:
                raise InputError(f"the recipe has an unknown section {key!r}{did_you_mean(key, known)}")
        sections: dict[str, Any] = {
            "name": name if name is not None else _typed("name", tree.get("name", "custom"), str),
            "description": _typed("description", tree.get("description", ""), str),
        }
        for key in ("encoder", "loss"):
            params = dict(_table(key, tree.get(key)))
            if "kind" not in params:
                raise InputError(f'the recipe lacks {key}.kind; add a section [{key}] with kind = "..."')
            sections[key] = Part(kind=_typed(f"{key}.kind", params.pop("kind"), str), params=params)
        sections["augment"] = dict(_table("augment", tree.get("augment", {})))
        for key, section in (
            ("data", DataSection),
            ("sampling", SamplingSection),
            ("train", TrainSection),
            ("evaluate", EvaluateSection),
        ):
            sections[key] = _section(key, section, _table(key, tree.get(key, {})))
        if "text" in tree:
            sections["text"] = _section("text", TextSection, _table("text", tree["text"]))
        return cls(**sections)

    def with_changes(self, changes: Mapping[str, Any]) -> Recipe:
        """A copy with dotted keys changed: ``{"loss.margin": 0.5}``.

        A change of ``train.mode`` to "linear" or "finetune" comes first and brings what heads learn by: cross-entropy on
        images one by one, instead of another loss and of pairs, views or captions.

        Raises:
            InputError: a key is unknown or a value does not fit.
        """
        tree = self.to_dict()
        if changes.get("train.mode", "embedding") != "embedding":
            if tree["loss"]["kind"] != "cross-entropy":
                tree["loss"] = {"kind": "cross-entropy"}
            if tree["sampling"]["kind"] in ("pairs", "views", "captions"):
                tree["sampling"]["kind"] = "shuffle"
            tree["train"]["projector"] = []
        if any(key.startswith("text.") for key in changes):
            tree.setdefault("text", {})
        for dotted, value in changes.items():
            section, _, key = dotted.partition(".")
            if not key or not isinstance(tree.get(section), dict):
                sections = [name for name, content in tree.items() if isinstance(content, dict)]
                raise InputError(f"cannot set {dotted!r}: expected section.key=value{did_you_mean(section, sections)}")
            if key == "kind" and section in ("encoder", "loss") and value != tree[section]["kind"]:
                tree[section] = {"kind": value}  # the arguments of another class would not fit
            else:
                tree[section][key] = value
        return Recipe.from_dict(tree, name=self.name)


def recipe_names() -> list[str]:
    """Names of the recipes that come with nearfar, sorted."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def recipe_text(name: str) -> str:
    """The TOML text of a recipe that comes with nearfar.

    Raises:
        InputError: there is none of that name.
    """
    if name not in recipe_names():
        raise InputError(f"unknown recipe {name!r}{did_you_mean(name, recipe_names())}")
    return (RECIPES / f"{name}.toml").read_text()


def load_recipe(name: str | Path | Recipe, changes: Mapping[str, Any] | None = None) -> Recipe:
    """Load a recipe by name or from a TOML file, with dotted keys changed.

    Args:
        name: a name that `recipe_names` lists, a path that ends in ``.toml``, or a `Recipe`.
        changes: values by dotted key, e.g. ``{"train.epochs": 3}``.

    Raises:
        InputError: the recipe is unknown or does not read as TOML, or a key or value does not fit.
    """
    if isinstance(name, Recipe):
        recipe = name
    elif str(name).endswith(".toml"):
        path = Path(name)
        try:
            tree = tomllib.loads(path.read_text())
        except FileNotFoundError:
            raise InputError(f"recipe file {path} does not exist") from None
        except OSError as error:
            raise InputError(f"cannot read recipe file {path}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InputError(f"recipe file {path} is not valid TOML: {error}") from None
        recipe = Recipe.from_dict(tree, name=path.stem)
    else:
        recipe = Recipe.from_dict(tomllib.loads(recipe_text(str(name))), name=str(name))
    return recipe.with_changes(changes) if changes else recipe


def parse_changes(settings: Sequence[str]) -> dict[str, Any]:
    """Read ``["loss.margin=0.5", "train.optimizer=sgd"]``; values are TOML, or bare words taken as text.

    Raises:
        InputError: a setting has no ``=``.
    """
    changes: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise InputError(f"cannot read setting {setting!r}: expected section.key=value, e.g. loss.margin=0.5")
        try:
            parsed = tomllib.loads(f"value = {text}")
            changes[key.strip()] = parsed["value"] if len(parsed) == 1 else text
        except (tomllib.TOMLDecodeError, RecursionError):
            changes[key.strip()] = text.strip()
    return changes


Section = TypeVar("Section")


def _section(name: str, section: type[Section], table: Mapping[str, Any]) -> Section:
    hints = typing.get_type_hints(section)
    for key in table:
        if key not in hints:
            raise InputError(f"the recipe has an unknown key {name}.{key}{did_you_mean(key, hints)}")
    return section(**{key: _typed(f"{name}.{key}", value, hints[key]) for key, value in table.items()})


def _table(name: str, value: Any) -> Mapping[str, Any]:
    if value is None:
        raise InputError(f"the recipe lacks the section [{name}]")
    if not isinstance(value, Mapping):
        raise InputError(f"the recipe's {name} must be a section [{name}], not {value!r}")
    return value


def _typed(name: str, value: Any, hint: Any) -> Any:
    """``value`` as the type ``hint`` asks for: whole numbers serve as floats, lists as tuples, "none" as None."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    for option in options:
        origin = typing.get_origin(option)
        if option is type(None) and value in (None, "none"):
            return None
        if origin is Literal and value in typing.get_args(option):
            return value
        if option is float and isinstance(value, int | float) and not isinstance(value, bool):
            number = float(value)
            _check(name, value, number - number == 0, "a finite number")
            return number
        if option in (int, bool, str) and type(value) is option:
            return value
        if origin is tuple:
            inner = typing.get_args(option)
            items = list(value) if isinstance(value, list | tuple) else [value]
            each = inner[0] if inner[-1] is Ellipsis else None
            if each is None and len(items) == 1 and isinstance(value, int):
                items = items * len(inner)  # one number for height and width
            if each is not None or len(items) == len(inner):
                try:
                    return tuple(_typed(name, item, each or inner[i]) for i, item in enumerate(items))
                except InputError:
                    continue
    raise InputError(f"{name} is {value!r}; expected {_expected(options)}")


def _expected(options: Sequence[Any]) -> str:
    words = []
    for option in options:
        if typing.get_origin(option) is Literal:
            words.append("one of " + ", ".join(repr(choice) for choice in typing.get_args(option)))
        elif typing.get_origin(option) is tuple:
            inner = typing.get_args(option)
            count = "a list of" if inner[-1] is Ellipsis else f"a list of {len(inner)}"
            words.append(f"{count} {inner[0].__name__} values")
        elif option is type(None):
            words.append("'none'")
        else:
            words.append({int: "a whole number", float: "a number", str: "text", bool: "true or false"}[option])
    return " or ".join(words)


def _check(name: str, value: Any, fine: bool, expected: str) -> None:
    if not fine:
        raise InputError(f"{name} is {value!r}; expected {expected}")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value
