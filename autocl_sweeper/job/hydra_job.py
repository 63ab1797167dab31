"""One Hydra job: composed and run in its own process.

The controller packs once what every job shares (`Package`), a job process unpacks it, composes its
own configuration and runs it (`python -m autocl_sweeper.job.hydra_job`). Under other launchers the task
function itself tells its outcome (`ReportingTask`).
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.outcome import (
    LOG_NAME,
    JobFiles,
    failure,
    headline,
    link_log,
    outcome_of,
    write_whole,
)
from autocl_sweeper.types import Cause, Job

if TYPE_CHECKING:
    from autocl_sweeper.job.running import Prepared

GO = b"\n"  # what a job process reads from its stdin before it does anything
OOM_SCORE = "500"  # out of memory, the kernel takes a job before the controller or the user's shell


# -- composing --------------------------------------------------------------------------------------


def compose(hydra_context: Any, config: Any, overrides: Sequence[str]) -> Any:
    """The job's own DictConfig, as every Hydra launcher composes it. Raises Hydra's exceptions."""
    return hydra_context.config_loader.load_sweep_config(config, list(overrides))


def compose_task_config(
    hydra_context: Any,
    config: Any,
    overrides: Sequence[str],
    meant_for: str,
    check: Callable[[Any, str], None] | None = None,
) -> dict[str, Any]:
    """The flat configuration a job would get. Raises ConfigurationError where Hydra refuses it.

    check: the app's, of the composed configuration.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        composed = compose(hydra_context, config, overrides)
        flat = flat_task_config(composed)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigurationError(
            f"{meant_for} cannot be composed: {error}\n"
            f"  with: {' '.join(text for text in overrides if not text.startswith('hydra.'))}\n"
            "  Every key must exist in the app's configuration (prefix a new one with '+') and every"
            "\n  choice must name a file of its group. No job was started."
        ) from error
    if check is not None:
        check(composed, meant_for)
    return flat


def flat_task_config(composed: Any) -> dict[str, Any]:
    """Dotted key -> value as written, interpolations unresolved, without the `hydra` node."""
    from omegaconf import OmegaConf

    flat: dict[str, Any] = {}

    def walk(prefix: str, node: Any) -> None:
        if isinstance(node, dict) and node:
            for key, child in node.items():
                walk(f"{prefix}.{key}" if prefix else str(key), child)
        else:
            flat[prefix] = node

    tree = OmegaConf.to_container(composed, resolve=False, enum_to_str=True)
    assert isinstance(tree, dict)
    walk("", {key: node for key, node in tree.items() if key != "hydra"})
    # Bytes, paths, nan and inf are legal in a config and unknown to JSON: their text tells as much.
    return json.loads(json.dumps(flat, default=str), parse_constant=str) if flat else {}


# -- any launcher: the task function tells its own outcome -------------------------------------------


class Terminated(SystemExit):
    """SIGTERM to the controller. Under basic it comes up in the job, whose own exit it is not."""


class ReportingTask:
    """A task function that also writes its outcome file, whichever launcher runs it.

    What the function raises or returns passes through, as long as that harms no other job of the
    launcher: an exit, or in another process what cannot be pickled, becomes a RuntimeError.
    """

    def __init__(self, task_function: Callable[[Any], Any], controller: int | None = None) -> None:
        self.task_function = task_function
        self.controller = controller or os.getpid()
        self.__wrapped__ = task_function
        self.__module__ = task_function.__module__
        self.__name__ = getattr(task_function, "__name__", type(task_function).__name__)

    def __call__(self, config: Any) -> Any:
        from hydra.core.hydra_config import HydraConfig

        hydra = HydraConfig.get()
        number = int(hydra.job.num)
        # The job may have changed directory; `sweep.dir` may be relative to where Hydra started.
        files = JobFiles.of(Path(hydra.runtime.cwd) / hydra.sweep.dir)
        output_dir = Path(hydra.runtime.output_dir)
        elsewhere = os.getpid() != self.controller
        if elsewhere:
            _end_with_parent(self.controller)
            write_whole(files.begun(number), b"")
        start = time.monotonic()
        value: Any = None
        error: Exception | None = None
        try:
            value = self.task_function(config)
            outcome = outcome_of(value, output_dir, time.monotonic() - start)
        except Terminated:
            raise
        except SystemExit as left:
            outcome = failure(left, time.monotonic() - start, Cause.EXIT)
            outcome = replace(outcome, reason=_exit_text(left.code))
            error = RuntimeError(outcome.reason)
        except Exception as raised:
            outcome = failure(raised, time.monotonic() - start)
            error = portable(raised) if elsewhere else raised
        files.write_outcome(number, outcome)
        if error is None and elsewhere and (carried := portable(value)) is not value:
            error = carried
        if error is not None:
            raise error
        return value

    def __reduce__(self) -> tuple[Any, ...]:
        try:
            return _reporting_task, (
                _cloudpickle().dumps(self.task_function),
                None,
                self.controller,
            )
        except Exception as error:
            name = _importable_name(self.task_function, error)
            return _reporting_task, (None, name, self.controller)


