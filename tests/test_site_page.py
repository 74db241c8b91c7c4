"""The site in a real browser: nothing fails, views have addresses, everyone can read it, it fits a phone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import needs
import pytest
from axe_playwright_python import sync_playwright as axe
from browsing import opened
from playwright import sync_api as playwright
from registry_records import empty_store, write_at_once
from site_records import hostile, registry

from registry.site import build

pytestmark = needs.program("chromium")
Open = Callable[..., Any]
KINDS = ("index", "suite", "cell", "hostile suite", "hostile cell")


def addresses(folder: Path) -> dict[str, str]:
    """A page of each kind."""

    def first(pattern: str) -> str:
        return min(folder.glob(pattern)).as_uri()

    found = [
        first("index.html"),
        first("suites/attention@10m*"),
        first("cells/attention@10m-gqa*"),
        first("suites/script*"),
        first("cells/script*"),
    ]
    return dict(zip(KINDS, found, strict=True))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("registry")
    small = [one for one in registry(100) if one.suite == "attention" and one.scale in ("nano", "10m")]
    write_at_once(empty_store(folder), [*hostile(), *small])
    build(folder / "site", home=folder)
    return addresses(folder / "site")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=needs.path("chromium"), args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Any, files: dict[str, str]) -> Open:
    return lambda name, view="", width=1200, **options: opened(browser, files[name] + view, width, **options)


def shown(page: Any, table: str = "cells", place: int = 0) -> list[str]:
    """The texts of a column, of the rows that are shown."""
    return page.eval_on_selector_all(
        f"#{table} tbody tr:not([hidden])",
        f"rows => rows.map(row => (row.cells[{place}].firstElementChild ?? row.cells[{place}]).textContent.trim())",
    )


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    "options", [{"color_scheme": "light"}, {"color_scheme": "dark"}, {"java_script_enabled": False}]
)
def test_nothing_fails_and_nothing_is_asked_of_the_network(open_page: Open, name: str, options: dict[str, Any]) -> None:
    page = open_page(name, **options)
    page.wait_for_load_state("networkidle")
    assert page.troubles == []
    assert page.locator("table").count() >= 2
    styled = page.evaluate("getComputedStyle(document.querySelector('.crumbs')).listStyleType")
    assert styled == "none"  # the style sheet came, from a folder too


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_keeps_anyone_from_reading_it(open_page: Open, name: str, scheme: str) -> None:
    page = open_page(name, color_scheme=scheme)
    found = axe.Axe().run(page).response["violations"]
    serious = {
        (one["id"], node["html"][:200])
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    }
    assert serious == set()


def test_a_filtered_view_has_an_address(open_page: Open) -> None:
    page = open_page("index")
    everything = shown(page)
    page.get_by_label("suite", exact=True).select_option("attention")
    page.get_by_label("scale", exact=True).select_option("10m")
    page.get_by_role("searchbox", name="Filter the rows of: Every cell").fill("gqa")
    page.locator("#cells").get_by_role("button", name="tokens/s").click()
    page.wait_for_function("location.hash.includes('q=gqa')")
    view = shown(page)
    assert view == ["gqa · none", "gqa · rmsnorm"][::-1] and len(everything) > len(view)
    assert page.locator("#cells [role=status]").inner_text() == f"2 of {len(everything)} rows"
    again = open_page("index", page.evaluate("location.hash"))
    assert shown(again) == view
    assert again.locator("#cells th[aria-sort]").get_attribute("aria-sort") == "ascending"
    assert again.get_by_label("scale", exact=True).input_value() == "10m"


def test_back_gives_the_view_before(open_page: Open) -> None:
    page = open_page("index")
    everything = shown(page)
    page.get_by_label("scale", exact=True).select_option("10m")
    some = shown(page)
    page.get_by_label("suite", exact=True).select_option("attention")
    page.locator("#cells").get_by_role("button", name="tokens/s").click()
    page.go_back()
    page.wait_for_function("!location.hash.includes('sort')")
    page.go_back()
    page.wait_for_function("!location.hash.includes('suite')")
    assert shown(page) == some
    page.go_back()
    page.wait_for_function("location.hash === ''")
    assert shown(page) == everything
    assert page.get_by_label("scale", exact=True).input_value() == ""
    page.go_forward()
    page.wait_for_function("location.hash.includes('scale')")
    assert shown(page) == some


def test_numbers_can_be_compared(open_page: Open) -> None:
    page = open_page("index", "#suite=attention&q=loss%3C4.2 seeds>=1")
    losses = [float(text.split()[0]) for text in shown(page, place=4)]
    assert losses and max(losses) < 4.2
    assert len(losses) < len(shown(open_page("index", "#suite=attention")))


@pytest.mark.parametrize(
    "view", ["#sort=nonsense&suite=nobody", "#q=%22%3E%3Cscript%3E", "#%", "#constructor=x&__proto__=y", "#sort=-"]
)
def test_an_address_that_makes_no_sense_does_no_harm(open_page: Open, view: str) -> None:
    page = open_page("index", view)
    assert page.troubles == []
    assert page.locator("#cells tbody tr").count() > 0


def test_a_place_on_the_page_keeps_the_view(open_page: Open) -> None:
    page = open_page("index", "#scale=10m")
    some = shown(page)
    page.get_by_role("link", name="Suites", exact=True).click()
    assert shown(page) == some


def test_ranks_sort_as_numbers_and_what_is_missing_is_last(open_page: Open) -> None:
    page = open_page("hostile suite")
    page.locator("#ranking").get_by_role("button", name="rank").click()
    ranks = shown(page, "ranking", 1)
    numbers = [int(text.rstrip("=")) for text in ranks if text]
    assert numbers == sorted(numbers) and ranks[-1] == ""


def test_the_keyboard_is_enough(open_page: Open) -> None:
    page = open_page("index")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    assert page.locator(".skip").bounding_box()["y"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    button = page.locator("#cells").get_by_role("button", name="rank")
    button.focus()
    page.keyboard.press("Enter")
    assert page.locator("#cells th[aria-sort=ascending]").inner_text().startswith("rank")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_the_theme_is_chosen_and_kept(open_page: Open) -> None:
    page = open_page("index", color_scheme="light")
    colour = "getComputedStyle(document.body).backgroundColor"
    light, button = page.evaluate(colour), page.get_by_role("button", name="Theme")
    button.click()
    assert page.evaluate(colour) == light
    button.click()
    dark = page.evaluate(colour)
    assert dark != light and button.inner_text() == "Theme: dark"
    page.get_by_role("link", name="attention").first.click()
    page.wait_for_url("**/suites/**")
    assert page.evaluate(colour) == dark
    page.get_by_role("button", name="Theme").click()
    assert page.evaluate(colour) == light


@pytest.mark.parametrize("name", KINDS)
def test_it_fits_a_phone(open_page: Open, name: str) -> None:
    page = open_page(name, width=390)
    page.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    sizes = "all => all.map(one => parseFloat(getComputedStyle(one).fontSize))"
    assert min(page.eval_on_selector_all(":is(main, header) :is(p, li, td, h3, small, dt, dd)", sizes)) >= 11


def test_hostile_names_are_inert(open_page: Open) -> None:
    for name in ("index", "hostile suite", "hostile cell"):
        page = open_page(name)
        page.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true; })")
        page.locator("thead button").first.click()
        page.get_by_role("searchbox").first.fill("<script>")
        assert page.locator("script").count() == 2
        assert page.locator("img, iframe, object").count() == 0
        assert page.troubles == []


def test_a_cell_leads_to_its_suite_and_back(open_page: Open) -> None:
    page = open_page("index", "#suite=attention&scale=10m")
    page.locator("#cells tbody tr:not([hidden]) th a").first.click()
    page.wait_for_url("**/cells/**")
    assert page.locator("svg.plot .mark").count() >= 2
    assert "ablate run attention --scale 10m" in page.locator("#provenance pre").first.inner_text()
    page.get_by_role("link", name="attention at 10m").click()
    page.wait_for_url("**/suites/**")
    assert page.locator("h1").inner_text() == "attention"
    page.get_by_role("link", name="nano", exact=True).click()
    page.wait_for_url("**attention@nano.html")


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_two_thousand_trials(browser: Any, tmp_path: Path) -> None:
    write_at_once(empty_store(tmp_path), list(registry(2000)))
    build(tmp_path / "site", home=tmp_path)
    found = addresses(tmp_path / "site")
    for name, address in found.items():
        page = opened(browser, address)
        assert page.troubles == []
        bad = [one for one in axe.Axe().run(page).response["violations"] if one["impact"] in ("serious", "critical")]
        assert [(one["id"], len(one["nodes"])) for one in bad] == [], name
    page = opened(browser, found["index"] + "#suite=optimizer&scale=124m&q=muon", 390)
    assert len(shown(page)) == 3
    assert page.evaluate("document.documentElement.scrollWidth") == 390
