"""Drawing and choosing pictures, and what is shown of them, in a real browser."""

from __future__ import annotations

import io
import re
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Request, Route, expect
from serve.page.visits import NOTHING, SEVEN, Open, Server
from serve.serve_samples import of_class, png

from nearfar.data import ImageSet


class TestDrawing:
    def test_a_drawing_is_answered_with_what_the_interface_says(self, server: Server, open_page: Open) -> None:
        visit = open_page(server)
        page = visit.page
        visit.draw(SEVEN)
        sent = visit.answered()[-1]
        with Image.open(io.BytesIO(sent)) as picture:
            assert (picture.mode, picture.size) == ("L", (8, 8))
            pixels = np.asarray(picture)
        shown = page.evaluate("[...document.getElementById('pixels').getContext('2d').getImageData(0, 0, 8, 8).data]")
        np.testing.assert_array_equal(np.array(shown).reshape(8, 8, 4)[..., 0], pixels)
        answer = httpx.post(f"{server.address}/v1/predict?k=10", content=sent, headers={"Content-Type": "image/png"}).json()[
            "results"
        ][0]
        expect(page.locator("#label")).to_have_text(answer["label"])
        expect(page.locator("#sure")).to_contain_text("sure")
        expect(page.locator("#time")).to_have_text(re.compile(r"^\d+ ms$"))
        labels = page.locator("#neighbors li bdi").all_inner_texts()
        assert labels == [one["label"] for one in answer["neighbors"]]
        scores = page.locator("#neighbors .score").all_inner_texts()
        assert [float(text) for text in scores] == pytest.approx([one["score"] for one in answer["neighbors"]], abs=6e-5)
        for number in range(10):
            expect(page.locator("#neighbors img").nth(number)).to_have_js_property("naturalWidth", 8)

    def test_the_map_marks_where_the_drawing_lies(self, server: Server, open_page: Open) -> None:
        visit = open_page(server)
        visit.draw(SEVEN)
        expect(visit.page.locator("#points")).to_have_attribute(
            "aria-label", re.compile("Map of .* images of 8 classes; the query lies by class")
        )
        sent = {"content": visit.answered()[-1], "headers": {"Content-Type": "image/png"}}
        x, y = httpx.post(f"{server.address}/v1/predict", **sent).json()["results"][0]["position"]
        middle = visit.page.evaluate(
            """([x, y]) => { const c = document.getElementById("points"), at = (v, n) => Math.round(n * (0.035 + 0.93 * v));
            return [...c.getContext("2d").getImageData(at(x, c.width), at(1 - y, c.height), 1, 1).data] }""",
            [x, y],
        )
        assert middle == [0x1B, 0x1D, 0x21, 255], "the ink of the mark"
        expect(visit.page.locator("#legend button")).to_have_count(8)

    def test_a_point_of_the_map_shows_its_picture(self, server: Server, open_page: Open) -> None:
        page = open_page(server).page
        points = httpx.get(f"{server.address}/v1/map").json()
        box = page.locator("#points").bounding_box()
        assert box is not None
        place = [
            box["x"] + box["width"] * (0.035 + 0.93 * points["x"][0]),
            box["y"] + box["height"] * (0.965 - 0.93 * points["y"][0]),
        ]
        page.locator("#legend button").nth(points["label"][0]).click()  # others do not come in the way
        page.mouse.move(*place)
        expect(page.locator("#card bdi")).to_have_text(points["classes"][points["label"][0]])
        expect(page.locator("#card img")).to_have_js_property("naturalWidth", 8)

    def test_undo_and_clear(self, server: Server, open_page: Open) -> None:
        visit = open_page(server)
        page = visit.page
        visit.draw(SEVEN)
        first = visit.answered()[-1]
        visit.draw([[(0.1, 0.9), (0.9, 0.9)]])
        assert visit.answered()[-1] != first
        count = len(visit.answered())
        page.keyboard.press("Control+z")
        assert visit.answered()[count:] == [first]
        page.click("#undo")
        expect(page.locator("#label")).to_have_text(NOTHING)
        expect(page.locator("#undo")).to_be_disabled()
        visit.draw(SEVEN)
        expect(page.locator("#label")).not_to_have_text(NOTHING)
        page.keyboard.press("Escape")
        expect(page.locator("#label")).to_have_text(NOTHING)
        expect(page.locator("#neighbors bdi")).to_have_count(0)

    def test_one_question_at_a_time_and_the_last_one_counts(self, server: Server, open_page: Open) -> None:
        held: list[Route] = []
        visit = open_page(server, lambda page: page.route("**/v1/predict*", lambda route: held.append(route)))
        page = visit.page
        box = page.locator("#ink").bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + 50, box["y"] + 50)
        page.mouse.down()
        for step in range(12):
            page.mouse.move(box["x"] + 50 + 15 * step, box["y"] + 50 + 10 * step)
            page.wait_for_timeout(40)
        assert len(held) == 1, "the answer to the first is still awaited"
        dropped: list[Request] = []
        page.on("requestfailed", lambda request: dropped.append(request))
        page.mouse.up()
        page.wait_for_timeout(200)
        assert [len(held), dropped] == [2, [held[0].request]]
        held[1].continue_()
        expect(page.locator("#live")).not_to_be_empty()
        assert len(held) == 2

    def test_lifting_the_pen_asks_nothing_that_is_known(self, server: Server, open_page: Open) -> None:
        visit = open_page(server)
        page = visit.page
        box = page.locator("#ink").bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + 50, box["y"] + 50)
        page.mouse.down()
        page.mouse.move(box["x"] + 200, box["y"] + 150, steps=4)
        expect(page.locator("#label")).not_to_have_text(NOTHING)
        count = 0
        while count < len(server.sent):  # until the last stretch of the line has been asked about, on a busy machine too
            count = len(server.sent)
            page.wait_for_timeout(1000)
        expect(page.locator("#live")).to_be_empty()  # nobody is told while the pen is down
        page.mouse.up()
        expect(page.locator("#live")).not_to_be_empty()
        assert len(server.sent) == count

    def test_wanted_precision(self, server: Server, open_page: Open) -> None:
        visit = open_page(server)
        visit.draw([[(0.1, 0.1), (0.9, 0.9)], [(0.9, 0.1), (0.1, 0.9)]])
        expect(visit.page.locator("#live")).not_to_be_empty()
        visit.page.select_option("#precision", label="always answer")
        expect(visit.page.locator("#label")).not_to_have_text("unknown")
        assert visit.requests[-1].url.endswith("precision=0") or any("precision=0" in one.url for one in visit.requests[-12:])


