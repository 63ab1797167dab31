"""The process that jobs are forked from; `executor.process.forked` starts it with a socket and modules.

It reads the job package from its stdin, enters the user's program, imports the modules, makes sure that
a fork of it is as good as a fresh interpreter, and then forks a job for every request that comes over the
socket. It runs nothing of a job itself, so it stays as it was. When the socket closes, its jobs end with
it; where it is to outlive its controller, it waits for the last of them.

Up the socket go JSON lines, down it descriptors: of a message in JSON, and those a job is to have.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import json
import os
import select
import signal
import socket
import sys
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from autocl_sweeper.executor.process.groups import STRAGGLER_S, children, end_group
from autocl_sweeper.executor.process.preload import (
    BlasThreads,
    MissingError,
    UnfitError,
    preload,
    reseed,
    restore_torch_threads,
)
from autocl_sweeper.job import process

MAX_FDS = 253  # Linux's limit for one message
# Objects that fill the gaps between what imports left: a job's own, put there, would have the pages around
# them copied. They take 16 MiB, which all jobs share, and save each of them 5 % of its private memory.
FILLING = 2000
LOOK = os.WEXITED | os.WNOHANG | os.WNOWAIT  # at a dead child, whose number stays taken
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


# -- the socket -------------------------------------------------------------------------------------


def send(control: socket.socket, message: dict[str, Any], fds: Sequence[int]) -> None:
    """The message is a file in memory, whose descriptor goes first: it comes whole or not at all."""
    with in_memory(json.dumps(message).encode()) as text:
        socket.send_fds(control, [b"."], [text, *fds])


def receive(control: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """The next message with its descriptors; None when the other side is gone."""
    head, fds, _, _ = socket.recv_fds(control, 1, MAX_FDS)
    if not head:
        return None
    with open(fds[0], "rb") as text:
        return json.load(text), fds[1:]


@contextmanager
def in_memory(data: bytes) -> Iterator[int]:
    """A descriptor to read `data` from, which a process can inherit."""
    with os.fdopen(os.memfd_create("order"), "wb+") as file:
        file.write(data)
        file.seek(0)
        yield file.fileno()


# -- serving ----------------------------------------------------------------------------------------


class Server:
    """Forks jobs and reports their ends. `serve` returns in the jobs: the descriptor of their order."""

    def __init__(self, control: socket.socket, changed: dict[str, str | None]) -> None:
        """`changed`: what importing did to the environment; None: it removed the variable."""
        self._control = control
        self._changed = changed
        self._pid = os.getpid()
        self._jobs: dict[int, bool] = {}  # pid -> whether its end was told
        self._outlives = False  # the controller
        self._blas = BlasThreads()
        self._libc = ctypes.CDLL(None)
        self._libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
        self._wake, self._waker = os.pipe()
        for fd in (self._wake, self._waker):
            os.set_blocking(fd, False)
        # Ctrl-C and a service manager's SIGTERM are the controller's to answer; the socket tells
        # the rest. Jobs get back what was there.
        self._handlers = {
            signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN),
            signal.SIGTERM: signal.signal(signal.SIGTERM, signal.SIG_IGN),
            signal.SIGCHLD: signal.signal(signal.SIGCHLD, lambda *_: None),
        }
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)

    def tell(self, **message: Any) -> None:
        self._control.sendall(json.dumps(message).encode() + b"\n")

    def serve(self) -> int | None:
        """In a process that is to run a job: the descriptor of its order. None: all is over."""
        try:
            while True:
                readable = self._wait_for(self._control.fileno())
                if self._wake in readable:
                    self._look_for_ends()
                if self._control.fileno() in readable:
                    received = receive(self._control)
                    if received is None:
                        break
                    message, fds = received
                    if "outlive" in message:
                        self._outlives = True
                    elif "reap" in message:
                        os.waitpid(message["reap"], 0)
                        del self._jobs[message["reap"]]
                        self._look_for_ends()
                        self._end_those_who_left()
                    else:
                        self._set_environment(message["environment"], message["own"])
                        self._blas.before_fork()
                        if self._fork(fds):
                            return fds[2]
        except (BrokenPipeError, ConnectionResetError):
            pass
        if os.getpid() == self._pid and self._outlives:
            self._see_jobs_out()
        elif os.getpid() == self._pid:
            for pid in self._jobs:
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
        return None

    def _wait_for(self, *fds: int) -> list[int]:
        """Which of them can be read; `_wake` among them when a child may have ended."""
        readable, _, _ = select.select([*fds, self._wake], [], [])
        if self._wake in readable:  # else a byte that comes now would be lost
            os.read(self._wake, 4096)
        return readable

    def _see_jobs_out(self) -> None:
        """Do for the jobs that still run what their controller did: nothing of them may be left."""
        while True:
            for pid in list(self._jobs):
                if os.waitid(os.P_PID, pid, LOOK) is not None:
                    end_group(pid, STRAGGLER_S)
                    os.waitpid(pid, 0)
                    del self._jobs[pid]
            self._end_those_who_left()
            if not self._jobs:
                break
            self._wait_for()
        deadline = time.monotonic() + STRAGGLER_S  # what the kernel holds does not end for us
        while children(os.getpid()) and time.monotonic() < deadline:
            self._end_those_who_left()
            time.sleep(0.02)  # children of those come to us only now

    def _look_for_ends(self) -> None:
        """Tell of dead jobs and leave them: their number stays taken until the controller is done."""
        for pid in [pid for pid, told in self._jobs.items() if not told]:
            if (found := os.waitid(os.P_PID, pid, LOOK)) is not None:
                exited = found.si_code == os.CLD_EXITED
                self._jobs[pid] = True
                self.tell(ended=pid, status=found.si_status * (1 if exited else -1))
        # Orphans of dead jobs come to us.
        reaped = False
        with suppress(ChildProcessError):
            while found := os.waitid(os.P_ALL, 0, LOOK):
                if found.si_pid in self._jobs:
                    break  # the kernel shows no others before this one is reaped
                os.waitpid(found.si_pid, 0)
                reaped = True
        if reaped:  # it may have had children, which are ours now
            self._end_those_who_left()

    def _end_those_who_left(self) -> None:
        """Kill what a dead job started and what then left its group: forks that called setsid.

        Jobs are subreapers, so nothing of a living job ever comes to us. What is still in the group
        of a job that was not reaped yet is its controller's to end.
        """
        for pid in children(os.getpid()):
            if pid not in self._jobs:
                with suppress(ProcessLookupError):
                    if os.getpgid(pid) not in self._jobs:
                        os.kill(pid, signal.SIGKILL)

    def _fork(self, fds: list[int]) -> bool:
        """Whether this is the new process."""
        sys.stdout.flush()
        sys.stderr.flush()
        # A signal to the job waits until it is one.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, self._handlers)
        told: dict[str, Any]
        try:
            told = {"pid": os.fork()}
        except OSError as error:
            told = {"failed": str(error)}
        pid = told.get("pid")
        if pid == 0:
            self._become_job(fds)
        elif pid is not None:
            self._jobs[pid] = False
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        if pid != 0:
            for fd in fds:
                os.close(fd)
            self.tell(**told)
        return pid == 0

    def _become_job(self, fds: list[int]) -> None:
        gc.freeze()  # a collection would visit what the fork server made since it last did so
        os.setsid()
        self._libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        self._libc.prctl(PR_SET_CHILD_SUBREAPER, 1)  # what leaves it comes to us when it is dead
        if os.getppid() != self._pid:  # it died before it could take us with it
            os._exit(1)
        signal.set_wakeup_fd(-1)
        for ours, handler in self._handlers.items():
            signal.signal(ours, signal.SIG_DFL if handler is None else handler)
        self._control.close()
        os.close(self._wake)
        os.close(self._waker)
        stdin, output, _order, *leases = fds
        for fd, number in ((stdin, 0), (output, 1), (output, 2)):
            os.dup2(fd, number)
        os.close(stdin)
        os.close(output)
        for fd in leases:
            os.set_inheritable(fd, True)
        reseed()
        self._blas.in_fork()
        restore_torch_threads()

    def _set_environment(self, environment: dict[str, str], own: dict[str, str]) -> None:
        """As in a fresh interpreter: inherited, then what imports change; the job's devices last."""
        wanted = {**environment, **self._changed, **own}
        os.environ.clear()
        os.environ.update({name: value for name, value in wanted.items() if value is not None})


