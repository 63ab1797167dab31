"""A job that is prepared and run by us is what Hydra's own `run_job` makes of it: that is the oracle."""

from __future__ import annotations

import copy
import logging
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from inspect import unwrap
from pathlib import Path
from types import FunctionType
from typing import Any

import hydra.core.utils as hydra_utils
import pytest
from hydra import __version__ as HYDRA
from hydra import initialize
from hydra._internal.callbacks import Callbacks
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from hydra.types import HydraContext, RunMode
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import MISSING, OmegaConf, open_dict
from test_composition import described as nodes

from autocl_sweeper.job import running
from autocl_sweeper.job.composition import remembering


def described(config: Any) -> list[str]:
    """A line a node; nan is nan."""
    return [str(part) for part in nodes(config)]


class Color(Enum):
    RED = 1


@dataclass
class Inner:
    color: Color = Color.RED
    sizes: list[int] = field(default_factory=lambda: [1, 2])
    path: Path = Path("a/b")
    needed: str = MISSING


@dataclass
class App:
    seed: int = 0
    inner: Inner = field(default_factory=Inner)
    name: str = "${hydra:job.num}-${seed}"
    text: Any = "caf\u00e9 \U0001f600: yes"
    blob: Any = b"\x00\xff"
    numbers: Any = field(default_factory=lambda: [float("nan"), 1e-05, "1e-5", "0x1", None, "null"])
    open: Any = field(default_factory=dict)


@pytest.fixture(scope="module")
def app() -> Iterator[None]:
    ConfigStore.instance().store("running_app", node=App)
    version: dict[str, Any] = {"version_base": None} if HYDRA.startswith("1.3.") else {}
    with initialize(config_path=None, **version):
        setup_globals()
        yield
    ConfigStore.instance().repo.pop("running_app.yaml")


def composed(folder: Path, *overrides: str) -> Any:
    """A job's configuration, as a launcher gets it; what `now` says is settled in it."""
    loader = remembering(GlobalHydra.instance().config_loader())
    where = [f"hydra.sweep.dir={folder}/jobs", "hydra.job.name=app"]
    master = loader.load_configuration("running_app", where, RunMode.MULTIRUN)
    assert master.hydra.sweep.dir
    config = loader.load_sweep_config(master, list(overrides))
    return config


def in_a_fork(function: Callable[[], Any]) -> Any:
    """What it returns there: logging, folders and singletons of this process stay as they are."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        try:
            answer = function()
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        with os.fdopen(writer, "wb") as file:
            file.write(pickle.dumps(answer))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        answer = pickle.load(file)
    os.waitpid(pid, 0)
    return answer


LOGGERS = ["lib", "lib.a", "lib.off", "lib.late", "lib.set", "other"]


def loggers_of_imports() -> None:
    for name in LOGGERS:
        if name != "lib.late":
            logging.getLogger(name).isEnabledFor(logging.INFO)  # which it then remembers
    logging.getLogger("lib.off").disabled = True
    logging.getLogger("lib.set").setLevel(logging.ERROR)


def seen_by_the_user(config: Any) -> dict[str, Any]:
    logging.getLogger("lib.a").info("said in a job")
    logging.getLogger("lib.late").debug("said in a job, for those who look closely")
    hidden: Any = HydraConfig.instance().cfg
    return {
        "config": described(config),
        "hydra": described(hidden),
        "root of hydra": list(hidden.hydra._get_root()),
        "resolved": OmegaConf.to_yaml(hidden.hydra.sweep, resolve=True),
        "name": config.name,
        "cwd": os.getcwd(),
        "environment": os.environ.get("FROM_CONFIG"),
        "handlers": [
            (type(h).__name__, getattr(h, "baseFilename", ""), h.level, h.formatter._fmt)
            for h in logging.root.handlers
        ],
        "loggers": [
            (one.name, one.level, one.disabled, one.propagate, len(one.handlers),
             [one.isEnabledFor(level) for level in (10, 20, 30, 40)])
            for one in map(logging.getLogger, LOGGERS)
        ],
    }  # fmt: skip


class Watching:
    """Callbacks as Hydra calls them."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_job_start(self, config: Any, **_: Any) -> None:
        self.seen += ["start", described(config)]

    def on_job_end(self, config: Any, job_return: Any, **_: Any) -> None:
        self.seen += ["end", described(config), str(job_return.status)]


def outcome(run: Callable[[HydraContext, Callable[[Any], Any]], Any], folder: Path) -> Any:
    loggers_of_imports()
    watching = Watching()
    callbacks = Callbacks()
    callbacks.callbacks = [watching]  # type: ignore[list-item]
    context = HydraContext(
        config_loader=GlobalHydra.instance().config_loader(), callbacks=callbacks
    )
    seen: list[Any] = []

    def task(config: Any) -> float:
        seen.append(seen_by_the_user(config))
        if config.seed < 0:
            raise ValueError(f"seed={config.seed}")
        return float(config.seed)

    job_return = run(context, task)
    logging.shutdown()
    files = {
        str(path.relative_to(folder)): (path.read_text() if path.suffix == ".yaml" else
                                        path.read_text().count("said in a job"))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }  # fmt: skip
    return {
        "seen": seen,
        "callbacks": watching.seen,
        "files": files,
        "cfg": described(job_return.cfg),
        "hydra_cfg": described(job_return.hydra_cfg),
        "overrides": job_return.overrides,
        "value": repr(job_return._return_value),
        "facts": (job_return.working_dir, job_return.task_name, str(job_return.status)),
        "cwd afterwards": os.getcwd(),
        "cfg afterwards": HydraConfig.instance().cfg is None,
    }


