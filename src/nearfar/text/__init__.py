"""The text tower: from captions to unit rows that lie beside those of images.

`TextTower` is the face; `zeroshot` makes class vectors from prompts. Importing this brings PyTorch, but neither
``tokenizers`` nor ``sentence-transformers``, which are extras and are imported when they are needed.
"""

from nearfar.text.tower import KINDS, TextTower
from nearfar.text.zeroshot import class_vectors, prompts_of, zero_shot

__all__ = ["KINDS", "TextTower", "class_vectors", "prompts_of", "zero_shot"]
