"""Files that only this account may write: what jobs and controllers unpickle is read from nowhere else."""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from autocl_sweeper.errors import SweepFolderError


def private_folder(folder: Path) -> None:
    """Make a folder that only this account may enter. Raises SweepFolderError where that cannot be."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    with suppress(OSError):
        if stat.S_IMODE(folder.stat().st_mode) & 0o077:  # of an older version, or made by a job
            folder.chmod(0o700)
    _refuse(folder, folder, folder.stat())


def read_private(path: Path) -> bytes:
    """The bytes of a file. Raises SweepFolderError where others could have written them."""
    with open(path, "rb", opener=_without_links) as file:
        _refuse(path.parent, path.parent, path.parent.stat())
        _refuse(path, path.parent, os.fstat(file.fileno()))
        return file.read()


def _without_links(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW)


def _refuse(path: Path, folder: Path, found: os.stat_result) -> None:
    # A closed folder keeps a group out of the files in it.
    others = stat.S_IWOTH | (stat.S_IWGRP if stat.S_ISDIR(found.st_mode) else 0)
    if found.st_uid != os.geteuid() and not _is_our_name(folder, found.st_uid):
        why = f"belongs to uid {found.st_uid}, and this process runs as {os.geteuid()}"
    elif found.st_mode & others:
        why = f"may be written by other accounts (mode {stat.S_IMODE(found.st_mode):04o})"
    else:
        return
    raise SweepFolderError(
        f"'{path}' {why}: what it holds is not read.\n"
        "  Jobs and the sweep hand each other Python objects through it, and whoever writes there could"
        " run code.\n  Set another hydra.sweep.dir, in a folder of your own on a file system that keeps"
        " owners and modes; or remove this one."
    )


def _is_our_name(folder: Path, uid: int) -> bool:
    """Whether a file that this process makes there belongs to `uid`: a server may rename its users."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_uid == uid
    except OSError:
        return False
