"""The process that jobs are forked from: `python -m autocl_sweeper.executor.process.forkserver <fd> <module>...`

It reads the job package from its stdin, imports the modules, makes sure that a fork of it is as good
as a fresh interpreter, and then forks a job for every request that comes over the socket <fd>. It
runs nothing of a job itself, so it stays as it was. When the socket closes, its jobs end with it; if
it was told to outlive its controller, it waits for the last of them.

Up the socket go JSON lines, down it go JSON messages with the descriptors a job is to have.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import json
import os
import random
import re
import select
import signal
import socket
import struct
import sys
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from autocl_sweeper.executor.process.groups import STRAGGLER_S, children, end_group
from autocl_sweeper.job import hydra_job
from autocl_sweeper.job.hydra_job import Unpacked

# For the template alone; a job gets the environment of the controller.
WHILE_IMPORTING = {
    "OPENBLAS_NUM_THREADS": "1",  # else importing numpy starts threads, which a fork would lose
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # else asking torch for a GPU initialises CUDA
}
MAX_FDS = 253  # Linux's limit for one message
THREAD_S = 1.0  # what a thread that an import started gets to end
PROBE_S = 20.0  # what a forked process gets to answer

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
CUDA_NOT_INITIALIZED = 3


# -- the socket -------------------------------------------------------------------------------------


def send(control: socket.socket, message: dict[str, Any], fds: Sequence[int]) -> None:
    data = json.dumps(message).encode()
    socket.send_fds(control, [struct.pack("!I", len(data))], fds)
    control.sendall(data)


def receive(control: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """The next message with its descriptors; None when the other side is gone."""
    head, fds, _, _ = socket.recv_fds(control, 4, MAX_FDS)
    data = head + _exactly(control, 4 - len(head))
    if len(data) < 4:
        return None
    data = _exactly(control, struct.unpack("!I", data)[0])
    try:
        return json.loads(data), fds
    except ValueError:  # cut off
        return None


def _exactly(control: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = control.recv(size - len(data))
        if not part:
            break
        data += part
    return data


# -- importing --------------------------------------------------------------------------------------


class UnfitError(Exception):
    """Forks of this process would be worse than fresh interpreters: (for which import, why)."""


class MissingError(Exception):
    """A module to preload does not exist: (its name, why)."""


def preload(modules: Sequence[str], data: bytes) -> Unpacked:
    """Import all that jobs share. Raises UnfitError or MissingError."""
    known = set(os.listdir("/proc/self/fd"))
    app = "the app's own imports"
    unpacked: Unpacked | None = None
    with _refusing(app):
        unpacked = hydra_job.unpack(data)
    assert unpacked is not None
    _check(app, known)
    for name in modules:
        _one_torch_thread()
        what = f"hydra.launcher.preload: {name}"
        with _refusing(what, name):
            importlib.import_module(name)
        _check(what, known)
    hydra_job.rehearse(unpacked)
    return unpacked


@contextmanager
def _refusing(what: str, module: str = "") -> Iterator[None]:
    try:
        yield
    except BaseException as error:  # also what calls sys.exit when imported
        parents = [module[: m.start()] for m in re.finditer(r"\.|$", module)]
        because = f"{type(error).__name__}: {error}"
        if module and isinstance(error, ModuleNotFoundError) and error.name in parents:
            raise MissingError(module, because) from error
        traceback.print_exc()
        raise UnfitError(what, because) from error


def _check(what: str, known: set[str]) -> None:
    flaw = flaw_of_forks(known)
    if flaw:
        raise UnfitError(what, flaw)


def flaw_of_forks(known_fds: set[str]) -> str:
    """What a forked job would suffer from; empty when it is as good as a fresh interpreter."""
    deadline = time.monotonic() + THREAD_S
    while (threads := len(os.listdir("/proc/self/task")) - 1) and time.monotonic() < deadline:
        time.sleep(0.02)
    if threads:
        return f"it leaves {threads} thread(s) running, which forked jobs would wait for in vain"
    with suppress(ChildProcessError):
        if os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return "it leaves a child process running, which forked jobs would share"
    for fd in set(os.listdir("/proc/self/fd")) - known_fds:
        with suppress(OSError):  # the listing's own
            target = os.readlink(f"/proc/self/fd/{fd}")
            if target.startswith(("socket:", "pipe:")):
                return f"it leaves a {target.partition(':')[0]} open, which forked jobs would share"
    if cuda_is_initialised():
        return "it initialises CUDA, which then fails in forked jobs"
    return _probe()


def cuda_is_initialised() -> bool:
    """Asked of the driver, as torch.cuda.is_initialized() does not know of all ways to do it."""
    with open("/proc/self/maps") as maps:
        found = re.search(r"/\S*libcuda\.so\S*", maps.read())
    if not found:
        return False
    count = ctypes.c_int()
    answer: int = ctypes.CDLL(found[0]).cuDeviceGetCount(ctypes.byref(count))
    return answer != CUDA_NOT_INITIALIZED


def _probe() -> str:
    """Ask a forked process, which ends without any clean-up."""
    pid = os.fork()
    if pid == 0:
        status = 2
        try:
            torch = sys.modules.get("torch")
            status = int(getattr(getattr(torch, "cuda", None), "_is_in_bad_fork", bool)())
        finally:
            os._exit(status)
    deadline = time.monotonic() + PROBE_S
    while not (ended := os.waitpid(pid, os.WNOHANG))[0] and time.monotonic() < deadline:
        time.sleep(0.001)
    if not ended[0]:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return "a forked process hangs"
    if os.waitstatus_to_exitcode(ended[1]) == 1:
        return "it initialises CUDA, which then fails in forked jobs"
    return "" if ended[1] == 0 else f"a forked process dies (wait status {ended[1]})"


# -- threads of numerical libraries -----------------------------------------------------------------

_torch_threads: int | None = None  # as torch chose them; None: it has not been asked


def _one_torch_thread() -> None:
    """One parallel operation at import would leave a thread pool that hangs every fork."""
    global _torch_threads
    torch = sys.modules.get("torch")
    if torch is not None and _torch_threads is None:
        _torch_threads = torch.get_num_threads()
        torch.set_num_threads(1)


def _openblas_setters() -> list[Callable[[int], Any]]:
    with open("/proc/self/maps") as maps:
        paths = set(re.findall(r"/\S*openblas\S*\.so\S*", maps.read()))
    setters = []
    for path in sorted(paths):
        library = ctypes.CDLL(path)
        for prefix in ("", "scipy_"):
            for suffix in ("", "64_"):
                setter = getattr(library, f"{prefix}openblas_set_num_threads{suffix}", None)
                if setter is not None:
                    setters.append(setter)
    return setters


_FIRST_NUMBER = re.compile(r"\s*([1-9][0-9]*)")


def _number(text: str | None) -> int | None:
    """The first number of OMP_NUM_THREADS, which may list one per nesting level."""
    found = _FIRST_NUMBER.match(text or "")
    return int(found[1]) if found else None


class _BlasThreads:
    """The thread pools of OpenBLAS: one thread in the template, in jobs as many as they would have.

    OpenBLAS ends its pool before a fork and starts it again, as large, at the fork's first need. So
    the size is set here, before: to set it in a job starts threads there, which spin for 100 ms.
    """

    def __init__(self) -> None:
        self._setters = _openblas_setters()
        self._size = 1
        self._ends_at_forks = _in_a_fork(self._is_alone_after_fork) == 0

    def before_fork(self) -> None:
        if self._ends_at_forks:
            self._set()

    def in_fork(self) -> None:
        self._set()

    def _set(self) -> None:
        omp = _number(os.environ.get("OMP_NUM_THREADS"))
        cores = len(os.sched_getaffinity(0))
        size = _number(os.environ.get("OPENBLAS_NUM_THREADS")) or omp or cores
        if size != self._size:
            self._size = size
            for set_num_threads in self._setters:
                set_num_threads(size)

    def _is_alone_after_fork(self) -> int:
        for set_num_threads in self._setters:
            set_num_threads(2)
        _in_a_fork(int)
        return len(os.listdir("/proc/self/task")) - 1


def _in_a_fork(function: Callable[[], int]) -> int:
    """Its answer there, 0 to 255; 2 where it fails. The fork ends without any clean-up."""
    pid = os.fork()
    if pid == 0:
        status = 2
        try:
            status = function()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _restore_torch_threads() -> None:
    """As many as a fresh interpreter would have in this environment."""
    torch = sys.modules.get("torch")
    threads = _number(os.environ.get("OMP_NUM_THREADS")) or _torch_threads
    if torch is not None and threads:
        torch.set_num_threads(threads)


# -- serving ----------------------------------------------------------------------------------------


class Server:
    """Forks jobs and tells of their ends. `serve` returns in the jobs: their arguments.

    A job's configuration is prepared before the fork, in the job's environment: that is cheaper here,
    where nothing has to be copied to be written to, and the next jobs find it begun.
    """

    def __init__(
        self, control: socket.socket, unpacked: Unpacked, changed: dict[str, str | None]
    ) -> None:
        """`changed`: what importing did to the environment; None: it removed the variable."""
        self._control = control
        self._unpacked = unpacked
        self._changed = changed
        self._pid = os.getpid()
        self._jobs: dict[int, bool] = {}  # pid -> whether its end was told
        self._outlives = False  # the controller
        self._blas = _BlasThreads()
        self._libc = ctypes.CDLL(None)
        self._libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
        self._wake, wake = os.pipe()
        self._wake_writer = wake
        os.set_blocking(wake, False)
        os.set_blocking(self._wake, False)
        # Ctrl-C and a service manager's SIGTERM are the controller's to answer; the socket tells
        # the rest. Jobs get back what was there.
        self._handlers = {
            signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN),
            signal.SIGTERM: signal.signal(signal.SIGTERM, signal.SIG_IGN),
            signal.SIGCHLD: signal.signal(signal.SIGCHLD, lambda *_: None),
        }
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)

    def tell(self, **message: Any) -> None:
        self._control.sendall(json.dumps(message).encode() + b"\n")

    def serve(self) -> tuple[list[str], Any] | None:
        """In a process that is to run a job: its arguments and its configuration. None: all is over."""
        try:
            while True:
                readable, _, _ = select.select([self._control.fileno(), self._wake], [], [])
                if self._wake in readable:
                    with suppress(BlockingIOError):
                        os.read(self._wake, 4096)
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
                        continue
                    arguments: list[str] = message["arguments"]
                    self._set_environment(message["environment"], message["own"])
                    self._blas.before_fork()
                    prepared = hydra_job.prepare_ahead(self._unpacked, arguments[1])
                    if self._fork(message, fds):
                        return arguments, prepared
        except (BrokenPipeError, ConnectionResetError):
            pass
        if os.getpid() == self._pid and self._outlives:
            self._see_jobs_out()
        elif os.getpid() == self._pid:
            for pid in self._jobs:
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
        return None

    def _see_jobs_out(self) -> None:
        """Do for the jobs that still run what their controller did: nothing of them may be left."""
        while True:
            for pid in list(self._jobs):
                if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                    end_group(pid, STRAGGLER_S)
                    os.waitpid(pid, 0)
                    del self._jobs[pid]
            self._end_those_who_left()
            if not self._jobs:
                break
            select.select([self._wake], [], [])
            with suppress(BlockingIOError):
                os.read(self._wake, 4096)
        deadline = time.monotonic() + STRAGGLER_S  # what the kernel holds does not end for us
        while children(os.getpid()) and time.monotonic() < deadline:
            self._end_those_who_left()
            time.sleep(0.02)  # children of those come to us only now

    def _look_for_ends(self) -> None:
        """Tell of dead jobs and leave them: their number stays taken until the controller is done."""
        for pid, told in list(self._jobs.items()):
            if not told:
                found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if found is not None:
                    exited = found.si_code == os.CLD_EXITED
                    self._jobs[pid] = True
                    self.tell(ended=pid, status=found.si_status * (1 if exited else -1))
        # Orphans of dead jobs come to us.
        reaped = False
        with suppress(ChildProcessError):
            while found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
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

    def _fork(self, message: dict[str, Any], fds: list[int]) -> bool:
        """Whether this is the new process."""
        sys.stdout.flush()
        sys.stderr.flush()
        # A signal to the job waits until it is one.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, self._handlers)
        try:
            pid = os.fork()
        except OSError as error:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            self.tell(failed=str(error))
            pid = -1
        if pid == 0:
            self._become_job(message, fds)
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            return True
        for fd in fds:
            os.close(fd)
        if pid > 0:
            self._jobs[pid] = False
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            self.tell(pid=pid)
        return False

    def _become_job(self, message: dict[str, Any], fds: list[int]) -> None:
        gc.freeze()  # a collection would visit what the template made since it last did so
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
        os.close(self._wake_writer)
        stdin, output, *keep = fds
        for fd, number in ((stdin, 0), (output, 1), (output, 2)):
            os.dup2(fd, number)
        os.close(stdin)
        os.close(output)
        for fd in keep:
            os.set_inheritable(fd, True)
        sys.argv[1:] = message["arguments"]
        _reseed()
        self._blas.in_fork()
        _restore_torch_threads()

    def _set_environment(self, environment: dict[str, str], own: dict[str, str]) -> None:
        """As in a fresh interpreter: inherited, then what imports change; the job's devices last."""
        wanted = {**environment, **self._changed, **own}
        for name in os.environ.keys() | wanted.keys():
            value = wanted.get(name)
            if value is None:
                os.environ.pop(name, None)
            elif os.environ.get(name) != value:
                os.environ[name] = value


