"""A headless Chromium for the tests of pages; they are skipped, with a reason, where none is.

A test folder takes the fixture with `from tests.browser import browser` in its conftest.py.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
]
PHONE, DESKTOP = (390, 844), (1300, 900)


class Browser:
    """A browser that remembers what its console said and what the pages asked for."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(
        self, page: Path, *, size: tuple[int, int] = DESKTOP, dark: bool = False, part: str = ""
    ) -> None:
        """Open a file; console and requests start anew."""
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {
                "width": size[0],
                "height": size[1],
                "deviceScaleFactor": 1,
                "mobile": size[0] < 600,
            },
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.get("about:blank")
        self.console()
        self.requests()
        self.driver.get(page.resolve().as_uri() + part)

    def js(self, code: str, *arguments: Any) -> Any:
        """Return what a function body returns in the page."""
        return self.driver.execute_script(code, *arguments)

    def texts(self, selector: str) -> list[str]:
        """Return the text of each element, hidden ones too."""
        return self.js(
            "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector
        )

    def click(self, selector: str) -> None:
        self.driver.find_element("css selector", selector).click()

    def type(self, selector: str, text: str) -> None:
        field = self.driver.find_element("css selector", selector)
        field.clear()
        field.send_keys(text)

    def press(self, *keys: str) -> None:
        """Press keys, such as `ARROW_RIGHT`, on whatever has the focus."""
        from selenium.webdriver.common.keys import Keys

        self.driver.switch_to.active_element.send_keys(*[getattr(Keys, key) for key in keys])

    def console(self) -> list[str]:
        """Return the messages since the last call: errors, warnings, policy violations."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Return the addresses asked for since the last call."""
        entries = [json.loads(e["message"]) for e in self.driver.get_log("performance")]
        sent = [e["message"] for e in entries]
        return [
            m["params"]["request"]["url"]
            for m in sent
            if m["method"] == "Network.requestWillBeSent"
        ]

    def outside(self) -> list[str]:
        """Return the addresses asked for that are neither files nor data in the page."""
        return [url for url in self.requests() if not url.startswith(("file:", "data:", "about:"))]

    def overflow(self) -> int:
        """Return by how many pixels the page is wider than the window."""
        return self.js("return document.documentElement.scrollWidth - window.innerWidth")

    def shot(self, path: Path) -> None:
        """Write the window as a PNG."""
        self.driver.save_screenshot(str(path))


def programs() -> tuple[str, str] | None:
    """Return the paths of Chromium and its driver; None where either is missing."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    return (chromium, driver) if chromium and driver else None


def start(profile: str) -> Browser:
    """Return a browser of its own, with an empty profile folder; end it with `.driver.quit()`."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    found = programs()
    assert found is not None
    options = webdriver.ChromeOptions()
    options.binary_location = found[0]
    for flag in (*FLAGS, f"--user-data-dir={profile}", "--window-size=1300,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return Browser(webdriver.Chrome(options=options, service=Service(found[1])))


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Return a browser for the whole session."""
    pytest.importorskip("selenium", reason="selenium is not installed (pip install '.[dev]')")
    if programs() is None:
        pytest.skip("no Chromium here: apt-get install chromium chromium-driver")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        running = start(profile)
        yield running
        running.driver.quit()
