"""Running a composed job in its process: Hydra's `run_job` at a fraction of its price.

Between a job's start and the user's first line Hydra copies the configuration five times, node by
node, writes it as YAML in pure Python, and has logging visit every logger of every imported package.
Here all that the configuration alone decides is found in advance (`prepare`), in the process that
jobs are forked from where there is one; the rest is Hydra's own code, in which a few names mean
something faster with the same outcome. In a forked process that is memory too: pages that are never
visited stay shared.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any

import hydra.core.utils as hydra_utils
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf._utils import get_omega_conf_dumper
from omegaconf.basecontainer import BaseContainer

from autocl_sweeper.job.composition import calling, copies

FOLDER, SUBFOLDER = "hydra.sweep.dir", "hydra.sweep.subdir"
# Whoever asks a resolver of Hydra or OmegaConf gets the same answer; others are the app's code.
OMEGACONFS = "oc."
HYDRAS = {
    "now",
    "hydra",
    "python_version",
    "hydra_override_dirname",
    "hydra_deprecated_override_dirname",
}


# -- in advance -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prepared:
    """A job's configuration, and what follows from it."""

    new: Callable[[], DictConfig]  # makes copies of it
    folders: Mapping[str, str]  # the keys of the output folder -> what they come to
    job_logging: Any  # `hydra.job_logging`, resolved
    texts: Mapping[str, str]  # files below `hydra.output_subdir` -> their YAML

    @property
    def output_dir(self) -> Path:
        return Path(*self.folders.values()).absolute()


def prepare(config: Any, number: int, ahead: bool = False) -> Prepared:
    """Make a composed configuration that of job `number`; `ahead`: in a process that is not the job's.

    Raises what OmegaConf does, also when `ahead` needs a resolver of the app.
    """
    singleton: Any = HydraConfig.instance()
    before = singleton.cfg
    with open_dict(config):
        config.hydra.job.id = str(number)
        config.hydra.job.num = number
    OmegaConf.set_readonly(config.hydra, True)
    # `${hydra:...}` in the folder's name means this job, not the configuration of the sweep.
    singleton.cfg = config
    try:
        with _asking_no_app(ahead):
            folders = {key: str(OmegaConf.select(config, key)) for key in (FOLDER, SUBFOLDER)}
            with read_write(config.hydra.runtime), open_dict(config.hydra.runtime):
                output_dir = os.path.abspath(os.path.join(*folders.values()))
                config.hydra.runtime.output_dir = output_dir
            job_logging = config.hydra.job_logging
            if job_logging is not None:
                job_logging = OmegaConf.to_container(job_logging, resolve=True)
    finally:
        singleton.cfg = before
    new = copies(config)
    texts = {}
    if "${" not in str(config.hydra.job.env_set):  # Hydra 1.4 resolves these, and writes the result
        task = new()
        with open_dict(task):
            del task["hydra"]
        texts["config.yaml"] = to_yaml(task)
        texts["hydra.yaml"] = to_yaml(_alone(new()))
        texts["overrides.yaml"] = to_yaml(config.hydra.overrides.task)
    return Prepared(new, folders, job_logging, texts)


@contextmanager
def _asking_no_app(guarded: bool) -> Iterator[None]:
    """Have resolvers fail that the app has registered: they may start what no fork survives."""
    resolvers = BaseContainer._resolvers
    apps = {
        name: resolver
        for name, resolver in resolvers.items()
        if name not in HYDRAS and not name.startswith(OMEGACONFS)
    }

    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a resolver of the app is asked in the job's process")

    if guarded:
        resolvers |= dict.fromkeys(apps, refuse)
    try:
        yield
    finally:
        resolvers |= apps


# -- Hydra's function ---------------------------------------------------------------------------------


def run_job(hydra_context: Any, task_function: Any, prepared: Prepared) -> Any:
    """The JobReturn of a sweep's job, as `hydra.core.utils.run_job` gives it. Raises what that does."""
    config = prepared.new()
    return _faster(config, prepared)(
        hydra_context=hydra_context,
        task_function=task_function,
        config=config,
        job_dir_key=FOLDER,
        job_subdir_key=SUBFOLDER,
    )