def _reporting_task(
    pickled: bytes | None, name: tuple[str, str] | None, controller: int
) -> ReportingTask:
    if name is not None:
        return ReportingTask(_import_function(*name), controller)
    return ReportingTask(_cloudpickle().loads(pickled), controller)


def _exit_text(code: Any) -> str:
    if not code:
        return "exit status 0 before the task function returned"
    return f"exit status {code}" if isinstance(code, int) else f"exit status 1: {code}"


_following = False


def _end_with_parent(controller: int) -> None:
    """End this process when its parent does, if that is the controller of the sweep.

    A pool's workers go on with what is queued after their parent was killed: resuming would run
    the same trials beside them.
    """
    global _following
    if _following or os.getppid() != controller:
        return
    _following = True

    def follow() -> None:
        while os.getppid() == controller:
            time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=follow, name="follows-controller", daemon=True).start()


# -- our own job processes --------------------------------------------------------------------------


class Package:
    """What every job of a launcher shares, packed once for fresh interpreters.

    Two parts in one file, because the second cannot be read before the first is applied: where to
    import from (JSON, one line), then context, configuration, task function and Hydra's singletons.
    """

    def __init__(self, files: JobFiles, data: bytes, written: bool = False) -> None:
        self.files = files
        self.data = data
        # Not on disk before the first job: the folder may turn out to be another sweep's.
        self._written = written

    @classmethod
    def pack(cls, files: JobFiles, hydra_context: Any, config: Any, function: Any) -> Package:
        from hydra.core.singleton import Singleton

        header: dict[str, Any] = {
            "sys_path": [str(Path(entry).absolute()) for entry in sys.path],
            "cwd": os.getcwd(),
            "function": _wrapped_name(function),
        }
        dumps = _cloudpickle().dumps
        shared = (hydra_context, config, Singleton.get_state())
        try:
            body = dumps((*shared, None if header["function"] else function))
        except Exception as error:
            header["function"] = _importable_name(function, error)
            body = dumps((*shared, None))
        return cls(files, json.dumps(header).encode() + b"\n" + body)

    @classmethod
    def read(cls, files: JobFiles) -> Package:
        """The one that the controller of these files has written, perhaps on another machine."""
        return cls(files, files.package().read_bytes(), written=True)

    def write(self) -> None:
        if not self._written:
            write_whole(self.files.package(), self.data)
            self._written = True

    def argv(self, job: Job, returns: bool) -> list[str]:
        """The command of one job process; with `returns` it also leaves Hydra's JobReturn."""
        self.write()
        return command(__name__, *self.arguments(job, returns))

    def arguments(self, job: Job, returns: bool) -> list[str]:
        """What `job_process` is called with, also in a process that has the package already."""
        request = json.dumps({"number": job.number, "overrides": job.overrides, "returns": returns})
        path = self.files.folder / f"{job.number}.request"
        path.write_text(request, "utf-8", "surrogatepass")
        return [str(self.files.folder), str(path)]


_START = (
    "import runpy, sys; sys.path.insert(0, sys.argv.pop(1));"
    " runpy.run_module(sys.argv.pop(1), run_name='__main__')"
)


def command(module: str, *arguments: str) -> list[str]:
    """`python -m` for a module of ours, also where this package lies beside a script, not installed."""
    home = str(Path(__file__).resolve().parents[2])
    return [sys.executable, "-c", _START, home, module, *arguments]


def _cloudpickle() -> Any:
    try:
        import cloudpickle  # type: ignore[import-untyped]
    except ImportError:  # joblib before 1.6 carries its own copy instead of requiring the package
        from joblib.externals import cloudpickle  # type: ignore[import-untyped]
    return cloudpickle


