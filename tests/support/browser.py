"""A headless Chromium, driven through its debugging pipe: no package and no port."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-sync", "--remote-debugging-pipe",
)  # fmt: skip


class Page:
    """One tab. `errors`: what its console and its security policy complained of."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write, self._number, self._rest = read, write, 0, b""
        self.errors: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = ""
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")

    def open(self, url: str, width: int = 1280, scheme: str = "light") -> None:
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **metrics)
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        self._call("Emulation.setEmulatedMedia", features=media)
        self._call("Page.navigate", url=url)
        self.until("document.documentElement?.dataset.drawn === ''")

    def value(self, script: str) -> Any:
        """What a script comes to. Raises RuntimeError where it throws."""
        given = {"expression": script, "returnByValue": True, "awaitPromise": True}
        found = self._call("Runtime.evaluate", **given)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"]["exception"].get("description"))
        return found["result"].get("value")

    def until(self, script: str, timeout_s: float = 300) -> None:
        end = time.monotonic() + timeout_s
        while not self.value(script):
            assert time.monotonic() < end, f"not within {timeout_s} s: {script}"
            time.sleep(0.2)

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def _call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        asked: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if getattr(self, "_session", ""):
            asked["sessionId"] = self._session
        os.write(self._write, json.dumps(asked).encode() + b"\0")
        while True:
            told = self._message()
            if told.get("id") == self._number:
                assert "error" not in told, told
                return told["result"]
            self._note(told)

    def _note(self, told: dict[str, Any]) -> None:
        given = told.get("params", {})
        if told.get("method") == "Runtime.exceptionThrown":
            self.errors.append(str(given["exceptionDetails"]))
        elif told.get("method") == "Log.entryAdded" and given["entry"]["level"] == "error":
            self.errors.append(given["entry"]["text"])

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            data = os.read(self._read, 1 << 20)
            assert data, "Chromium ended"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(line)
        return found


@contextmanager
def browser(home: Path) -> Iterator[Page]:
    to_it, from_it = os.pipe(), os.pipe()
    shell = f'exec "$0" "$@" 3<&{to_it[0]} 4>&{from_it[1]}'
    command = ["bash", "-c", shell, str(CHROMIUM), *FLAGS, f"--user-data-dir={home / 'profile'}"]
    fds = (to_it[0], from_it[1])
    with subprocess.Popen(command, pass_fds=fds, stderr=subprocess.DEVNULL) as process:
        for fd in fds:
            os.close(fd)
        try:
            yield Page(from_it[0], to_it[1])
        finally:
            process.terminate()
            process.wait()
            os.close(from_it[0])
            os.close(to_it[1])
