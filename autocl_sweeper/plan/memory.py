"""Mistakes about the memory of jobs that show before any of them starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from autocl_sweeper.device.needs import budget_of
from autocl_sweeper.errors import ConfigurationError, InfeasibleBudgetError
from autocl_sweeper.types import Need

MEMORY = "memory."


class MemoryChecks:
    """What the configurations that were composed ahead say of keys and budgets."""

    def __init__(self) -> None:
        self._keys: set[str] = set()
        self._needs: dict[Need, str] = {}  # -> what it is of

    def note(self, flat: Mapping[str, Any], meant_for: str) -> None:
        """Take a flat configuration."""
        self._keys |= flat.keys()
        own = {k.removeprefix(MEMORY): v for k, v in flat.items() if k.startswith(MEMORY)}
        budget_mib, capped = budget_of(own)
        self._needs.setdefault(Need(budget_mib=budget_mib, capped=capped), meant_for)

    def refuse_unknown(self, memory_keys: Sequence[str] | None) -> None:
        """Raises ConfigurationError for a key of `memory_keys` that no job has."""
        for name in memory_keys or ():
            if not any(
                name in (key, key.rpartition(".")[2]) or key.startswith(f"{name}.")
                for key in self._keys
            ):
                raise ConfigurationError(
                    f"hydra.launcher.memory_keys has {name!r}, which is no key of the jobs'"
                    " configuration.\n  It lists override keys, or their last parts, that decide the"
                    " memory of a job (docs/launcher.md).\n  Correct the name. No job was started."
                )

    def refuse_budgets(self, refuse: Callable[[Need], None]) -> None:
        """Raises ConfigurationError for a budget that `refuse` raises InfeasibleBudgetError for."""
        for need, meant_for in self._needs.items():
            try:
                refuse(need)
            except InfeasibleBudgetError as error:
                raise ConfigurationError(f"{meant_for}: {error} No job was started.") from error
