"""Losses, all with one signature: ``loss(z, labels, keys=None, key_labels=None)`` is a differentiable scalar.

``LOSSES`` maps the names that recipes use to the classes.
"""

from nearfar.losses.base import Loss
from nearfar.losses.pairs import ContrastiveLoss, CosineMSELoss, SigLIPLoss
from nearfar.losses.proxies import CrossEntropyLoss
from nearfar.losses.softmax import DCLLoss, DCLWLoss, InfoNCELoss, NTXentLoss, SupConLoss

LOSSES: dict[str, type[Loss]] = {
    "contrastive": ContrastiveLoss,
    "cosine-mse": CosineMSELoss,
    "cross-entropy": CrossEntropyLoss,
    "dcl": DCLLoss,
    "dclw": DCLWLoss,
    "info-nce": InfoNCELoss,
    "nt-xent": NTXentLoss,
    "siglip": SigLIPLoss,
    "supcon": SupConLoss,
}

__all__ = [
    "LOSSES",
    "ContrastiveLoss",
    "CosineMSELoss",
    "CrossEntropyLoss",
    "DCLLoss",
    "DCLWLoss",
    "InfoNCELoss",
    "Loss",
    "NTXentLoss",
    "SigLIPLoss",
    "SupConLoss",
]
