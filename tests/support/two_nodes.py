"""Two Ray nodes on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support.bench import APPS, REPOSITORY

# Ray asks for the machine's own address and listens there; this makes it the loopback's.
ON_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}


class TwoNodes:
    """A Ray cluster of two nodes with two CPUs each, and lease folders of their own below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.leases = (folder / "head", folder / "second")
        self.process = subprocess.Popen(
            [sys.executable, str(APPS / "ray_cluster.py"), str(folder)],
            env={
                **os.environ,
                **ON_LOOPBACK,
                "HOME": str(folder),  # Ray keeps a token there
                "PYTHONPATH": str(REPOSITORY),
                "CUDA_VISIBLE_DEVICES": "",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        assert self.address, "the cluster did not start"

    def switch_second_node(self) -> bool:
        """Cut the power of the second node, or start another one in its place. Whether it was cut."""
        return self._ask("second") == "off"

    def kill_first_node(self) -> None:
        """Kill what Ray runs on the node by which a sweep of this machine is connected."""
        assert self._ask("head") == "off"

    def _ask(self, what: str) -> str:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        with self.process:  # closes the pipes, which ends it
            pass
