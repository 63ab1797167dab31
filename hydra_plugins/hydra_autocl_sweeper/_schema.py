"""The keys of hydra/sweeper=autocl and hydra/launcher=gpu.

The name keeps this module out of Hydra 1.3's scan, which executes what it finds again and again: a class
that is made anew cannot be pickled any more, as callbacks and launchers do with a configuration.
"""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import II


@dataclass
class SearchConf:
    """A search is called as factory(space, seed=..., stage_name=..., **the other keys)."""

    factory: str = "???"


@dataclass
class RelayConf(SearchConf):
    """The constants of hydra/sweeper/search=relay: docs/searches.md explains them."""

    factory: str = "autocl_sweeper.search.relay.RelaySearch"
    startup: int = 8
    fresh: float = 0.125
    carried: int = 8
    winners: int = 3
    decay: float = 0.9
    memory: int = 4
    guard: float = 1.0
    guard_from: int = 4
    bandwidth: float = 0.03125


@dataclass
class PopulationConf:
    """The keys of hydra.sweeper.population."""

    keep: int | None = None
    epochs: int | None = 1
    epochs_key: str = "epochs"
    first_epochs: int | None = None
    model_path: str | None = None
    perturb: bool = False
    replay: str | None = None


@dataclass
class TPEConf(SearchConf):
    factory: str = "autocl_sweeper.search.tpe.tpe_search"
    n_startup_trials: int = 10
    constant_liar: bool = True


@dataclass
class GPConf(SearchConf):
    factory: str = "autocl_sweeper.search.gp.gp_search"
    n_startup_trials: int = 10


@dataclass
class QMCConf(SearchConf):
    factory: str = "autocl_sweeper.search.qmc.QMCSearch"


@dataclass
class CMAESConf(SearchConf):
    factory: str = "autocl_sweeper.search.cmaes.cmaes_search"
    popsize: int | None = II("..popsize")
    sigma: float = 0.2
    on_stop: str = "restart"


@dataclass
class HAZeroConf(CMAESConf):
    factory: str = "autocl_sweeper.search.hazero.hazero_search"


@dataclass
class PSHE2Conf(SearchConf):
    factory: str = "autocl_sweeper.search.pshe2.pshe2_search"
    popsize: int | None = II("..popsize")
    alpha: float = 0.5
    epsilon: float = 0.2
    anneal: float = 0.5


@dataclass
class AshaConf:
    rule: str = "asha"
    max_steps: int | None = None
    eta: int = 3
    rungs: list[float] | None = None
    warmup: int = 0


@dataclass
class MedianConf:
    rule: str = "median"
    max_steps: int | None = None
    warmup: int | None = None


@dataclass
class AutoCLSweeperConf:
    _target_: str = "hydra_plugins.hydra_autocl_sweeper.sweeper.AutoCLSweeper"
    _recursive_: bool = False
    defaults: list[Any] = field(
        # An app's own settings of the sweeper are the file hydra/sweeper/app/autocl.yaml.
        default_factory=lambda: [
            "_self_",
            {"search": "auto"},
            {"sampler": None},
            {"prune": None},
            {"optional app@_here_": "autocl"},
        ]
    )
    sequence: str | None = "task"
    top_k: int = 2
    metric: str | None = None
    direction: Any = None  # maximize; a file with other keys of hydra-optuna-sweeper has to say it
    params: dict[str, Any] = field(default_factory=dict)
    task_params: dict[str, Any] = field(default_factory=dict)
    when: dict[str, Any] = field(default_factory=dict)
    zip: list[Any] = field(default_factory=list)
    param_file: str | None = None
    jobs: int | None = None
    rounds: int = 1
    popsize: int | None = None
    parents: str = "beam"
    extra_parents: int = 0
    population: PopulationConf = field(default_factory=PopulationConf)
    init: bool = True
    transfer: bool = True
    carry_from: str | None = None
    objective: str | None = None
    selection: str = "top_k"
    seeds: int = 1
    protocol: str = "beam"
    first_k: int = 3
    prune: Any = None
    budget: dict[str, Any] = field(default_factory=dict)
    handover: dict[str, Any] = field(default_factory=lambda: {"init_from": "checkpoint"})
    max_failures: int | None = None
    retries: int = 0
    retry_delay_s: float = 5.0
    max_batch_size: int | None = None
    keep_checkpoints: str = "beam"
    seed: int = 0
    pipeline: bool = True
    check: str | None = None
    dry_run: bool = False
    report: bool = False
    export: dict[str, Any] = field(default_factory=dict)
    search: Any = None
    # Keys of hydra-optuna-sweeper, each taken over, warned about or refused: plan/migration.py.
    sampler: Any = None
    n_trials: int | None = None
    n_jobs: int | None = None
    max_failure_rate: float | None = None
    storage: Any = None
    study_name: str | None = None
    search_space: Any = None
    custom_search_space: Any = None


@dataclass
class GPULauncherConf:
    _target_: str = "hydra_plugins.hydra_autocl_sweeper.launcher.GPULauncher"
    max_devices: int | None = None
    free_memory: float = 0.8
    devices_per_job: int = 1
    jobs_per_device: int = 1
    memory_per_job_mib: int | None = None
    memory_keys: list[str] | None = None
    keep_free_mib: int = 0
    stagger_s: float = 0.0
    cpu_slots: Any = "auto"
    warm: bool | None = None
    preload: list[str] = field(default_factory=list)
    order: str = "longest"
    duration_keys: list[str] | None = None
    timeout_s: float | None = None
    stall_s: float | None = None
    grace_s: float = 10.0
    retries: int = 0
    retry_delay_s: float = 5.0
    on_controller_death: str = "kill"


@dataclass
class RayLauncherConf(GPULauncherConf):
    """The keys of hydra/launcher=gpu, for every node."""

    _target_: str = "hydra_plugins.hydra_autocl_sweeper.launcher.RayLauncher"
    address: str = "auto"
