"""The scikit-learn face: an `Embedder` is fitted to images and turns images into vectors."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from numpy.typing import ArrayLike
from torch import nn

from nearfar import runs
from nearfar.blocks import check_block
from nearfar.data import ImageSet, load_images
from nearfar.errors import InputError
from nearfar.exchange import exchange
from nearfar.inference import embed, embed_pixels, find_device, for_inference
from nearfar.params import Params
from nearfar.recipe import Recipe, load_recipe
from nearfar.runs.card import write_card
from nearfar.splits import cut
from nearfar.text import TextTower
from nearfar.training import trained, weights
from nearfar.training.loop import fit
from nearfar.training.parts import build_encoder_for, check, learns_nothing
from nearfar.training.progress import Watcher
from nearfar.training.seeds import mix


class Embedder(Params):
    """Learns an embedding as a recipe says; `fit`, `transform`, `save`, `load`.

    Attributes (after `fit` or `load`):
        recipe_: the resolved `Recipe`.
        encoder_: the network, in eval mode: float [B, C, H, W], normalised as the recipe says, to [B, D].
        classes_: names of the classes that it was trained on.
        channels_, size_: of the images that the encoder takes; others are converted and resized.
        head_: the linear classifier that ``train.mode`` asked for, a `nearfar.heads.Head`, or None.
        text_: what turns texts into vectors, a `nearfar.text.TextTower`, or None where it did not learn from captions.
        temperature_: what cosines of images and texts are divided by for probabilities, or None.
        history_: one dict an epoch.
        training_: seconds, images a second, and the precision of the arithmetic.
    """

    _ready: tuple[nn.Module, str, nn.Module] | None = None  # an encoder, a device, and the encoder made ready for it
    _text: TextTower | None = None
    _text_folder: tuple[Path, str] | None = None  # where the text tower is read from when it is needed, and its hash
    temperature_: float | None = None

    def __init__(
        self,
        recipe: str | Path | Recipe = "mnist-fast",
        seed: int = 0,
        epochs: float | None = None,
        device: str = "auto",
        changes: Mapping[str, Any] | None = None,
        start: str | Path | None = None,
    ) -> None:
        """Args:
        recipe: name of a recipe that comes with nearfar, a TOML file, or a `Recipe`.
        seed: everything random in training follows from it.
        epochs: instead of the recipe's.
        device: "auto", "cpu" or "cuda".
        changes: values by dotted key that replace the recipe's, e.g. ``{"loss.temperature": 0.2}``.
        start: a run folder whose encoder training begins with, instead of random weights.
        """
        self.recipe = recipe
        self.seed = seed
        self.epochs = epochs
        self.device = device
        self.changes = changes
        self.start = start

    def fit(
        self,
        X: ImageSet | ArrayLike,
        y: ArrayLike | None = None,
        *,
        validation: ImageSet | None = None,
        watcher: Watcher | None = None,
    ) -> Self:
        """Train on images with labels, or with captions where the recipe learns from these.

        Args:
            X: an `ImageSet`, or uint8 images [N, H, W] or [N, C, H, W].
            y: N labels, numbers or text, where X is an array.
            validation: images for the figures of every epoch; None: the share of X that the recipe says.
            watcher: is told how training goes.

        Raises:
            InputError: an argument, the recipe or the images do not fit.
        """
        recipe = self.resolve()
        images = X if isinstance(X, ImageSet) else ImageSet.from_arrays(X, y)
        if images is X and y is not None:
            raise InputError("y was given beside an ImageSet, which has labels of its own; leave y out")
        images = load_images(images, size=recipe.data.size, channels=recipe.data.channels)
        if validation is None:
            parts = cut({"train": images}, dataclasses.replace(recipe.data, test=0.0, unseen=0.0), seed=self.seed)
            images, validation = parts.train, parts.validation
        else:
            validation = load_images(validation, size=images.size, channels=images.channels)
        return self.fit_parts(images, validation, watcher=watcher)

    def fit_parts(
        self,
        train: ImageSet,
        validation: ImageSet | None,
        *,
        folder: Path | None = None,
        resume: bool = False,
        watcher: Watcher | None = None,
    ) -> Self:
        """Train on images that are cut and sized already.

        Args:
            train: images to learn from.
            validation: images for the figures of every epoch, or None.
            folder: a run folder that keeps the training state and ``history.jsonl``; None: nothing is kept.
            resume: go on from the training state in ``folder``.
            watcher: is told how training goes.

        Raises:
            InputError: the recipe and the images do not fit, or the loss stopped being finite.
        """
        start = self.check(train)
        fitted = fit(
            self.recipe_,
            train,
            validation,
            start=start,
            seed=self.seed,
            device=find_device(self.device),
            checkpoint=None if folder is None else folder / runs.CHECKPOINT,
            resume=resume,
            on_epoch=None if folder is None else lambda history: runs.write_history(folder, history),
            watcher=watcher,
        )
        self.encoder_, self.head_ = fitted.encoder, fitted.head
        self._text, self._text_folder, self.temperature_ = fitted.text, None, fitted.temperature
        self._ready = None
        self.history_ = fitted.history
        self.training_.update(seconds=fitted.seconds, images_per_second=fitted.images_per_second, precision=fitted.precision)
        if learns_nothing(self.recipe_):
            self.training_["learned"] = False
        origin = weights.origin(self.encoder_) if start is None else weights.origin_of(Path(str(self.start)))
        if origin is not None:
            self.training_["weights"] = origin
        return self

    def check(self, train: ImageSet) -> nn.Module | None:
        """Refuse a recipe that does not fit the images, before anything is written or computed.

        Returns:
            The encoder of the run to start from, if there is one.

        Raises:
            InputError: the recipe does not fit, or that run does not.
        """
        find_device(self.device)
        self.recipe_ = self.resolve()
        start, self.start_ = None, None
        if self.start is not None:
            start, self.start_ = trained.load_start(Path(self.start), self.recipe_)
        check(self.recipe_, train, seed=self.seed, start=start)
        self.classes_ = tuple(train.classes)
        self.channels_, self.size_ = train.channels, train.size
        self.training_: dict[str, Any] = {}
        return start

    def transform(self, X: ImageSet | ArrayLike) -> np.ndarray:
        """Embed images: float32 [N, D], unit rows where the recipe says so.

        Raises:
            InputError: there is no model yet, or the images cannot be brought to its size and channels.
        """
        self._require_fitted()
        return embed(self.encoder_, self.conform(X), self.recipe_.data, device=find_device(self.device))

    @property
    def text_(self) -> TextTower | None:
        """The text tower; of a loaded run it is read when it is first asked for."""
        if self._text is None and self._text_folder is not None:
            self._text = TextTower.load(*self._text_folder)
        return self._text

    @property
    def has_text(self) -> bool:
        """Whether there is a text tower; does not read it."""
        return self._text is not None or self._text_folder is not None

    def require_text(self) -> TextTower:
        """The text tower.

        Raises:
            InputError: there is none, or it cannot be read.
        """
        self._require_fitted()
        tower = self.text_
        if tower is None:
            raise InputError("this run has no text tower; train on images with captions by the recipe clip, or siglip")
        return tower

    def transform_text(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts beside the images: float32 [N, D], unit rows. What is longer than the tower reads is cut.

        Raises:
            InputError: there is no text tower, or a text is empty.
        """
        return self.require_text().embed(texts, find_device(self.device))

    def embed_block(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Embed uint8 [N, C, H, W], of the encoder's own size and channels, in one piece: float32 [N, D].

        For many calls with few images: the network is made ready for inference once, so weights that are changed in place
        afterwards are not seen. `transform` looks at them anew, converts, and cuts what is large.

        Raises:
            InputError: there is no model yet, or another shape or type.
        """
        self._require_fitted()
        check_block(pixels, self.channels_, self.size_)
        device = find_device(self.device)
        if self._ready is None or self._ready[0] is not self.encoder_ or self._ready[1] != device:
            self._ready = self.encoder_, device, for_inference(self.encoder_, device)
        return embed_pixels(self._ready[2], pixels, self.recipe_.data, device)

    def fit_transform(self, X: ImageSet | ArrayLike, y: ArrayLike | None = None) -> np.ndarray:
        """`fit`, then `transform` of the same images."""
        return self.fit(X, y).transform(X)

    def untrained(self) -> nn.Module:
        """An encoder of the same shape with the random weights of this seed, which training begins with unless others are
        named (``start``, ``encoder.weights``)."""
        self._require_fitted()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix(self.seed, 0))
            return build_encoder_for(self.recipe_, self.channels_, self.size_).eval()

    def conform(self, X: ImageSet | ArrayLike) -> ImageSet:
        """Images brought to the size and channels that the encoder takes."""
        self._require_fitted()
        images = X if isinstance(X, ImageSet) else ImageSet.from_arrays(X)
        return load_images(images, size=self.size_, channels=self.channels_)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write a run folder: ``config.json``, ``model.safetensors``, ``history.jsonl``, and the text tower where there is one.

        Args:
            folder: empty or not there yet.
            overwrite: take the place of the run that the folder holds; it stays as it was until the new one is whole.

        Raises:
            InputError: there is no model yet, the folder holds something else, or it cannot be written.
        """
        self._require_fitted()
        folder = Path(folder)
        if overwrite and (folder / runs.CONFIG).exists():
            beside = folder.with_name(f".{folder.name}.new")
            shutil.rmtree(beside, ignore_errors=True)  # what a killed process left
            try:
                exchange(self.save(beside), folder)
            finally:
                shutil.rmtree(beside, ignore_errors=True)  # the earlier run, or as much of the new one as there was room for
            return folder
        config = self.config({})
        runs.begin(folder, config, resume=False)
        towers = (self.text_, self.temperature_)
        trained.finish(folder, config | trained.write_model(folder, self.encoder_, self.history_, self.head_, *towers))
        return folder

    def config(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """What ``config.json`` says of this model; ``data`` describes what it was trained on."""
        return {
            "recipe": self.recipe_.to_dict(),
            "seed": self.seed,
            "data": dict(data),
            "input": {"channels": self.channels_, "size": list(self.size_)},
            "classes": list(self.classes_),
            "training": self.training_,
            **({} if self.start_ is None else {"start": self.start_}),
        }

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "auto") -> Self:
        """Load a run folder; nothing in it is executed.

        Raises:
            InputError: the folder is not a finished run, or a part is missing, damaged, or of another run.
        """
        recipe, encoder, config = trained.load(Path(folder))
        model = cls(recipe=recipe, seed=config["seed"], device=device)
        model.recipe_, model.encoder_, model.head_ = recipe, encoder, runs.head_of(Path(folder), config)
        if entry := trained.text_entry(Path(folder), config):
            model._text_folder, model.temperature_ = (Path(folder), entry["sha256"]), float(entry["temperature"])
        model.classes_ = tuple(config["classes"])
        model.channels_ = config["input"]["channels"]
        model.size_ = (config["input"]["size"][0], config["input"]["size"][1])
        model.history_ = runs.read_history(Path(folder))
        model.training_ = config.get("training", {})
        model.start_ = config.get("start")
        return model

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        overwrite: bool = False,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **options: Any,
    ) -> str | None:
        """`save`, with a model card; with ``push_to_hub`` also `push_to_hub`.

        Args:
            folder: as in `save`.
            overwrite: as in `save`.
            push_to_hub: upload it too.
            repo_id: where to; None: under the folder's name.
            options: of `push_to_hub`.

        Returns:
            The URL of the commit, or None where nothing was uploaded.
        """
        write_card(self.save(folder, overwrite=overwrite))
        return self.push_to_hub(repo_id or Path(folder).resolve().name, **options) if push_to_hub else None

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str = "A nearfar model",
        revision: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Upload the model to a hub as one commit; `nearfar.runs.hub.push`, likewise, uploads a run with its index.

        Returns:
            The URL of the commit, or of the pull request.

        Raises:
            InputError: there is no model yet, the extra ``hub`` is missing, or the hub refuses or cannot be reached.
        """
        from nearfar.runs import hub

        with tempfile.TemporaryDirectory() as folder:
            run = self.save(Path(folder) / "run")
            write_card(run)
            pushed = hub.push(
                run,
                repo_id,
                commit_message=commit_message,
                private=private,
                token=token,
                revision=revision,
                create_pr=create_pr,
            )
            return str(pushed["url"])

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        device: str = "auto",
    ) -> Self:
        """`load` of a run folder, or of a model on a hub, by `nearfar.runs.hub.fetch`, which says what the arguments are.

        Raises:
            InputError: as `load` and `nearfar.runs.hub.fetch`.
        """
        from nearfar.runs import hub

        options: dict[str, Any] = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        return cls.load(hub.fetch(name_or_path, revision=revision, model_only=True, **options), device=device)

    def resolve(self) -> Recipe:
        """The recipe with this estimator's changes."""
        changes = dict(self.changes or {})
        if self.epochs is not None:
            changes["train.epochs"] = self.epochs
        return load_recipe(self.recipe, changes)

    def _require_fitted(self) -> None:
        if not hasattr(self, "encoder_"):
            raise InputError("this Embedder has no model yet; call fit, or Embedder.load(folder)")
