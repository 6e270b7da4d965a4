"""The interface: answers equal to those of the library, whatever way images come, and a 4xx for everything wrong."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serve.serve_samples import b64, of_class, png, train_bare
from starlette.testclient import TestClient

from nearfar import verbs
from nearfar.answers import answer, calibrate, current_calibration, fitted_in, gallery_of, trained_images
from nearfar.data import ImageSet
from nearfar.runs import indexing, read_config
from nearfar.runs.opening import classes_of, load_run
from nearfar.serve import Settings, schemas
from nearfar.serve.app import create_app
from nearfar.serve.guard import Guard
from nearfar.serve.service import Service

KEY = "a key of the tests"
FIELD = b'--y\r\nContent-Disposition: form-data; name="image"\r\n\r\nAAAA\r\n--y--\r\n'  # text where a file should be


@pytest.fixture
def client(run: Path) -> Iterator[TestClient]:
    with serving(run) as found:
        yield found


def serving(run: Path, **settings: Any) -> TestClient:
    app = create_app(Service.open(run, Settings(**settings), device="cpu"))
    return TestClient(app, base_url="http://localhost", raise_server_exceptions=False)


def problem(response: Any, status: int) -> str:
    """The detail of a refusal, which must have this status and the standard's form."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    tree = response.json()
    assert tree["status"] == status
    assert tree["title"]
    assert "\n" not in tree["detail"]
    assert "Traceback" not in response.text
    return str(tree["detail"])


