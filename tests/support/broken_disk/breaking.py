"""A folder on a disk that breaks after a number of changes, for child processes.

disk = Breaking(tmp_path, tmp_path / "sweep")
disk.after(40, errno.EIO)
subprocess.run(argv, env={**os.environ, **disk.environment})
"""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("broken_disk.c")
NEVER = 2**30


class Breaking:
    """`folder` has the library and its state; what lies `below` breaks."""

    def __init__(self, folder: Path, below: Path) -> None:
        library = folder / "broken_disk.so"
        options = ["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(library), str(SOURCE)]
        subprocess.run(["cc", *options, "-ldl"], check=True)
        self._state = folder / "broken_disk"
        self.repair()
        self.environment = {
            "LD_PRELOAD": str(library),
            "BROKEN_BELOW": f"{below}",
            "BROKEN_STATE": str(self._state),
        }

    def after(self, changes: int, error: int) -> None:
        """Refuse all changes with this errno once so many were made."""
        self._state.write_bytes(struct.pack("ii", changes, error))

    def repair(self) -> None:
        self.after(NEVER, 0)

    def left(self) -> int:
        """Changes until it breaks."""
        return int(struct.unpack("ii", self._state.read_bytes())[0])
