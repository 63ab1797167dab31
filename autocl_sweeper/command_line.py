"""YAML files and dashed options on the command line of a Hydra app, as Hydra wants to read them.

    sys.argv[1:] = rewrite(sys.argv[1:])        # before the function that @hydra.main decorates

turns `a.yaml --lr.start=1 b.yaml -m lr.end=2` into `--config-name config+/abs/a.yaml+/abs/b.yaml -m
lr.start=1 lr.end=2`. How the files then go over each other: docs/configuration.md.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

CONFIG_NAME = ("--config-name", "-cn")
FOLDERS = ("--config-path", "-cp", "--config-dir", "-cd")
OTHERS_WITH_VALUE = ("--package", "-p", "--cfg", "-c", "--experimental-rerun")
INFO = ("--info", "-i")
INFO_VALUES = ("all", "aliases", "config", "defaults", "defaults-tree", "plugins", "searchpath")


class CommandLineError(ValueError):
    """A file on the command line that cannot be a configuration."""


def rewrite(argv: Sequence[str], first: str = "config") -> list[str]:
    """Hydra's arguments for `argv`, both without the program's name.

    `first`: the app's own config, over which the files go. Options may stand anywhere; flags come
    out before overrides, because Hydra 1.3 refuses overrides on both sides of a flag. `--a.b=c`
    means `a.b=c`; all else that begins with a dash is Hydra's to judge. Raises CommandLineError.
    """
    named: str | None = None
    flags: list[str] = []
    overrides: list[str] = []
    files: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        key, equals, _ = word.partition("=")
        if word in CONFIG_NAME and words:
            named = words.pop(0)
        elif key in CONFIG_NAME and equals:
            named = word[len(key) + 1 :]
        elif word in (*FOLDERS, *OTHERS_WITH_VALUE):
            flags += [word, *words[:1]]
            del words[:1]
        elif word in INFO:
            # Its value may be left out; then the next word must not be taken for it.
            flags.append(f"--info={words.pop(0) if words and words[0] in INFO_VALUES else 'all'}")
        elif word.startswith("--") and equals and "." in key:
            overrides.append(word[2:])
        elif word.startswith("-"):
            flags.append(word)
        elif word.endswith((".yaml", ".yml")) and not equals:
            files.append(_file(word))
        elif not equals and not word.startswith("~") and os.path.isfile(f"{word}.yaml"):
            raise CommandLineError(f"'{word}': did you mean the file {word}.yaml?")
        else:
            overrides.append(word)
    if files:
        named = "+".join([named or first, *files])
    return [*(["--config-name", named] if named is not None else []), *flags, *overrides]


def _file(word: str) -> str:
    path = os.path.abspath(word)
    if word.endswith(".yml"):
        raise CommandLineError(
            f"'{word}': Hydra reads files that end in .yaml, not .yml. Rename the file."
        )
    if os.path.isdir(path):
        raise CommandLineError(
            f"'{word}': this is a folder, and a configuration is a file.\n"
            "  Name the files in it one by one, or rename the folder."
        )
    if not os.path.isfile(path):
        raise CommandLineError(
            f"'{word}': there is no such file.\n"
            f"  It was looked for as {path}: paths are relative to the working directory."
        )
    if "+" in path:
        raise CommandLineError(
            f"'{path}' has a '+' in it, which is what joins several files to one config name.\n"
            "  Rename the file or its folder."
        )
    return path