def _reseed() -> None:
    """All forks inherit the state of the generators."""
    random.seed()
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()
    if "torch" in sys.modules:
        # Those of devices do not exist yet: they are made, and seeded, when CUDA starts.
        sys.modules["torch"].default_generator.seed()


def _keep_what_is_shared() -> None:
    """Finalizers of objects that imports made (a temporary folder) are not a job's to run at exit."""
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False
    if "torch._dynamo.utils" in sys.modules and "TORCH_LOGS" not in os.environ:
        # It gathers compile times at exit for a log that nobody asked for, in 2000 pages of its own.
        atexit.unregister(sys.modules["torch._dynamo.utils"].dump_compile_times)


def main(control: socket.socket, modules: Sequence[str]) -> tuple[list[str], Unpacked, Any] | None:
    """Serve until the controller goes (None), or return as a job: what `job_process` wants."""
    begin = time.monotonic()
    environment = dict(os.environ)
    changed: dict[str, str | None]
    try:
        unpacked = preload(modules, sys.stdin.buffer.read())
        changed = {k: v for k, v in os.environ.items() if environment.get(k) != v}
        changed |= {k: None for k in environment.keys() - os.environ.keys()}
        from autocl_sweeper.job.running import settle_loggers  # Hydra is found only now

        _keep_what_is_shared()
        settle_loggers()
        gc.collect()
        gc.freeze()  # a collection in a job would write to, and so copy, all that is shared
        server = Server(control, unpacked, changed)
        server.tell(preloaded=", ".join(modules), seconds=time.monotonic() - begin)
    except (UnfitError, MissingError) as error:
        key = "missing" if isinstance(error, MissingError) else "unfit"
        what, because = error.args
        with suppress(OSError):
            control.sendall(json.dumps({key: what, "because": because}).encode() + b"\n")
        return None
    job = server.serve()
    return None if job is None else (job[0], unpacked, job[1])


if __name__ == "__main__":
    # Run as the importable module, so that nothing here is pickled as part of `__main__`.
    from autocl_sweeper.executor.process.forkserver import main as run

    job = run(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
    if job is None:
        os._exit(0)
    # At the top of the stack, as in a fresh interpreter: so an exit or a KeyboardInterrupt ends alike.
    hydra_job.job_process(job[0][0], job[0][1], unpacked=job[1], prepared=job[2])