class TestPictures:
    def test_a_chosen_file_is_sent_as_it_is(self, server: Server, open_page: Open, images: ImageSet, tmp_path: Path) -> None:
        visit, three = open_page(server), of_class(images, "3")[0]
        path = tmp_path / "<b>three<b>.png"
        path.write_bytes(png(three))
        with visit.page.expect_file_chooser() as chooser:
            visit.page.click("#choose")
        chooser.value.set_files(path)
        expect(visit.page.locator("#label")).to_have_text("3")
        assert visit.answered() == [path.read_bytes()]
        expect(visit.page.locator("#picture")).to_be_visible()
        shown = visit.page.evaluate("[...document.getElementById('pixels').getContext('2d').getImageData(0, 0, 8, 8).data]")
        assert np.abs(np.array(shown).reshape(8, 8, 4)[..., 0] - three[0].astype(int)).max() <= 1
        visit.page.click("#clear")
        expect(visit.page.locator("#picture")).to_be_hidden()

    @pytest.mark.parametrize("way", ["paste", "drop"])
    def test_pasted_and_dropped_pictures(self, server: Server, open_page: Open, images: ImageSet, way: str) -> None:
        visit, five = open_page(server), png(of_class(images, "5")[3])
        visit.page.evaluate(
            """([way, bytes]) => { const data = new DataTransfer();
            data.items.add(new File([Uint8Array.from(bytes)], "five.png", { type: "image/png" }));
            document.body.dispatchEvent(way === "paste" ? new ClipboardEvent("paste", { clipboardData: data, bubbles: true })
              : new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })) }""",
            [way, list(five)],
        )
        expect(visit.page.locator("#label")).to_have_text("5")
        assert visit.answered() == [five]

    def test_dark_on_light_can_be_inverted(self, server: Server, open_page: Open, images: ImageSet, tmp_path: Path) -> None:
        visit, path = open_page(server), tmp_path / "four.png"
        four = of_class(images, "4")[2]
        path.write_bytes(png(255 - four))
        visit.page.set_input_files("#file", path)
        visit.page.click("#invert")
        expect(visit.page.locator("#invert")).to_be_hidden()
        with Image.open(io.BytesIO(visit.answered()[-1])) as sent:
            np.testing.assert_array_equal(np.asarray(sent.convert("L")), four[0])
        expect(visit.page.locator("#label")).to_have_text("4")

    def test_what_is_no_picture_is_one_line(self, server: Server, open_page: Open, tmp_path: Path) -> None:
        visit, path = open_page(server), tmp_path / "letter.png"
        path.write_text("dear all")
        visit.page.set_input_files("#file", path)
        expect(visit.page.locator("#trouble")).to_contain_text("not an image")
        visit.expected_refusals()
        visit.draw(SEVEN)
        expect(visit.page.locator("#trouble")).to_be_hidden()
        expect(visit.page.locator("#label")).not_to_have_text(NOTHING)

    def test_colour_models_take_pictures_alone(self, server: Server, open_page: Open) -> None:
        def in_colour(route: Route) -> None:
            tree = route.fetch().json()
            route.fulfill(json=tree | {"input": {"channels": 3, "size": [8, 8], "ink": None}})

        page = open_page(server, lambda page: page.route("**/v1/model", in_colour)).page
        expect(page.locator("#hint")).to_contain_text("colour pictures")
        expect(page.locator("#ink")).to_be_hidden()
        expect(page.locator("#undo")).to_be_hidden()
        expect(page.locator("#choose")).to_be_visible()
