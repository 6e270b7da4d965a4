"""Where the weights lie that training begins with: a file of the user's, or one on a model hub, by way of its cache.

Knows files and the hub; what is in a file is the encoder's own. Only safetensors are read: other formats can run code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from nearfar import runs
from nearfar.encoders.timm_model import TimmModel
from nearfar.errors import InputError
from nearfar.files import hash_file
from nearfar.runs import hub


def timm_model(encoder: nn.Module) -> TimmModel | None:
    """The model of timm that an `Encoder` is made of, or None where it is made of something else."""
    net = getattr(encoder, "net", None)
    return net if isinstance(net, TimmModel) else None


def begin(encoder: nn.Module) -> None:
    """Put the weights into ``encoder`` that it says training begins with; nothing where these are random ones.

    Raises:
        InputError: they are not at hand, or are not those of the encoder.
    """
    model = timm_model(encoder)
    if model is not None and model.weights != "random":
        model.take(weights_file(model))


def weights_file(model: TimmModel) -> Path:
    """The file with the weights of ``model``: the one that it names, or the hub's, downloaded unless the cache has it.

    Raises:
        InputError: there is none, or it can be neither found nor fetched.
    """
    if model.weights != "pretrained":
        return Path(model.weights).expanduser()
    about = model.about
    repo, name = about.get("hf_hub_id"), about.get("hf_hub_filename") or "model.safetensors"
    if not repo:
        raise InputError(
            f"timm knows no weights for {model.model}; name others, as timm.list_pretrained() lists them, or set "
            "encoder.weights to a file of safetensors"
        )
    file = Path(name).stem.replace("pytorch_model", "model") + ".safetensors"  # other formats have one of these beside them
    instead = "set encoder.weights to a file of safetensors"
    try:
        return hub.fetch_file(str(repo), file, instead=instead)
    except InputError as reason:
        raise InputError(f"the weights of {model.model} are not at hand: {reason}") from None


def origin(encoder: nn.Module) -> dict[str, Any] | None:
    """Whose weights training began with, for the config and the model card: ``model``, ``license`` (None where timm does not
    know it), ``weights`` and ``sha256`` (of their file); None where they were random.

    Raises:
        InputError: as `weights_file`.
    """
    model = timm_model(encoder)
    if model is None or model.weights == "random":
        return None
    digest = hash_file(weights_file(model))
    return {"model": model.model, "license": model.about.get("license"), "weights": model.weights, "sha256": digest}


def origin_of(run: Path) -> dict[str, Any] | None:
    """What `origin` said when the run began, whose encoder another one begins with."""
    found = runs.read_config(run).get("training", {}).get("weights")
    return found if isinstance(found, dict) else None


def advice(encoder: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> str | None:
    """What to set where pixels are not brought to the numbers that the weights were made with; None where they are."""
    model = timm_model(encoder)
    if model is None or model.weights == "random":
        return None
    wanted = model.expects
    if all(_same(here, there) for here, there in zip((mean, std), wanted, strict=True)):
        return None
    said = " ".join(f"data.{name}={_numbers(values)}" for name, values in zip(("mean", "std"), wanted, strict=True))
    return (
        f"the weights of {model.model} were made with other numbers than data.mean={_numbers(mean)} data.std={_numbers(std)}; "
        f"for theirs: --set {said}"
    )


def _same(here: tuple[float, ...], there: tuple[float, ...]) -> bool:
    count = max(len(here), len(there))
    wide = [values * count if len(values) == 1 else values for values in (here, there)]
    return all(abs(a - b) < 1e-3 for a, b in zip(*wide, strict=True))


def _numbers(values: tuple[float, ...]) -> str:
    return "[" + ",".join(f"{value:g}" for value in values) + "]"
