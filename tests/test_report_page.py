"""The page in a real browser: nothing fails, everything is drawn, tables answer to a reader, and it fits a phone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import needs
import pandas as pd
import pytest
from browsing import opened
from effects_frames import hostile, planted
from playwright import sync_api as playwright

from registry.report import Report, Sources

pytestmark = needs.program("chromium")
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Pages by name, as they are opened: an ordinary one and one of hostile names."""
    runs = {
        f"record{seed}": {"val_loss": [[step, step * 4096, 4 + 1 / (1 + step) + seed / 10] for step in range(20)]}
        for seed in range(3)
    }
    sources = Sources(pd.DataFrame(), {"gelu · layernorm": runs, "swiglu · layernorm": runs}, {}, pd.DataFrame())
    pages = {"plain": Report(planted(), sources), "hostile": hostile()}
    folder = tmp_path_factory.mktemp("pages")
    for name, made in pages.items():
        (folder / f"{name}.html").write_text(made.render("html"), encoding="utf-8")
    return {name: (folder / f"{name}.html").as_uri() for name in pages}


@pytest.fixture(scope="module")
def open_page(files: dict[str, str]) -> Iterator[Open]:
    """Opens a page at a width, with all that it says on the console and asks of the network in `page.troubles`."""
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=needs.path("chromium"), args=["--no-sandbox"])

        yield lambda name, width=1200, **options: opened(browser, files[name], width, **options)
        browser.close()


@pytest.mark.parametrize("name", ["plain", "hostile"])
@pytest.mark.parametrize(
    "options", [{"color_scheme": "light"}, {"color_scheme": "dark"}, {"java_script_enabled": False}]
)
def test_nothing_fails_and_nothing_is_asked_of_the_network(open_page: Open, name: str, options: dict[str, Any]) -> None:
    page = open_page(name, **options)
    assert page.locator("h2").count() >= 7
    assert page.troubles == []


@pytest.mark.parametrize("name", ["plain", "hostile"])
def test_every_plot_is_drawn(open_page: Open, name: str) -> None:
    page = open_page(name)
    plots = page.locator("svg.plot")
    assert plots.count() >= 4
    for one in plots.all():
        box = one.bounding_box()
        assert box["width"] > 200 and box["height"] > 60
        mark = one.locator(".mark").first.bounding_box()
        assert box["x"] <= mark["x"] <= box["x"] + box["width"] and mark["width"] > 2


def column(page: Any, table: str, place: int) -> list[str]:
    return page.eval_on_selector_all(
        f"#{table} tbody tr:not([hidden])", f"rows => rows.map(row => row.cells[{place}].textContent.trim())"
    )


def test_tables_sort_by_number_and_by_text(open_page: Open) -> None:
    page = open_page("plain")
    head = page.locator("#cells thead th").nth(1)
    for order, reverse in (("ascending", False), ("descending", True)):
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == order
        losses = [float(text.split()[0]) for text in column(page, "cells", 1)]
        assert losses == sorted(losses, reverse=reverse) and len(set(losses)) > 1
    names = page.locator("#cells thead th").first
    names.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert column(page, "cells", 0) == sorted(column(page, "cells", 0))
    assert head.get_attribute("aria-sort") is None


def test_effects_sort_by_size_with_minus_signs(open_page: Open) -> None:
    page = open_page("plain")
    page.locator("#contrasts thead th").nth(3).get_by_role("button").click()
    assert column(page, "contrasts", 1) == ["swiglu", "rmsnorm", "relu2"]


def test_tables_filter(open_page: Open) -> None:
    page = open_page("plain")
    search = page.get_by_role("searchbox", name="Filter the rows of: Every cell")
    search.fill("rmsnorm SWI")
    assert column(page, "cells", 0) == ["swiglu · rmsnorm"]
    assert page.locator("#cells .none").inner_text() == "1 of 6 rows"
    search.fill("")
    assert len(column(page, "cells", 0)) == 6


@pytest.mark.parametrize("name", ["plain", "hostile"])
def test_it_fits_a_phone(open_page: Open, name: str) -> None:
    page = open_page(name, width=390)
    page.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    sizes = "all => all.map(one => parseFloat(getComputedStyle(one).fontSize))"
    assert min(page.eval_on_selector_all("main :is(p, li, td, h3)", sizes)) >= 12
    texts = "all => all.map(one => one.getBoundingClientRect().height)"
    assert min(page.eval_on_selector_all("svg.plot text", texts)) >= 8


def test_texts_of_plots_stay_within_them(open_page: Open) -> None:
    page = open_page("plain")
    inside = """plots => plots.every(plot => {
        const box = plot.getBoundingClientRect();
        const texts = [...plot.querySelectorAll("text")].map(text => text.getBoundingClientRect());
        return texts.every(text => text.left >= box.left - 1 && text.right <= box.right + 1);
    })"""
    assert page.eval_on_selector_all("svg.plot", inside)


def test_hostile_names_are_inert(open_page: Open) -> None:
    page = open_page("hostile")
    page.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true; })")
    page.locator("#cells thead button").first.click()
    page.get_by_role("searchbox").first.fill("<script>")
    assert page.troubles == []
    assert page.locator("script").count() == 1
    assert "<script>alert(1)</script>" in page.locator("#levels").inner_text()


def test_print_shows_all_of_it(open_page: Open) -> None:
    page = open_page("plain", color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    colours = page.evaluate("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]")
    assert colours == ["rgb(255, 255, 255)", "rgb(0, 0, 0)"]
    assert not page.locator("nav").is_visible()
    page.set_viewport_size({"width": 680, "height": 1000})  # A4 between margins
    page.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") == 680
