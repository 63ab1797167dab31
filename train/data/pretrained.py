"""Folders that tokenizers, models and image processors of Hugging Face are read from; no torch.

    /models/t5-small             a folder as `save_pretrained` writes it
    pkg://my_models/t5-small     a folder inside an installed package, which is not imported
    google/flan-t5-small         a name of the hub, for machines with internet or a filled cache

Weights are safetensors, never a pickle, and no code of a folder is run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from train.config.typed import SettingsError
from train.data.cache import remedy

Loaded = TypeVar("Loaded")

PACKAGE = "pkg://"
_HUB = re.compile(r"[A-Za-z0-9][-\w.]*(/[A-Za-z0-9][-\w.]*)?")
CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
TOKENIZERS = (  # one of them is in a folder with a tokenizer
    "tokenizer.json", "tokenizer_config.json", "spiece.model", "sentencepiece.bpe.model",
    "vocab.json", "vocab.txt",
)  # fmt: skip


def located(name: str, key: str) -> Path | None:
    """The folder `name` is, absolute; null where it can only be a name of the hub.

    Raises SettingsError, which calls the option `key`.
    """
    if name.startswith(PACKAGE):
        return _in_package(name, key)
    path = Path(name).expanduser()
    if path.is_dir():
        return path.absolute()
    if path.exists():
        raise SettingsError(f"{key}={name}: is a file; give the folder it is in")
    if _HUB.fullmatch(name):
        return None
    raise SettingsError(
        f"{key}={name}: no such folder (looked from {Path.cwd()}). Give a folder that save_pretrained "
        "wrote, pkg://<package>/<folder> for one inside an installed package, or a name of the hub"
        f"{remedy(path)}"
    )


def _in_package(name: str, key: str) -> Path:
    package, _, inside = name.removeprefix(PACKAGE).partition("/")
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):  # of a parent that is not there
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise SettingsError(
            f"{key}={name}: no package '{package}' is installed; it is {PACKAGE}<package>/<folder>"
        )
    folders = [Path(root) / inside for root in spec.submodule_search_locations]
    if found := [folder.absolute() for folder in folders if folder.is_dir()]:
        return found[0]
    raise SettingsError(f"{key}={name}: the package has no such folder ({folders[0]})")


def described(name: str, file: str, key: str) -> Mapping[str, Any] | None:
    """The content of a JSON `file` of the folder; null where it is not here yet. Raises SettingsError."""
    folder = located(name, key)
    if folder is None:
        return None
    try:
        found = json.loads((folder / file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"{key}={name}: {folder / file} cannot be read ({error}). save_pretrained writes it"
        ) from error
    return found if isinstance(found, Mapping) else {}


def require_tokenizer(name: str, key: str) -> None:
    """Raises SettingsError where the folder `name` is here and has no tokenizer in it."""
    folder = located(name, key)
    if folder is not None and not any((folder / file).is_file() for file in TOKENIZERS):
        own = " (its own folder: model.tokenizer)" if key == "model.path" else ""
        raise SettingsError(
            f"{key}={name}: {folder} has no tokenizer in it, none of {', '.join(TOKENIZERS)}{own}. "
            "tokenizer.save_pretrained writes one"
        )


def read(load: Callable[..., Loaded], name: str, key: str, **options: Any) -> Loaded:
    """`load`, a `from_pretrained`, on what `name` stands for. Raises SettingsError."""
    folder = located(name, key)
    try:
        if folder is not None:
            return load(str(folder), local_files_only=True, **options)
        return load(name, **options)
    # Whatever the libraries raise: OSError, ValueError, SafetensorError, ImportError, ...
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), "")
        reason = f"{type(error).__name__}: {first}"
        if folder is not None:
            raise SettingsError(
                f"{key}={name}: cannot be read from {folder} ({reason}). The folder must be whole, as "
                "save_pretrained of this transformers writes it, with weights as safetensors: copy it "
                "again, or load it where it was made and save it anew"
            ) from error
        raise SettingsError(
            f"{key}={name}: is no folder here (looked from {Path.cwd()}) and was not to be had from "
            f"the hub ({reason}). Without internet, bring the folder to this machine (huggingface-cli "
            f"download elsewhere, then copy) and give its path"
        ) from error
