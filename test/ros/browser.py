"""A headless Chromium for tests of the page; the tests skip, and say why, where there is none."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

needs_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="needs Chromium and its driver (Debian: sudo apt install chromium chromium-driver)",
)


class Browser:
    """A browser with one page.

    Args:
        folder: for its profile.
        width, height: of the page, CSS pixels.
        touch: fingers instead of a mouse.
    """

    def __init__(self, folder: Path, width: int = 1280, height: int = 800, touch: bool = False) -> None:
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        # The last ones keep the browser from calling anybody but the page.
        for argument in (
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
            *("--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
            f"--user-data-dir={folder}",
        ):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=str(DRIVER)))
        self.size(width, height, touch)

    def size(self, width: int, height: int, touch: bool = False) -> None:
        """Make the page this large, as on a screen with fingers or a mouse."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 2 if touch else 1, "mobile": touch}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        points = {"maxTouchPoints": 5} if touch else {}
        self.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": touch, **points})

    def open(self, address: str) -> None:
        self.driver.get(address)

    def text(self, selector: str) -> str:
        """The text of the first element, empty where there is none or where it is hidden."""
        script = "const e = document.querySelector(arguments[0]); return e && e.checkVisibility() ? e.innerText : ''"
        return str(self.run(script, selector))

    def click(self, selector: str) -> None:
        """Click the first element; cards are drawn anew now and then, so it may be gone for a moment."""
        assert self.wait(lambda: self._clicked(selector)), f"there is no '{selector}' to click"

    def _clicked(self, selector: str) -> bool:
        from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException

        try:
            self.driver.find_element("css selector", selector).click()
        except (NoSuchElementException, StaleElementReferenceException):
            return False
        return True

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def wait(self, condition: Callable[[], Any], timeout: float = 30.0) -> Any:
        """Wait until `condition` holds; returns what it gave, or its last value after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while not (value := condition()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return value

    def errors(self) -> list[str]:
        """What the browser complained about."""
        return [str(entry["message"]) for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def on_screen(self, x: float, y: float, width: int, height: int) -> tuple[float, float]:
        """Where a pixel of an image of this size lies on the page."""
        left, top, w, h = self.run(
            "const b = document.getElementById('picture').getBoundingClientRect(); return [b.x, b.y, b.width, b.height]"
        )
        scale = min(w / width, h / height)
        return left + (w - width * scale) / 2 + x * scale, top + (h - height * scale) / 2 + y * scale

    def drag(self, start: tuple[float, float], end: tuple[float, float], touch: bool = False, hold: float = 0) -> None:
        """Drag from one point to another, and stay there for `hold` seconds before letting go."""
        middle = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
        self._pointer("down", start, touch)
        for place in (middle, end):
            self._pointer("move", place, touch)
        time.sleep(hold)
        self._pointer("up", end, touch)

    def tap(self, place: tuple[float, float], touch: bool = False) -> None:
        self._pointer("down", place, touch)
        self._pointer("up", place, touch)

    def _pointer(self, what: str, place: tuple[float, float], touch: bool) -> None:
        x, y = place
        if touch:
            kind = {"down": "touchStart", "move": "touchMove", "up": "touchEnd"}[what]
            points = [] if what == "up" else [{"x": x, "y": y}]
            self.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        else:
            kind = {"down": "mousePressed", "move": "mouseMoved", "up": "mouseReleased"}[what]
            event = {"type": kind, "x": x, "y": y, "button": "left", "buttons": 1, "clickCount": 1}
            self.driver.execute_cdp_cmd("Input.dispatchMouseEvent", event)

    def screenshot(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(str(path))
        path.with_suffix(".log").write_text(json.dumps(self.errors(), indent=1))

    def close(self) -> None:
        self.driver.quit()
