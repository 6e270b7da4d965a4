"""Labels -> batches of row numbers: shuffling, views, captions, pairs, classes x images; and, before them, the splits of rows.

Knows labels and row numbers, never images, tensors or models. A sampler keeps no state: an epoch is a pure function of
the seed and the epoch's number, so a run that was interrupted asks for batch i of epoch e again and gets the same rows.
"""

from nearfar.sampling.epoch import Batch, Epoch, Sampler
from nearfar.sampling.samplers import Captions, ClassBatches, Pairs, Shuffle, Views
from nearfar.sampling.split import split_classes, split_validation, subset_stratified

__all__ = [
    "Batch",
    "Captions",
    "ClassBatches",
    "Epoch",
    "Pairs",
    "Sampler",
    "Shuffle",
    "Views",
    "split_classes",
    "split_validation",
    "subset_stratified",
]