def _faster(config: DictConfig, prepared: Prepared) -> Any:
    """Hydra's function with our leaves, or, where it does not use them as we know it, as it is."""
    outer: Any = hydra_utils.run_job
    inner: Any = getattr(hydra_utils, "_run_job", outer)  # since 1.4 there are two
    installing = _Installing(prepared)

    def deepcopy(node: Any) -> Any:
        if node is config:
            return prepared.new()
        if node is installing.cfg and prepared.texts:
            return _alone(prepared.new())
        return copy.deepcopy(node)

    def save_config(node: Any, filename: str, output_dir: Path) -> None:
        output_dir.mkdir(parents=True, exist_ok=True)
        text = prepared.texts.get(filename) or to_yaml(node)
        (output_dir / filename).write_text(text, encoding="utf-8")

    leaves = {
        "HydraConfig": SimpleNamespace(instance=lambda: installing),
        "OmegaConf": type(
            "OmegaConf", (OmegaConf,), {"select": lambda _, key: prepared.folders[key]}
        ),
        "copy": SimpleNamespace(deepcopy=deepcopy),
        "_save_config": save_config,
        "configure_log": _configure_log(prepared.job_logging),
    }
    if not all(isinstance(function, FunctionType) for function in (outer, inner)):
        return outer
    if not leaves.keys() <= set(inner.__code__.co_names):
        return outer
    faster = calling(inner, **leaves)
    return faster if inner is outer else calling(outer, _run_job=faster)


class _Installing:
    """The singleton HydraConfig as `run_job` uses it: without its own, slower copies."""

    def __init__(self, prepared: Prepared) -> None:
        self._real: Any = HydraConfig.instance()
        self._prepared = prepared

    @property
    def cfg(self) -> Any:
        return self._real.cfg

    @cfg.setter
    def cfg(self, config: Any) -> None:
        self._real.cfg = config

    def set_config(self, config: DictConfig) -> None:
        hidden = _alone(self._prepared.new())
        hidden.hydra._set_parent(config)
        self.cfg = hidden


def _alone(config: DictConfig) -> DictConfig:
    """A configuration of nothing but its `hydra` node, which changes hands."""
    alone = DictConfig({})
    node = config.__dict__["_content"]["hydra"]
    alone.__dict__["_content"]["hydra"] = node
    node._set_parent(alone)
    return alone


# -- YAML -------------------------------------------------------------------------------------------


def to_yaml(config: Any) -> str:
    """`OmegaConf.to_yaml`, with libyaml in place of PyYAML's own emitter, as OmegaConf 2.4 has it."""
    import yaml

    slow: Any = get_omega_conf_dumper()
    c_dumper = getattr(yaml, "CDumper", None)
    if c_dumper is None or issubclass(slow, c_dumper):
        return OmegaConf.to_yaml(config)
    names = ("yaml_representers", "yaml_multi_representers", "yaml_implicit_resolvers")
    text: str = yaml.dump(
        OmegaConf.to_container(config, resolve=False, enum_to_str=True),
        Dumper=type("Dumper", (c_dumper,), {name: getattr(slow, name) for name in names}),
        default_flow_style=False,
        allow_unicode=True,
        sort_keys=False,
    )
    # Emoji, and keys with line breaks in them, it writes in another way.
    return OmegaConf.to_yaml(config) if "\\U" in text or "? " in text else text


# -- logging ----------------------------------------------------------------------------------------

_settled = 0  # so many loggers, the first in logging's own table, are as configuring leaves them
_filled: list[_Cache] = []


class _Cache(dict[int, bool]):
    """Of a logger, which levels it logs; it is noted when something comes in."""

    def __setitem__(self, level: int, logs: bool) -> None:
        if not self:
            _filled.append(self)
        super().__setitem__(level, logs)

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


def settle_loggers() -> None:
    """Before anything is forked: note the loggers that a job need not visit to configure logging."""
    global _settled
    manager = logging.root.manager
    everyone = manager.loggerDict
    settled = {name: one for name, one in everyone.items() if not getattr(one, "disabled", False)}
    manager.loggerDict = settled | everyone  # the others last
    for logger in settled.values():
        if isinstance(logger, logging.Logger):
            logger._cache = _Cache()  # type: ignore[attr-defined]
    _settled = len(settled)


def _configure_log(config: Any) -> Callable[..., None]:
    """Hydra's `configure_log` for a resolved configuration; it visits only loggers that it changes."""
    resolved = type("OmegaConf", (OmegaConf,), {"to_container": lambda *_, **__: config})
    hydras = calling(hydra_utils.configure_log, OmegaConf=resolved)
    roots_alone = config and not (
        config.get("loggers") or config.get("disable_existing_loggers", True)
    )

    def configure(*args: Any, **kwargs: Any) -> None:
        manager = logging.root.manager
        everyone = manager.loggerDict
        few = _Few(everyone, len(everyone) - _settled)
        manager.loggerDict = few
        try:
            hydras(*args, **kwargs)
        finally:
            everyone.update(few.items())
            manager.loggerDict = everyone
            while _filled:  # a level that was changed above may have changed what is logged
                _filled.pop().clear()

    return configure if _settled and roots_alone else hydras


class _Few(dict[str, Any]):
    """The last `count` of all loggers, and new ones. The others are found by name alone."""

    def __init__(self, everyone: dict[str, Any], count: int) -> None:
        super().__init__(islice(reversed(everyone.items()), count))
        self._everyone = everyone

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in self._everyone

    def __missing__(self, name: str) -> Any:
        return self._everyone[name]
