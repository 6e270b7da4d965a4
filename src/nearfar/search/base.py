"""What an approximate engine is: something that proposes near vectors by key, and leaves judging them to the index."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy.typing as npt

from nearfar.errors import InputError, did_you_mean
from nearfar.search.vectors import Floats, Ints, Metric

Labels = npt.NDArray[Any]


class Entries(NamedTuple):
    """Rows of an index: ``vectors`` float32 [N, D], ``ids`` int64 [N], ``labels`` [N] or None."""

    vectors: Floats
    ids: Ints
    labels: Labels | None


class Engine(Protocol):
    """An approximate engine. It knows vectors by keys, whole numbers given out once: 0 to N - 1 when it is built.

    What it cannot do is done for it (``approximate.py``), so an engine says what it can: ``adds`` takes vectors in after
    it was built, ``removes`` forgets some, ``filters`` searches only vectors of given labels.
    """

    extra: ClassVar[str]  # of nearfar, that installs it
    modules: ClassVar[tuple[str, ...]]  # that it needs, in the order of their packages
    adds: ClassVar[bool] = False
    removes: ClassVar[bool] = False
    filters: ClassVar[bool] = False
    private: ClassVar[tuple[str, ...]] = ()  # options that only the user may give, never an index
    metric: Metric

    def settings(self) -> dict[str, Any]:
        """Plain values, no secrets, which ``__init__`` takes to make an engine that searches alike."""

    def library(self) -> str:
        """Name and version of the library that does the work."""

    def build(self, entries: Entries) -> None:
        """Take in the first vectors, under the keys 0 to N - 1."""

    def search(self, queries: Floats, k: int, only: Sequence[Any] | None = None) -> Ints:
        """Return keys [N, K] of near vectors for each query [N, D], in no order, -1 where there is none.

        K is ``k`` or what the engine looks at anyway. ``only``: vectors of these labels, if it ``filters``.
        """

    def write(self, path: Path) -> None:
        """Write one file from which ``read`` can go on; searching goes on too."""

    def read(self, path: Path, dimensions: int, size: int) -> None:
        """Open what ``write`` wrote, by memory map where that is possible. ``size`` keys have been given out.

        Raises:
            InputError: the file is damaged, or not of this engine.
        """

    def add(self, entries: Entries, first: int) -> None:
        """Take in vectors under the keys ``first``, ``first + 1``, ...; only called if it ``adds``."""
        raise AssertionError(f"{type(self).__name__} takes in nothing after it was built")

    def remove(self, keys: Ints) -> None:
        """Forget the vectors of these keys; only called if it ``removes``."""
        raise AssertionError(f"{type(self).__name__} forgets nothing")

    def settle(self) -> None:
        """The index has been saved: what was kept for the state before may go."""
        return


def import_for(engine: type[Engine], backend: str) -> list[Any]:
    """Import the modules of an engine.

    Raises:
        InputError: one is not installed; the message names the extra.
    """
    try:
        return [importlib.import_module(name) for name in engine.modules]
    except ImportError as error:
        missing = error.name or engine.modules[0]
        raise InputError(
            f'backend {backend!r} needs {missing}, which is not installed: pip install "nearfar[{engine.extra}]"'
        ) from None


def make_engine(engine: type[Engine], backend: str, metric: Metric, options: Mapping[str, Any]) -> Engine:
    """Make an engine with ``options``, the arguments of its class.

    Raises:
        InputError: an option is unknown or has a value that cannot be, or a library is missing.
    """
    known = [name for name in inspect.signature(engine.__init__).parameters if name not in ("self", "metric")]
    for name in options:
        if name not in known:
            raise InputError(f"backend {backend!r} has no option {name!r}{did_you_mean(str(name), known)}")
    import_for(engine, backend)
    return engine(metric=metric, **options)  # type: ignore[call-arg]  # a protocol says nothing of how it is made


def check_count(name: str, value: object, least: int = 1, most: int = 1 << 20) -> int:
    """Return the option ``value`` if it is a whole number from ``least`` to ``most``.

    Raises:
        InputError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InputError(f"option {name} is {value!r}, expected a whole number from {least:,} to {most:,}")
    return value
