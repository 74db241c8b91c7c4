"""How long the site of a registry takes to build, and its first page to be seen."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from browsing import opened
from registry_records import empty_store, write_at_once
from site_records import registry

from registry.mirror import sync
from registry.site import build
from registry.store import Store


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_site_of_2000_trials(tmp_path: Path, benchmark: Any) -> None:
    """From a mirror that is up to date. `first_view_ms` is the browser's own first contentful paint, from a folder; `page_ms` until all of
    the page's scripts have run."""
    write_at_once(empty_store(tmp_path), list(registry(2000)))
    sync(Store.open(tmp_path))
    made = benchmark.pedantic(lambda: build(tmp_path / "site", home=tmp_path), rounds=3)
    benchmark.extra_info |= {"suites": made.suites, "cells": made.cells}
    playwright, chromium = pytest.importorskip("playwright.sync_api"), shutil.which("chromium")
    if chromium is None:
        return
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = opened(browser, (tmp_path / "site" / "index.html").as_uri())
        page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length > 0")
        paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        loaded = page.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
        benchmark.extra_info |= {"first_view_ms": round(paint), "page_ms": round(loaded)}
        browser.close()
