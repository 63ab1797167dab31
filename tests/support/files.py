"""Files of a test, from what stands in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent


def written(folder: Path, texts: Mapping[str, str]) -> Path:
    """Write name -> text below a folder, which is returned; a name without an ending gets `.yaml`."""
    for name, text in texts.items():
        path = folder / (name if Path(name).suffix else f"{name}.yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))
    return folder
