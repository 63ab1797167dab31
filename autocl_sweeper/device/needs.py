"""Which settings of a job decide how much device memory it takes, and the budget it holds to."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from autocl_sweeper.types import Job, Need, Value

HARMLESS = (
    "learning_rate",
    "lr",
    "lr_scheduler_type",
    "warmup_steps",
    "warmup_ratio",
    "weight_decay",
    "max_grad_norm",
    "label_smoothing_factor",
    "lamda",
    "lamda_1",
    "lamda_2",
    "seed",
    "data_seed",
    "num_train_epochs",
    "epochs",
    "max_epochs",
    "num_epochs",
    "max_steps",
    "num_steps",
)
"""Searched settings that do not change what memory a job takes, unless `memory_keys` names others."""

BATCH_KEYS = ("per_device_train_batch_size", "train_batch_size", "micro_batch_size", "batch_size")
LENGTH_KEYS = ("max_length", "max_seq_length", "max_seq_len", "max_source_length", "block_size")


@dataclass(frozen=True)
class Siblings:
    """The needs of the jobs of one sweep, which differ in nothing but what was searched.

    `keys`: the override keys, or their last parts, that decide the memory of a job; None: all but
    those that are known not to. `memory` gives the section `memory` of a composed job.
    """

    keys: Collection[str] | None = None
    memory: Callable[[Job], Mapping[str, Any]] = lambda job: {}

    def known(self, job: Job) -> Need:
        """What its settings say, without composing it."""
        if job.need is not None:
            return job.need
        deciding = {key: value for key, value in searched(job).items() if self._decides(key)}
        sizes = [key for key in deciding if _last(key) in (*BATCH_KEYS, *LENGTH_KEYS)]
        return Need(
            key=_text(deciding),
            family=_text({key: deciding[key] for key in deciding if key not in sizes}),
            batch=_number(deciding, BATCH_KEYS),
            length=_number(deciding, LENGTH_KEYS),
        )

    def of(self, job: Job) -> Need:
        """The same with its budget. Raises what composing the job does."""
        if job.need is not None:
            return job.need
        budget_mib, capped = budget_of(self.memory(job))
        return replace(self.known(job), budget_mib=budget_mib, capped=capped)

    def _decides(self, key: str) -> bool:
        if self.keys is not None:
            return key in self.keys or _last(key) in self.keys
        return key not in HARMLESS and _last(key) not in HARMLESS


def searched(job: Job) -> dict[str, Value]:
    """What tells a job from its siblings, by key without its plus."""
    if job.params is not None:
        return {key.lstrip("+"): value for key, value in job.params.items()}
    found: dict[str, Value] = {}
    for text in job.overrides:
        key, equals, value = text.lstrip("+~").partition("=")
        if equals and not key.startswith("hydra"):
            try:
                found[key] = float(value)
            except ValueError:
                found[key] = value
    return found


def budget_of(memory: Mapping[str, Any]) -> tuple[int | None, bool]:
    """MiB of the budget that a job's section `memory` sets, and whether it is a hard cap."""
    gib = memory.get("budget_gib") or memory.get("memory_threshold")
    given = _amount(memory.get("budget_mib")) or 1024 * _amount(gib)
    return (math.ceil(given), memory.get("hard_cap") is not False) if given else (None, False)


def _amount(value: Any) -> float:
    """A positive number; 0 for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 < value < math.inf else 0.0


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _text(settings: Mapping[str, Value]) -> str:
    return " ".join(
        f"{key}={json.dumps(settings[key], sort_keys=True)}" for key in sorted(settings)
    )


def _number(settings: Mapping[str, Value], names: Collection[str]) -> float | None:
    found = [value for key, value in settings.items() if _last(key) in names]
    numbers = [float(n) for n in found if isinstance(n, int | float) and not isinstance(n, bool)]
    return numbers[0] if len(numbers) == 1 else None
