"""A page in Debian's Chromium, watched for everything that must not happen."""

from __future__ import annotations

from typing import Any


def opened(browser: Any, address: str, width: int = 1200, **options: Any) -> Any:
    """The page at a width, with all that it says on the console and asks of the network in `page.troubles`."""
    page = browser.new_context(viewport={"width": width, "height": 900}, **options).new_page()
    page.troubles = []
    page.on("console", lambda message: page.troubles.append(message.text))
    page.on("pageerror", lambda error: page.troubles.append(str(error)))
    page.on("dialog", lambda dialog: (page.troubles.append(dialog.message), dialog.dismiss()))
    page.on(
        "request", lambda asked: None if asked.url.startswith(("file:", "data:")) else page.troubles.append(asked.url)
    )
    page.goto(address)
    return page