def by_hydra(config: Any, folder: Path) -> Any:
    with open_dict(config):
        config.hydra.job.id = "7"
        config.hydra.job.num = 7
    HydraConfig.instance().cfg = None
    return outcome(
        lambda context, task: hydra_utils.run_job(
            hydra_context=context,
            task_function=task,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        ),
        folder,
    )


def by_us(config: Any, folder: Path, forked: bool) -> Any:
    HydraConfig.instance().cfg = None
    if forked:
        loggers_of_imports()
        running.settle_loggers()
    prepared = running.prepare(config, 7, ahead=forked)
    return outcome(lambda context, task: running.run_job(context, task, prepared), folder)


JOBS = {
    "with the defaults": [],
    "with values of its own": ["seed=3", "+open.x={a: [1, '${seed}']}", "inner.sizes=[]"],
    "whose function raises": ["seed=-1"],
    "with a folder of its own name": ["seed=5", "hydra.sweep.subdir=${name}/${hydra:job.id}"],
    "in its own folder": ["hydra.job.chdir=true"],
    "without files of Hydra": ["hydra.output_subdir=null"],
    "with an environment": ["+hydra.job.env_set.FROM_CONFIG=${hydra.job.num}"],
    "with an environment of plain text": ["+hydra.job.env_set.FROM_CONFIG=plain"],
    "that is verbose": ["hydra.verbose=true"],
    "where two loggers are verbose": ["hydra.verbose=[lib.a,lib.late]"],
    "with no logging": ["hydra/job_logging=none"],
    "with logging disabled": ["hydra/job_logging=disabled"],
    "with logging to stdout": ["hydra/job_logging=stdout"],
    "with other loggers off": ["hydra.job_logging.disable_existing_loggers=true"],
    "with a logger of its own": ["+hydra.job_logging.loggers={lib: {level: DEBUG}}"],
    "with loud logging": ["hydra.job_logging.root.level=DEBUG"],
}


@pytest.mark.parametrize("overrides", JOBS.values(), ids=JOBS.keys())
def test_a_job_sees_and_leaves_what_it_does_under_hydras_own_function(
    app: None, tmp_path: Path, overrides: list[str]
) -> None:
    config = composed(tmp_path, *overrides)
    expected = in_a_fork(lambda: by_hydra(copy.deepcopy(config), tmp_path))
    assert isinstance(expected, dict), expected
    for forked in (True, False):
        shutil.rmtree(tmp_path / "jobs")
        found = in_a_fork(partial(by_us, copy.deepcopy(config), tmp_path, forked))
        assert isinstance(found, dict), found
        for name, value in expected.items():
            assert found[name] == value, name


def test_the_names_that_mean_something_else_are_those_that_hydras_function_uses() -> None:
    """Else every job would be run by Hydra's function as it is: right, and slow."""
    inner: Any = getattr(hydra_utils, "_run_job", hydra_utils.run_job)
    uses = set(unwrap(inner).__code__.co_names)
    assert isinstance(inner, FunctionType)
    assert uses >= {"HydraConfig", "OmegaConf", "copy", "_save_config", "configure_log"}


def test_a_function_of_hydra_that_works_in_another_way_is_left_alone(
    app: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []

    def another(**arguments: Any) -> str:
        called.extend(arguments)
        return "its answer"

    for name in ("run_job", "_run_job"):
        monkeypatch.setattr(hydra_utils, name, another, raising=False)
    prepared = running.prepare(composed(tmp_path), 0)
    assert running.run_job(None, None, prepared) == "its answer"
    assert "job_subdir_key" in called


def test_a_resolver_of_the_app_is_asked_in_the_job_alone(app: None, tmp_path: Path) -> None:
    asked: list[int] = []

    def mine() -> str:
        asked.append(1)
        return "here"

    older = HYDRA.startswith("1.3.")
    register = OmegaConf.register_new_resolver if older else OmegaConf.register_resolver
    register("mine", mine)
    try:
        config = composed(tmp_path, "hydra.sweep.subdir='${mine:}'")
        with pytest.raises(Exception, match="a resolver of the app"):
            running.prepare(copy.deepcopy(config), 0, ahead=True)
        assert asked == []
        assert running.prepare(config, 0).output_dir == tmp_path / "jobs" / "here"
    finally:
        OmegaConf.clear_resolver("mine")


KEYS = st.text(min_size=1, max_size=150)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.binary(max_size=20),
    st.text(max_size=200),
    st.text(alphabet="ab :#-{}[]'\"\n\t,&*!|>%@`?.0e1~\\U", max_size=200),
)
TREES = st.recursive(
    SCALARS, lambda t: st.lists(t, max_size=4) | st.dictionaries(KEYS, t, max_size=4), max_leaves=12
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(KEYS, TREES, max_size=4))
def test_yaml_of_a_configuration_is_that_of_omegaconf(tree: dict[str, Any]) -> None:
    try:
        config = OmegaConf.create(tree)
        expected = OmegaConf.to_yaml(config)
    except Exception:
        return  # nothing that OmegaConf can hold, or write
    assert running.to_yaml(config) == expected