Unpacked = tuple[Any, Any, Any]  # hydra_context, config, task_function


def unpack(data: bytes) -> Unpacked:
    """What a package holds, with Hydra's singletons installed."""
    header_line, _, body = data.partition(b"\n")
    header = json.loads(header_line)
    sys.path[:] = header["sys_path"]
    os.chdir(header["cwd"])
    context, config, singletons, function = _cloudpickle().loads(body)
    from hydra.core.singleton import Singleton
    from hydra.core.utils import setup_globals

    from autocl_sweeper.job.composition import remembering

    Singleton.set_state(singletons)
    setup_globals()
    if function is None:
        function = _import_function(*header["function"])
    # After the app's imports, which may have wrapped Hydra's composition.
    context = replace(context, config_loader=remembering(context.config_loader))
    return context, config, function


def _wrapped_name(function: Any) -> tuple[str, str] | None:
    """Where to find a function that `@hydra.main` has wrapped in a module; None: not in this way.

    Its module has another object under its name, so it would be pickled with the globals it uses, and
    jobs would not import the module: what it registers for composing would be missing in them.
    """
    name = getattr(function, "__qualname__", "")
    module = sys.modules.get(function.__module__) if function.__module__ != "__main__" else None
    wrapped = getattr(getattr(module, name, None), "__wrapped__", None)
    return (function.__module__, name) if wrapped is function else None


def _importable_name(function: Any, error: Exception) -> tuple[str, str]:
    """Where to find a function that cannot be pickled for `error`: (module or main file, name).

    That error is usually a lock or an open file among the globals the function uses. Raises
    ConfigurationError where importing cannot find the function either.
    """
    name = getattr(function, "__qualname__", ".")
    module = function.__module__
    if module == "__main__":
        module = getattr(sys.modules["__main__"], "__file__", None)
        module = module and str(Path(module).absolute())
    if not module or "." in name:
        raise ConfigurationError(
            f"The task function {function!r} cannot be sent to a job process: {error}.\n"
            "  It is pickled with the globals it uses, and one of them cannot be.\n"
            "  Make that object inside the function, or move the function to the top of a file."
        ) from error
    return module, name


def _import_function(module: str, name: str) -> Any:
    """The user's task function; a main file runs under another name than `__main__`."""
    if os.path.isabs(module):
        import runpy

        function = runpy.run_path(module, run_name="__mp_main__")[name]
    else:
        function = getattr(importlib.import_module(module), name)
    return getattr(function, "__wrapped__", function)


def rehearse(unpacked: Unpacked) -> None:
    """What the parsers, OmegaConf and others learn the first time; better once than in every job."""
    from omegaconf import OmegaConf

    from autocl_sweeper.job.running import prepare

    with suppress(ImportError):  # what Hydra itself imports in a job only; older lines lack it
        importlib.import_module("hydra._internal.logging_config")
    values: tuple[Any, ...] = (None, 1, 1.0, "", [])
    for value in values:
        outcome_of(value, Path(os.devnull), 0.0)
    context, config, _ = unpacked
    # Not the app's own interpolations: those may run code that only a job should.
    texts = {"a": "${now:%Y-%m-%d}/${b}/${c.d}", "b": "${oc.env:HOME,x}", "c": {"d": 1}}
    with suppress(Exception):  # an app may need overrides to compose; jobs bring them
        OmegaConf.to_container(OmegaConf.create(texts), resolve=True)
        prepare(compose(context, config, []), 0, ahead=True).new()


def prepare_ahead(unpacked: Unpacked, request_path: str) -> Prepared | None:
    """The configuration of a requested job, for a process that is about to be forked.

    None where the job has to compose it: what is wrong with it is told there.
    """
    from autocl_sweeper.job.running import prepare

    context, master, _ = unpacked
    try:
        request = json.loads(Path(request_path).read_text("utf-8", "surrogatepass"))
        return prepare(compose(context, master, request["overrides"]), request["number"], True)
    except Exception:
        return None


