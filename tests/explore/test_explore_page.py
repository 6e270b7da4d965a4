"""The page in a browser: it draws, shows, selects, finds; names are text whatever they hold, and nothing leaves the machine."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from explore.conftest import CLASSES
from explore.pages import PATIENCE, loaded, served
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, expect

from nearfar.explore.store import Map
from nearfar.explore.subject import Subject


@pytest.fixture(scope="module")
def address(opened: tuple[Subject, Map]) -> Iterator[str]:
    with served(*opened) as address:
        yield address


@pytest.fixture(scope="module")
def context(browser: Browser) -> Iterator[BrowserContext]:
    """One for most tests, so that plotly is compiled once."""
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    yield context
    context.close()


@pytest.fixture(scope="module")
def tab(context: BrowserContext, address: str) -> Iterator[Page]:
    with loaded(context, address) as page:
        yield page


@pytest.fixture
def page(tab: Page) -> Page:
    """One page for many tests, as it was when it had been loaded."""
    tab.mouse.move(5, 5)
    tab.evaluate("document.activeElement.blur()")
    tab.keyboard.press("Escape")
    tab.click('[data-mode="pan"]')
    tab.click("#whole")
    tab.click("#tab-image")
    tab.fill("#text", "")
    expect(tab.locator("#selected-count")).to_have_text("")
    return tab


def place(page: Page, opened: tuple[Subject, Map], point: int) -> tuple[float, float]:
    """Where a point is drawn, in pixels of the page."""
    _, made = opened
    x, y = made.xy[point].tolist()
    left, top = page.evaluate(
        """([x, y]) => {
            const map = document.getElementById("map"), box = map.getBoundingClientRect();
            const [{ range: across }, { range: up }] = [map.layout.xaxis, map.layout.yaxis];
            return [box.left + (x - across[0]) / (across[1] - across[0]) * box.width,
                    box.top + (up[1] - y) / (up[1] - up[0]) * box.height];
        }""",
        [x, y],
    )
    return left, top


def lonely(made: Map) -> int:
    """The point of the gallery that is farthest from any other on the map."""
    apart = np.linalg.norm(made.xy[:, None] - made.xy[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    return int(apart.min(axis=1)[: made.gallery].argmax())


def shown(page: Page, selector: str) -> bytes:
    """The address of a picture that has been loaded."""
    page.wait_for_function("(one) => document.querySelector(one)?.naturalWidth > 0", arg=selector)
    return str(page.locator(selector).first.get_attribute("src")).encode()


def test_it_draws_every_point(page: Page, opened: tuple[Subject, Map]) -> None:
    _, made = opened
    assert page.evaluate("document.getElementById('map').data.reduce((sum, one) => sum + one.x.length, 0)") == len(made)
    assert page.evaluate("document.querySelectorAll('#map canvas').length") > 0
    expect(page.locator("#summary")).to_have_text("t-SNE of 84 images: 60 gallery, 24 test")
    pixels = np.asarray(Image.open(io.BytesIO(page.locator("#map").screenshot())).convert("RGB")).reshape(-1, 3)
    assert len(np.unique(pixels, axis=0)) > 10
    assert (np.abs(pixels.astype(int) - [0x01, 0x73, 0xB2]).sum(axis=1) < 120).sum() > 100  # the first class's blue


def test_the_card_under_the_pointer(page: Page, opened: tuple[Subject, Map]) -> None:
    _, made = opened
    point = lonely(made)
    page.mouse.move(5, 5)
    page.mouse.move(*place(page, opened, point), steps=3)
    expect(page.locator("#card")).to_be_visible()
    assert f"/points/{point}/image" in shown(page, "#card img").decode()
    for text in (made.names[point], made.classes[made.labels[point]]):
        assert text in page.locator("#card").inner_text()
    page.mouse.move(5, 5)
    expect(page.locator("#card")).to_be_hidden()


def test_a_click_shows_the_neighbours(page: Page, opened: tuple[Subject, Map]) -> None:
    _, made = opened
    point = lonely(made)
    page.mouse.click(*place(page, opened, point))
    page.wait_for_selector("#neighbors li:nth-child(10) img")
    assert page.locator("#image h2").inner_text() == made.names[point]
    found = [int(str(one.get_attribute("data-id"))) for one in page.locator("#neighbors button").all()]
    assert found == made.neighbors[point, :10].tolist()
    # Rows have no text to read before the frame in which they are first drawn.
    expect(page.locator("#neighbors li").first).to_contain_text(f"{made.scores[point, 0]:.4f}", use_inner_text=True)
    assert page.locator(".marks line").count() == 10
    assert page.locator(".marks .near-mark").count() == 10
    page.select_option("#k", "20")
    expect(page.locator("#neighbors li")).to_have_count(20)
    page.locator("#neighbors button").first.click()
    expect(page.locator("#image h2")).to_have_text(made.names[found[0]])


def test_a_lasso_gives_a_gallery_and_a_table(page: Page, opened: tuple[Subject, Map]) -> None:
    _, made = opened
    box = page.locator("#map").bounding_box()
    assert box is not None
    middle = [float(np.median(made.xy[:, axis])) for axis in (0, 1)]
    page.click('[data-mode="lasso"]')
    left, top = place(page, opened, 0)
    assert box["x"] < left < box["x"] + box["width"]
    assert box["y"] < top < box["y"] + box["height"]
    corners = [(box["x"] + 4, box["y"] + 4), (box["x"] + 4, box["y"] + box["height"] - 4)]
    cut = page.evaluate(
        """(x) => {
            const map = document.getElementById("map"), box = map.getBoundingClientRect(), across = map.layout.xaxis.range;
            return box.left + (x - across[0]) / (across[1] - across[0]) * box.width;
        }""",
        middle[0],
    )
    corners += [(cut, box["y"] + box["height"] - 4), (cut, box["y"] + 4)]
    page.mouse.move(*corners[0])
    page.mouse.down()
    for corner in [*corners[1:], corners[0]]:
        page.mouse.move(*corner, steps=5)
    page.mouse.up()
    page.wait_for_selector("#gallery li")
    found = [int(str(one.get_attribute("data-id"))) for one in page.locator("#gallery button").all()]
    clearly = np.flatnonzero(made.xy[:, 0] < middle[0] - 0.02)
    perhaps = np.flatnonzero(made.xy[:, 0] < middle[0] + 0.02)
    assert set(clearly) <= set(found) <= set(perhaps)
    assert page.locator("#selected-count").inner_text() == str(len(found))
    with page.expect_download() as started:
        page.click("#csv")
    rows = list(csv.DictReader(io.StringIO(Path(started.value.path()).read_bytes().decode(), newline="")))
    assert [int(row["id"]) for row in rows] == found
    for row in rows:
        point = int(row["id"])
        assert row["name"] == made.names[point]
        assert row["label"] == made.classes[made.labels[point]]
        assert float(row["probability"]) == pytest.approx(float(made.probability[point]), abs=1e-5)
        assert (row["right"] == "yes") == bool(made.labels[point] == made.predictions[point])
    page.get_by_role("button", name="Table").click()
    expect(page.locator("#selection tbody tr")).to_have_count(len(found))
    page.click("#clear")
    expect(page.locator("#selected-count")).to_have_text("")


def test_finding_by_name_and_by_class(page: Page, opened: tuple[Subject, Map]) -> None:
    _, made = opened
    number = made.classes.index(CLASSES[1])
    page.fill("#text", "ONERROR")
    expect(page.locator("#found li").first).to_contain_text(CLASSES[1])
    page.press("#text", "Enter")
    expect(page.locator("#selected-count")).to_have_text(str(int((made.labels == number).sum())))
    page.fill("#text", made.names[7])
    expect(page.locator("#found li").first).to_contain_text(made.names[7])
    page.press("#text", "ArrowDown")
    page.press("#text", "Enter")
    expect(page.locator("#image h2")).to_have_text(made.names[7])
    page.fill("#text", "no such thing")
    expect(page.locator("#found")).to_contain_text("nothing of that name")


def test_searching_by_a_file(page: Page, opened: tuple[Subject, Map], trained: Path) -> None:
    _, made = opened
    source = sorted((trained.parent / "images" / "train").rglob("*.png"))[3]
    page.set_input_files("#file", source)
    page.wait_for_selector("#neighbors li:nth-child(10) img")
    assert page.locator("#image h2").inner_text() == source.name
    assert made.names[int(str(page.locator("#neighbors button").first.get_attribute("data-id")))].endswith(source.name)
    assert page.locator(".marks .here").count() == 1
    assert source.parent.name in page.locator("#image dl").inner_text()


def test_a_file_that_is_no_image_is_said(page: Page, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    with page.expect_response(re.compile("search")) as answer:
        page.set_input_files("#file", tmp_path / "text.png")
    assert answer.value.status == 422
    expect(page.locator("#image [role=alert]")).to_contain_text("not an image")


def test_names_are_text_whatever_they_hold(page: Page, opened: tuple[Subject, Map]) -> None:
    _, made = opened
    point = next(row for row, label in enumerate(made.labels) if made.classes[label] == CLASSES[1])
    assert CLASSES[1] in page.locator("#legend").inner_text()
    page.fill("#text", made.names[point])
    page.press("#text", "Enter")
    expect(page.locator("#image dl")).to_contain_text(CLASSES[1])
    page.click("#tab-filters")
    expect(page.locator("#filters")).to_contain_text(CLASSES[1])
    assert page.locator("img[src='x']").count() == 0


def test_filters_and_colours(context: BrowserContext, address: str, opened: tuple[Subject, Map]) -> None:
    with loaded(context, address) as page:
        filter_and_colour(page, opened[1])


def filter_and_colour(page: Page, made: Map) -> None:
    count = "document.getElementById('map').data.reduce((sum, one) => sum + one.x.length, 0)"
    page.click("#tab-filters")
    page.uncheck('#filters input[data-kind="split"][data-key="0"]')
    page.wait_for_function(f"{count} === 24")
    page.locator('#legend [data-kind="class"]').first.click()
    left = int(((made.splits != 0) & (made.labels != 0)).sum())
    page.wait_for_function(f"{count} === {left}")
    expect(page.locator("#filters-count")).to_have_text("2")
    for colour in ("prediction", "right", "suspicion", "split", "label"):
        page.select_option("#colour", colour)
        page.wait_for_function(f"{count} === {left}")
    page.fill("#text", made.names[0])
    page.press("#text", "Enter")
    expect(page.locator("#image h2")).to_have_text(made.names[0])
    page.wait_for_function(f"{count} > {left}")  # what is looked at must be seen


def test_by_keys_alone(page: Page) -> None:
    page.focus("#map")
    before = page.evaluate("document.getElementById('map').layout.xaxis.range.map(Number)")
    page.keyboard.press("+")
    page.wait_for_function(
        "(wide) => { const r = document.getElementById('map').layout.xaxis.range; return r[1] - r[0] < 0.8 * wide }",
        arg=before[1] - before[0],
    )
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_selector("#neighbors li")
    assert page.locator("#live").inner_text() != ""
    page.keyboard.press("0")
    page.focus("#map")
    page.keyboard.press("s")
    expect(page.locator("#selected-count")).to_have_text("84")
    page.keyboard.press("Escape")
    expect(page.locator("#selected-count")).to_have_text("")
    assert page.locator(".marks line").count() == 0
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "text"
    page.focus("#tab-image")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#selection")).to_be_visible()


def test_dark_and_narrow(browser: Browser, address: str) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 740}, color_scheme="dark")
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    page.wait_for_selector("#map[data-ready]")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 22, 26)"
    page.get_by_role("tab", name="Selection").click()
    page.click("[data-offer=suspicious]")
    page.wait_for_selector("#gallery li")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    context.close()
