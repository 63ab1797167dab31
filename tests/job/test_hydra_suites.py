"""Hydra's own suites for launchers and sweepers, run on each of ours, and in real apps on both."""

from __future__ import annotations

from hydra.core.plugins import Plugins
from hydra.test_utils.launcher_common_tests import (
    BatchedSweeperTestSuite,
    IntegrationTestSuite,
    LauncherTestSuite,
)
from pytest import mark

# Hydra 1.4: the suites' fixture otherwise restores a ConfigStore from before plugins were found.
Plugins.instance()

AUTOCL = "hydra/sweeper=autocl"
QUIET = "hydra/job_logging=disabled"


@mark.parametrize("launcher_name, overrides", [("gpu", [])])
class TestOurLauncherUnderHydrasBasicSweeper(LauncherTestSuite):
    pass


@mark.parametrize("launcher_name, overrides", [("basic", [AUTOCL])])
class TestOurSweeper(LauncherTestSuite):
    pass


@mark.parametrize(
    "launcher_name, overrides",
    [
        ("gpu", ["hydra.sweeper.max_batch_size=2"]),
        ("basic", [AUTOCL, "hydra.sweeper.max_batch_size=2"]),
    ],
)
class TestBatches(BatchedSweeperTestSuite):
    pass


@mark.parametrize(
    "task_launcher_cfg, extra_flags", [({}, ["-m", AUTOCL, "hydra/launcher=gpu", QUIET])]
)
class TestBothInRealApps(IntegrationTestSuite):
    pass