def job_process(
    folder: str,
    request_path: str,
    unpacked: Unpacked | None = None,
    prepared: Prepared | None = None,
) -> NoReturn:
    """The life of a job process, from the controller's word to its end."""
    if os.read(0, len(GO)) != GO:
        raise SystemExit("the controller died before it knew this job")
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write(OOM_SCORE)
    run_job_process(Path(folder), Path(request_path), unpacked, prepared)
    # The result is on disk. Tearing down an interpreter that holds torch takes about a second;
    # waiting for the user's threads and exit hooks is all of it that anybody needs.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def run_job_process(
    folder: Path,
    request_path: Path,
    unpacked: Unpacked | None = None,
    prepared: Prepared | None = None,
) -> None:
    """Compose and run one job in this process; leave its outcome and, if asked, its JobReturn.

    `unpacked`, `prepared`: the package and the configuration, where the process has them already.
    """
    start = time.monotonic()
    files = JobFiles(folder)
    request = json.loads(request_path.read_text("utf-8", "surrogatepass"))
    request_path.unlink()
    number, overrides = int(request["number"]), request["overrides"]
    job_return: Any = None
    try:
        context, master, function = unpacked or unpack(files.package().read_bytes())
        from autocl_sweeper.job.running import prepare, run_job

        if prepared is None:
            prepared = prepare(compose(context, master, overrides), number)
        output_dir = prepared.output_dir
        _claim_folder(output_dir, files.log(number))
        files.output(number).write_text(str(output_dir), "utf-8", "surrogateescape")
    except Exception as error:
        traceback.print_exc()
        outcome = failure(error, time.monotonic() - start, Cause.CONFIGURATION)
        job_return = _failed_return(overrides, error)
    else:
        from hydra.core.utils import JobStatus

        job_return = run_job(context, function, prepared)
        seconds = time.monotonic() - start
        value = job_return._return_value
        if job_return.status is JobStatus.COMPLETED:
            outcome = outcome_of(value, output_dir, seconds)
        else:
            traceback.print_exception(value)
            outcome = failure(value, seconds)
    sys.stdout.flush()
    sys.stderr.flush()
    if request["returns"]:
        _write_return(files.job_return(number), job_return)
    files.write_outcome(number, outcome)


def _claim_folder(output_dir: Path, log: Path) -> None:
    """Make the job's folder and link the running log into it; an earlier log there is kept."""
    output_dir.mkdir(parents=True, exist_ok=True)
    target = output_dir / LOG_NAME
    if target.exists():
        taken = sum(1 for _ in output_dir.glob(f"{LOG_NAME}.*"))
        os.replace(target, output_dir / f"{LOG_NAME}.{taken + 1}")
    link_log(log, target)


def _failed_return(overrides: Sequence[str], error: BaseException) -> Any:
    from hydra.core.utils import JobReturn, JobStatus, filter_overrides

    return JobReturn(
        overrides=list(filter_overrides(overrides)), status=JobStatus.FAILED, _return_value=error
    )


def _write_return(path: Path, job_return: Any) -> None:
    """Pickle a JobReturn, replacing a value that does not survive the round trip by its story."""
    value = job_return._return_value
    if isinstance(value, BaseException):
        # Hydra 1.3 loses the traceback of another process: carry it as text.
        value.__notes__ = [*getattr(value, "__notes__", []), traceback_text(value)]
    job_return._return_value = portable(value)
    if job_return._return_value is not value:
        from hydra.core.utils import JobStatus

        job_return.status = JobStatus.FAILED
    # Not to last: who reads it is the controller that started the job, after the outcome is there.
    path.write_bytes(_cloudpickle().dumps(job_return))


def portable(value: Any) -> Any:
    """`value`, or a RuntimeError that tells its story when it does not survive pickling."""
    try:
        _cloudpickle().loads(_cloudpickle().dumps(value))
    except Exception as error:
        if isinstance(value, BaseException):
            return RuntimeError(f"{headline(value)}\n{traceback_text(value)}")
        return RuntimeError(f"the returned {type(value).__name__} cannot be pickled: {error!r}")
    return value


def traceback_text(error: BaseException) -> str:
    return "in the job process:\n" + "".join(traceback.format_exception(error)).rstrip()


def read_return(path: Path) -> Any:
    """The JobReturn that a job of ours just wrote; nothing else is ever unpickled."""
    return _cloudpickle().loads(path.read_bytes())


if __name__ == "__main__":
    # Run as the importable module, so that nothing here is pickled as part of `__main__`.
    from autocl_sweeper.job.hydra_job import job_process as run

    run(sys.argv[1], sys.argv[2])
