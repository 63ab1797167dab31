"""Between Hydra's sweeper class and the core: run a whole sweep."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.utils import get_method
from omegaconf import DictConfig, OmegaConf

from autocl_sweeper.display.dry_run import print_plan
from autocl_sweeper.display.progress import watch
from autocl_sweeper.display.screen import patient_screen, screen
from autocl_sweeper.display.summary import print_best, print_summary
from autocl_sweeper.errors import AutoCLError, ConfigurationError
from autocl_sweeper.executor.batches import BatchExecutor
from autocl_sweeper.executor.local import LocalExecutor
from autocl_sweeper.executor.ray.cluster import RayExecutor
from autocl_sweeper.export.exporter import Exporter
from autocl_sweeper.export.places import places_of
from autocl_sweeper.export.rows import described
from autocl_sweeper.folder import folder_errors
from autocl_sweeper.hydra_launch import errors_for_hydra, job_return_of, plain, signals_stop_it
from autocl_sweeper.job.compose import Check, Composer, flat_configuration
from autocl_sweeper.journal import NAME, read
from autocl_sweeper.order import work_of
from autocl_sweeper.outcome import JobFiles, write_whole
from autocl_sweeper.overview import look
from autocl_sweeper.plan import Plan, Settings, make_plan
from autocl_sweeper.plan.memory import MemoryChecks
from autocl_sweeper.plan.migration import Registered, translated
from autocl_sweeper.plan.rounds import BEAM
from autocl_sweeper.plan.spaces import flat_keys
from autocl_sweeper.protocols import Executor
from autocl_sweeper.rounds.watch import RoundsProgress
from autocl_sweeper.space import bare
from autocl_sweeper.sweep.loop import Sweep
from autocl_sweeper.sweep.progress import Progress
from autocl_sweeper.types import Job, Outcome
from autocl_sweeper.yaml.layers import below_files
from autocl_sweeper.yaml.origins import layers_of, sets
from autocl_sweeper.yaml.snapshot import Snapshot, install

log = logging.getLogger(__name__)

DEFAULT_SUBDIR = "${hydra.job.num}"
SEEN = "seen_tasks"  # handed over unasked to an app that has this key


def run_sweep(
    settings: Mapping[str, Any],
    arguments: Sequence[str],
    hydra_context: Any,
    config: DictConfig,
    launcher: Any,
) -> Any:
    """The whole of `AutoCLSweeper.sweep`.

    Returns the best chain as in optimization_results.yaml's `chain`; without a sequence, Hydra's
    JobReturns in batches, as its basic sweeper does.
    """
    # All that composes from here on, jobs included, reads the files as they are now.
    sources = config.hydra.runtime.config_sources
    snapshot = Snapshot([source.path for source in sources if source.schema == "file"])
    with patient_screen(), errors_for_hydra(config.hydra), signals_stop_it(), install(snapshot):
        memory = MemoryChecks()
        plan = _plan(settings, arguments, hydra_context.config_loader, config, memory)
        folder = Path(str(config.hydra.sweep.dir)).absolute()
        snapshot.complete(folder)
        name, groups = config.hydra.job.config_name or "", config.hydra.runtime.choices
        for sentence in below_files(name, arguments, groups, snapshot.text):
            log.warning(sentence)
        if plan.settings.dry_run:
            print_plan(plan, folder, _edited(folder, snapshot), screen())
            return None
        exporter = _exporter(plan, folder)
        files = JobFiles.of(folder)
        streams = hasattr(launcher, "executor")
        launching = launcher.settings if streams else {}
        if retries := launching.get("retries"):
            raise ConfigurationError(
                f"hydra.launcher.retries={retries}, but this sweeper decides itself"
                " what runs again.\n  The launcher's retries are for other sweepers. Set"
                f" hydra.sweeper.retries={retries}\n  (and"
                " hydra.sweeper.retry_delay_s) instead. No job was started."
            )
        if plan.pruning is not None and not streams:
            raise ConfigurationError(
                f"hydra.sweeper.prune={plan.settings.prune!r} ends jobs early, which"
                f" {type(launcher).__name__} cannot do: it runs batches to their end.\n"
                "  Set hydra/launcher=gpu (also on machines without a GPU) or hydra/launcher=ray, or"
                " hydra.sweeper.prune=null.\n  No job was started."
            )
        # A batch cannot be ended before its time, and its last job is what the stage waits for.
        pipeline = plan.settings.pipeline and streams
        strategy = plan.strategy.scheduled(pipeline, work_of(launching, plan.configs))
        plan = replace(plan, strategy=strategy)
        memory.refuse_unknown(launching.get("memory_keys"))
        executor: Executor
        if streams:
            executor = launcher.executor(returns=not plan.ranked, files=files)
        else:
            executor = BatchExecutor(launcher, files, _batch_size(plan, launcher))
        with folder_errors(folder), closing(exporter), closing(executor):
            if isinstance(executor, LocalExecutor):
                memory.refuse_budgets(executor.pool.refuse_budget)
            progress: Progress = watch(executor)
            if plan.settings.parents != BEAM:
                progress = RoundsProgress(watch(executor), folder)
            sweep = Sweep(folder, plan, executor, files, progress, snapshot, exporter=exporter)
            learn_from(sweep.known_jobs(), executor)
            if not (folder / "multirun.yaml").exists():
                text = OmegaConf.to_yaml(config)
                write_whole(folder / "multirun.yaml", text.encode("utf-8", "backslashreplace"))
            try:
                history = sweep.run()
            except BaseException:
                log.info("The sweep stopped. To continue it: hydra.sweep.dir='%s'", folder)
                _report(plan, folder)
                raise
        _report(plan, folder)
        in_rounds = plan.settings.parents != BEAM and len(plan.tasks) < 2  # shown as they ended
        if plan.ranked and not in_rounds:
            print_summary(plan, history, folder, screen())
        if not plan.tasks and plan.settings.parents == BEAM:
            print_best(plan, history, folder, screen())
        if sweep.stopped is not None:
            log.warning(
                "The budget is used up: %s. Stage %d of %d is open; to go on, run the same command"
                " with a larger hydra.sweeper.budget and hydra.sweep.dir='%s'.",
                sweep.stopped, history.open_stage, len(plan.stages), folder,
            )  # fmt: skip
        if not plan.ranked:
            return _batches(sweep.outcomes, plan.settings)
        return sweep.best_chain()


def _report(plan: Plan, folder: Path) -> None:
    """Write report.html where the sweep asks for it. What goes wrong with it is no failure of the sweep."""
    if not plan.settings.report:
        return
    from autocl_sweeper.page.document import write

    try:
        log.info("report: '%s'", write(look(folder)))
    except Exception as error:
        log.warning("no report.html: %s\n  To try again: autocl report '%s'", error, folder)


def _edited(folder: Path, snapshot: Snapshot) -> list[str]:
    """YAML files that changed since the sweep in this folder began."""
    records = read(folder) if (folder / NAME).exists() else []
    begun = next((record for record in records if record["event"] == "sweep"), {})
    return list(snapshot.changes(begun.get("configuration", {}).get("files", {})))


def _plan(
    given: Mapping[str, Any],
    arguments: Sequence[str],
    config_loader: Any,
    config: DictConfig,
    memory: MemoryChecks,
) -> Plan:
    choices = plain(config.hydra.runtime.choices)
    # Hydra resolved what it gives once already, which takes the escape off `\${...}`.
    as_written = {key: config.hydra.sweeper[key] for key in ("params", "task_params")}
    keys = {key: plain(value) for key, value in {**given, **as_written}.items()}
    settings = Settings(**translated(keys, arguments, _registered(choices)))
    settings = replace(settings, handover=_with_seen_tasks(settings, arguments, config))
    composer = Composer(config_loader, config)
    check = app_check(settings.check, config)

    def compose(overrides: Sequence[str], meant_for: str) -> Mapping[str, Any]:
        found = flat_configuration(composer, overrides, meant_for, check)[0]
        memory.note(found, meant_for)
        return found

    def own(overrides: Sequence[str], meant_for: str) -> Mapping[str, Any]:
        composed, besides = flat_configuration(composer, overrides, meant_for, check)
        return {**choices, **composed, **besides}

    subdir = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    assert isinstance(subdir, dict)
    knows_folders = subdir["subdir"] == DEFAULT_SUBDIR
    named = sets(layers_of(config.hydra), "hydra.sweeper.sequence")
    return make_plan(settings, arguments, compose, config_loader, knows_folders, own, named)


def _with_seen_tasks(
    settings: Settings, arguments: Sequence[str], config: DictConfig
) -> dict[str, str | None]:
    """The handover, with the tasks so far added where the app's `seen_tasks` is null or a list.

    They are not added where the user sets the key or hands something to it, nor where jobs get no
    checkpoint. A handover of null switches this off, also for a sweep that was begun without it.
    """
    handed = dict(flat_keys(settings.handover))
    if handed.get(SEEN, "") is None:
        del handed[SEEN]
        return handed
    own = OmegaConf.to_container(config, resolve=False)
    assert isinstance(own, dict)
    wanted = own.get(SEEN, "") is None or isinstance(own.get(SEEN), list)
    typed = {bare(text.partition("=")[0]) for text in arguments}
    taken = SEEN in {*map(bare, handed), *handed.values(), *typed}
    if not wanted or taken or "checkpoint" not in handed.values():
        return handed
    return {**handed, SEEN: SEEN}


def _exporter(plan: Plan, folder: Path) -> Exporter:
    places = places_of(plan.settings.export)
    found = places.of(described(folder, plan.fingerprint, places.study_name))
    for name in found:
        log.info("%s gets the trials of this sweep too", name)
    return Exporter(found)


def _registered(choices: Mapping[str, Any]) -> Registered:
    """What Hydra's groups hold for the keys of hydra-optuna-sweeper."""
    store = ConfigStore.instance()

    def nodes(group: str) -> dict[str, Any]:
        found = {name: store.load(f"{group}/{name}").node for name in store.list(group)}
        return {  # they are not in their place, so what they refer to stays as it is written
            name.removesuffix(".yaml"): OmegaConf.to_container(node, resolve=False)
            for name, node in found.items()
        }

    samplers = list(nodes("hydra/sweeper/sampler").values())
    return Registered(nodes("hydra/sweeper/search"), samplers, choices.get("hydra/launcher"))


