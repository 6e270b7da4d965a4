"""Any model of timm as an encoder: its features, and a linear layer on them if asked for.

Knows names of models and shapes of images; what is in a file of weights is taken over by `TimmModel.take`, where files lie is
not known here. Built with random weights; timm itself is imported when the first one is built.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from nearfar.encoders.checks import check_integer, check_size
from nearfar.encoders.convolution import quicken
from nearfar.errors import InputError, reason_of
from nearfar.torchvision import make_importable


def import_timm() -> ModuleType:
    """The package timm.

    Raises:
        InputError: it is not installed, or cannot be imported.
    """
    try:
        make_importable()
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise InputError(
            f"{error.name} is not installed, which encoder 'timm' needs; run: pip install 'nearfar[timm]'"
        ) from None
    except (ImportError, RuntimeError, OSError) as error:
        raise InputError(
            f"timm cannot be imported: {reason_of(error)}; install the torchvision that was made for your torch"
        ) from None


class Published(NamedTuple):
    """The images that weights were made for."""

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


class TimmModel(nn.Module):
    """A model of timm without its classifier: float [B, C, H, W] to [B, D].

    A frozen one does not learn: its weights ask for no gradient, and it stays in eval mode, batch norms and all.
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        size: tuple[int, int] = (224, 224),
        model: str,
        weights: str = "pretrained",
        frozen: bool = False,
        dim: int = 0,
    ) -> None:
        """Args:
            channels: of the images; where they are not three, timm adds up or repeats the first layer's weights.
            size: height and width; a model of fixed size is built for this one.
            model: a name that ``timm.list_models()`` knows, with the tag of its weights or without: "resnet18.a1_in1k".
            weights: what training begins with: "pretrained", "random", or a file of safetensors.
            frozen: whether the model stays as it is, so that only what is on top of it learns.
            dim: D, by a linear layer on the model's features; 0: the features themselves.

        Raises:
            InputError: timm is not installed, has no such model, the model does not take images of this shape, or a value is
                not usable.
        """
        super().__init__()
        if not isinstance(model, str) or not model:
            raise InputError(f"encoder.model is {model!r}; expected the name of a model of timm, such as resnet18.a1_in1k")
        if not isinstance(weights, str) or not weights:
            raise InputError(f"encoder.weights is {weights!r}; expected 'pretrained', 'random' or a file of safetensors")
        if not isinstance(frozen, bool):
            raise InputError(f"encoder.frozen is {frozen!r}; expected true or false")
        if frozen and weights == "random":
            raise InputError("encoder.frozen is true and encoder.weights 'random': nothing would ever be learned")
        check_integer("channels", channels)
        check_integer("dim", dim, 0)
        self.model, self.weights, self.frozen, self.channels, self.size = model, weights, frozen, channels, check_size(size)
        try:
            self.body = self._build()
            features = _width(self.body, channels, self.size)
        except InputError:
            raise
        except Exception as error:  # each model has its own
            raise InputError(
                f"timm's {model} does not take {channels} x {size[0]} x {size[1]} numbers an image: {reason_of(error)}; set "
                "data.size and data.channels to what it was made for, often [224, 224] and 3"
            ) from None
        self.head: nn.Module = nn.Linear(features, dim) if dim else nn.Identity()
        if frozen:
            self.body.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.frozen:
            self.body.eval()
        return self

    @property
    def expects(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation that pixels in [0, 1] had when the weights were made, one number for each channel."""
        about = self.about
        mean, std = tuple(about["mean"]), tuple(about["std"])
        if self.channels == len(mean):
            return mean, std
        return (round(sum(mean) / len(mean), 4),), (round(sum(std) / len(std), 4),)

    @property
    def about(self) -> dict[str, Any]:
        """What timm knows of the weights: ``hf_hub_id``, ``license``, ``mean``, ``std``, ``input_size`` and more."""
        return dict(self.body.pretrained_cfg)  # type: ignore[arg-type]  # timm puts a dict there

    @staticmethod
    def published(model: str) -> Published:
        """The images that the weights of the name ``model`` were made for.

        Raises:
            InputError: timm is not installed, or knows none of that name.
        """
        config = _config(model)
        return Published((config.input_size[1], config.input_size[2]), tuple(config.mean), tuple(config.std))

    def take(self, path: Path) -> None:
        """Take over the weights that ``path`` holds, for the model's own shape of images.

        timm fits them: a classifier is left out, the first layer is brought to the number of channels, positions to the size.

        Raises:
            InputError: the file is not safetensors, or does not hold this model.
        """
        if path.suffix != ".safetensors":
            raise InputError(f"cannot read weights from {path}; only .safetensors is read, since other formats can run code")
        if not path.is_file():
            raise InputError(f"there is no file of weights {path}")
        with torch.random.fork_rng(devices=[]), _quiet():
            torch.manual_seed(0)
            drawn = self._build()
            torch.manual_seed(0)
            try:
                loaded = self._build(pretrained=True, pretrained_cfg_overlay={"file": str(path), "custom_load": False})
            except Exception as error:  # of timm, PyTorch or safetensors, each with its own
                raise InputError(f"{path} does not hold weights of {self.model}: {reason_of(error).rstrip('.')}") from None
        # timm takes what it finds and leaves the rest as it was drawn.
        found = dict(loaded.named_parameters())
        matrices = {name: one for name, one in drawn.named_parameters() if one.ndim > 1 and one.min() < one.max()}
        left = [name for name, one in matrices.items() if torch.equal(one, found[name])]
        if left:
            raise InputError(
                f"{path} does not hold weights of {self.model} for {self.channels} channels: {len(left)} of {len(matrices)} "
                f"matrices are not in it, the first is {left[0]!r}"
            )
        self.body.load_state_dict(loaded.state_dict())

    def _build(self, **options: Any) -> nn.Module:
        """The model without its classifier, with random weights unless ``options`` say otherwise.

        Raises:
            InputError: there is none of that name, or none for this shape.
        """
        timm, config = import_timm(), _config(self.model)
        if config.fixed_input_size:
            options["img_size"] = self.size
        built: nn.Module = timm.create_model(self.model, num_classes=0, in_chans=self.channels, **options)
        return quicken(built)


def _config(model: str) -> Any:
    """What timm knows of the model and its weights.

    Raises:
        InputError: nothing.
    """
    timm = import_timm()
    name, _, tag = model.partition(".")
    if not timm.is_model(name):
        raise InputError(f"timm {timm.__version__} has no model {model!r}{_similar(name, timm.list_models())}")
    try:
        return timm.get_pretrained_cfg(model)
    except RuntimeError:
        tags = [one.partition(".")[2] for one in timm.list_pretrained(f"{name}.*")]
        raise InputError(f"timm {timm.__version__} knows no weights {tag!r} of {name}{_similar(tag, tags)}") from None


def _width(body: nn.Module, channels: int, size: tuple[int, int]) -> int:
    """How many features ``body`` gives of an image, by giving it one."""
    with torch.no_grad():
        features = body.eval()(torch.zeros(1, channels, *size))
    body.train()
    if not isinstance(features, Tensor) or features.ndim != 2:
        raise InputError("the model gives no single row of features an image; choose another")
    return int(features.shape[1])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What timm says of names that it did not expect is said here in one line; what it is warned of is no user's concern."""
    logger = logging.getLogger("timm")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _similar(name: str, names: list[str]) -> str:
    """Names like ``name``: there are more than a thousand."""
    near = difflib.get_close_matches(name, names, n=3)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else "; timm.list_pretrained() has all names"
