"""A run in service: its model, its index as it is now, and what they answer. Knows arrays and folders, nothing of requests.

The index is a `Snapshot`, which never changes; a change makes another one. So whoever answers takes the current one once,
and what it says belongs together. Questions are answered in one thread; changes may come from others, one after the other.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from nearfar import runs
from nearfar.answers import Gallery, answer, trained_images, voters_of
from nearfar.calibrate import Calibration
from nearfar.classify import similarities
from nearfar.data import ImageSet
from nearfar.data.imageset import text_ids
from nearfar.data.pixels import Form
from nearfar.errors import InputError
from nearfar.explore.positions import Positions, open_positions
from nearfar.files import only_writer
from nearfar.runs import indexing
from nearfar.runs.opening import load_index, load_model
from nearfar.search import NeighborIndex
from nearfar.search.storage import MANIFEST
from nearfar.search.vectors import Metric
from nearfar.serve.answering import Found, Predicted
from nearfar.serve.plane import Plane

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]

_LOG = logging.getLogger("nearfar")
PLACED_BY = 10  # neighbours that say where on the map an image lies
_PATIENCE = 5.0  # seconds for which another writer is waited for


class NoVotesError(InputError):
    """A class was asked for, and nobody can vote."""

    def __init__(self) -> None:
        super().__init__(
            "fewer than two images of the index have a label, so that no class can be named; add labelled images (POST "
            "/v1/items, or nearfar index add RUN FOLDER), a few of each class are enough"
        )


@dataclass(frozen=True)
class Job:
    """Images of one request, and what is asked about them."""

    kind: Literal["embed", "search", "predict"]
    pixels: Pixels  # [N, C, H, W]
    k: int = 10  # neighbours that are shown
    precision: float = 0.0


@dataclass(frozen=True)
class Snapshot:
    """One state of a run's index."""

    stamp: tuple[int, ...]
    index: NeighborIndex
    labels: Ints  # of its rows, numbers of ``classes``; -1: none
    voters: tuple[Gallery, Calibration] | None  # see `nearfar.answers.voters_of`
    classes: list[str]
    trained: int  # ids below this are of training images
    positions: Positions

    @property
    def names(self) -> list[str]:
        """What the image of each row is called."""
        return self.index.names["images"]

    @property
    def votes(self) -> int:
        """How many neighbours vote; 0 where nobody can."""
        return 0 if self.voters is None else self.voters[0].k

    @property
    def added(self) -> Ints:
        """Rows of images that were not trained on, in order."""
        return np.flatnonzero(self.index.ids >= self.trained)

    def sample(self, most: int) -> Ints:
        """At most ``most`` rows, ascending: added images before all, then trained ones from all over, labelled ones if any."""
        added = self.added[::-1][: most // 2]
        there = self.index.ids < self.trained
        labelled = there & (self.labels >= 0)
        rest = np.flatnonzero(labelled if labelled.any() else there)
        count = min(most - len(added), len(rest))
        spread = rest[np.arange(count) * len(rest) // count] if count else rest[:0]
        return np.sort(np.concatenate([added, spread]))

    def label_of(self, row: int) -> str | None:
        """The class of a row, None where it has no label."""
        number = int(self.labels[row])
        return self.classes[number] if number >= 0 else None

    def row_of(self, number: int) -> int | None:
        """The row of the image with this id, None where there is none."""
        found = np.flatnonzero(self.index.ids == number)
        return int(found[0]) if len(found) else None


class Served:
    """A run folder in service.

    Args:
        folder: the run folder.
        device: "auto", "cpu" or "cuda"; for PyTorch alone.
        onnx: an exported model of this run to compute with; None: with PyTorch.
        threads: to compute with.

    Attributes:
        now: the current `Snapshot`.
        trouble: why the folder cannot be followed any more; None while all is well.

    Raises:
        InputError: the run or the exported model cannot be used.
    """

    def __init__(self, folder: Path, *, device: str = "auto", onnx: Path | None = None, threads: int = 1) -> None:
        self.folder, self.engine = folder, "torch" if onnx is None else "onnx"
        self.config = runs.read_config(folder)
        self.model = load_model(folder, device=device, onnx=onnx, threads=threads)
        self.trouble: str | None = None
        self._changing = threading.RLock()
        self._plane: Plane | None = None
        self.now = self._read()
        channels, size = self.model.channels_, self.model.size_
        self.form = Form.of(size, channels, self.model.recipe_.data.background)
        self.model.embed_block(np.zeros((1, channels, *size), dtype=np.uint8))  # what the first one costs more is paid now

    @property
    def sha256(self) -> str:
        """The hash of the model."""
        return str(self.config["model"]["sha256"])

    @property
    def metric(self) -> Metric:
        """What near and far mean."""
        return self.model.recipe_.evaluate.metric

    def follow(self) -> bool:
        """Take over a state of the index that another process wrote since; whether there was one.

        Where the folder has gone, or holds something else, the state from before stays in service, and `trouble` says why.
        """
        with self._changing:
            return self._follow()

    def _follow(self) -> bool:
        try:
            if self._stamp() == self.now.stamp:
                self.trouble = None
                return False
            if runs.read_config(self.folder)["model"]["sha256"] != self.sha256:
                raise InputError(f"{self.folder} holds another model now; start the server again to use it")
            self.now = self._read()
        except (InputError, OSError, KeyError, TypeError) as error:
            if self.trouble is None:
                _LOG.warning("the run folder cannot be followed, the earlier state stays in service: %s", error)
            self.trouble = str(error)
            return False
        self.trouble = None
        return True

    def work(self, jobs: Sequence[Job]) -> list[Any]:
        """Answer a batch: for each job the embeddings [N, D], what is `Found`, or what is `Predicted`; or an error."""
        z = self.model.embed_block(np.concatenate([job.pixels for job in jobs]))
        now, bounds = self.now, np.cumsum([0, *(len(job.pixels) for job in jobs)])
        parts = [slice(start, end) for start, end in itertools.pairwise(bounds)]
        results: list[Any] = [z[part] for part in parts]
        asked = [number for number, job in enumerate(jobs) if job.kind != "embed"]
        if not asked:
            return results
        rows = np.concatenate([np.arange(parts[number].start, parts[number].stop) for number in asked])
        k = min(max(now.votes, PLACED_BY, *(jobs[number].k for number in asked)), len(now.index))
        scores, found = now.index.search_rows(z[rows], k)
        place = np.full(len(z), -1)
        place[rows] = np.arange(len(rows))
        for number in asked:
            mine = place[parts[number]]
            results[number] = self._found(now, scores[mine], found[mine], jobs[number].k)
        for precision in sorted({jobs[number].precision for number in asked if jobs[number].kind == "predict"}):
            group = [n for n in asked if jobs[n].kind == "predict" and jobs[n].precision == precision]
            if now.voters is None:
                for number in group:
                    results[number] = NoVotesError()
                continue
            some = np.concatenate([place[parts[number]] for number in group])
            said = iter(self._predict(now, *now.voters, z[rows[some]], (scores[some], found[some]), precision))
            for number in group:
                results[number] = [Predicted(*next(said), near) for near in results[number]]
        return results

    def _predict(
        self, now: Snapshot, gallery: Gallery, fitted: Calibration, z: Floats, near: tuple[Floats, Ints], precision: float
    ) -> list[tuple[str, bool, float, float]]:
        known_near = len(gallery.voting) == len(now.index)  # since all vote
        of_voters = (near[0][:, : gallery.k], near[1][:, : gallery.k]) if known_near else None
        said = answer(gallery, z, fitted, precision, near=of_voters)
        return [
            (now.classes[label], bool(known), float(probability), float(votes))
            for label, known, probability, votes in zip(said.labels, said.known, said.probability, said.votes, strict=True)
        ]

    def _found(self, now: Snapshot, scores: Floats, rows: Ints, k: int) -> list[Found]:
        names, ids = now.names, now.index.ids
        xy = now.positions.place(rows[:, :PLACED_BY], similarities(scores[:, :PLACED_BY], self.metric)).tolist()
        return [
            Found(
                [
                    {"id": int(ids[row]), "name": names[row], "label": now.label_of(row), "score": float(score)}
                    for row, score in zip(near[:k].tolist(), of[:k].tolist(), strict=True)
                ],
                (place[0], place[1]),
            )
            for near, of, place in zip(rows, scores, xy, strict=True)
        ]

    def write(self, pixels: Pixels, label: str) -> tuple[list[dict[str, Any]], bool]:
        """Add images [N, C, H, W] of one class to the run's index; once this returns they outlast a crash.

        Returns:
            ``id``, ``name`` and ``label`` of each, and whether the class had no image before.

        Raises:
            InputError: the name cannot be one, an image is there under another class, the disk is full, or another process
                holds the folder.
        """
        name = indexing.check_class_name(label)
        images = ImageSet(images=pixels, ids=text_ids(f"image {number + 1}" for number in range(len(pixels))), name="added")
        z = self.model.embed_block(pixels)
        with self._writer() as index:
            titles = [f"added/{name}"] * len(pixels)
            done = indexing.insert(self.folder, self.model.classes_, index, images, z, [name] * len(pixels), titles)
            self.now = self._read()
        now = self.now
        rows = [now.row_of(number) for number in done.ids.tolist()]
        return [self._item(now, row) for row in rows if row is not None], bool(done.new_classes)

    def remove(self, number: int) -> bool:
        """Remove an added image from the run's index; whether it was there.

        Raises:
            InputError: it is one that was trained on, or another process holds the folder.
        """
        with self._writer() as index:
            rows = np.flatnonzero(index.ids == number)
            if not len(rows):
                return False
            if number < self.now.trained:
                raise InputError(
                    f"image {number} was trained on, and only added ones are removed here; nearfar index remove takes out any"
                )
            indexing.drop(self.folder, self.model.classes_, index, rows)
            self.now = self._read()
        return True

    def items(self, first: int, count: int) -> tuple[list[dict[str, Any]], int]:
        """The added images, newest first, ``count`` of them from the ``first`` on; and how many there are."""
        now = self.now
        rows = now.added[::-1]
        return [self._item(now, int(row)) for row in rows[first : first + count]], len(rows)

    def _item(self, now: Snapshot, row: int) -> dict[str, Any]:
        return {"id": int(now.index.ids[row]), "name": now.names[row], "label": now.label_of(row)}

    @contextlib.contextmanager
    def _writer(self) -> Iterator[NeighborIndex]:
        """The index as the folder has it, with the folder held against other writers."""
        deadline = time.monotonic() + _PATIENCE
        with self._changing, contextlib.ExitStack() as held:
            while True:
                try:
                    held.enter_context(only_writer(self.folder))
                    break
                except FileNotFoundError:
                    raise InputError(f"{self.folder} has gone; put it back, or stop the server") from None
                except InputError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.02)
            self._follow()
            if self.trouble is not None:
                raise InputError(self.trouble)
            yield load_index(self.folder, self.config, self.model.classes_)

    def _stamp(self) -> tuple[int, ...]:
        found = (self.folder / runs.INDEX / MANIFEST).stat()
        return (found.st_mtime_ns, found.st_ino, found.st_size)

    def _read(self) -> Snapshot:
        """The state that the folder has; its numbers are copied, so that nothing done to the files reaches them."""
        stamp = self._stamp()
        index = load_index(self.folder, self.config, self.model.classes_, mapped=False)
        trained = trained_images(self.config, index)
        voters = voters_of(self.folder, index, self.model.recipe_.evaluate, trained)
        if voters is not None and len(voters[0].later):
            _ = voters[0].centres_of_classes  # computed now, kept for every question
        return Snapshot(
            stamp=stamp,
            index=index,
            labels=np.asarray(index.labels, dtype=np.int64),
            voters=voters,
            classes=list(index.names.get("classes", self.model.classes_)),
            trained=trained,
            positions=self._positions(index, trained),
        )

    def _positions(self, index: NeighborIndex, trained: int) -> Positions:
        """Of the run's map; where it has none, or a damaged one, on the plane of the training images."""
        try:
            found = open_positions(self.folder, index)
        except InputError as error:
            _LOG.warning("the map of the run is not used: %s", error)
            found = None
        if found is not None:
            return found
        vectors = np.asarray(index.vectors)
        if self._plane is None:
            rows = index.ids < trained
            self._plane = Plane(vectors[rows] if rows.any() else vectors)
        return self._plane.positions(vectors)
