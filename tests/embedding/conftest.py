"""A run that the tests of this folder share; none changes it."""

from __future__ import annotations

from pathlib import Path

import pytest
from embedding.stream_samples import train_tiny


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tiny(tmp_path_factory.mktemp("stream") / "run")
