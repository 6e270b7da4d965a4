"""Images -> embeddings, as fast as the machine goes: no gradients, folded batch norms, a batch for each core, slices of what
may lie on disk.
"""

from __future__ import annotations

import contextlib

import numpy as np
import torch
from torch import nn

from nearfar.augment import normalize
from nearfar.blocks import check_finite
from nearfar.cores import share_of
from nearfar.data import ImageSet
from nearfar.encoders import Encoder, fuse
from nearfar.encoders.convolution import settle
from nearfar.errors import InputError
from nearfar.memory import keep_freed_memory
from nearfar.recipe import DataSection
from nearfar.threads import one_by_one, single_threads

_NUMBERS = 1 << 23  # of pixels at once at most: 55 images of 224 x 224 in colour, whose layers need far more memory
_BATCH, _SHARE = 512, 128  # images at once by all cores together, and by each of several for itself (docs/speed.md)

_WHITENED = 40  # images that covariances are taken from, for each number of an embedding


def embed(encoder: nn.Module, images: ImageSet, section: DataSection, *, device: str = "cpu") -> np.ndarray:
    """Embed every image.

    On a processor each core embeds batches of its own, where images are not so large that few make a batch: cores that each
    go their own way through the layers do not wait for one another behind every layer.

    Args:
        encoder: maps float [B, C, H, W] to [B, D]; stays as it is.
        images: N images of the size and channels that the encoder was built for.
        section: the recipe's data section, whose mean and std turn pixels into numbers.
        device: where to compute.

    Returns:
        float32 [N, D].

    Raises:
        InputError: an embedding is not finite: the weights are broken.
    """
    if not len(images):
        raise InputError("there are no images to embed")
    fast = for_inference(encoder, device)
    most = max(1, _NUMBERS // (images.channels * images.size[0] * images.size[1]))
    threads = torch.get_num_threads() if device == "cpu" else 1
    share = share_of(len(images), threads, most=min(_SHARE, most // threads)) if threads > 1 else None
    size = min(_BATCH, most) if share is None else share

    def work(at: int) -> np.ndarray:
        return embed_pixels(fast, images.images[at : at + size], section, device)

    with contextlib.nullcontext(one_by_one) if share is None else single_threads() as spread:
        return np.concatenate(spread(work, range(0, len(images), size)))


def fit_whitening(encoder: nn.Module, images: ImageSet, section: DataSection, *, seed: int, device: str = "cpu") -> None:
    """Whiten the embeddings of an encoder that has been trained, by those of some of its training images, if it is to do so.

    Those of the images alone, whatever views the encoder takes: they do as well, in a half to a tenth of the time.

    Args:
        encoder: what `nearfar.encoders.build_encoder` returns, its whitening not fitted yet; changed.
        images: N images, of which 40 for each number of an embedding are taken, drawn at random.
        section: the recipe's data section.
        seed: decides which.
        device: where to compute.
    """
    if not isinstance(encoder, Encoder) or encoder.whitening is None:
        return
    rows = np.sort(np.random.default_rng(seed).permutation(len(images))[: _WHITENED * len(encoder.whitening.mean)])
    z = embed(encoder.plain(), images.subset(rows), section, device=device)
    encoder.whitening.fit(torch.from_numpy(z).to(encoder.whitening.map.device))


def for_inference(encoder: nn.Module, device: str) -> nn.Module:
    """A copy of ``encoder`` in eval mode on ``device``, its batch norms folded into the convolutions before them."""
    keep_freed_memory()
    ready = fuse(encoder).to(device).eval()
    return settle(ready) if device == "cpu" else ready


@torch.inference_mode()
def embed_pixels(ready: nn.Module, pixels: np.ndarray, section: DataSection, device: str) -> np.ndarray:
    """Embed uint8 pixels [N, C, H, W], all at once, by an encoder made ready by `for_inference`: float32 [N, D].

    Raises:
        InputError: an embedding is not finite: the weights are broken.
    """
    block = torch.from_numpy(np.ascontiguousarray(pixels)).to(device)
    z: np.ndarray = ready(normalize(block, section.mean, section.std, channels_last=True)).float().cpu().numpy()
    check_finite(z)
    return z


def find_device(name: str) -> str:
    """ "auto" as "cuda" where there is one, else "cpu"; any other name checked.

    Raises:
        InputError: there is no such device on this machine.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return name
    if name.split(":")[0] != "cuda":
        raise InputError(f"unknown device {name!r}; expected auto, cpu or cuda")
    if not torch.cuda.is_available():
        raise InputError(f"device is {name!r}, but PyTorch finds no CUDA device here; use cpu or auto")
    return name
