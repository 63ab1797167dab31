"""Keeps a main file without a guard from starting its sweep again in each job that imports it."""

from __future__ import annotations

import sys

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class StartGuard(SearchPathPlugin):
    """Hydra asks its search path plugins first of all, whenever it starts."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        program = sys.modules.get("autocl_sweeper.job.program")  # only a sweep or a job imports it
        if program is not None:
            program.refuse_to_start_again()
