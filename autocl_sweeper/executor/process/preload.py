"""Importing what jobs share in the process they are forked from, and whether its forks are any good."""

from __future__ import annotations

import ctypes
import importlib
import os
import random
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from autocl_sweeper.device.probe import first_number
from autocl_sweeper.executor.process.groups import exit_reason
from autocl_sweeper.job.package import Opened, enter, opened, rehearse

# For that process alone; a job gets the environment of the controller.
WHILE_IMPORTING = {
    "OPENBLAS_NUM_THREADS": "1",  # else importing numpy starts threads, which a fork would lose
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # else asking torch for a GPU initialises CUDA
    # Else importing pyarrow (as pandas and scikit-learn's neighbours do) leaves jemalloc's thread.
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
THREAD_S = 1.0  # what a thread that an import started gets to end
PROBE_S = 20.0  # what a forked process gets to answer
CUDA_NOT_INITIALIZED = 3


class UnfitError(Exception):
    """Forks of this process would be worse than fresh interpreters: (for which import, why, module).

    `module` is the one to leave out of the preload; empty where the app itself is at fault.
    """


class MissingError(Exception):
    """A module to preload does not exist: (its name, why)."""


def preload(modules: Sequence[str], data: bytes) -> Opened:
    """Import all that jobs share, the user's program first. Raises UnfitError or MissingError."""
    known = set(os.listdir("/proc/self/fd"))
    with _importing("the app's own imports", known):
        flaw = enter(data)
        _note_seeds()
        package = opened(data, flaw)
    for name in modules:
        _one_torch_thread()
        with _importing(f"hydra.launcher.preload: {name}", known, name):
            importlib.import_module(name)
    rehearse()
    return package


@contextmanager
def _importing(what: str, known_fds: set[str], module: str = "") -> Iterator[None]:
    try:
        yield
    except BaseException as error:  # also what calls sys.exit when imported
        parents = [module[: m.start()] for m in re.finditer(r"\.|$", module)]
        because = f"{type(error).__name__}: {error}"
        if module and isinstance(error, ModuleNotFoundError) and error.name in parents:
            raise MissingError(module, because) from error
        traceback.print_exc()
        raise UnfitError(what, because, module) from error
    if flaw := _flaw_of_forks(known_fds):
        raise UnfitError(what, flaw, module)


def _flaw_of_forks(known_fds: set[str]) -> str:
    """What a forked job would suffer from; empty when it is as good as a fresh interpreter."""
    deadline = time.monotonic() + THREAD_S
    while (threads := _other_threads()) and time.monotonic() < deadline:
        time.sleep(0.02)
    if threads:
        return (
            f"it leaves {len(threads)} thread(s) running ({', '.join(threads)}); forked jobs would"
            " wait for them without end"
        )
    with suppress(ChildProcessError):
        if os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return "it leaves a child process running, which forked jobs would share"
    for fd in set(os.listdir("/proc/self/fd")) - known_fds:
        with suppress(OSError):  # the listing's own
            target = os.readlink(f"/proc/self/fd/{fd}")
            if target.startswith(("socket:", "pipe:")):
                return f"it leaves a {target.partition(':')[0]} open, which forked jobs would share"
    torch = sys.modules.get("torch")
    is_in_bad_fork = getattr(getattr(torch, "cuda", None), "_is_in_bad_fork", bool)
    if _cuda_is_initialised() or (answer := _in_a_fork(lambda: int(is_in_bad_fork()))) == 1:
        return "it initialises CUDA, which then fails in forked jobs"
    if answer is None:
        return "a forked process hangs"
    return "" if answer == 0 else f"a forked process dies ({exit_reason(answer)})"


def _other_threads() -> list[str]:
    """The names of all threads but this one, those of C code included."""
    pythons = {thread.native_id: thread.name for thread in threading.enumerate()}
    names = []
    for number in map(int, os.listdir("/proc/self/task")):
        if number != threading.get_native_id():
            with suppress(OSError):  # it ended
                comm = Path(f"/proc/self/task/{number}/comm").read_text().strip()
                names.append(pythons.get(number, comm))
    return names


def _cuda_is_initialised() -> bool:
    """Asked of the driver, as torch.cuda.is_initialized() does not know of all ways to do it."""
    with open("/proc/self/maps") as maps:
        found = re.search(r"/\S*libcuda\.so\S*", maps.read())
    if not found:
        return False
    count = ctypes.c_int()
    answer: int = ctypes.CDLL(found[0]).cuDeviceGetCount(ctypes.byref(count))
    return answer != CUDA_NOT_INITIALIZED


def _in_a_fork(function: Callable[[], int]) -> int | None:
    """Its answer there, 0 to 255; 2 where it fails; None: it hangs. It ends without any clean-up."""
    pid = os.fork()
    if pid == 0:
        status = 2
        try:
            status = function()
        finally:
            os._exit(status)
    deadline = time.monotonic() + PROBE_S
    while not (ended := os.waitpid(pid, os.WNOHANG))[0] and time.monotonic() < deadline:
        time.sleep(0.001)
    if not ended[0]:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return None
    return os.waitstatus_to_exitcode(ended[1])


# -- generators of random numbers -------------------------------------------------------------------


def _words_of_random() -> Any:
    """Python's generator but for its place in the current block: drawing a few numbers keeps it."""
    return random.getstate()[1][:-1]


_words = _words_of_random()
_seeded: dict[str, Any] = {}  # generators that the program has seeded at its top; Python's state


def _note_seeds() -> None:
    if _words_of_random() != _words:
        _seeded["random"] = random.getstate()
    numpy = sys.modules.get("numpy.random")
    # Numpy forgets where its global generator's state is from when it is seeded.
    if numpy is not None and numpy.get_bit_generator().seed_seq is None:
        _seeded["numpy"] = None
    # An unseeded torch takes 64 random bits; seeds that people write are smaller.
    if "torch" in sys.modules and sys.modules["torch"].initial_seed() < 2**32:
        _seeded["torch"] = None


def reseed() -> None:
    """All forks inherit the state of the generators: those that nobody seeded start anew."""
    # Python seeds its own anew in each fork.
    if "random" in _seeded:
        random.setstate(_seeded["random"])
    if "numpy" not in _seeded and "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()
    if "torch" not in _seeded and "torch" in sys.modules:
        # Those of devices do not exist yet: they are made, and seeded, when CUDA starts.
        sys.modules["torch"].default_generator.seed()


# -- threads of numerical libraries ------------------------------------------------------------------


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
    libraries = [ctypes.CDLL(path) for path in sorted(paths)]
    names = [f"{p}openblas_set_num_threads{s}" for p in ("", "scipy_") for s in ("", "64_")]
    found = (getattr(library, name, None) for library in libraries for name in names)
    return [setter for setter in found if setter is not None]


class BlasThreads:
    """The thread pools of OpenBLAS: one thread in the forkserver, in jobs as many as they would have.

    OpenBLAS ends its pool before a fork and starts it again, as large, at the fork's first need. So
    the size is set here, before: to set it in a job starts threads there, which spin for 100 ms.
    """

    def __init__(self) -> None:
        self._setters = _openblas_setters()
        self._size = 1
        self._ends_at_forks = _in_a_fork(self._is_alone_after_fork) == 0

    def before_fork(self) -> None:
        if self._ends_at_forks:
            self.in_fork()

    def in_fork(self) -> None:
        omp = first_number("OMP_NUM_THREADS", os.environ)
        cores = len(os.sched_getaffinity(0))
        size = first_number("OPENBLAS_NUM_THREADS", os.environ) or omp or cores
        if size != self._size:
            self._size = size
            for set_num_threads in self._setters:
                set_num_threads(size)

    def _is_alone_after_fork(self) -> int:
        for set_num_threads in self._setters:
            set_num_threads(2)
        _in_a_fork(int)
        return len(os.listdir("/proc/self/task")) - 1


def restore_torch_threads() -> None:
    """As many as a fresh interpreter would have in this environment."""
    torch = sys.modules.get("torch")
    threads = first_number("OMP_NUM_THREADS", os.environ) or _torch_threads
    if torch is not None and threads:
        torch.set_num_threads(threads)
