"""Training written down for TensorBoard: every figure of ``history.jsonl`` by epoch, and the embedding for its Projector.

Knows TensorBoard's event files and the rows of a history; no model, no loop. Events are written by TensorBoard's own
`EventFileWriter`, which ``torch.utils.tensorboard`` is a layer on: one part less that may change.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nearfar.data import ImageSet
from nearfar.errors import InputError
from nearfar.files import explain_os_errors
from nearfar.plots import sample_rows
from nearfar.training.progress import Silent, Watcher

FOLDER = "tensorboard"
"""Where events go below the run folder, unless said otherwise."""

POINTS = 10_000
"""Images in the Projector at most."""

_WHERE = "epoch"  # where the rows stand; TensorBoard counts in whole numbers, so the last part of an epoch counts as one
_SETTINGS = "settings"


def check_installed() -> None:
    """Refuse before anything is computed.

    Raises:
        InputError: TensorBoard is not installed.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise InputError("tensorboard is not installed, which --tensorboard needs; run: pip install 'nearfar[tracking]'")


class TensorBoard:
    """A `nearfar.training.progress.Watcher` that writes each epoch as it ends, and tells another watcher all that it is told.

    Args:
        folder: what ``tensorboard --logdir`` is given; made where there is none. Epochs that it holds already are not written
            again, so training can be resumed.
        settings: what the run was trained with, a tree as in ``config.json``; written once.
        inner: who else is told.

    Raises:
        InputError: TensorBoard is not installed, the folder cannot be written to, or holds damaged events.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any] | None = None, inner: Watcher | None = None) -> None:
        check_installed()
        self.folder, self.inner = Path(folder), inner or Silent()
        with explain_os_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self.last = last_step(self.folder)
        self.started = any(self.folder.glob("events.out.tfevents.*"))
        self.settings = settings
        self._writer: Any = None

    def step(self, epoch: int, epochs: float, step: int, steps: int, loss: float, rate: float, left: float) -> None:
        self.inner.step(epoch, epochs, step, steps, loss, rate, left)

    def epoch(self, row: dict[str, Any], epochs: float) -> None:
        self.inner.epoch(row, epochs)
        self.add(row)

    def note(self, message: str) -> None:
        self.inner.note(message)

    def warn(self, message: str) -> None:
        self.inner.warn(message)

    def add(self, row: Mapping[str, Any]) -> None:
        """Write a row of ``history.jsonl``, unless it is there already."""
        at = math.ceil(row[_WHERE])
        if at <= self.last:
            return
        with explain_os_errors(self.folder):
            writer = self._open()
            if self.settings is not None and not self.started:
                self._write(writer, 0, {_SETTINGS: f"    {json.dumps(self.settings, indent=2)}".replace("\n", "\n    ")})
                self.started = True
            self._write(writer, at, dict(scalars(row)))
            writer.flush()
        self.last = at

    def close(self) -> None:
        """Write what is left and let the file go."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> Any:
        if self._writer is None:
            module = importlib.import_module("tensorboard.summary.writer.event_file_writer")
            self._writer = module.EventFileWriter(str(self.folder))
        return self._writer

    def _write(self, writer: Any, at: int, values: Mapping[str, float | str]) -> None:
        event, summary = (importlib.import_module(f"tensorboard.compat.proto.{name}_pb2") for name in ("event", "summary"))
        tensors = importlib.import_module("tensorboard.util.tensor_util")
        parts = []
        for tag, value in values.items():
            if isinstance(value, str):
                plugin = summary.SummaryMetadata.PluginData(plugin_name="text")
                about = summary.SummaryMetadata(plugin_data=plugin)
                parts.append(summary.Summary.Value(tag=tag, metadata=about, tensor=tensors.make_tensor_proto([value.encode()])))
            else:
                parts.append(summary.Summary.Value(tag=tag, simple_value=value))
        writer.add_event(event.Event(wall_time=time.time(), step=at, summary=summary.Summary(value=parts)))


@contextlib.contextmanager
def watching(folder: Path | None, settings: Mapping[str, Any], inner: Watcher | None) -> Iterator[Watcher | None]:
    """``inner``, with TensorBoard beside it where there is a ``folder``; closed at the end, also of an interrupted training."""
    if folder is None:
        yield inner
        return
    with TensorBoard(folder, settings, inner) as both:
        yield both


def scalars(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every finite number of a row of ``history.jsonl`` by its path, ``health/effective_rank`` say, but the epoch."""
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from scalars(value, f"{prefix}{name}/")
        elif (
            isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and prefix + name != _WHERE
        ):
            yield prefix + name, float(value)


def last_step(folder: Path) -> int:
    """The last epoch that the events in ``folder`` tell of; 0 where there are none."""
    if not any(folder.glob("events.out.tfevents.*")):
        return 0
    module = importlib.import_module("tensorboard.backend.event_processing.event_file_loader")
    last = 0
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for event in module.EventFileLoader(str(path)).Load():  # which ends where a killed process stopped writing
            if event.HasField("summary"):
                last = max(last, int(event.step))
    return last


def write_projector(folder: str | Path, z: npt.ArrayLike, images: ImageSet, *, seed: int = 0) -> list[Path]:
    """Put the embedding of ``images`` beside the events, for the Projector: 10,000 at most, classes in proportion.

    Args:
        folder: of the events.
        z: embeddings [N, D].
        images: the N images, with their labels where there are any.
        seed: of the choice among more.

    Returns:
        The files.

    Raises:
        InputError: lengths do not fit, or the folder cannot be written to.
    """
    from nearfar.export.projector import export_projector

    labels = images.labels
    classless = labels is None or bool((labels < 0).any())
    rows = sample_rows(np.zeros(len(images), dtype=np.int64) if labels is None else labels, POINTS, seed)
    few, chosen = images.subset(rows), np.asarray(z)[rows]
    ids = [str(one) for one in few.ids.tolist()]
    return export_projector(chosen, None if classless else few.labels, images.classes, few.images, folder, ids, seed=seed)
