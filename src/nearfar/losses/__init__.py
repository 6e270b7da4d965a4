"""Losses, all with one signature: ``loss(z, labels, keys=None, key_labels=None)`` is a differentiable scalar.

``LOSSES`` maps the names that recipes use to the classes. ``docs/losses.md`` says which loss suits which data.
"""

from nearfar.losses.base import Loss
from nearfar.losses.decorrelation import BarlowTwinsLoss, VICRegLoss
from nearfar.losses.mining import (
    distance_weighted_triplets,
    easy_positive_triplets,
    hard_triplets,
    semi_hard_triplets,
)
from nearfar.losses.pairs import ContrastiveLoss, CosineMSELoss
from nearfar.losses.proxies import (
    ArcFaceLoss,
    CosFaceLoss,
    CrossEntropyLoss,
    NormSoftmaxLoss,
    ProxyAnchorLoss,
    ProxyNCALoss,
    SoftTripleLoss,
    SubCenterArcFaceLoss,
)
from nearfar.losses.softmax import (
    DCLLoss,
    DCLWLoss,
    InfoNCELoss,
    NPairLoss,
    NTXentLoss,
    SNNLoss,
    SupConLoss,
)
from nearfar.losses.towers import CLIPLoss, SigLIPLoss, of_towers
from nearfar.losses.triplets import CircleLoss, LiftedStructureLoss, MultiSimilarityLoss, SmoothAPLoss, TripletLoss

LOSSES: dict[str, type[Loss]] = {
    "arcface": ArcFaceLoss,
    "barlow-twins": BarlowTwinsLoss,
    "circle": CircleLoss,
    "clip": CLIPLoss,
    "contrastive": ContrastiveLoss,
    "cosface": CosFaceLoss,
    "cosine-mse": CosineMSELoss,
    "cross-entropy": CrossEntropyLoss,
    "dcl": DCLLoss,
    "dclw": DCLWLoss,
    "info-nce": InfoNCELoss,
    "lifted-structure": LiftedStructureLoss,
    "multi-similarity": MultiSimilarityLoss,
    "n-pair": NPairLoss,
    "norm-softmax": NormSoftmaxLoss,
    "nt-xent": NTXentLoss,
    "proxy-anchor": ProxyAnchorLoss,
    "proxy-nca": ProxyNCALoss,
    "siglip": SigLIPLoss,
    "smooth-ap": SmoothAPLoss,
    "snn": SNNLoss,
    "soft-triple": SoftTripleLoss,
    "sub-center-arcface": SubCenterArcFaceLoss,
    "supcon": SupConLoss,
    "triplet": TripletLoss,
    "vicreg": VICRegLoss,
}

__all__ = [
    "LOSSES",
    "ArcFaceLoss",
    "BarlowTwinsLoss",
    "CLIPLoss",
    "CircleLoss",
    "ContrastiveLoss",
    "CosFaceLoss",
    "CosineMSELoss",
    "CrossEntropyLoss",
    "DCLLoss",
    "DCLWLoss",
    "InfoNCELoss",
    "LiftedStructureLoss",
    "Loss",
    "MultiSimilarityLoss",
    "NPairLoss",
    "NTXentLoss",
    "NormSoftmaxLoss",
    "ProxyAnchorLoss",
    "ProxyNCALoss",
    "SNNLoss",
    "SigLIPLoss",
    "SmoothAPLoss",
    "SoftTripleLoss",
    "SubCenterArcFaceLoss",
    "SupConLoss",
    "TripletLoss",
    "VICRegLoss",
    "distance_weighted_triplets",
    "easy_positive_triplets",
    "hard_triplets",
    "of_towers",
    "semi_hard_triplets",
]
