"""What the page is answered, whom the server answers at all, and how it refuses the rest."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from starlette.testclient import TestClient

from nearfar import verbs
from nearfar.explore import app as server
from nearfar.explore import guard
from nearfar.explore.app import make_app
from nearfar.explore.store import SPLITS, Map
from nearfar.explore.subject import Subject


@pytest.fixture(scope="module")
def client(opened: tuple[Subject, Map]) -> TestClient:
    return TestClient(make_app(*opened), base_url="http://127.0.0.1", raise_server_exceptions=False)


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def refused(answer: Any, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    tree = answer.json()
    assert tree["status"] == status
    assert tree["title"]
    assert "\n" not in tree["detail"]
    return str(tree["detail"])


def test_the_points_are_those_of_the_map(client: TestClient, opened: tuple[Subject, Map]) -> None:
    subject, made = opened
    about, buffer = client.get("/about").json(), client.get("/points").content
    assert (about["points"], about["gallery"], about["classes"], about["splits"]) == (84, 60, made.classes, list(SPLITS))
    columns = {one["name"]: np.frombuffer(buffer, one["type"], about["points"], one["offset"]) for one in about["columns"]}
    np.testing.assert_array_equal(columns["x"], made.xy[:, 0])
    np.testing.assert_array_equal(columns["y"], made.xy[:, 1])
    for name, ours in (
        ("probability", made.probability),
        ("suspicion", made.suspicion),
        ("label", made.labels),
        ("prediction", made.predictions),
        ("split", made.splits),
    ):
        np.testing.assert_array_equal(columns[name], ours)
    assert all(one["offset"] % np.dtype(one["type"]).itemsize == 0 for one in about["columns"])
    assert sum(column.nbytes for column in columns.values()) == len(buffer)
    assert client.get("/names").json() == made.names
    assert about["run"] == subject.folder.name


def test_pictures_are_the_images_to_the_pixel(client: TestClient, opened: tuple[Subject, Map], trained: Path) -> None:
    _, made = opened
    for point in (0, 17, 59, 60, 83):
        answer = client.get(f"/points/{point}/image")
        assert answer.headers["content-type"] == "image/png"
        shown = np.asarray(Image.open(io.BytesIO(answer.content)))
        split = "train" if point < 60 else "test"
        source = next((trained.parent / "images" / split).rglob(made.names[point].split("/")[-1]))
        np.testing.assert_array_equal(shown, np.asarray(Image.open(source)))


def test_neighbours_are_those_of_the_index(client: TestClient, opened: tuple[Subject, Map]) -> None:
    subject, made = opened
    index = subject.index
    for point in (0, 31, 59):
        answer = client.get(f"/points/{point}/neighbors", params={"k": 7}).json()
        scores, rows = index.search_rows(index.vectors[point : point + 1], 7, exclude=index.ids[point : point + 1])
        assert [one["id"] for one in answer["neighbors"]] == rows[0].tolist()
        np.testing.assert_allclose([one["score"] for one in answer["neighbors"]], scores[0], atol=1e-6)
        assert [one["name"] for one in answer["neighbors"]] == [made.names[row] for row in rows[0]]
    z = subject.model.transform(subject.parts[0].images)
    scores, rows = index.search_rows(z[3:4], 5)
    found = client.get("/points/63/neighbors", params={"k": 5}).json()["neighbors"]
    assert [one["id"] for one in found] == rows[0].tolist()


def test_search_by_an_image_says_what_predict_says(client: TestClient, opened: tuple[Subject, Map], trained: Path) -> None:
    _, made = opened
    source = sorted((trained.parent / "images" / "test").rglob("*.png"))[4]
    found = client.post("/search", params={"k": 3}, content=source.read_bytes()).json()
    said = verbs.predict(trained, [source])[0]
    assert (found["label"], found["voted"]) == (said["label"], said["voted"])
    assert found["probability"] == pytest.approx(said["probability"], abs=1e-5)
    near = verbs.search(trained, [source], k=3)[0]["neighbors"]
    assert [one["name"] for one in found["neighbors"]] == [one["id"] for one in near]
    point = next(row for row, name in enumerate(made.names) if row >= 60 and name.endswith("/".join(source.parts[-2:])))
    nearest = made.xy[made.neighbors[point, :10]]
    assert (nearest.min(axis=0) - 1e-6 <= found["position"]).all()
    assert (found["position"] <= nearest.max(axis=0) + 1e-6).all()


def test_an_image_of_any_size_and_mode_is_taken(client: TestClient) -> None:
    random = np.random.default_rng(0)
    for shape in ((40, 90, 3), (5, 5, 4), (12, 12)):
        answer = client.post("/search", content=png(random.integers(0, 256, shape, dtype=np.uint8)))
        assert answer.status_code == 200
        assert len(answer.json()["neighbors"]) == 10


@pytest.mark.parametrize(
    ("address", "status", "says"),
    [
        ("/points/84/image", 404, "no point 84; they are numbered from 0 to 83"),
        ("/points/-1/image", 404, "no point -1"),
        ("/points/84/neighbors", 404, "no point 84"),
        ("/points/x/image", 422, "point"),
        ("/points/3/neighbors?k=0", 422, "k:"),
        ("/points/3/neighbors?k=21", 422, "k is 21, and 20 neighbours"),
        ("/points/3/neighbors?k=many", 422, "k:"),
        ("/static/nothing.js", 404, "nothing.js"),
        ("/static/..%2fapp.py", 404, ""),
        ("/static/Index.html", 404, ""),
        ("/nowhere", 404, ""),
    ],
)
def test_bad_requests_say_what_to_mend(client: TestClient, address: str, status: int, says: str) -> None:
    assert says in refused(client.get(address), status)


def test_bad_images_say_what_to_mend(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "not an image" in refused(client.post("/search", content=b"no image at all"), 422)
    assert "empty" in refused(client.post("/search", content=b""), 422)
    assert "k:" in refused(client.post("/search", params={"k": 0}, content=b"x"), 422)
    broken = png(np.full((30, 30), 7, np.uint8))
    refused(client.post("/search", content=broken[: len(broken) - 30]), 422)
    monkeypatch.setattr(server, "PIXELS", 100)
    assert "11 x 10 pixels" in refused(client.post("/search", content=png(np.zeros((10, 11), np.uint8))), 413)
    assert client.get("/search").status_code == 405


def test_a_body_that_is_too_large_is_not_read(client: TestClient) -> None:
    told = {"content-length": str(guard.BODY_BYTES + 1)}
    assert "16,777,216" in refused(client.post("/search", content=b"x", headers=told), 413)

    def chunks() -> Any:
        for _ in range(17):
            yield b"\0" * (1 << 20)

    assert "16,777,216" in refused(client.post("/search", content=chunks()), 413)


def test_a_picture_that_is_not_to_be_had_is_404(opened: tuple[Subject, Map]) -> None:
    import dataclasses

    subject, made = opened
    bare = dataclasses.replace(subject, training=None)
    refused(TestClient(make_app(bare, made), base_url="http://127.0.0.1").get("/points/0/image"), 404)


def test_only_names_of_this_machine_are_answered(client: TestClient) -> None:
    for host in ("evil.example", "127.0.0.1.evil.example", "[::1", ""):
        assert "answers to" in refused(client.get("/about", headers={"host": host}), 403)
    for host in ("127.0.0.1", "localhost", "127.0.0.1:81", "LOCALHOST:80", "[::1]"):  # another port may be forwarded here
        assert client.get("/about", headers={"host": host}).status_code == 200


def test_other_sites_may_not_post(client: TestClient) -> None:
    image = png(np.zeros((12, 12), np.uint8))
    for headers in (
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "https://127.0.0.1:81"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ):
        assert "may not write here" in refused(client.post("/search", content=image, headers=headers), 403)
    own = {"origin": "http://127.0.0.1", "sec-fetch-site": "same-origin"}
    assert client.post("/search", content=image, headers=own).status_code == 200


def test_bound_to_more_than_this_machine_any_name_is_answered(opened: tuple[Subject, Map]) -> None:
    app = make_app(*opened, host="0.0.0.0")
    assert TestClient(app, base_url="http://some.name").get("/about").status_code == 200


def test_every_answer_bears_the_policy(client: TestClient) -> None:
    for address in ("/", "/about", "/points", "/static/app.js", "/static/plotly.min.js", "/points/0/image", "/nowhere"):
        headers = client.get(address).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "'unsafe-inline'" not in policy.split("style-src")[0]
        assert headers["x-content-type-options"] == "nosniff"


def test_the_page_has_nothing_inline_and_names_no_other_host(client: TestClient) -> None:
    static = Path(server.__file__).with_name("static")
    page = (static / "index.html").read_text()
    assert client.get("/").text == page
    assert "<style" not in page
    assert " style=" not in page
    assert page.count("<script") == page.count("<script src=") == 2
    for path in static.iterdir():
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text
        assert "https://" not in text
        assert "innerHTML" not in text


def test_a_defect_is_a_problem_too(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(server, "answer", broken)
    assert "secret" not in refused(client.post("/search", content=png(np.zeros((12, 12), np.uint8))), 500)


def test_what_is_said_is_json_that_browsers_read(client: TestClient) -> None:
    for address in ("/about", "/names", "/points/0/neighbors"):
        json.loads(client.get(address).text, parse_constant=lambda name: pytest.fail(name))
