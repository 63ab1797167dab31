"""Jobs that need more room on a device than there was when they came, and their turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from autocl_sweeper.device.pool import Grant
from autocl_sweeper.types import Job, Need

PASSED = 3  # how many later jobs may start before a waiting one
MOST = 3  # jobs that wait, before no other is asked for


@dataclass
class Waiting:
    """A job that waits for room, alone on its devices or beside others."""

    job: Job
    need: Need
    alone: bool
    passed: int = 0  # by how many that came later

    @property
    def is_next(self) -> bool:
        """Whether no other job may start before it.

        Otherwise small jobs would keep filling the shared devices, and this one would never start.
        """
        return self.alone or self.passed >= PASSED


class WaitingRoom(list[Waiting]):
    """First come, first served, but for smaller jobs that start before a larger one, a few times."""

    def serve(
        self,
        acquire: Callable[[Waiting], Grant | None],
        run: Callable[[Waiting, Grant], None],
    ) -> bool:
        """Run those for which there is room now; whether jobs that come later may start too."""
        without: list[Waiting] = []
        for one in list(self):
            grant = acquire(one)
            if grant is None:
                without.append(one)
            else:
                for before in without:
                    before.passed += 1
                self.remove(one)
                run(one, grant)
            if any(before.is_next for before in without):
                return False
        return len(self) < MOST

    def pass_all(self) -> None:
        """A job that came later has started."""
        for one in self:
            one.passed += 1

    def take(self, number: int) -> Job | None:
        """Remove the job with this number; None when it does not wait."""
        found = next((one for one in self if one.job.number == number), None)
        if found is None:
            return None
        self.remove(found)
        return found.job
