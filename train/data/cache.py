"""The folder that `python -m train.models` puts models and texts into."""

from __future__ import annotations

import os
from pathlib import Path


def cache() -> Path:
    """$AUTOCL_CACHE, or ~/.cache/autocl-sweeper."""
    return Path(os.environ.get("AUTOCL_CACHE") or "~/.cache/autocl-sweeper").expanduser().absolute()


def remedy(missing: Path) -> str:
    """The command that makes a folder of the cache, as the end of a message; empty for other folders."""
    place = cache()
    if missing == place or not missing.is_relative_to(place):
        return ""
    name = missing.relative_to(place).parts[0]
    return f". `python -m train.models {name}` fetches it"
