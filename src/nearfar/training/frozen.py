"""What of an encoder does not change while it is trained, so that every image passes it once, before the first step.

Knows encoders and recipes; no loop, no loss.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from nearfar.augment import Augment
from nearfar.encoders import Encoder
from nearfar.recipe import Recipe
from nearfar.training.weights import timm_model


def still(recipe: Recipe, encoder: nn.Module, augment: Augment) -> nn.Module | None:
    """The part of ``encoder`` that neither changes nor sees changed images; None where every step needs all of it.

    Under ``train.mode`` "linear" that is the whole encoder, and images are taken as they are.
    """
    if recipe.train.mode == "linear":
        return encoder
    model = timm_model(encoder)
    return model.body if model is not None and model.frozen and not augment else None


def rest(recipe: Recipe, encoder: nn.Module) -> nn.Module:
    """What stands on the `still` part of ``encoder``: from its output to the embedding."""
    model = timm_model(encoder)
    if recipe.train.mode == "linear" or model is None or not isinstance(encoder, Encoder):
        return nn.Identity()
    return nn.Sequential(model.head, encoder.unit)


@torch.no_grad()
def rest_of(recipe: Recipe, encoder: nn.Module, points: Tensor) -> npt.NDArray[np.float32] | None:
    """The embeddings [N, D] that ``encoder`` in eval mode gives images whose `still` part gave ``points`` [N, F].

    None where it would also look at other views of the images.
    """
    if recipe.train.mode != "linear" and isinstance(encoder, Encoder) and encoder.tta:
        return None
    z: npt.NDArray[np.float32] = rest(recipe, encoder)(points).cpu().numpy()
    return z


def learned_weights(recipe: Recipe, encoder: nn.Module, project: nn.Module) -> list[nn.Parameter]:
    """The weights of encoder and projector that training changes."""
    if recipe.train.mode == "linear":
        return []
    return [one for one in (*encoder.parameters(), *project.parameters()) if one.requires_grad]
