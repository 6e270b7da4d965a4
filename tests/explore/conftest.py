"""A tiny run on images whose class and file names hold markup, shared by all tests of the explorer."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from explore.pages import ARGUMENTS
from PIL import Image
from playwright.sync_api import Browser, sync_playwright
from samples import TINY, shapes

from nearfar import verbs
from nearfar.explore import layout
from nearfar.explore.make import make_map
from nearfar.explore.store import Map
from nearfar.explore.subject import Subject, open_subject
from nearfar.recipe import Recipe

CLASSES = ("a", "<img src=x onerror=alert(1)>", "c")


def write_images(folder: Path) -> None:
    for split, seed, count in (("train", 1, 60), ("test", 2, 24)):
        images = shapes(count, seed=seed)
        for row, label in enumerate(images.require_labels()):
            target = folder / split / CLASSES[label] / f"<b>{row:03d}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images.images[row, 0]).save(target)


@pytest.fixture(scope="session", autouse=True)
def few_steps() -> Iterator[None]:
    """Some dozen points find their places soon."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "_EARLY", 50)
        patch.setattr(layout, "_LATE", 100)
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, few_steps: None) -> Path:
    """The run folder; its images lie beside it, in ``images``."""
    folder = tmp_path_factory.mktemp("explore") / "run"
    write_images(folder.parent / "images")
    verbs.train(str(folder.parent / "images"), recipe=Recipe.from_dict(TINY), out=folder)
    make_map(folder)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture(scope="session")
def opened(trained: Path) -> tuple[Subject, Map]:
    subject = open_subject(trained)
    made = make_map(subject)
    assert np.isfinite(made.xy).all()
    return subject, made


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path="/usr/bin/chromium", headless=True, args=ARGUMENTS)
        yield browser
        browser.close()
