"""Milvus: as a file of its own, and as a server, which here is Milvus Lite listening in a thread."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from milvus_lite.adapter.grpc.server import start_server_in_thread
from pymilvus import MilvusClient

from nearfar.errors import InputError
from nearfar.search import NeighborIndex, nearest
from nearfar.search.milvus import TOKEN, URI

Z = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)
Q = np.random.default_rng(1).normal(size=(20, 6)).astype(np.float32)
LABELS = np.array(["a", "b", "c"] * 100)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    served, database, port = start_server_in_thread(str(tmp_path / "server"))
    yield f"http://127.0.0.1:{port}"
    served.stop(grace=0).wait()
    database.close()


def collections(uri: str) -> list[str]:
    client = MilvusClient(uri)
    names = list(client.list_collections())
    client.close()
    return names


def test_a_server_serves_as_a_file_does(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN, "someone:hush-hush")
    index = NeighborIndex(backend="milvus", options={"uri": server}).fit(Z, LABELS, ids=np.arange(300) * 2)
    index.add(Q, np.repeat("a", 20)).remove([0, 2])
    index.save(tmp_path / "index")
    expected = NeighborIndex(backend="exact").fit(index.vectors, index.labels, ids=index.ids)
    for labels in (None, ["a", "c"]):
        np.testing.assert_array_equal(index.search(Q, 5, labels=labels)[1], expected.search(Q, 5, labels=labels)[1])
    # Nothing that is secret, and no address, is in the folder.
    written = b"".join(path.read_bytes() for path in (tmp_path / "index").iterdir())
    assert b"hush-hush" not in written
    assert server.encode() not in written
    with pytest.raises(InputError, match="lies on a Milvus server; name its address in NEARFAR_MILVUS_URI"):
        NeighborIndex.load(tmp_path / "index")
    monkeypatch.setenv(URI, server)
    loaded = NeighborIndex.load(tmp_path / "index", verify=True)
    np.testing.assert_array_equal(loaded.search(Q, 5)[1], expected.search(Q, 5)[1])
    # Others find ids and labels in the collection, and what was removed is gone from it.
    (name,) = collections(server)
    client = MilvusClient(server)
    rows = client.query(name, filter="id >= 0", output_fields=["id", "label"], limit=1000)
    client.close()
    assert {row["id"]: row["label"] for row in rows} == dict(zip(index.ids.tolist(), index.labels.tolist(), strict=True))


def test_a_server_keeps_the_saved_state_until_the_next_is_saved(server: str, tmp_path: Path) -> None:
    options = {"uri": server}
    index = NeighborIndex(backend="milvus", options=options).fit(Z)
    index.save(tmp_path / "index")
    index.add(Q).remove(np.arange(50))  # and is never saved
    saved = NeighborIndex.load(tmp_path / "index", options=options)
    np.testing.assert_array_equal(saved.search(Q, 5)[1], nearest(Q, Z, 5)[1])
    saved.add(Q[:3] * 2)  # under keys that the other index has given out too
    np.testing.assert_array_equal(saved.search(Q[:3], 1)[1].ravel(), [300, 301, 302])


def test_a_collection_that_no_folder_names_goes_with_its_index(server: str, tmp_path: Path) -> None:
    index = NeighborIndex(backend="milvus", options={"uri": server}).fit(Z)
    assert len(collections(server)) == 1
    del index
    assert collections(server) == []
    index = NeighborIndex(backend="milvus", options={"uri": server}).fit(Z)
    index.save(tmp_path / "index")
    del index
    (name,) = collections(server)
    client = MilvusClient(server)
    client.drop_collection(name)
    client.close()
    with pytest.raises(InputError, match=rf"the Milvus server at {server} has no collection {name}"):
        NeighborIndex.load(tmp_path / "index", options={"uri": server})


def test_a_server_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nearfar.search.milvus._TIMEOUT", 0.5)
    with pytest.raises(
        InputError, match=r"the Milvus server at http://127\.0\.0\.1:9 cannot be used \(tried for \d+\.\d s\): "
    ) as caught:
        NeighborIndex(backend="milvus", options={"uri": "http://127.0.0.1:9"}).fit(Z)
    assert "\n" not in str(caught.value)


class Line:
    """A server's door that can be made to let nothing pass, neither way, while it stays open."""

    def __init__(self, port: int) -> None:
        self.open, self.listening = threading.Event(), socket.create_server(("127.0.0.1", 0))
        self.open.set()
        self.ends: list[socket.socket] = []
        self.accepting = threading.Thread(target=self._serve, args=(port,), daemon=True)
        self.accepting.start()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.listening.getsockname()[1]}"

    def _serve(self, port: int) -> None:
        while True:
            try:
                near, _ = self.listening.accept()
            except OSError:  # it is closed
                return
            self.ends.append(near)
            with contextlib.suppress(OSError):
                far = socket.create_connection(("127.0.0.1", port))
                self.ends.append(far)
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while content := one.recv(1 << 16):
                self.open.wait()
                other.sendall(content)

    def close(self) -> None:
        self.open.set()
        self.listening.shutdown(socket.SHUT_RDWR)  # to close it would not wake who waits there
        self.listening.close()
        self.accepting.join()
        for end in self.ends:
            end.close()