def app_check(name: str | None, config: DictConfig) -> Check | None:
    """The app's check of composed jobs that `hydra.sweeper.check` names; it raises ConfigurationError.

    It gives what the app's function returns where that is a mapping: values that only its code knows.

    config: the sweep's. Raises ConfigurationError where the name leads to no function.
    """
    if name is None:
        return None
    try:
        function = get_method(name)
    except Exception as error:  # importing runs code of the app
        raise ConfigurationError(
            f"hydra.sweeper.check={name} cannot be imported: {error}\n"
            "  It is a function of your app, package.module.function, that gets the composed"
            " configuration of a job\n  and raises on a mistake. No job was started."
        ) from error
    # The sweep's launcher was made before its jobs: it leases as it was asked then.
    launcher = plain(config.hydra.launcher)

    def check(composed: DictConfig, meant_for: str) -> Mapping[str, Any]:
        OmegaConf.update(composed, "hydra.launcher", launcher, merge=False)
        try:
            besides = function(composed)
        except Exception as error:
            meant = isinstance(error, HydraException | AutoCLError)  # its text says it all
            kind = "" if meant else f"{type(error).__name__}: "
            raise ConfigurationError(
                f"{meant_for} is refused by hydra.sweeper.check={name}:\n{kind}{error}\n"
                "  No job was started."
            ) from error
        return besides if isinstance(besides, Mapping) else {}

    return check


def learn_from(jobs: Iterable[tuple[Job, Outcome]], executor: Executor) -> None:
    """A sweep that is continued knows what its jobs need, on this machine or on a cluster's."""
    if isinstance(executor, LocalExecutor | RayExecutor):
        for job, outcome in jobs:
            executor.learn(job, outcome)


def _batch_size(plan: Plan, launcher: Any) -> int | None:
    size = plan.settings.max_batch_size
    if size is None and type(launcher).__name__ == "BasicLauncher":
        return 1  # it runs jobs one after another: asked one by one, it loses none
    return size


def _batches(outcomes: Mapping[int, Outcome], settings: Settings) -> list[list[JobReturn]]:
    """JobReturns as the basic sweeper gives them, raising what the first failed job raised."""
    returned = [job_return_of(Job(number, ()), outcomes[number]) for number in sorted(outcomes)]
    if settings.max_failures is None:
        for job_return in returned:
            _ = job_return.return_value
    size = settings.max_batch_size or max(len(returned), 1)
    return [returned[i : i + size] for i in range(0, len(returned), size)]
