"""Jobs of a sweep on another machine: `executor.ray.cluster` starts them

Whoever reaches a machine starts one there, with the launcher's keys as JSON. It holds an executor for
that machine's devices, takes requests from its stdin and tells on its stdout what becomes of them, a
JSON object a line each:

    {"slots": true}                      ->  {"slots": 0 or 1}    a free slot is kept until it is
    {"release": true}                                             given back or filled by
    {"submit": 3, "order": <base64>,     ->  {"on": 3, "devices": [...], "reserved": [MiB, source]},
     "alone": false, "stage": 1,             and some day {"ended": 3, "outcome": {...},
     "needs": [paths], "memory": {...}}       "lost": false, "return": <base64, if it wrote one>}
    {"cancel": 3}
    {"learn": [{...}, ...]}                                       what jobs used that ran before or
                                                                  on other machines
    {"short": 3, "memory": {...}}                                 one ran out of memory beside others
    {"stop": true}                       ->  {"stopped": true} after the ends of its jobs
    {"close": true}                      ->  ends its jobs and itself

When its stdin ends before, its controller is dead or wants no more: its jobs are killed. What it logs
goes up as {"log": [level, text]}, what stops it as {"error": [class, text]}. The sweep folder and the
code lie in a file system that all machines share, under the same paths.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import sys
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from autocl_sweeper.device.reservations import Used
from autocl_sweeper.errors import AutoCLError
from autocl_sweeper.executor.local import POLL_S
from autocl_sweeper.executor.settings import from_settings
from autocl_sweeper.job.package import Package
from autocl_sweeper.journal import outcome_to_json
from autocl_sweeper.outcome import JobFiles
from autocl_sweeper.private import read_private
from autocl_sweeper.types import Job, Need, Outcome

Message = Mapping[str, Any]

VISIBLE_S, LOOK_S = 60.0, 0.1  # for what another machine wrote to come into sight


class Agent:
    """Serves one controller from the main thread; `LocalExecutor` knows one caller only."""

    def __init__(self, settings: Message, tell: Any) -> None:
        self._tell = tell
        self._requests: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._jobs: dict[int, Job] = {}
        self._unplaced: set[int] = set()  # jobs that wait for room on a device
        self._slot_kept = False
        self._stopping = False
        files = self._files = JobFiles(Path(settings["folder"]))
        wait_to_see(files.package())
        self._orders = Orders(files)
        # The controller reads JobReturns: they may need modules that only its app imports.
        self._executor = from_settings(settings["launcher"], self._orders, returns=False)
        self._executor.on_end = lambda: self._requests.put({"look": True})
        threading.Thread(target=self._read, name="requests", daemon=True).start()

    def serve(self) -> None:
        """Until the controller says so or goes away. Raises what the executor raises."""
        try:
            while not (request := self._next()).get("close"):
                self._answer(request)
                self._tell_places()
                if not self._slot_kept:  # looking gives a kept slot back
                    self._tell_ends(self._executor.wait(0.0))
                    self._tell_places()
                if self._stopping and not self._executor.devices():
                    self._tell({"stopped": True})
                    self._stopping = False
        finally:
            self._executor.close()

    def _next(self) -> Message:
        try:
            # A job that has to be alone on its devices is looked after at every wait.
            return self._requests.get(timeout=POLL_S)
        except queue.Empty:
            return {}

    def _answer(self, request: Message) -> None:
        if "slots" in request:
            free = self._executor.free_slots()
            self._slot_kept = bool(free)
            self._tell({"slots": free})
        elif "release" in request:
            self._slot_kept = False
        elif "submit" in request:
            number, need = request["submit"], Need(**request["memory"])
            job = Job(number, (), request["alone"], request["stage"], need=need)
            self._orders.by_number[number] = b64decode(request["order"])
            self._slot_kept = False
            for path in request["needs"]:
                wait_to_see(Path(path))
            self._executor.submit(job)
            self._jobs[number] = job
            self._unplaced.add(number)
        elif "cancel" in request and request["cancel"] in self._jobs:
            self._executor.cancel(self._jobs[request["cancel"]])
        elif "learn" in request:
            for used in request["learn"]:
                self._executor.pool.learn(Used.from_json(used))
        elif "short" in request:
            need = Need(**request["memory"])
            self._executor.pool.reservations.ran_out(request["short"], need)
        elif "stop" in request:
            self._executor.stop()
            self._stopping = True

    def _tell_places(self) -> None:
        where = self._executor.devices()
        shares = self._executor.reserved()
        for number in sorted(self._unplaced & where.keys()):
            self._unplaced.remove(number)
            share = shares.get(number, (None, ""))
            self._tell({"on": number, "devices": where[number], "reserved": share})

    def _tell_ends(self, ended: Sequence[tuple[Job, Outcome]]) -> None:
        for job, outcome in ended:
            del self._jobs[job.number]
            self._unplaced.discard(job.number)
            told = outcome_to_json(outcome)
            ended_so: dict[str, Any] = {"outcome": told, "lost": outcome.lost}
            with suppress(OSError):  # it was not asked for, or the job died before
                data = self._files.job_return(job.number).read_bytes()
                ended_so["return"] = b64encode(data).decode()
            self._tell({"ended": job.number, **ended_so})

    def _read(self) -> None:
        for line in sys.stdin:
            self._requests.put(json.loads(line))
        os._exit(1)  # what is left of its jobs is its guardian's


def wait_to_see(path: Path, patience_s: float = VISIBLE_S) -> bool:
    """Whether a path that another machine has written is here, or comes in time.

    A file server's client remembers for up to a minute that a name was not there; listing the folder
    makes it ask again.
    """
    deadline = time.monotonic() + patience_s
    while not path.exists():
        if time.monotonic() > deadline:
            return False  # whoever needs it says so
        with suppress(OSError):
            os.listdir(path.parent)
        time.sleep(LOOK_S)
    return True


class Orders(Package):
    """The controller's package, and the orders of jobs as it composed them."""

    def __init__(self, files: JobFiles) -> None:
        super().__init__(files, read_private(files.package()), None, written=True)
        self.by_number: dict[int, bytes] = {}

    def order(self, job: Job, returns: bool) -> bytes:
        return self.by_number.pop(job.number)


class Up(logging.Handler):
    def __init__(self, tell: Any) -> None:
        super().__init__(logging.INFO)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self._tell({"log": [record.levelno, record.getMessage()]})


def main(text: str) -> None:
    settings: Message = json.loads(text)
    # Jobs and whatever an import prints must not talk into the protocol.
    pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    telling = threading.Lock()

    def tell(message: Message) -> None:
        with telling:
            pipe.write(json.dumps(message) + "\n")
            pipe.flush()

    logging.getLogger("autocl_sweeper").addHandler(Up(tell))
    logging.getLogger("autocl_sweeper").setLevel(logging.INFO)
    try:
        Agent(settings, tell).serve()
    except AutoCLError as error:
        tell({"error": [type(error).__name__, str(error)]})
    except BrokenPipeError:  # the controller went, and its jobs with it
        os._exit(1)
