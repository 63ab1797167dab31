"""Leases of devices, which every sweep of the account on this machine respects.

A lease is a locked file, one per device, in one folder per account and machine. The lock belongs
to the open file, not to a process: a job that inherits the descriptor keeps the device leased
until it ends, however its launcher ended. What NVML says about memory comes seconds late, so the
lease decides, and the reading only refuses devices that somebody else computes on.

Jobs that share a device hold its file together (a shared lock) and a file of their own each, their
place. Whoever takes a device, or looks who has it, first locks its door, for a moment.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from itertools import count as count_from
from pathlib import Path
from typing import get_type_hints

from autocl_sweeper.device.packing import Claim
from autocl_sweeper.errors import DeviceError

DOOR_S = 0.2  # how long a look or a take may last; who stops in the middle holds nobody up for long
WANTED_S = 5.0  # how long a wish for a whole device holds unless repeated; sweeps ask every second
FIELDS = get_type_hints(Claim)
BUSY = "is being checked by another sweep"


@dataclass
class Lease:
    """A device of ours, or a place on one, until every process that has its descriptors is gone.

    Give them to the job with `pass_fds=lease.filenos()` (or over a socket), then `close` our own
    copies when the job is reaped: it may close its own before. A fork without exec inherits them as well.
    """

    device_id: str
    _fds: tuple[int, ...]  # of the device; and of the place, if it is shared
    claim: Claim
    paths: Sequence[Path]  # of the last of its descriptors

    def filenos(self) -> tuple[int, ...]:
        if not self._fds:
            raise ValueError(f"the lease of {self.device_id} is closed")
        return self._fds

    def note(self, claim: Claim) -> None:
        """Tell the others more about it."""
        self.claim = claim
        text = (json.dumps(asdict(claim)) + "\n").encode()
        with suppress(OSError):  # on a full disk the lock still holds, and nobody joins
            os.pwrite(self.filenos()[-1], text, 0)
            os.ftruncate(self.filenos()[-1], len(text))

    def is_announced(self) -> bool:
        """Whether others find its locks, which they do not once the files were deleted."""
        newest = self.filenos()[-len(self.paths) :]
        with suppress(FileNotFoundError):
            return all(
                os.path.samestat(os.fstat(fd), path.stat())
                for fd, path in zip(newest, self.paths, strict=True)
            )
        return False

    def add(self, lease: Lease) -> None:
        """Hold another lease of the same device as well."""
        self._fds += lease.filenos()
        self.paths = lease.paths

    def close(self) -> None:
        """Give up our copy; the device stays leased while a job has one. Idempotent."""
        # Never LOCK_UN: it would take the lock from the job too, which shares the open file.
        fds, self._fds = self._fds, ()
        for fd in fds:
            os.close(fd)


@dataclass(frozen=True)
class Occupied:
    """Who has a device at this moment."""

    claims: Sequence[Claim] = ()
    last_start: float = 0.0  # of any job there, seconds since 1970; 0: nobody knows of one
    wanted_by: Claim | None = None  # who waits to have it alone: nobody joins, so that it empties


class LeaseFolder:
    """The lock files of one account on one machine, the same for all its sweeps.

    `path` defaults to AUTOCL_LEASE_DIR, else /tmp/autocl-leases-<uid>. Containers that share GPUs
    must share this folder: set AUTOCL_LEASE_DIR to a mounted one. Raises DeviceError when others
    could tamper with it.
    """

    def __init__(self, path: Path | None = None) -> None:
        # Not TMPDIR when it can be helped: two shells with different ones would not see each
        # other's leases.
        base = "/tmp" if os.access("/tmp", os.W_OK | os.X_OK) else tempfile.gettempdir()
        default = f"{base}/autocl-leases-{os.geteuid()}"
        self.path = Path(path or os.environ.get("AUTOCL_LEASE_DIR") or default)
        self._prepare()

    def _prepare(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                self.path.mkdir(mode=0o700)
            found = self.path.lstat()
        except OSError as error:
            raise self._unusable(str(error)) from error
        if not stat.S_ISDIR(found.st_mode):
            raise self._unusable("it is not a folder (links are not followed)")
        if found.st_uid != os.geteuid():
            raise self._unusable(f"it belongs to uid {found.st_uid}, and we are {os.geteuid()}")
        if found.st_mode & stat.S_IWOTH:
            raise self._unusable("every account may write into it; chmod 700 fixes that")

    def _unusable(self, why: str) -> DeviceError:
        return DeviceError(
            f"the folder of device leases {self.path} cannot be used: {why}. "
            "Set AUTOCL_LEASE_DIR to a folder that only this account writes"
        )

    def file(self, device_id: str, kind: str = "lock") -> Path:
        """Where the lock of this device lies; `fuser` on it shows the processes that hold it."""
        return self.path / (re.sub(r"[^A-Za-z0-9.-]", "_", device_id) + "." + kind)

    def try_lease(self, device_id: str, holder: str) -> Lease | None:
        """The whole device, or None while somebody has it. `holder` says to humans what it is for."""
        taken = self.take(device_id, Claim(os.getpid(), holder, time.time()))
        return taken if isinstance(taken, Lease) else None

    def take(
        self,
        device_id: str,
        claim: Claim,
        objection: Callable[[Occupied], str] = lambda occupied: "",
    ) -> Lease | str:
        """A lease with this claim, or why there is none. Does not wait for whoever has it.

        `objection` is asked what stands against it, while nobody else can come or go unseen.
        """
        with self._door(device_id) as opened:
            if not opened:
                return BUSY
            if reason := objection(self._occupied(device_id)):
                return reason
            lease = self._locked(device_id, claim)
            return lease or f"is leased by {self.holder(device_id) or 'another process'}"

    def announce(self, lease: Lease) -> bool:
        """Lock a lease of ours anew if its files were deleted. False: others have the device by now."""
        if lease.is_announced():
            return True
        with self._door(lease.device_id) as opened:
            again = self._locked(lease.device_id, lease.claim) if opened else None
        if again is None:
            return not opened
        lease.add(again)
        return True

    def _locked(self, device_id: str, claim: Claim) -> Lease | None:
        """A lease with this claim; None while somebody has the device. Inside the door."""
        alone = claim.limit == 1
        path = self.file(device_id)
        fd = self._lock(path, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        if fd is None:
            return None
        locked = {path: fd}
        if not alone:
            files = (self.file(device_id, f"{number}.place") for number in count_from())
            places = ((file, self._lock(file, fcntl.LOCK_EX)) for file in files)
            place, fd = next((file, fd) for file, fd in places if fd is not None)
            locked[place] = fd
        lease = Lease(device_id, tuple(locked.values()), claim, list(locked))
        lease.note(claim)
        return lease

    def look(self, device_id: str) -> Occupied | None:
        """Who has the device; None when another one is at its door all the time."""
        with self._door(device_id) as opened:
            return self._occupied(device_id) if opened else None

    def want(self, device_id: str, claim: Claim) -> None:
        """Keep others from joining those who share the device, for `WANTED_S` from now on."""
        with self._door(device_id) as opened:
            if opened:
                aside = self.file(device_id, "wanted.tmp")
                aside.write_text(json.dumps(asdict(replace(claim, since=time.time()))))
                aside.replace(self.file(device_id, "wanted"))

    def unwant(self, device_id: str, pid: int) -> None:
        """Take back what `want` said in the name of this process."""
        wanted = self._wanted(device_id)
        if wanted is not None and wanted.pid == pid:
            self.file(device_id, "wanted").unlink(missing_ok=True)

    def holder(self, device_id: str) -> str | None:
        """Who leased the whole device last, as "pid 4711: boolq/0003"; None: nobody ever.

        For a device that was just refused: `look` says who has it now.
        """
        claim = _read(self.file(device_id))
        return None if claim is None else self.words(device_id, claim)

    def words(self, device_id: str, claim: Claim) -> str:
        """A claim in words, and what to do when only the job's leftovers hold the device."""
        ended = claim.pid and not os.path.exists(f"/proc/{claim.pid}")
        if ended and os.path.exists("/proc/self"):
            file = self.file(device_id)
            return f"{claim} (ended; 'fuser {file}' shows what it left running)"
        return str(claim)

    @contextmanager
    def _door(self, device_id: str) -> Iterator[bool]:
        """Nobody else takes the device, or looks who has it, inside. False: it stayed locked."""
        deadline = time.monotonic() + DOOR_S
        while (fd := self._lock(self.file(device_id, "door"), fcntl.LOCK_EX)) is None:
            if time.monotonic() > deadline:
                yield False
                return
            time.sleep(0.0005)
        try:
            yield True
        finally:
            os.close(fd)

    def _occupied(self, device_id: str) -> Occupied:
        """Inside the door, because a look takes locks for a moment."""
        file = self.file(device_id)
        places = list(self.path.glob(self.file(device_id, "*.place").name))
        past = [_read(path) for path in (file, *places)]
        last_start = max((claim.since for claim in past if claim and claim.job), default=0.0)
        claims = []
        if not self._free(file, fcntl.LOCK_EX):
            if self._free(file, fcntl.LOCK_SH):
                held = [place for place in places if not self._free(place, fcntl.LOCK_EX)]
                # One that cannot be read allows no second one: the disk was full.
                claims = [_read(place) or Claim() for place in held]
            else:
                claims = [replace(_read(file) or Claim(holder="somebody"), limit=1)]
        return Occupied(claims, last_start, self._wanted(device_id))

    def _wanted(self, device_id: str) -> Claim | None:
        claim = _read(self.file(device_id, "wanted"))
        if claim is None or not 0 <= time.time() - claim.since < WANTED_S:
            return None
        return claim

    def _free(self, path: Path, how: int) -> bool:
        fd = self._lock(path, how)
        if fd is None:
            return False
        os.close(fd)
        return True

    def _lock(self, path: Path, how: int) -> int | None:
        """A descriptor of the file with the lock on it, or None while somebody has it."""
        while True:
            try:
                # Python opens descriptors that do not survive exec: only pass_fds hands them on.
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            except FileNotFoundError:  # a cleaner of /tmp took the folder
                self._prepare()
                continue
            except OSError as error:
                raise self._unusable(str(error)) from error
            try:
                fcntl.flock(fd, how | fcntl.LOCK_NB)
                # We never delete lock files: whoever opened the old file and whoever creates the
                # new one would each hold a lock of "the" device. A cleaner of /tmp may delete
                # one, so look whether the file we locked is still the one others will open.
                if os.path.samestat(os.fstat(fd), path.stat()):
                    return fd
            except FileNotFoundError:
                pass
            except BlockingIOError:
                os.close(fd)
                return None
            except OSError as error:  # a file system without flock
                os.close(fd)
                raise self._unusable(str(error)) from error
            os.close(fd)


def _read(path: Path) -> Claim | None:
    """The claim a lock file tells, which outlives the lock; None when there is none to read."""
    try:
        line = path.read_bytes()[:4000].partition(b"\n")[0]
        claim = Claim(**json.loads(line))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    # Anybody may have written there.
    known = all(isinstance(getattr(claim, name), kind) for name, kind in FIELDS.items())
    return claim if known else None
