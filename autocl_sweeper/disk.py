"""What a full or broken disk means: the errors it raises, and the sentence that helps."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autocl_sweeper.errors import DiskError

# The file system refuses, whatever is written: it says nothing about the sweep or its jobs.
# EFBIG: a file size limit (ulimit -f), which meets jobs and their checkpoints the same way.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
BROKEN = (*FULL, errno.EIO, errno.EROFS)

REMEDIES = {
    errno.ENOSPC: "Free some space there",
    errno.EDQUOT: "Free some of your files there, or have your quota raised",
    errno.EFBIG: "Raise the limit on the size of files (ulimit -f)",
    errno.EIO: "Have the disk looked at (dmesg says more)",
    errno.EROFS: "Mount it writable again",
}


def is_disk_trouble(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in BROKEN


def disk_error(error: OSError, path: Path | str) -> DiskError:
    """The error of a file system that refused to write `path`, in a sentence for its user."""
    where = Path(os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else path)
    return DiskError(
        f"'{where}' could not be written: {error.strerror}.\n"
        f"  It lies on {file_system(where)}.\n"
        f"  {REMEDIES.get(error.errno or 0, 'Repair it')}, then rerun the same command: what finished"
        " is kept, and what\n  was interrupted runs again."
    )


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise DiskError for whatever a full or broken disk raises inside. `path`: where no file is named."""
    try:
        yield
    except OSError as error:
        if not is_disk_trouble(error):
            raise
        raise disk_error(error, path) from error


def file_system(path: Path) -> str:
    """The file system of a path in words: its mount point, and what is free of its space and files."""
    there = path.absolute()
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    mount = there
    while not os.path.ismount(mount) and mount != mount.parent:
        mount = mount.parent
    try:
        found = os.statvfs(there)
    except OSError:
        return f"the file system '{mount}'"
    free, size = found.f_bavail * found.f_frsize / 2**20, found.f_blocks * found.f_frsize / 2**20
    files = f", {found.f_favail} of {found.f_files} files" if found.f_files else ""
    return f"the file system '{mount}', which has {free:.1f} of {size:.1f} MiB{files} free"
