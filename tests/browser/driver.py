"""A headless Chromium behind chromedriver: WebDriver is JSON over HTTP, no library is needed."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from retain.system.files import write_bytes

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""The key under which the standard hands out elements."""


class Browser:
    """One window."""

    def __init__(self, session: str) -> None:
        self.session = session

    def ask(self, path: str, **body: Any) -> Any:
        """One command of the session."""
        return _post(f"{self.session}/{path}", body)

    def devtools(self, command: str, **parameters: Any) -> Any:
        """One command of Chromium's own protocol."""
        return self.ask("goog/cdp/execute", cmd=command, params=parameters)

    def open(self, url: str, width: int, dark: bool) -> None:
        """Loads a page at a width in CSS pixels; what was logged before is forgotten."""
        phone = width < 500
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": phone},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.devtools("Emulation.setEmulatedMedia", features=[scheme])
        self.ask("url", url="about:blank")
        self.console(), self.requests()
        self.ask("url", url=url)

    def print_media(self, on: bool) -> None:
        """Shows the page as it would be printed, or on the screen again."""
        self.devtools("Emulation.setEmulatedMedia", media="print" if on else "")

    def run(self, script: str, *arguments: Any) -> Any:
        """The value that a JavaScript function's body returns."""
        return self.ask("execute/sync", script=script, args=arguments)

    def element(self, css: str) -> str:
        """The path of the first element that a selector finds."""
        found = self.ask("element", using="css selector", value=css)
        return f"element/{found[ELEMENT]}"

    def write(self, css: str, text: str) -> None:
        """Types into a field."""
        self.ask(f"{self.element(css)}/value", text=text)

    def click(self, css: str) -> None:
        """Clicks on an element."""
        self.ask(f"{self.element(css)}/click")

    def console(self) -> list[str]:
        """What pages have logged since the last call, with failed requests and script errors."""
        return [entry["message"] for entry in self.ask("se/log", type="browser")]

    def requests(self) -> list[str]:
        """The addresses that pages have asked for since the last call; `data:` is none."""
        messages = (
            json.loads(entry["message"])["message"]
            for entry in self.ask("se/log", type="performance")
        )
        urls = [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in urls if not url.startswith("data:")]

    def picture(self, path: Path) -> None:
        """Writes the whole page as a PNG."""
        taken = self.devtools("Page.captureScreenshot", captureBeyondViewport=True)
        write_bytes(path, base64.b64decode(taken["data"]))


def _post(url: str, body: dict[str, Any], method: str = "POST") -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), method=method)
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.load(response)["value"]
    except urllib.error.HTTPError as error:
        raise AssertionError(json.load(error)["value"]["message"]) from None


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser with a profile of its own, gone afterwards."""
    switches = ["--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
    if os.geteuid() == 0:  # Chromium's sandbox refuses root
        switches.append("--no-sandbox")
    wanted = {
        "browserName": "chrome",
        "goog:chromeOptions": {"args": switches},
        "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
    }
    with subprocess.Popen(
        ["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = next(line for line in process.stdout if "started successfully" in line)
            port = line.split()[-1].rstrip(".")
            url = f"http://127.0.0.1:{port}/session"
            session = _post(url, {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
            yield Browser(f"{url}/{session}")
            _post(f"{url}/{session}", {}, "DELETE")
        finally:
            process.terminate()
