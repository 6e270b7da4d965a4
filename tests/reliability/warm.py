"""What the process that children are forked from has imported, and they need not. It computes nothing: threads do not fork."""

from __future__ import annotations

import pyarrow.parquet  # noqa: F401
import reliability.jobs  # noqa: F401
import scipy.optimize  # noqa: F401
import torch
from PIL import Image

torch.set_num_threads(1)
Image.init()
