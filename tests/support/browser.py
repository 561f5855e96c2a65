"""A headless Chromium that tests look at pages with, over a pipe of the DevTools protocol: no driver, no port.

Where no Chromium is installed, tests are skipped (Debian: apt-get install chromium).
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")


class Browser:
    """One page in one browser. `problems`: console errors, exceptions, what its policy refused; `requested`: URLs."""

    def __init__(self, profile: Path) -> None:
        command = next(filter(None, map(shutil.which, _NAMES)), None)
        if command is None:
            pytest.skip(f"no browser to look at pages with: install one of {', '.join(_NAMES)}")
        self.problems: list[str] = []
        self.requested: list[str] = []
        self._read, write_there = os.pipe()
        read_there, self._write = os.pipe()
        # Chromium reads from its file descriptor 3 and writes to 4.
        shell = f'exec "$@" 3<&{read_there} 4>&{write_there}'
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        options += ["--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", shell, "bash", command, *options],
            pass_fds=(read_there, write_there),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_there)
        os.close(write_there)
        self._received = b""
        self._last_id = 0
        self._session: str | None = None
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(20)
        os.close(self._read)
        os.close(self._write)

    def look(self, width_px: int, height_px: int, colours: str = "light") -> None:
        """Be a screen of this size whose user prefers `light` or `dark`."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width_px,
            height=height_px,
            deviceScaleFactor=1,
            mobile=width_px < 600,
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": colours}])

    def open(self, page: Path) -> float:
        """Open a local page; return the seconds until it and its scripts had loaded."""
        self.problems, self.requested = [], []
        began_s = time.monotonic()
        self.call("Page.navigate", url=page.as_uri())
        while self.evaluate("document.readyState") != "complete" or self.evaluate("location.href") != page.as_uri():
            time.sleep(0.02)
        return time.monotonic() - began_s

    def evaluate(self, script: str) -> Any:
        """Return the value of a JavaScript expression, for which the page's policy does not count."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def picture(self, whole: bool = False) -> bytes:
        """Return what is to be seen, or the whole page, as PNG."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        return base64.b64decode(data)

    def press(self, key: str, code: int) -> None:
        """Press and release a key, by its DOM name and Windows key code."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def call(self, method: str, timeout_s: float = 60, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        self._last_id += 1
        message: dict[str, Any] = {"id": self._last_id, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline_s = time.monotonic() + timeout_s
        while True:
            answer = self._next(deadline_s)
            if answer.get("id") == self._last_id:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return dict(answer["result"])
            self._note(answer.get("method"), answer.get("params", {}))

    def _next(self, deadline_s: float) -> dict[str, Any]:
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._read], [], [], max(deadline_s - time.monotonic(), 0))
            assert ready, "the browser does not answer"
            part = os.read(self._read, 1 << 20)
            assert part, "the browser has ended"
            self._received += part
        first, self._received = self._received.split(b"\0", 1)
        return dict(json.loads(first))

    def _note(self, event: str | None, about: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requested.append(about["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(about["exceptionDetails"]))
        elif (event == "Log.entryAdded" and about["entry"]["level"] == "error") or (
            event == "Runtime.consoleAPICalled" and about["type"] in ("error", "assert")
        ):
            self.problems.append(json.dumps(about))
