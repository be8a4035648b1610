"""A real browser, driven through W3C WebDriver."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import requests

from tests.commands.picture import FLAGS, browser

# GitHub's machines have the driver in a folder that this variable names.
DRIVER = shutil.which("chromedriver") or shutil.which("chromedriver", path=os.environ.get("CHROMEWEBDRIVER", ""))


class Browser:
    """One window of a headless Chromium without a proxy, with a new profile in `profile`."""

    def __init__(self, profile: Path) -> None:
        assert DRIVER, "no chromedriver is installed"
        options = {"binary": browser(), "args": [*FLAGS, "--no-proxy-server", f"--user-data-dir={profile}"]}
        always = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        with ExitStack() as closing:
            driver = closing.enter_context(subprocess.Popen([DRIVER, "--port=0"], **pipes))
            closing.callback(driver.terminate)
            assert driver.stdout
            port = next(found[1] for line in driver.stdout if (found := re.search(r"successfully on port (\d+)", line)))
            self._http = closing.enter_context(requests.Session())
            self._http.trust_env = False
            self._url = f"http://127.0.0.1:{port}/session"
            self._url += "/" + self._send("", {"capabilities": {"alwaysMatch": always}})["sessionId"]
            closing.callback(self._http.delete, self._url, timeout=30)
            self._closing = closing.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._closing.close()

    def _send(self, command: str, body: object) -> Any:
        answer = self._http.post(self._url + command, json=body, timeout=60).json()["value"]
        if isinstance(answer, dict) and "error" in answer:
            raise RuntimeError(f"{answer['error']}: {answer['message']}")
        return answer

    def open(self, url: str) -> None:
        """Open a page and wait until it is loaded."""
        self._send("/url", {"url": url})

    def run(self, script: str, *arguments: object) -> Any:
        """What a script returns in the page."""
        return self._send("/execute/sync", {"script": script, "args": arguments})

    def wait(self, condition: Callable[[], object], seconds: float) -> float:
        """Wait until a condition holds; the seconds that it took."""
        started = time.monotonic()
        while not condition():
            assert time.monotonic() < started + seconds, f"not within {seconds} s; the page shows {self.text()}"
            time.sleep(0.05)
        return time.monotonic() - started

    def text(self) -> str:
        """The text that a reader sees."""
        return str(self.run("return document.body.innerText"))

    def command(self, name: str, parameters: object) -> None:
        """Send a command of the browser's own protocol."""
        self._send("/goog/cdp/execute", {"cmd": name, "params": parameters})

    def console(self) -> list[str]:
        """What the browser logged since the last look: errors of scripts, and requests that failed."""
        return [entry["message"] for entry in self._send("/se/log", {"type": "browser"})]