@pytest.fixture
def line(server: str) -> Iterator[Line]:
    line = Line(int(server.rpartition(":")[2]))
    yield line
    line.close()


def test_a_server_that_hangs_is_one_line_from_every_call(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"uri": line.uri}
    index = NeighborIndex(backend="milvus", options=options).fit(Z, LABELS)
    index.save(tmp_path / "index")
    for name in ("_TIMEOUT", "_ANSWER", "_BULK"):
        monkeypatch.setattr(f"nearfar.search.milvus.{name}", 0.5)
    line.open.clear()
    said = rf"the Milvus server at {line.uri} cannot be used \(tried for \d+\.\d s\): "
    for call in (
        lambda: index.search(Q, 5),
        lambda: index.add(Q, LABELS[:20]),
        lambda: NeighborIndex.load(tmp_path / "index", options=options),
        lambda: NeighborIndex(backend="milvus", options=options).fit(Z),
    ):
        with pytest.raises(InputError, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert not [record for record in caplog.records if record.name.startswith("pymilvus")]
    line.open.set()
    assert len(index) == 300
    np.testing.assert_array_equal(index.search(Q, 5)[1], nearest(Q, Z, 5)[1])


def test_lite_leaves_no_files_and_no_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    NeighborIndex(backend="milvus").fit(Z).save(tmp_path / "index")
    before = threading.active_count()
    index = NeighborIndex.load(tmp_path / "index")
    index.search(Q, 3)
    assert len(list((tmp_path / "temporary").iterdir())) == 1
    del index
    assert list((tmp_path / "temporary").iterdir()) == []
    # The server's threads are told to end, and do so soon after.
    deadline = time.monotonic() + 30
    while threading.active_count() > before + 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before + 1


def test_a_process_ends_with_an_open_database() -> None:
    program = (
        "import numpy as np\n"
        "from nearfar.search import NeighborIndex\n"
        "z = np.random.default_rng(0).normal(size=(300, 6))\n"
        "index = NeighborIndex(backend='milvus').fit(z)\n"
        "print(index.search(z[:1], 1)[1])\n"
        "print(index._known.engine._database.home)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stderr == ""
    found, home = done.stdout.split("\n")[:2]
    assert found == "[[0]]"
    assert not Path(home).exists()


def test_an_archive_that_claims_too_much_is_refused(tmp_path: Path) -> None:
    NeighborIndex(backend="milvus").fit(Z).save(tmp_path)
    tree = json.loads((tmp_path / "index.json").read_text())
    path = tmp_path / tree["files"]["engine"]["name"]
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    for change, message in [
        ({"milvus.db/bomb": bytes(1 << 24)}, "its parts are larger than the whole"),
        ({"nearfar.json": b'{"collection": "other"}'}, "'other' is no name of a collection"),
        ({"nearfar.json": b"[1]"}, "is damaged"),
    ]:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in (parts | change).items():
                archive.writestr(name, content)
        tree["files"]["engine"]["bytes"] = path.stat().st_size
        (tmp_path / "index.json").write_text(json.dumps(tree))
        with pytest.raises(InputError, match=message):
            NeighborIndex.load(tmp_path)
