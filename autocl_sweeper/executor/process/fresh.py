"""Jobs in fresh interpreters: a second or more of imports each, and no condition at all."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence


class FreshProcess:
    """A job process that is our child."""

    def __init__(
        self, argv: Sequence[str], fds: Sequence[int], environment: Mapping[str, str]
    ) -> None:
        """`fds`: stdin, output, and what it inherits under its number: the order, leases.

        `environment` comes on top of ours.
        """
        stdin, output, *inherited = fds
        self._popen = subprocess.Popen(
            [*argv, str(inherited[0])],
            stdin=stdin,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            pass_fds=inherited,
            start_new_session=True,
        )
        self.pid = self._popen.pid

    def wait(self) -> None:
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    def reap(self) -> int:
        return self._popen.wait()
