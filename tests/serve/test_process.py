"""The server as a process: how it starts, refuses to, ends, and what outlasts a kill."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serve.processes import server, wait_for
from serve.serve_samples import DIGITS, b64, of_class, png

from nearfar import verbs
from nearfar.cli import main
from nearfar.data import ImageSet
from nearfar.recipe import Recipe


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What ``nearfar serve`` says when it refuses: one line, exit code 2."""

    def said(*arguments: str) -> str:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["serve", *arguments])
        told = capfd.readouterr()
        assert ended.value.code == 2, told.err
        assert told.out == ""
        assert told.err.count("\n") == 1
        return told.err

    return said


def test_it_answers_ends_on_a_signal_and_says_nothing_else(run: Path, light: Path, images: ImageSet) -> None:
    for how, served in ((signal.SIGTERM, run), (signal.SIGINT, light)):
        with server(served) as process:
            with process.client() as client:
                content = png(np.asarray(images.images)[0])
                said = client.post("/v1/predict", content=content, headers={"content-type": "image/png"})
                assert said.status_code == 200
                assert said.json()["results"][0]["voted"] == "0"
            assert process.end(how) == 0
            assert process.said.count("\n") == 1, process.said


def test_a_port_in_use_is_one_line(run: Path, refused: Callable[..., str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"port {port} is in use" in refused(str(run), "--port", port)


def test_what_cannot_be_served_is_one_line(run: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "no run folder" in refused(str(tmp_path / "nothing"), "--port", "0")
    assert "--host" in refused(str(run), "--port", "0", "--host", "no such host.invalid")
    assert "--port" in refused(str(run), "--port", "70000")
    assert "api-key-file" in refused(str(run), "--api-key-file", str(tmp_path / "none"))
    (tmp_path / "short").write_text("abc\n")
    assert "8 to 1,024" in refused(str(run), "--api-key-file", str(tmp_path / "short"))
    (run / "model.safetensors").unlink()
    assert "model.safetensors" in refused(str(run), "--port", "0")


def test_a_key_comes_from_a_file_or_the_environment(light: Path, tmp_path: Path, images: ImageSet) -> None:
    (tmp_path / "key").write_text("from the file\n")
    body = {"image": b64(png(of_class(images, "9")[0])), "label": "nine"}
    for options, environment, key in (
        (["--api-key-file", str(tmp_path / "key")], {}, "from the file"),
        ([], {"NEARFAR_API_KEY": "from around"}, "from around"),
    ):
        with server(light, *options, **environment) as process, process.client() as client:
            assert client.post("/v1/items", json=body).status_code == 401
            assert client.post("/v1/items", json=body, headers={"authorization": f"Bearer {key}"}).status_code == 201


def test_what_was_acknowledged_outlasts_a_kill_at_any_moment(light: Path, images: ImageSet) -> None:
    nines = of_class(images, "9")
    acknowledged: set[int] = set()

    def check(process: Any, kills: int) -> None:
        with process.client() as client:
            there = {one["id"] for one in client.get("/v1/items?count=1000").json()["items"]}
            assert acknowledged <= there
            assert len(there - acknowledged) <= kills, "at most the one that was under way, each time"
            for number in acknowledged:
                assert client.get(f"/v1/items/{number}/image").status_code == 200

    for attempt in range(2):
        with server(light) as process:
            check(process, kills=attempt)

            def add(first: int, process: Any = process) -> None:
                with process.client() as client:
                    for image in nines[first : first + 20]:
                        try:
                            said = client.post("/v1/items", json={"image": b64(png(image)), "label": "nine"})
                        except Exception:
                            return
                        assert said.status_code == 201
                        acknowledged.update(one["id"] for one in said.json()["items"])

            before = len(acknowledged)
            writer = threading.Thread(target=add, args=(20 * attempt,))
            writer.start()
            wait_for(lambda before=before: len(acknowledged) > before)
            process.popen.kill()
            writer.join()
            process.popen.communicate()
    with server(light) as process:
        check(process, kills=2)


def test_a_slow_body_is_given_up_and_others_are_answered(light: Path) -> None:
    with server(light, "--timeout", "0.5") as process, process.client() as client:
        host, port = process.address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as slow:
            slow.sendall(
                b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\nabc"
            )
            assert client.get("/v1/model").status_code == 200
            slow.settimeout(20)
            assert b" 408 " in slow.recv(4096)
        assert client.get("/v1/model").status_code == 200


def test_a_change_by_another_process_is_followed(light: Path, images: ImageSet, tmp_path: Path) -> None:
    from nearfar.runs import indexing

    (tmp_path / "nine").mkdir()
    (tmp_path / "nine" / "a.png").write_bytes(png(of_class(images, "9")[0]))
    with server(light) as process, process.client() as client:
        indexing.add_images(light, tmp_path / "nine", label="nine")
        wait_for(lambda: client.get("/v1/model").json()["added"] == 1)


def test_it_listens_where_it_is_told(light: Path) -> None:
    with server(light, "--host", "localhost") as process, process.client() as client:
        assert client.get("/readyz").json()["status"] == "ok"


def test_an_exported_model_serves_the_same_without_pytorch(run: Path, images: ImageSet) -> None:
    some = [png(image) for image in np.asarray(images.images)[::200]]
    body = {"images": [b64(content) for content in some]}
    with server(run) as process, process.client() as client:
        expected = client.post("/v1/predict", json=body).json()["results"]
        assert client.get("/v1/model").json()["engine"] == "torch"
        assert "libtorch" in Path(f"/proc/{process.popen.pid}/maps").read_text()
    verbs.export(run, out=run / "model.onnx")
    with server(run) as process, process.client() as client:
        found = client.post("/v1/predict", json=body).json()["results"]
        assert client.get("/v1/model").json()["engine"] == "onnx"
        added = client.post("/v1/items", json={"image": b64(png(of_class(images, "9")[0])), "label": "nine"})
        assert added.status_code == 201
        assert "libtorch" not in Path(f"/proc/{process.popen.pid}/maps").read_text()
    assert [one["label"] for one in found] == [one["label"] for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert [near["id"] for near in one["neighbors"]] == [near["id"] for near in other["neighbors"]]
        assert abs(one["probability"] - other["probability"]) < 1e-4


def test_an_exported_model_of_another_run_is_one_line(
    run: Path, trained_run: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    verbs.export(trained_run, out=tmp_path / "model.onnx")
    other = tmp_path / "other"
    verbs.train("digits", recipe=Recipe.from_dict(DIGITS), out=other, seed=1)
    assert "model.onnx" in refused(str(other), "--onnx", str(tmp_path / "model.onnx"), "--port", "0")
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    assert "broken.onnx" in refused(str(run), "--onnx", str(tmp_path / "broken.onnx"), "--port", "0")
