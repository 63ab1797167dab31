"""The Hydra app whose jobs run a command: `python -m autocl_sweeper.script --config-dir D --config-name N`."""

from __future__ import annotations

from typing import Any

import hydra
from hydra.errors import ConfigCompositionException

from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.script.config import BASE, register
from autocl_sweeper.script.job import run_command

register()
# Hydra 1.3 behaves like 1.1 unless told; Hydra 1.4 warns when told.
VERSION_BASE: dict[str, Any] = {"version_base": None} if hydra.__version__ < "1.4" else {}


@hydra.main(**VERSION_BASE, config_path=None, config_name=BASE)
def main(config: Any) -> dict[str, Any]:
    """Run the command of one job and return its score, checkpoint and numbers."""
    try:
        return run_command(config)
    except ConfigurationError as error:
        raise ConfigCompositionException(str(error)) from None  # shown without a traceback


if __name__ == "__main__":
    main()