def _keep_what_is_shared() -> None:
    """Finalizers of objects that imports made (a temporary folder) are not a job's to run at exit."""
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False
    if "torch._dynamo.utils" in sys.modules and "TORCH_LOGS" not in os.environ:
        # It gathers compile times at exit for a log that nobody asked for, in 2000 pages of its own.
        atexit.unregister(sys.modules["torch._dynamo.utils"].dump_compile_times)


def main(control_fd: str, folder: str, *modules: str) -> NoReturn:
    """Serve until the controller goes, or become a job."""
    control = socket.socket(fileno=int(control_fd))
    begin = time.monotonic()
    environment = dict(os.environ)
    try:
        package = preload(modules, sys.stdin.buffer.read())
    except (UnfitError, MissingError) as error:
        key = "missing" if isinstance(error, MissingError) else "unfit"
        with suppress(OSError):
            control.sendall(json.dumps({key: error.args}).encode() + b"\n")
        os._exit(0)
    now = dict(os.environ)
    changed = {k: now.get(k) for k in environment | now if now.get(k) != environment.get(k)}
    _keep_what_is_shared()
    gc.collect()
    _filling = [bytes(size) for size in range(1, 480, 16) for _ in range(FILLING)]
    gc.freeze()  # a collection in a job would write to, and so copy, all that is shared
    server = Server(control, changed)
    with suppress(OSError):
        seconds = time.monotonic() - begin
        server.tell(preloaded=", ".join(modules), seconds=seconds, flaw=package.flaw)
    order = server.serve()
    if order is None:
        os._exit(0)
    # Nothing of the server is left on the stack: an exit or a KeyboardInterrupt ends a job as ever.
    process.forked(folder, order, package)