class TestQuestions:
    def test_predictions_are_those_of_the_library(self, run: Path, client: TestClient, images: ImageSet) -> None:
        some = np.asarray(images.images)[::90]
        body = {"images": [b64(png(image)) for image in some]}
        said = client.post("/v1/predict?k=3&precision=0.9", json=body).json()["results"]
        model, index = load_run(run, device="cpu")
        gallery = gallery_of(index, model.recipe_.evaluate, trained_images(read_config(run), index))
        z = model.transform(some)
        expected = answer(gallery, z, current_calibration(run, gallery), 0.9)
        scores, ids = index.search(z, 3)
        classes = classes_of(model, index)
        assert [one["voted"] for one in said] == [classes[number] for number in expected.labels]
        assert [one["known"] for one in said] == expected.known.tolist()
        assert not all(expected.known), "a share of the digits was never seen"
        assert {one["label"] for one in said if not one["known"]} == {"unknown"}
        np.testing.assert_allclose([one["probability"] for one in said], expected.probability, atol=2e-6)
        np.testing.assert_allclose([one["votes"] for one in said], expected.votes, atol=1e-6)
        assert [[near["id"] for near in one["neighbors"]] for one in said] == ids.tolist()
        np.testing.assert_allclose([[near["score"] for near in one["neighbors"]] for one in said], scores, atol=1e-6)
        names, labels = index.names["images"], np.asarray(index.labels)
        first = said[0]["neighbors"][0]
        assert (first["name"], first["label"]) == (names[first["id"]], classes[labels[first["id"]]])
        assert all(0 <= value <= 1 for one in said for value in one["position"])

    def test_vectors_are_those_of_the_library_to_the_last_digit(self, run: Path, client: TestClient, images: ImageSet) -> None:
        some = np.asarray(images.images)[:5]
        said = client.post("/v1/embed", json={"images": [b64(png(image)) for image in some]}).json()
        model, index = load_run(run, device="cpu")
        assert said["model"] == index.model_hash
        assert np.array_equal(np.array(said["embeddings"], dtype=np.float32), model.embed_block(some))

    def test_every_way_to_send_an_image_gives_the_same(self, client: TestClient, images: ImageSet) -> None:
        content = png(np.asarray(images.images)[7])
        ways: list[dict[str, Any]] = [
            {"json": {"image": b64(content)}},
            {"json": {"images": [b64(content)]}},
            {"json": {"image": "data:image/png;base64," + b64(content)}},
            {"content": content, "headers": {"content-type": "image/png"}},
            {"content": content, "headers": {"content-type": "application/octet-stream"}},
            {"files": {"image": ("digit.png", content, "image/png")}},
        ]
        answers = [client.post("/v1/search?k=4", **way) for way in ways]
        assert {one.status_code for one in answers} == {200}
        assert len({one.text for one in answers}) == 1

    def test_several_files_of_a_form_keep_their_order(self, client: TestClient, images: ImageSet) -> None:
        contents = [png(image) for image in np.asarray(images.images)[:6]]
        form = client.post("/v1/embed", files=[("image", (f"{n}.png", c)) for n, c in enumerate(contents)])
        assert form.text == client.post("/v1/embed", json={"images": [b64(c) for c in contents]}).text

    def test_answers_look_as_they_are_described(self, client: TestClient, images: ImageSet) -> None:
        content = {"image": b64(png(np.asarray(images.images)[0]))}
        for path, schema in (
            ("predict", schemas.Predictions), ("search", schemas.SearchResults), ("embed", schemas.Embeddings)
        ):  # fmt: skip
            tree = client.post(f"/v1/{path}", json=content).json()
            assert schema.model_validate(tree).model_dump() == tree
        for path, schema in (("v1/model", schemas.ModelInfo), ("v1/map", schemas.Map), ("v1/items", schemas.Items)):
            tree = client.get(f"/{path}").json()
            assert schema.model_validate(tree).model_dump() == tree

    def test_the_model_says_what_it_is(self, run: Path, client: TestClient) -> None:
        said = client.get("/v1/model").json()
        assert said["model"] == read_config(run)["model"]["sha256"]
        assert said["input"]["size"] == [8, 8]
        assert [one["name"] for one in said["classes"]] == list("01234567")
        assert sum(one["images"] for one in said["classes"]) == said["images"]

    def test_pictures_of_training_images_are_those_of_the_data(self, client: TestClient, run: Path) -> None:
        from io import BytesIO

        from PIL import Image

        from nearfar.splits import load_for

        client.app.state.service.album.load()  # type: ignore[attr-defined]  # a Starlette application has it
        model, _ = load_run(run, device="cpu")
        trained = load_for("digits", model.recipe_.data, seed=0).train
        said = client.get("/v1/items/17/image")
        assert said.headers["content-type"] == "image/png"
        assert np.array_equal(np.asarray(Image.open(BytesIO(said.content))), np.asarray(trained.images)[17, 0])

    def test_pages_and_description_are_there_and_name_no_other_host(self, client: TestClient) -> None:
        for path in ("/", "/docs", "/static/page.css", "/openapi.json", "/metrics", "/healthz", "/readyz"):
            found = client.get(path)
            assert found.status_code == 200, path
            assert "https://" not in found.text.replace("https://json-schema.org", ""), path
        assert "default-src 'none'" in client.get("/").headers["content-security-policy"]

    def test_requests_are_counted(self, client: TestClient, images: ImageSet) -> None:
        for _ in range(3):
            client.post("/v1/predict", json={"image": b64(png(np.asarray(images.images)[0]))})
        client.get("/v1/nothing")
        text = client.get("/metrics").text
        assert 'nearfar_requests_total{route="/v1/predict",status="200"} 3.0' in text
        assert 'nearfar_requests_total{route="other",status="404"} 1.0' in text
        assert "nearfar_batch_images_sum 3.0" in text


def library_votes(run: Path, images: Any) -> list[str]:
    model, index = load_run(run, device="cpu")
    gallery = gallery_of(index, model.recipe_.evaluate, trained_images(read_config(run), index))
    classes = classes_of(model, index)
    return [classes[n] for n in answer(gallery, model.transform(images), current_calibration(run, gallery)).labels]


