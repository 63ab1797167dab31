"""What else may lie in a sweep folder: what stands in the way is moved aside, what is missing is named."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from autocl_sweeper.disk import disk_error, is_disk_trouble
from autocl_sweeper.errors import SweepFolderError
from autocl_sweeper.journal import NAME, RESCUED

log = logging.getLogger(__name__)


@contextmanager
def folder_errors(folder: Path) -> Iterator[None]:
    """Raise DiskError, or SweepFolderError for what else cannot be done in a sweep folder inside."""
    try:
        yield
    except OSError as error:
        last = error.filename2 or error.filename  # of a renaming its goal
        # A terminal that is gone says EIO, too.
        if is_disk_trouble(error) and (last is not None or error.errno != errno.EIO):
            raise disk_error(error, folder) from error
        named = last if isinstance(last, str) else ""
        if not named or not Path(named).absolute().is_relative_to(folder.absolute()):
            raise
        raise SweepFolderError(
            f"'{named}' cannot be used: {error.strerror}.\n"
            "  It lies in the sweep folder and is not what the sweep left there.\n"
            "  Move it away (or give it back its permissions), then rerun the same command: what"
            " finished is kept."
        ) from error


def refuse_lost_journal(folder: Path, traces: Iterable[str]) -> None:
    """Refuse to begin a sweep anew where one has been. `traces`: what only a sweep leaves in a folder.

    Raises SweepFolderError.
    """
    found = [name for name in traces if os.path.lexists(folder / name)]
    found += sorted(f".autocl/{path.name}" for path in (folder / ".autocl").glob("[0-9]*.*"))
    if not found:
        return
    rescued = folder / RESCUED
    remedy = f"Restore '{NAME}' from a copy"
    if rescued.exists():
        remedy = f"Rename '{RESCUED}' to '{NAME}'"
    raise SweepFolderError(
        f"'{folder}' holds trials, but its journal is missing or empty (found: {', '.join(found[:3])}).\n"
        "  A sweep begun anew here would mix with what is there.\n"
        f"  {remedy} to go on; to begin anew, empty the folder or set another hydra.sweep.dir."
    )


def tidy(folder: Path, files: Iterable[str]) -> None:
    """Remove what a kill left half written, and move aside what stands in place of the sweep's own.

    `files`: the names of those it writes anew.
    """
    for unfinished in folder.glob(".*.tmp"):
        with suppress(IsADirectoryError, PermissionError):  # no file of ours
            unfinished.unlink()
    own = folder / ".autocl"
    if os.path.lexists(own) and not own.is_dir():
        move_aside(own, "the sweep keeps a folder of this name")
    for name in files:
        if (folder / name).is_dir():
            move_aside(folder / name, "the sweep keeps a file of this name")


def make_way(path: Path, also_folders: bool) -> None:
    """Move aside what lies where a trial begins. A journal that lost lines knows nothing of its folder.

    Raises SweepFolderError where a folder above it is a file.
    """
    if os.path.lexists(path) and (also_folders or not path.is_dir()):
        move_aside(path, "a trial begins there that the journal does not know")
    elif path.parent.exists() and not path.parent.is_dir():
        raise SweepFolderError(
            f"'{path.parent}' is a file, but trials have their folders there.\n"
            "  Move it away, then rerun the same command: what finished is kept."
        )


def move_aside(path: Path, why: str) -> None:
    aside = free_name(path, "aside")
    path.rename(aside)
    log.warning("'%s' was moved to '%s': %s", path, aside.name, why)


def free_name(path: Path, kind: str) -> Path:
    """The first of `<name>.<kind>1`, `<name>.<kind>2` and so on that is not taken."""
    names = (path.with_name(f"{path.name}.{kind}{number}") for number in itertools.count(1))
    return next(name for name in names if not os.path.lexists(name))


def remove(path: Path) -> None:
    """Remove a file or a folder, also one whose folders are read-only, as copies of caches are.

    Raises OSError.
    """
    if not path.is_dir():
        path.unlink()
        return
    try:
        shutil.rmtree(path)
    except PermissionError:
        path.chmod(0o700)
        for home, folders, _ in os.walk(path):
            for name in folders:
                inner = Path(home, name)
                if not inner.is_symlink():
                    inner.chmod(0o700)
        shutil.rmtree(path)
