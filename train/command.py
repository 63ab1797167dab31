"""`python train.py a.yaml b.yaml --trainer.num_train_epochs=3`: YAML files over the app's own."""

from __future__ import annotations

import sys

from autocl_sweeper.command_line import CommandLineError, rewrite


def accept_yaml_files() -> None:
    """Let Hydra read this process's command line. Ends the process where it cannot."""
    try:
        sys.argv[1:] = rewrite(sys.argv[1:], first="config")
    except CommandLineError as error:
        raise SystemExit(f"{sys.argv[0]}: {error}") from None
