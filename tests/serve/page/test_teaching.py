"""Teaching classes, the keyboard alone, a server that refuses or goes away, and small screens, in a real browser."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, Route, expect
from serve.page.visits import NOTHING, SEVEN, Open, Server, serving
from serve.serve_samples import of_class, png, train_bare

from nearfar.data import ImageSet

KEY = "a key of the tests"
HTML = "<img src=x onerror=alert(1)>"


class TestTeaching:
    def test_a_new_class_stays_until_it_is_deleted(self, run: Path, open_page: Open) -> None:
        with serving(run) as server:
            visit = open_page(server)
            page = visit.page
            visit.draw([[(0.1, 0.1), (0.9, 0.9)], [(0.9, 0.1), (0.1, 0.9)]])
            page.fill("#class", HTML)
            page.press("#class", "Enter")
            expect(page.locator("#said")).to_have_text(f"Added as {HTML}, a new class.")
            expect(page.locator("#items li bdi")).to_have_text(HTML)
            expect(page.locator("#items img")).to_have_js_property("naturalWidth", 8)
            expect(page.locator("#label")).to_have_text(HTML)
            expect(page.locator("#neighbors bdi").first).to_have_text(HTML)
            expect(page.locator("#legend bdi").last).to_have_text(HTML)
            expect(page.locator("#about")).to_contain_text("9 classes")
            page.reload()
            expect(page.locator("#items li bdi")).to_have_text(HTML)
            assert page.locator("#classes option").last.get_attribute("value") == HTML
            assert page.evaluate("document.querySelectorAll('[onerror], [src=x]').length") == 0
            page.get_by_role("button", name=f"Delete {HTML}").click()
            expect(page.locator("#items")).to_have_text("None yet.")
            expect(page.locator("#about")).to_contain_text("8 classes")
            assert httpx.get(f"{server.address}/v1/items").json()["items"] == []

    def test_a_run_without_labels_learns_its_first_classes(self, open_page: Open, images: ImageSet, tmp_path: Path) -> None:
        train_bare(images, tmp_path / "bare")
        with serving(tmp_path / "bare") as server:
            visit = open_page(server)
            page = visit.page
            expect(page.locator("#about")).to_contain_text("160 images without labels")
            expect(page.locator("#precision")).to_be_disabled()
            expect(page.locator("#points")).to_have_attribute("aria-label", "Map of 160 images without labels")
            expect(page.locator("#legend")).to_have_text("no label")
            visit.draw(SEVEN)
            expect(page.locator("#live")).to_contain_text("No class can be named yet. The nearest image is")
            expect(page.locator("#label")).to_have_text(NOTHING)
            expect(page.locator("#sure")).to_contain_text("a few of each are enough")
            expect(page.locator("#neighbors bdi").first).to_have_text("no label")
            expect(page.locator("#points")).to_have_attribute("aria-label", re.compile("the query is marked"))
            assert server.sent == []
            page.fill("#class", "seven")
            page.press("#class", "Enter")
            expect(page.locator("#about")).to_contain_text("161 images of 1 class")
            expect(page.locator("#label")).to_have_text(NOTHING)
            visit.draw([[(0.5, 0.2), (0.5, 0.8)]])
            page.fill("#class", "one")
            page.press("#class", "Enter")
            expect(page.locator("#label")).not_to_have_text(NOTHING)
            expect(page.locator("#precision")).to_be_enabled()
            page.select_option("#precision", "0")
            expect(page.locator("#label")).to_have_text(re.compile("one|seven"))
            visit.expected_refusals()  # there are no pictures of images that lie in no folder

    def test_the_keyboard_alone(self, run: Path, open_page: Open, images: ImageSet, tmp_path: Path) -> None:
        path = tmp_path / "nine.png"
        path.write_bytes(png(of_class(images, "9")[0]))
        with serving(run) as server:
            page = open_page(server).page
            page.on("filechooser", lambda chooser: chooser.set_files(path))

            def tab_to(selector: str) -> None:
                for _ in range(40):
                    page.keyboard.press("Tab")
                    if page.evaluate("s => document.activeElement.matches(s)", selector):
                        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                        assert outline == "solid", "what has the focus is to be seen"
                        return
                raise AssertionError(f"Tab never comes to {selector}")

            tab_to("#choose")
            page.keyboard.press("Enter")
            expect(page.get_by_role("status").first).not_to_be_empty()
            tab_to("#class")
            page.keyboard.type("nine")
            page.keyboard.press("Enter")
            expect(page.locator("#items li")).to_contain_text("nine")
            tab_to("#items button")
            page.keyboard.press("Enter")
            expect(page.locator("#items")).to_have_text("None yet.")
            assert page.evaluate("document.activeElement.id") == "class", "the focus does not fall off the page"

    def test_everything_has_a_name(self, server: Server, open_page: Open) -> None:
        visit = open_page(server)
        visit.draw(SEVEN)
        expect(visit.page.locator("#live")).not_to_be_empty()
        tree = visit.page.locator("body").aria_snapshot()
        for line in tree.splitlines():
            role = line.strip(" -").split(" ")[0].rstrip(":")
            if role in ("button", "textbox", "combobox", "img"):
                assert '"' in line, f"{line} has no name"
        for name in ('heading "Prediction"', 'list "Classes on the map"', 'combobox "Add this picture as class"'):
            assert name in tree
        expect(visit.page.get_by_role("list").filter(has_text=".").first.get_by_role("listitem").first).to_be_visible()

    def test_a_key_and_a_limit(self, run: Path, open_page: Open, tmp_path: Path) -> None:
        noise = np.random.default_rng(0).integers(0, 255, (300, 200, 3), dtype=np.uint8)
        path = tmp_path / "noise.png"
        Image.fromarray(noise).save(path)
        with serving(run, api_key=KEY, max_body=30_000) as server:
            visit = open_page(server)
            page = visit.page
            page.set_input_files("#file", path)
            assert [len(body) <= 30_000 for body in visit.answered()] == [True]
            assert path.stat().st_size > 30_000
            page.fill("#class", "noise")
            page.fill("#key", "not this one")
            page.press("#class", "Enter")
            expect(page.locator("#said")).to_contain_text("API key")
            expect(page.locator("#key")).to_be_focused()
            visit.expected_refusals()
            page.fill("#key", KEY)
            page.press("#key", "Enter")
            expect(page.locator("#said")).to_have_text("Added as noise, a new class.")
            page.reload()
            expect(page.locator("#key")).to_have_value(KEY)  # kept for this tab
            page.locator("#items button").click()
            expect(page.locator("#items")).to_have_text("None yet.")


class TestTrouble:
    def test_a_server_that_goes_and_comes_back(self, run: Path, open_page: Open) -> None:
        with serving(run) as server:
            visit = open_page(server)
            page = visit.page
            visit.draw(SEVEN)
            expect(page.locator("#live")).not_to_be_empty()
        visit.draw([[(0.1, 0.9), (0.9, 0.9)]])
        expect(page.locator("#trouble")).to_have_text("The server does not answer; trying again.")
        expect(page.locator("#label")).to_have_text(NOTHING)
        page.fill("#class", "seven")
        page.press("#class", "Enter")
        expect(page.locator("#said")).to_have_text("The server does not answer; try again when it is back.")
        with serving(run, port=urlsplit(server.address).port):
            expect(page.locator("#trouble")).to_be_hidden(timeout=10_000)
            expect(page.locator("#label")).not_to_have_text(NOTHING)
            page.wait_for_load_state("networkidle")
            visit.expected_refusals()

    def test_a_busy_server_is_asked_again(self, server: Server, open_page: Open) -> None:
        refused: list[str] = []

        def busy(route: Route) -> None:
            if len(refused) < 2 and not refused.append(route.request.url):  # type: ignore[func-returns-value]
                detail = {"title": "Service Unavailable", "status": 503, "detail": "too many requests"}
                route.fulfill(status=503, json=detail, content_type="application/problem+json")
            else:
                route.continue_()

        visit = open_page(server, lambda page: page.route("**/v1/predict*", busy))
        visit.draw([[(0.2, 0.2), (0.8, 0.8)]])
        expect(visit.page.locator("#trouble")).to_have_text("Too many requests")
        expect(visit.page.locator("#trouble")).to_be_hidden(timeout=10_000)
        expect(visit.page.locator("#label")).not_to_have_text(NOTHING)
        visit.expected_refusals()

    def test_no_map_and_no_pictures(self, server: Server, open_page: Open) -> None:
        def missing(route: Route) -> None:
            detail = {"title": "Not Found", "status": 404, "detail": "not to be had"}
            route.fulfill(status=404, json=detail, content_type="application/problem+json")

        def nothing(page: Page) -> None:
            page.route("**/v1/map", missing)
            page.route("**/v1/items/*/image", missing)

        visit = open_page(server, nothing)
        visit.draw(SEVEN)
        expect(visit.page.locator("#neighbors .none")).to_have_count(10)
        expect(visit.page.locator("#map")).to_be_hidden()
        expect(visit.page.locator("#trouble")).to_be_hidden()
        visit.expected_refusals()


class TestLooks:
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_one_screen_of_a_laptop_and_no_sideways_scrolling_on_a_phone(
        self, server: Server, open_page: Open, scheme: str
    ) -> None:
        visit = open_page(server, color_scheme=scheme)
        visit.draw(SEVEN)
        expect(visit.page.locator("#live")).not_to_be_empty()
        assert visit.page.evaluate("document.documentElement.scrollHeight") <= 800
        visit.page.set_viewport_size({"width": 375, "height": 812})
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= 375
