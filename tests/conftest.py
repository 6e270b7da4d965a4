"""What every test may ask for; one thread a process, so that parallel tests do not fight."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from samples import shapes

from nearfar.cli import main
from nearfar.data import ImageSet

torch.set_num_threads(1)

SLOW = (
    "test_cli.py",
    "serve/test_process.py",
    "test_report.py",
    "training/test_health.py",
    "plots/test_plot_kinds.py",
    "search/test_backends.py",
    "export/test_onnx.py",
    "explore/test_explore_page.py",
    "losses/test_losses.py",
    "serve/page/test_strokes.py",
    "serve/test_fuzz.py",
    "search/test_milvus.py",
    "search/test_engine_files.py",
    "serve/page/test_questions.py",
    "serve/page/test_teaching.py",
    "test_distributed.py",
    "test_answers.py",
    "training/test_loop.py",
    "test_heads.py",
)
"""Files that take longest, the longest first: begun last, one of them would leave the other processes idle."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow files first; tests within a file, and all other files, stay in their order."""
    home = Path(__file__).parent
    places = {home / name: place for place, name in enumerate(SLOW)}
    items.sort(key=lambda item: places.get(item.path, len(SLOW)))


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process: exit code, stdout, stderr."""

    def run(*arguments: Any) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(one) for one in arguments])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture
def small() -> ImageSet:
    return shapes(120)


@pytest.fixture
def folder_of_images(tmp_path: Path) -> Path:
    """Three classes in train/ and test/ sub-folders, 60 and 24 images of 16 x 16 in colour."""
    for split, seed, count in (("train", 1, 60), ("test", 2, 24)):
        images = shapes(count, size=16, channels=3, seed=seed)
        for row, label in enumerate(images.require_labels()):
            target = tmp_path / "images" / split / images.classes[label] / f"{row:03d}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.moveaxis(images.images[row], 0, 2)).save(target)
    return tmp_path / "images"
