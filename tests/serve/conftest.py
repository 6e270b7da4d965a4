"""The small run for all tests of the service, and a copy of it that a test may change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from serve.serve_samples import digits, train_digits

from nearfar import verbs
from nearfar.data import ImageSet


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_digits(tmp_path_factory.mktemp("served") / "digits")


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained_run, tmp_path / "run"))


@pytest.fixture(scope="session")
def exported_run(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Path(shutil.copytree(trained_run, tmp_path_factory.mktemp("exported") / "run"))
    verbs.export(run, out=run / "model.onnx")
    return run


@pytest.fixture
def light(exported_run: Path, tmp_path: Path) -> Path:
    """A copy of it with an exported model, which a process serves without importing PyTorch: it starts in a second."""
    return Path(shutil.copytree(exported_run, tmp_path / "light"))


@pytest.fixture(scope="session")
def images() -> ImageSet:
    return digits()
