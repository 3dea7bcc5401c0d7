"""Chromium without a screen: a page as a phone or a desktop shows it, through the DevTools protocol over a pipe."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")


def executable() -> str | None:
    """Return the path of a Chromium, None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """The one tab of a browser.

    Attributes:
        requests: URLs of everything that was asked for since the page was opened, the page itself among them.
    """

    def __init__(self, commands: int, answers: int):
        self._commands, self._answers = os.fdopen(commands, "wb"), os.fdopen(answers, "rb")
        self._unread, self._calls = b"", 0
        self._session: str | None = None
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")
        self.call("Network.enable")

    def call(self, method: str, **parameters: Any) -> dict:
        """Send a command and return its result; what the browser tells meanwhile is noted."""
        self._calls += 1
        number, session = self._calls, {"sessionId": self._session} if self._session else {}
        text = json.dumps({"id": number, "method": method, "params": parameters, **session})
        self._commands.write(text.encode() + b"\0")
        self._commands.flush()
        while (message := self._next()).get("id") != number:
            pass
        assert "error" not in message, f"{method}: {message['error']}"
        return message["result"]

    def open(self, path: Path, width: int, height: int) -> None:
        """Load a file at a width and height in pixels; below 600 as a phone does, with its viewport."""
        phone = width < 600
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self.requests.clear()
        self.call("Page.navigate", url=path.as_uri())
        while self._next().get("method") != "Page.loadEventFired":
            pass

    def value(self, expression: str) -> Any:
        """Return what JavaScript makes of an expression."""
        said = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in said, said["exceptionDetails"]
        return said["result"].get("value")

    def _next(self) -> dict:
        while b"\0" not in self._unread:
            more = os.read(self._answers.fileno(), 1 << 16)
            assert more, "the browser has ended"
            self._unread += more
        text, _, self._unread = self._unread.partition(b"\0")
        message = json.loads(text)
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(message["params"]["request"]["url"])
        return message


@contextmanager
def page(browser: str, folder: Path) -> Iterator[Page]:
    """Start a browser that keeps its profile in `folder`, and end it afterwards."""
    flags = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --remote-debugging-pipe"
    its_end, commands = os.pipe()
    answers, its_other_end = os.pipe()
    process = subprocess.Popen(  # it reads commands from 3 and answers on 4
        ["bash", "-c", f'exec "$@" 3<&{its_end} 4>&{its_other_end}', "-", browser, *flags.split(),
         f"--user-data-dir={folder}"],
        pass_fds=(its_end, its_other_end), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(its_end)
    os.close(its_other_end)
    try:
        tab = Page(commands, answers)
        yield tab
    finally:
        process.terminate()
        process.wait()
