"""A real browser that is told what to do: keys, sizes, colours, pictures; and what it saw.

Chromium's own protocol over two pipes (`--remote-debugging-pipe`): messages of JSON that end with a zero.
"""

import base64
import json
import os
import select
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.helpers.browser import BROWSER, OWN, QUIET

OPTIONS = [each for each in QUIET if not each.startswith("--virtual-time")]
KEYS = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
"""Keys that write nothing, with the number by which a browser acts on them."""
PATIENCE_S = 60


class Browser:
    """One page of a browser; a `with` block ends it.

    Attributes:
        asked: addresses that were asked for.
        said: errors of scripts, and what the page's policy refused.
    """

    def __init__(self, profile: Path):
        assert BROWSER is not None
        own_read, their_write = os.pipe()
        their_read, own_write = os.pipe()
        command = [BROWSER, *OPTIONS, "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
        shell = ["bash", "-c", f'exec "$@" 3<&{their_read} 4>&{their_write}', "bash", *command]
        self.process = subprocess.Popen(
            shell, pass_fds=(their_read, their_write), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        os.close(their_read), os.close(their_write)
        self._read, self._write, self._rest, self._number = own_read, own_write, b"", 0
        self.asked: list[str] = []
        self.said: list[str] = []
        self._session: str | None = None
        self._loaded = 0
        (target,) = [each for each in self.call("Target.getTargets")["targetInfos"] if each["type"] == "page"]
        found = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = found["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(20)
        os.close(self._read), os.close(self._write)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol; returns its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == self._number:
                assert "error" not in found, found
                return found["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            assert select.select([self._read], [], [], PATIENCE_S)[0], "the browser says nothing"
            piece = os.read(self._read, 1 << 20)
            assert piece, "the browser is gone"
            self._rest += piece
        line, self._rest = self._rest.split(b"\0", 1)
        found = json.loads(line)
        about = found.get("params", {})
        if found.get("method") == "Network.requestWillBeSent" and not OWN.match(about["request"]["url"]):
            self.asked.append(about["request"]["url"])
        if found.get("method") == "Runtime.exceptionThrown":
            self.said.append(str(about["exceptionDetails"].get("text")))
        if found.get("method") == "Log.entryAdded" and about["entry"]["level"] == "error":
            self.said.append(about["entry"]["text"])
        self._loaded += found.get("method") == "Page.loadEventFired"
        return found

    def go(self, address: str) -> None:
        """Open an address and wait until it is there."""
        before = self._loaded
        assert not self.call("Page.navigate", url=address).get("errorText")
        self._wait(before)

    def _wait(self, before: int) -> None:
        while self._loaded == before:
            self._next()

    def js(self, expression: str) -> Any:
        """Evaluate an expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key: str, leaves: bool = False) -> None:
        """Press a key; with `leaves`, wait for the page that it leads to."""
        before = self._loaded
        what = {"windowsVirtualKeyCode": KEYS[key], "code": key} if key in KEYS else {"text": key}
        what |= {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **what)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)
        if leaves:
            self._wait(before)

    def until(self, expression: str, timeout_s: float = 20) -> Any:
        """Wait until an expression is true."""
        end = time.monotonic() + timeout_s
        while not (found := self.js(expression)):
            assert time.monotonic() < end, expression
            time.sleep(0.05)
        return found

    def shape(self, width: int, height: int, phone: bool = False) -> None:
        """Set the size of the screen."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=phone,
        )

    def colours(self, scheme: str) -> None:
        """Set what the user prefers: light or dark."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[feature])

    def scripts(self, allowed: bool) -> None:
        """Switch JavaScript on or off for the pages that follow."""
        self.call("Emulation.setScriptExecutionDisabled", value=not allowed)

    def picture(self, path: Path) -> Path:
        """Save what the screen shows."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))
        return path
