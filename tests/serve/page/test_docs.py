"""The description of the interface, as a browser shows it."""

from __future__ import annotations

from playwright.sync_api import expect
from serve.page.visits import Open, Server


def test_the_description_is_drawn_with_nothing_from_elsewhere(server: Server, open_page: Open) -> None:
    visit = open_page(server)
    visit.page.goto(f"{server.address}/docs")
    expect(visit.page.get_by_text("/v1/predict", exact=True)).to_be_visible()