class TestItems:
    def test_a_new_class_is_found_survives_and_goes(self, run: Path, images: ImageSet) -> None:
        nines = of_class(images, "9")
        asked = {"images": [b64(png(image)) for image in nines[20:40]]}
        with serving(run) as client:
            before = client.post("/v1/predict", json=asked).json()
            added = client.post("/v1/items", json={"images": [b64(png(image)) for image in nines[:12]], "label": "nine"})
            assert added.status_code == 201, added.text
            items = added.json()["items"]
            assert added.json()["new_class"]
            assert schemas.Added.model_validate(added.json())
            said = [one["voted"] for one in client.post("/v1/predict", json=asked).json()["results"]]
            assert said == library_votes(run, nines[20:40])
            assert said.count("nine") > 5
            assert {one["name"]: one for one in client.get("/v1/model").json()["classes"]}["nine"] == {
                "name": "nine", "images": 12, "trained": False
            }  # fmt: skip
        with serving(run) as client:  # another server of the same folder
            again = [one["voted"] for one in client.post("/v1/predict", json=asked).json()["results"]]
            assert again == said
            listed = client.get("/v1/items?count=5").json()
            assert listed["total"] == 12
            assert [one["id"] for one in listed["items"]] == [one["id"] for one in items[::-1][:5]]
            picture = client.get(f"/v1/items/{items[0]['id']}/image").content
            assert picture == png(nines[0])
            for one in items:
                assert client.delete(f"/v1/items/{one['id']}").json() == {"removed": one["id"]}
            assert client.post("/v1/predict", json=asked).json() == before
            problem(client.get(f"/v1/items/{items[0]['id']}/image"), 404)
        assert not list((run / "items").iterdir())

    def test_the_command_line_and_the_server_see_one_index(
        self, run: Path, client: TestClient, images: ImageSet, tmp_path: Path
    ) -> None:
        eights = of_class(images, "8")
        for number, image in enumerate(eights[:5]):
            (tmp_path / "eight").mkdir(exist_ok=True)
            (tmp_path / "eight" / f"{number}.png").write_bytes(png(image))

        indexing.add_images(run, tmp_path / "eight", label="eight")
        client.app.state.service.served.follow()  # type: ignore[attr-defined]  # what a second of waiting does
        assert client.get("/v1/model").json()["added"] == 5
        client.post("/v1/items", json={"image": b64(png(eights[6])), "label": "eight"})
        found = verbs.search(run, [tmp_path / "eight" / "0.png"], k=1)
        assert found[0]["neighbors"][0]["label"] == "eight"
        assert indexing.index_info(run)["added_images"] == 6

    def test_an_image_that_is_there_keeps_its_id(self, client: TestClient, images: ImageSet) -> None:
        content = {"image": b64(png(of_class(images, "9")[0])), "label": "nine"}
        first = client.post("/v1/items", json=content).json()
        again = client.post("/v1/items", json=content).json()
        assert again["items"] == first["items"]
        assert (first["new_class"], again["new_class"]) == (True, False)
        detail = problem(client.post("/v1/items", json={**content, "label": "other"}), 409)
        assert "nine" in detail

    def test_forms_and_plain_images_can_be_added(self, client: TestClient, images: ImageSet) -> None:
        nines = [png(image) for image in of_class(images, "9")[:3]]
        form = client.post("/v1/items", files=[("image", ("a.png", c)) for c in nines[:2]], data={"label": "nine"})
        assert len(form.json()["items"]) == 2
        plain = client.post("/v1/items?label=nine", content=nines[2], headers={"content-type": "image/png"})
        assert plain.status_code == 201

    @pytest.mark.parametrize("name", ["../../etc", "a/b", "", "  ", "unknown", "x" * 201, "a\x00b"])
    def test_a_name_that_cannot_be_one_is_refused(self, client: TestClient, images: ImageSet, name: str) -> None:
        problem(client.post("/v1/items", json={"image": b64(png(of_class(images, "9")[0])), "label": name}), 422)
        assert client.get("/v1/items").json()["total"] == 0

    def test_markup_in_a_name_comes_back_as_it_was(self, client: TestClient, images: ImageSet) -> None:
        name = "<script>alert(1)<b>"
        problem(client.post("/v1/items", json={"image": b64(png(of_class(images, "9")[0])), "label": "</script>"}), 422)
        added = client.post("/v1/items", json={"image": b64(png(of_class(images, "9")[0])), "label": name})
        assert added.json()["items"][0]["label"] == name
        assert added.headers["content-type"] == "application/json"

    def test_training_images_stay(self, client: TestClient) -> None:
        problem(client.delete("/v1/items/0"), 409)
        problem(client.delete("/v1/items/99999999"), 404)
        problem(client.delete("/v1/items/x"), 422)
        problem(client.delete(f"/v1/items/{10**30}"), 422)
        problem(client.get("/v1/items/99999999/image"), 404)

    def test_a_folder_that_is_held_by_another_is_a_conflict(
        self, run: Path, client: TestClient, images: ImageSet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import fcntl
        import os

        monkeypatch.setattr("nearfar.serve.state._PATIENCE", 0.1)
        handle = os.open(run, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
        body = {"image": b64(png(of_class(images, "9")[0])), "label": "nine"}
        assert "another process" in problem(client.post("/v1/items", json=body), 409)
        os.close(handle)
        assert client.post("/v1/items", json=body).status_code == 201


class TestFolderThatChanges:
    def test_a_folder_that_goes_leaves_the_server_answering(self, run: Path, client: TestClient, images: ImageSet) -> None:
        body = {"image": b64(png(np.asarray(images.images)[3]))}
        before = client.post("/v1/predict", json=body).json()
        run.rename(run.with_name("moved"))
        client.app.state.service.served.follow()  # type: ignore[attr-defined]  # what a second of waiting does
        assert client.post("/v1/predict", json=body).json() == before
        assert client.get("/readyz").status_code == 503
        assert client.get("/healthz").status_code == 200
        assert client.post("/v1/items", json={**body, "label": "nine"}).status_code == 409
        run.with_name("moved").rename(run)
        client.app.state.service.served.follow()  # type: ignore[attr-defined]  # what a second of waiting does
        assert client.get("/readyz").status_code == 200

    def test_files_cut_short_under_the_server_do_not_end_it(self, run: Path, client: TestClient, images: ImageSet) -> None:
        body = {"image": b64(png(np.asarray(images.images)[3]))}
        before = client.post("/v1/predict", json=body).json()
        for path in [*(run / "index").iterdir(), run / "model.safetensors", run / "config.json"]:
            with path.open("r+b") as file:
                file.truncate(0)
        client.app.state.service.served.follow()  # type: ignore[attr-defined]  # what a second of waiting does
        assert client.post("/v1/predict", json=body).json() == before
        assert client.get("/readyz").status_code == 503


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def claims(width: int, height: int) -> bytes:
    """The beginning of a PNG that says it is so large."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


class TestBadInput:
    def bad(self, client: TestClient, status: int, **sent: Any) -> str:
        details = {problem(client.post(f"/v1/{path}", **sent), status) for path in ("embed", "search", "predict")}
        assert len(details) == 1
        return details.pop()

    def test_not_an_image(self, client: TestClient, images: ImageSet) -> None:
        whole = png(np.asarray(images.images)[0])
        for content in (b"hello", b"\x89PNG\r\n\x1a\n", whole[: len(whole) // 2], whole[:-30]):
            self.bad(client, 422, content=content, headers={"content-type": "image/png"})
            assert "image 1" in self.bad(client, 422, json={"image": b64(content)})
        assert "image 2" in self.bad(client, 422, json={"images": [b64(whole), b64(b"no")]})

    def test_too_many_pixels(self, client: TestClient) -> None:
        for size in ((50_000, 50_000), (6000, 6000), (2**31 - 1, 1)):
            self.bad(client, 413, content=claims(*size), headers={"content-type": "image/png"})
        self.bad(client, 422, content=claims(0, 5), headers={"content-type": "image/png"})

    def test_too_large_a_body(self, run: Path) -> None:
        with serving(run, max_body=2000) as client:
            large = {"content-type": "image/png"}
            assert "2,000" in self.bad(client, 413, content=b"x" * 2001, headers=large)
            problem(client.post("/v1/embed", content=(b"x" * 100 for _ in range(30)), headers=large), 413)  # of unknown length
            self.bad(client, 413, json={"image": "A" * 4000})
            self.bad(client, 413, files={"image": ("a.png", b"x" * 3000)})

    def test_too_many_images(self, run: Path, images: ImageSet) -> None:
        with serving(run, max_images=3) as client:
            content = png(np.asarray(images.images)[0])
            self.bad(client, 413, json={"images": [b64(content)] * 4})
            self.bad(client, 413, files=[("image", ("a.png", content))] * 4)
            assert client.post("/v1/embed", json={"images": [b64(content)] * 3}).status_code == 200

    @pytest.mark.parametrize(
        ("content", "kind", "status"),
        [
            (b"{", "application/json", 400),
            (b"", "application/json", 400),
            (b"[]", "application/json", 400),
            (b"\xff\xfe", "application/json", 400),
            (b"[" * 100_000, "application/json", 400),
            (b"{}", "application/json", 400),
            (b'{"image": 5}', "application/json", 400),
            (b'{"image": null}', "application/json", 400),
            (b'{"image": "!!!"}', "application/json", 400),
            (b'{"image": "AAA"}', "application/json", 400),
            (b'{"image": "\\ud800"}', "application/json", 400),
            (b'{"images": []}', "application/json", 400),
            (b'{"images": [[]]}', "application/json", 400),
            (b'{"image": "AAAA", "images": ["AAAA"]}', "application/json", 400),
            (b'{"image": "AAAA", "k": 3}', "application/json", 400),
            (b'{"image": "iVBORw0KGgo=", "\\ud800": "x"}', "application/json", 400),
            (b"x", "text/plain", 415),
            (b"x", "", 415),
            (b"x", "multipart/form-data", 400),
            (b"x", "multipart/form-data; boundary=y", 400),
            (b"--y\r\n\r\n", "multipart/form-data; boundary=y", 400),
            (
                b'--y\r\nContent-Disposition: form-data; name="image"\r\n\r\nAAAA\r\n--y--\r\n',
                "multipart/form-data; boundary=y",
                400,
            ),
            (b"", "image/png", 422),
        ],
    )
    def test_a_body_that_is_not_what_it_says(self, client: TestClient, content: bytes, kind: str, status: int) -> None:
        self.bad(client, status, content=content, headers={"content-type": kind} if kind else {})

    @pytest.mark.parametrize("k", ["0", "-1", str(10**9), str(10**40), "x", "1.5", ""])
    def test_a_k_that_cannot_be(self, client: TestClient, images: ImageSet, k: str) -> None:
        body = {"image": b64(png(np.asarray(images.images)[0]))}
        for path in ("search", "predict"):
            problem(client.post(f"/v1/{path}?k={k}", json=body), 422)

    @pytest.mark.parametrize("precision", ["1", "-0.1", "nan", "x"])
    def test_a_precision_that_cannot_be(self, client: TestClient, images: ImageSet, precision: str) -> None:
        body = {"image": b64(png(np.asarray(images.images)[0]))}
        problem(client.post(f"/v1/predict?precision={precision}", json=body), 422)

    def test_addresses_and_methods_that_are_not_there(self, client: TestClient) -> None:
        problem(client.get("/v1/nothing"), 404)
        problem(client.get("/static/../api.py"), 404)
        problem(client.get("/static/%2e%2e/api.py"), 404)
        problem(client.get("/static/..%2f..%2fapi.py"), 404)
        problem(client.put("/v1/predict"), 405)

    def test_pages_of_other_sites_can_neither_write_nor_ask(self, client: TestClient, images: ImageSet) -> None:
        body = {"image": b64(png(of_class(images, "9")[0])), "label": "x"}
        problem(client.post("/v1/items", json=body, headers={"origin": "http://evil.example"}), 403)
        problem(client.get("/v1/model", headers={"host": "evil.example"}), 403)
        assert client.get("/v1/model", headers={"host": "127.0.0.1:8000"}).status_code == 200
        assert client.post("/v1/items", json=body, headers={"origin": "http://localhost"}).status_code == 201

    def test_more_at_a_time_than_allowed_are_sent_away(self, run: Path) -> None:
        with serving(run, concurrency=1) as client:
            client.get("/healthz")
            guard = client.app.middleware_stack  # type: ignore[attr-defined]  # a Starlette application has it
            while not isinstance(guard, Guard):
                guard = guard.app
            guard.busy = 1
            refused = client.get("/v1/model")
            assert problem(refused, 503)
            assert refused.headers["retry-after"] == "1"
            assert client.get("/healthz").status_code == 200
            guard.busy = 0
            assert client.get("/v1/model").status_code == 200

    def test_a_defect_is_a_problem_too_and_the_next_request_is_answered(
        self, client: TestClient, images: ImageSet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        body = {"image": b64(png(np.asarray(images.images)[0]))}
        served = client.app.state.service.served  # type: ignore[attr-defined]  # a Starlette application has it
        with monkeypatch.context() as broken:
            broken.setattr(type(served.model), "embed_block", lambda *_: 1 / 0)
            detail = problem(client.post("/v1/embed", json=body), 500)
            assert "division" not in detail
        assert client.post("/v1/embed", json=body).status_code == 200


class TestKey:
    def test_writing_needs_it_and_reading_does_not(self, run: Path, images: ImageSet) -> None:
        body = {"image": b64(png(of_class(images, "9")[0])), "label": "nine"}
        with serving(run, api_key=KEY) as client:
            assert client.get("/v1/model").json()["needs_key"]
            for given in ({}, {"authorization": f"Bearer {KEY}x"}, {"authorization": f"Basic {KEY}"}, {"authorization": KEY}):
                refused = client.post("/v1/items", json=body, headers=given)
                problem(refused, 401)
                assert refused.headers["www-authenticate"] == "Bearer"
                problem(client.delete("/v1/items/5", headers=given), 401)
            assert client.post("/v1/predict", json={"image": body["image"]}).status_code == 200
            assert client.post("/v1/items", json=body, headers={"authorization": f"Bearer {KEY}"}).status_code == 201

    def test_without_one_the_network_cannot_write(self, run: Path, images: ImageSet) -> None:
        body = {"image": b64(png(of_class(images, "9")[0])), "label": "nine"}
        with serving(run, host="0.0.0.0") as client:
            assert "API key" in problem(client.post("/v1/items", json=body), 403)
            problem(client.delete("/v1/items/5"), 403)


def test_the_description_is_valid_and_names_every_address(client: TestClient) -> None:
    tree = client.get("/openapi.json").json()
    assert set(tree["paths"]) == {
        "/v1/embed", "/v1/search", "/v1/predict", "/v1/items", "/v1/items/{id}", "/v1/items/{id}/image",
        "/v1/map", "/v1/model", "/healthz", "/readyz", "/metrics",
    }  # fmt: skip
    text = json.dumps(tree)
    named = {part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert named <= set(tree["components"]["schemas"])


def test_images_without_a_label_are_shown_without_one(tmp_path: Path, images: ImageSet) -> None:
    train_bare(images, tmp_path / "bare")
    few = np.flatnonzero(np.isin(images.require_labels(), (0, 1)))[-20:]
    indexing.add_images(tmp_path / "bare", images.subset(few))
    with serving(tmp_path / "bare") as client:
        content = png(np.asarray(images.images)[0])
        said = client.post("/v1/predict?k=5", content=content, headers={"content-type": "image/png"}).json()["results"][0]
        assert schemas.Predictions.model_validate({"results": [said]})
        assert said["voted"] in ("0", "1")
        assert (said["neighbors"][0]["id"], said["neighbors"][0]["label"]) == (0, None)
        assert {one["name"]: one["images"] for one in client.get("/v1/model").json()["classes"]}.keys() == {"0", "1"}
        assert client.get("/v1/map").json()["label"].count(-1) == 160


def test_a_run_without_labels_finds_what_is_near_and_names_it_once_two_have_one(tmp_path: Path, images: ImageSet) -> None:
    train_bare(images, tmp_path / "bare")
    with serving(tmp_path / "bare") as client:
        sent = {"content": png(np.asarray(images.images)[3]), "headers": {"content-type": "image/png"}}
        about = client.get("/v1/model").json()
        assert (about["classes"], about["k"], about["images"]) == ([], 0, 160)
        assert schemas.ModelInfo.model_validate(about)
        said = client.post("/v1/search?k=3", **sent).json()
        assert schemas.SearchResults.model_validate(said)
        near = said["results"][0]
        assert [one["label"] for one in near["neighbors"]] == [None] * 3
        assert near["neighbors"][0]["id"] == 3
        plane = client.get("/v1/map").json()
        assert plane["label"] == [-1] * 160
        at = plane["id"].index(3)
        assert near["position"] == pytest.approx([plane["x"][at], plane["y"][at]], abs=0.2)
        assert "POST /v1/items" in problem(client.post("/v1/predict", **sent), 409)
        zeros, ones = (of_class(images, name)[-10:] for name in "01")
        client.post("/v1/items", json={"image": b64(png(zeros[0])), "label": "zero"})
        assert "fewer than two" in problem(client.post("/v1/predict", **sent), 409)
        added = [client.post("/v1/items", json={"image": b64(png(zeros[1])), "label": "zero"}).json()]
        assert client.post("/v1/predict?precision=0", **sent).json()["results"][0]["label"] == "zero"
        for image in ones:
            added.append(client.post("/v1/items", json={"image": b64(png(image)), "label": "one"}).json())
        of_one = {"content": png(ones[0]), "headers": {"content-type": "image/png"}}
        sure = client.post("/v1/predict?precision=0", **of_one).json()["results"][0]
        assert (sure["voted"], client.get("/v1/model").json()["k"]) == ("one", 10)
    model, index = load_run(tmp_path / "bare", device="cpu")
    gallery = gallery_of(index, model.recipe_.evaluate, 160)
    fresh = answer(gallery, model.transform(ones[:1]), fitted_in(calibrate(gallery)))
    assert sure["probability"] == pytest.approx(float(fresh.probability[0]), abs=1e-5), "by the labels that there are now"
