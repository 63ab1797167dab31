"""Jobs forked from a process that has imported already: the controller's side of `forkserver`."""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import Any

from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.executor.process import forkserver as serving
from autocl_sweeper.executor.process.groups import JOB, entry, exit_reason, signal_group
from autocl_sweeper.executor.process.guardian import end_marked
from autocl_sweeper.executor.process.preload import WHILE_IMPORTING
from autocl_sweeper.job.package import NOT_IMPORTED, Package, command

log = logging.getLogger(__name__)

READY_S = 600.0  # for all imports together; jobs would wait for them as well
START_S = 60.0  # for one fork; a fork server that takes longer has stopped answering
NOT_FORKED = "jobs start in fresh interpreters"


class ForkServerLostError(Exception):
    """The fork server died or does not answer. Fresh interpreters are still there."""


class ForkedProcess:
    """A job process that is a child of the forkserver."""

    def __init__(self, of: ForkServer, pid: int) -> None:
        self.pid = pid
        self.status: Future[int | None] = Future()
        self._forkserver = of

    def wait(self) -> None:
        wait([self.status])

    def reap(self) -> int | None:
        """The exit status; None when the fork server died, and the job with it."""
        self._forkserver.reap(self.pid)
        return self.status.result()


class ForkServer:
    """A process that imports modules once, and forks a job whenever asked.

    It begins to import at once; `ready` waits for it. It may die at any time: then its jobs end, and
    `start` raises ForkServerLostError. The creator calls `close`, when no job runs any more.
    """

    def __init__(self, package: Package, preload: Sequence[str], kept: bool = False) -> None:
        """`kept`: for further executors, which do not close it."""
        self.kept = kept
        self._package = package
        self._modules = list(preload)
        self._sending = threading.Lock()
        # Forks of it show its environment, whatever became of theirs: so none can hide.
        self.mark = f"forkserver of {os.getpid()} at {time.monotonic_ns()}"
        self._is_ready: bool | None = None  # None: nobody has waited for it yet
        self._begin()

    def _begin(self) -> None:
        self._jobs: dict[int, ForkedProcess] = {}
        self._answers: queue.SimpleQueue[dict[str, Any] | ForkedProcess | None]
        self._answers = queue.SimpleQueue()
        self._lost = ""
        self._begun = time.monotonic()
        self._control, theirs = socket.socketpair()
        # A file without a name: nothing to remove, whoever is killed.
        self._output = tempfile.TemporaryFile()  # noqa: SIM115
        arguments = (str(theirs.fileno()), str(self._package.files.folder), *self._modules)
        with theirs, serving.in_memory(self._package.data) as data:
            self._process = subprocess.Popen(
                command(serving.__name__, *arguments),
                stdin=data,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **WHILE_IMPORTING, JOB: self.mark},
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self.pid = self._process.pid
        self._listener = threading.Thread(target=self._listen, name="forkserver", daemon=True)
        self._listener.start()

    def importing(self) -> str:
        """What it imports, and for how long by now."""
        names = ", ".join(self._modules) or "the app"
        return f"importing {names} ({time.monotonic() - self._begun:.0f} s)"

    def ready(self) -> bool:
        """Wait for the imports. False: jobs cannot be forked, and a log line has said why.

        Raises ConfigurationError when a module of `preload` does not exist.
        """
        if self._is_ready is None:
            self._is_ready = False
            self._is_ready = self._wait_for_imports()
        return self._is_ready and not self._lost

    def retire(self) -> None:
        """Its forks are no good: `ready` says so from now on."""
        self._is_ready = False

    def _wait_for_imports(self) -> bool:
        try:
            answer = self._answers.get(timeout=READY_S)
        except queue.Empty:
            log.warning("the preload took more than %g s: %s", READY_S, NOT_FORKED)
            return False
        if answer is None:
            log.warning("%s while it imported: %s\n%s", self._lost, NOT_FORKED, self._last_output())
            return False
        assert isinstance(answer, dict)
        if "missing" in answer:
            module, because = answer["missing"]
            raise ConfigurationError(
                f"hydra.launcher.preload names '{module}', which cannot be imported:"
                f" {because}\n"
                "  Install it, correct its name, or leave it out. Jobs import from the folders their"
                " app imports from. No job was started."
            )
        if "unfit" in answer:
            what, because, module = answer["unfit"]
            if module in self._modules:
                log.warning("%s: %s; it is left out, and jobs import it themselves", what, because)
                self._modules.remove(module)
                self._end()
                self._begin()
                return self._wait_for_imports()
            log.warning("%s: %s; %s", what, because, NOT_FORKED)
            return False
        if answer["flaw"]:
            log.warning(NOT_IMPORTED, answer["flaw"])
        log.info("preloaded %s in %.1f s", answer["preloaded"] or "the app", answer["seconds"])
        return True

    def start(self, fds: Sequence[int], environment: Mapping[str, str]) -> ForkedProcess:
        """Fork a job: as `FreshProcess`, without a command."""
        self._send({"environment": dict(os.environ), "own": dict(environment)}, fds)
        try:
            answer = None if self._lost else self._answers.get(timeout=START_S)
        except queue.Empty:
            self._lost = f"the process that jobs are forked from did not answer for {START_S:g} s"
            signal_group(self.pid, signal.SIGKILL)
            raise ForkServerLostError(self._lost) from None
        if not isinstance(answer, ForkedProcess):
            raise ForkServerLostError(answer["failed"] if answer else self._lost)
        return answer

    def outlive(self) -> None:
        """From now on, jobs run to their end when this controller dies, and the fork server with them."""
        with suppress(ForkServerLostError):  # `start` will say so
            self._send({"outlive": True}, [])

    def reap(self, pid: int) -> None:
        if self._jobs.pop(pid, None) is not None:
            with suppress(ForkServerLostError):
                self._send({"reap": pid}, [])

    def close(self) -> None:
        self._lost = self._lost or "the sweep ended"
        self._end()

    def _end(self) -> None:
        if self._listener.is_alive():  # so its number is still its own
            signal_group(self.pid, signal.SIGKILL)
        self._listener.join()
        self._control.close()
        self._output.close()

    def _send(self, message: dict[str, Any], fds: Sequence[int]) -> None:
        try:
            with self._sending:
                serving.send(self._control, message, fds)
        except OSError as error:
            raise ForkServerLostError(self._lost or str(error)) from error

    def _listen(self) -> None:
        """Runs in a thread of its own until the forkserver is dead and reaped."""
        with suppress(ConnectionResetError), self._control.makefile("rb") as lines:
            for line in lines:
                message = json.loads(line)
                if "ended" in message:
                    self._jobs[message["ended"]].status.set_result(message["status"])
                elif "pid" in message:
                    process = ForkedProcess(self, message["pid"])
                    self._jobs[process.pid] = process
                    self._answers.put(process)
                else:
                    self._answers.put(message)
        # What an import started goes too, while nobody else can have the group's number.
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        signal_group(self.pid, signal.SIGKILL)
        status = self._process.wait()
        self._lost = self._lost or (
            f"the process that jobs are forked from died ({exit_reason(status)})"
        )
        for pid, process in list(self._jobs.items()):
            signal_group(pid, signal.SIGKILL)
            if not process.status.done():
                process.status.set_result(None)
        end_marked({entry(self.mark)})
        self._answers.put(None)

    def _last_output(self) -> str:
        self._output.seek(max(0, os.fstat(self._output.fileno()).st_size - 2000))
        lines = self._output.read().decode("utf-8", "replace").splitlines()[-10:]
        return "\n".join(f"  | {line}" for line in lines)


class KeptForkServer:
    """The fork server of a launcher that runs batches: the first starts it, all later ones have it."""

    def __init__(self) -> None:
        self._forkserver: ForkServer | None = None

    def get(self, package: Package, preload: Sequence[str]) -> ForkServer:
        if self._forkserver is None:
            self._forkserver = ForkServer(package, preload, kept=True)
        return self._forkserver

    def close(self) -> None:
        if self._forkserver is not None:
            self._forkserver.close()
            self._forkserver = None
