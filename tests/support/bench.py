"""Real sweeps for tests: an app of tests/support/apps in processes of its own, and what it left behind."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from support.fake_nvml import build as fake

REPOSITORY = Path(__file__).parents[2]
APPS = Path(__file__).with_name("apps")
# For events that come in a second; a machine can be slow, or busy.
DEADLINE_S = float(os.environ.get("DEADLINE_S", "300"))


def wait_until(happened: Callable[[], Any], what: str) -> Any:
    """The first true answer of `happened`, asked again and again."""
    deadline = time.monotonic() + DEADLINE_S
    while not (answer := happened()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {DEADLINE_S:g} s for this to happen: {what}")
        time.sleep(0.01)
    return answer


def alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def autocl(
    *words: object, cwd: Path | None = None, **environ: str
) -> subprocess.CompletedProcess[str]:
    """The command `autocl` in a process of its own."""
    command = [sys.executable, "-m", "autocl_sweeper", *map(str, words)]
    known = os.environ | {"PYTHONPATH": str(REPOSITORY)} | environ
    return subprocess.run(command, cwd=cwd, env=known, capture_output=True, text=True, timeout=300)


def held_in(leases: Path) -> list[str]:
    """The devices whose lease in this folder somebody holds."""
    held = []
    for path in leases.glob("*.lock"):
        with open(path, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held.append(path.stem)
    return held


class Bench:
    """One app and one sweep folder, with leases and a ledger of their own."""

    def __init__(self, folder: Path, app: Path) -> None:
        self.folder = folder
        self.app = app
        self.sweep = folder / "sweep"
        self.ledger_file = folder / "ledger"
        self.leases = folder / "leases"
        self.hold = folder / "hold"  # jobs wait while it exists
        self.started: list[subprocess.Popen[bytes]] = []
        # The size of a terminal is asked from it: pytest-xdist's workers have these two from readline.
        given = {key: v for key, v in os.environ.items() if key not in ("COLUMNS", "LINES")}
        self.environment = {
            **given,
            "AUTOCL_LEASE_DIR": str(self.leases),
            "CUDA_VISIBLE_DEVICES": "",  # no test may touch a GPU of this machine
            "HOLD": str(self.hold),
            "LEDGER": str(self.ledger_file),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(
                filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])
            ),
        }

    def command(self, *arguments: str) -> list[str]:
        """The app with `-m`, as argv; its sweep folder is given first."""
        return [sys.executable, str(self.app), "-m", f"hydra.sweep.dir={self.sweep}", *arguments]

    def start(
        self, *arguments: str, terminal: int | None = None, **environment: str
    ) -> subprocess.Popen[bytes]:
        """The command, in the background, in a session of its own as under nohup.

        `terminal`: a file descriptor for what it writes to stderr.
        """
        output = self.folder / f"output-{len(self.started)}"
        with open(output, "wb") as file:
            process = subprocess.Popen(
                self.command(*arguments),
                cwd=self.folder,
                env={**self.environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT if terminal is None else terminal,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def start_held(self, jobs: int, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        """The app in the background once `jobs` of its jobs run, which do not end before `release`."""
        self.hold.touch()
        process = self.start(*arguments, **environment)
        begun = ("start", "job")
        wait_until(
            lambda: sum(event["event"] in begun for event in self.ledger()) >= jobs,
            f"{jobs} jobs run",
        )
        return process

    def release(self, process: subprocess.Popen[bytes]) -> str:
        """Let the held jobs end, and the app with them; all that it printed."""
        self.hold.unlink()
        return self.finish(process, 0)

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait()

    def finish(self, process: subprocess.Popen[bytes], status: int | None = None) -> str:
        """Wait for the app to end, with `status` if it is given; all that it printed."""
        ended = process.wait(DEADLINE_S)
        output = self.printed(process)
        assert status in (None, ended), f"ended with {ended}:\n{output}"
        return output

    def printed(self, process: subprocess.Popen[bytes]) -> str:
        place = self.started.index(process)
        return (self.folder / f"output-{place}").read_text("utf-8", "replace")

    def run(self, *arguments: str, status: int = 0, **environment: str) -> str:
        """The app with `-m`, to its end, which must be `status`."""
        return self.finish(self.start(*arguments, **environment), status)

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The whole lines of the journal, of one kind or all."""
        return [e for e in _lines(self.sweep / "journal.jsonl") if kind in (None, e["event"])]

    def finished(self) -> dict[int, dict[str, Any]]:
        """Trial number -> its last finish event."""
        return {event["trial"]: event for event in self.events("finish")}

    def ledger(self, kind: str | None = None) -> list[dict[str, Any]]:
        return [e for e in _lines(self.ledger_file) if kind in (None, e["event"])]

    def results(self) -> dict[str, Any]:
        return yaml.safe_load((self.sweep / "optimization_results.yaml").read_text())

    def processes(self) -> list[int]:
        """What runs with our environment, whoever started it: the app, its jobs, their children."""
        mark = f"AUTOCL_LEASE_DIR={self.leases}".encode()
        found = []
        for entry in os.scandir("/proc"):
            if entry.name.isdecimal():
                with suppress(OSError):  # it ended
                    environment = Path(entry.path, "environ").read_bytes().split(b"\0")
                    if mark in environment and alive(int(entry.name)):
                        found.append(int(entry.name))
        return found

    def leased(self) -> list[str]:
        """The devices that somebody holds."""
        return held_in(self.leases)

    def nothing_is_left(self) -> bool:
        return not self.processes() and not self.leased()

    def close(self) -> None:
        for process in self.started:
            with suppress(ProcessLookupError):
                process.kill()
            process.wait()
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        whole, _, _torn = path.read_bytes().rpartition(b"\n")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in whole.splitlines()]


class Gpus:
    """The fake GPUs of a test, and benches that see them."""

    def __init__(self, library: Path, figures: Path) -> None:
        self._library = library
        self._figures = figures
        self.gpus = fake.gpus(8)
        self.write()

    def write(self) -> None:
        fake.write_figures(self._figures, self.gpus)

    def change(self, number: int, **figures: Any) -> None:
        self.gpus[number] = replace(self.gpus[number], **figures)
        self.write()

    def seen_by(self, bench: Bench) -> Bench:
        bench.environment |= fake.environment(self._library, self._figures)
        del bench.environment["CUDA_VISIBLE_DEVICES"]
        return bench
