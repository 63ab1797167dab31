"""The live panel: a few lines that stay below what is logged and fit the terminal's width."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from autocl_sweeper.device.probe import Device, short
from autocl_sweeper.display.screen import moved_handlers, screen
from autocl_sweeper.errors import DeviceError
from autocl_sweeper.plain import plain

if TYPE_CHECKING:
    from rich.text import Text

READ_AGAIN_S = 2.0  # a look at all devices costs milliseconds
MOST_LINES = 16  # of devices and their jobs
MOST_LINEAGE = 8  # trials of a lineage that are named
PER_SECOND = 4  # redraws
NARROW = 72  # columns below which things are cut


@runtime_checkable
class Watched(Protocol):
    """An executor whose jobs keep their output to themselves, so that nothing tears a panel."""

    def devices(self) -> Mapping[int, tuple[str, ...]]:
        """Job number -> the devices it runs on. May be called from any thread, as all below."""
        ...


@runtime_checkable
class Packing(Protocol):
    """An executor whose jobs may share devices."""

    def reserved(self) -> Mapping[int, tuple[int | None, str]]:
        """Number of a job that may share -> MiB it reserves on each device, and by which source."""
        ...


@runtime_checkable
class Measured(Watched, Protocol):
    """One that can also look at its devices."""

    def readings(self) -> Mapping[str, Device]:
        """What the devices say of themselves now, by id."""
        ...


@runtime_checkable
class Telling(Protocol):
    """One that says what everything waits for: `importing torch (7 s)`, or that it is stopping."""

    def doing(self) -> str: ...


@dataclass(frozen=True)
class Glance:
    """What the panel says of a sweep or a launch. `total` None: not known."""

    done: int
    total: int | None
    running: int
    failed: int
    elapsed_s: float
    queued: int | None = None
    left_s: float | None = None
    stage: str = ""  # 3/5
    task: str = ""
    best: str = ""  # a score as it is printed, once there is one
    lineage: Sequence[int] = ()  # of the best trial, which is the last
    given_up: int = 0
    stopped: int = 0
    failure: str = ""  # the last one, in short
    command: str = ""  # that shows it


@dataclass(frozen=True)
class JobLine:
    """A running job: its name, its settings, and how far it is."""

    name: str
    settings: str = ""
    progress: str = ""


class Panel:
    """Draws until `stop`. Log lines that go to the terminal meanwhile come above it."""

    def __init__(
        self, executor: Watched, glance: Callable[[], Glance], job: Callable[[int], JobLine]
    ) -> None:
        """`glance` and `job` (by its number) are called at each redraw, from another thread."""
        self._executor = executor
        self._glance = glance
        self._job = job
        self._readings: Mapping[str, Device] = {}
        self._over = threading.Event()
        self._reader: threading.Thread | None = None
        self._console = screen(stderr=True)
        self._live: Any = None
        self._moved = ExitStack()

    def start(self) -> None:
        from rich.file_proxy import FileProxy
        from rich.live import Live

        self._live = Live(
            console=self._console, get_renderable=lambda: self, refresh_per_second=PER_SECOND
        )
        if isinstance(self._executor, Measured):
            self._readings = self._executor.readings()
            self._reader = threading.Thread(target=self._read, name="readings", daemon=True)
            self._reader.start()
        self._live.start()

        def above(stream: Any) -> Any:  # None: a log file that is not open yet
            asked = getattr(
                stream, "isatty", bool
            )  # MLflow's handler has a stream that can only write
            return FileProxy(self._console, stream) if asked() else stream

        # Handlers have the streams from before, past which rich draws.
        self._moved.enter_context(moved_handlers(above))

    def stop(self) -> None:
        self._moved.close()
        if self._live is not None:
            self._live.stop()
        self._over.set()
        if self._reader is not None:
            self._reader.join()

    def _read(self) -> None:
        """Not while it draws: what a look logs would wait for the drawing, which waits for it."""
        while isinstance(self._executor, Measured) and not self._over.wait(READ_AGAIN_S):
            with suppress(DeviceError):
                self._readings = self._executor.readings()

    def say(self, text: str) -> None:
        """A line above the panel."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Text]:
        yield from self.lines(options.max_width)

    def lines(self, width: int) -> list[Text]:
        """The panel at a width; no line is wider."""
        doing = self._executor.doing() if isinstance(self._executor, Telling) else ""
        glance = self._glance()
        rows = list(self._device_rows(width))
        if doing and not self._executor.devices():  # nothing runs yet, or any more
            return [_cut(doing, width, "bold")]
        found = [*_head(glance, width), *rows[:MOST_LINES]]
        if len(rows) > MOST_LINES:
            found.append(_cut(f" and {len(rows) - MOST_LINES} more lines", width, "dim"))
        if glance.failure:
            found.append(_both(f" last failure {glance.failure}", glance.command, width))
        if doing:
            found.append(_cut(doing, width, "bold"))
        return found

    def _device_rows(self, width: int) -> Iterator[Text]:
        where = sorted(self._executor.devices().items())
        if not isinstance(self._executor, Measured):
            for number, ids in where:
                yield _device_line(" ".join(map(short, ids)), None, self._job(number), width)
            return
        jobs: dict[str, list[int]] = {}
        for number, ids in where:
            for device_id in ids:
                jobs.setdefault(device_id, []).append(number)
        # A CPU slot is worth a line only while a job has it.
        known = [name for name, device in self._readings.items() if device.total_mib is not None]
        for device_id in dict.fromkeys([*known, *jobs]):
            device = self._readings.get(device_id)
            numbers = jobs.get(device_id, [])
            line = self._job(numbers[0]) if numbers else None
            yield _device_line(short(device_id), device, line, width)
            for number in numbers[1:]:
                yield _device_line("", None, self._job(number), width, beside=device)


# -- lines of a width -------------------------------------------------------------------------------


def _head(glance: Glance, width: int) -> list[Text]:
    """Where it stands and how far it is; the best trial, counts and times."""
    from rich.text import Text

    done = f"{glance.done}/{'?' if glance.total is None else glance.total}"
    done += " jobs" if width >= NARROW else ""
    stage = f"stage {glance.stage} " if glance.stage else ""
    room = max(0, width - len(stage) - len(done) - 14)
    task = _shortened(plain(glance.task), room)
    first = Text.assemble(stage, (task, "bold"), no_wrap=True)
    first.append("  " if len(first) else "")
    length = width - first.cell_len - len(done) - 1
    share = glance.done / glance.total if glance.total else 0.0
    full = min(length, round(length * share))
    first.append("━" * full, "green").append("─" * (length - full), "dim").append(f" {done}")
    first.truncate(width)
    return [first, _second(glance, width)]


def _second(glance: Glance, width: int) -> Text:
    """As much as fits: the score, the failures and the time in any case."""
    sizes = ((0, 0, 0), (1, 0, 0), (1, 1, 0), (1, 1, 1), (2, 1, 1), (2, 2, 0), (2, 2, 1), (2, 2, 2))
    best, counts, times = _best(glance), _counts(glance), _times(glance)
    for size in sizes:
        parts = [best[size[0]], counts[size[1]], times[size[2]]]
        text = "   ".join(filter(None, parts))
        if len(text) <= width:
            break
    line = _cut(text, width)
    if glance.failed:
        line.highlight_words([f"{glance.failed} failed"], "red")
    return line


def _best(glance: Glance) -> tuple[str, str, str]:
    if not glance.lineage:
        return ("best -",) * 3 if glance.stage else ("",) * 3
    *before, number = glance.lineage
    least = f"best {glance.best} #{number}"
    if not before:
        return (least,) * 3
    chain = " > ".join(map(str, glance.lineage[-MOST_LINEAGE:]))
    dots = "… > " if len(glance.lineage) > MOST_LINEAGE else ""
    return f"{least} ({dots}{chain})", f"{least} from {before[-1]}", least


def _counts(glance: Glance) -> tuple[str, str, str]:
    queued = [] if glance.queued is None else [f"{glance.queued} queued"]
    some = [f"{glance.running} running", *queued]
    failed = f"{glance.failed} failed"
    rare = [f"{n} {word}" for n, word in
            ((glance.stopped, "stopped"), (glance.given_up, "given up")) if n]  # fmt: skip
    every = [*some, f"{glance.done} done", failed, *rare]
    return ", ".join(every), ", ".join([*some, failed]), failed


def _times(glance: Glance) -> tuple[str, str, str]:
    gone = clock(glance.elapsed_s)
    if glance.left_s is None:
        return f"{gone} elapsed", f"{gone} elapsed", gone
    left = clock(glance.left_s)
    return (
        f"{gone} elapsed, about {left} left",
        f"{gone}, about {left} left",
        f"{gone}, {left} left",
    )


def _device_line(
    name: str,
    device: Device | None,
    job: JobLine | None,
    width: int,
    beside: Device | None = None,
) -> Text:
    """A device with its job. Settings are cut first, then what `from` says, memory and load."""
    from rich.cells import cell_len

    figures = _figures(device, width)
    if beside is not None:  # another job on the device of the line above
        figures = " " * len(_figures(beside, width))
    if width < NARROW and name[:4] in ("GPU-", "MIG-"):
        name = name[:8]
    name = name or " " * (8 if width < NARROW else 12)
    left = "  ".join(filter(None, (f" {name}", figures)))
    if job is None:
        return _cut(f"{left}  -", width, "dim")
    told = f"{left}  {plain(job.name)}"
    right = plain(job.progress) if cell_len(told) + len(job.progress) + 2 <= width else ""
    room = width - cell_len(told) - len(right) - (4 if right else 2)
    settings = _shortened(plain(job.settings), room)
    return _both(f"{told}  {settings}" if settings else told, right, width, "dim")


def _figures(device: Device | None, width: int) -> str:
    """Load and memory of a GPU; empty where NVML tells neither."""
    if device is None:
        return ""
    load = "" if device.utilisation is None else f"{device.utilisation:3d}%"
    memory = ""
    if device.total_mib is not None and device.free_mib is not None:
        used, total = (device.total_mib - device.free_mib) / 1024, device.total_mib / 1024
        memory = f"{used:3.0f}/{total:.0f}G" if width < NARROW else f"{used:.1f}/{total:.1f} GiB"
    return "  ".join(filter(None, (load, memory)))


def _both(left: str, right: str, width: int, style: str = "") -> Text:
    """Text at the left and, where it fits, at the right."""
    from rich.cells import cell_len

    left = plain(left)
    if not right:
        return _cut(left, width, style)
    left = _shortened(left, width - cell_len(right) - 2)
    apart = max(0, width - cell_len(right) - cell_len(left))
    return _cut(f"{left}{' ' * apart}{right}", width, style)


def _shortened(text: str, room: int) -> str:
    """Text of so many cells at most: some characters are two wide."""
    from rich.cells import cell_len
    from rich.text import Text

    if cell_len(text) <= room:
        return text
    line = Text(text)
    line.truncate(max(0, room), overflow="ellipsis")
    return line.plain if room > 3 else ""


def _cut(text: str, width: int, style: str = "") -> Text:
    from rich.text import Text

    line = Text(plain(text), style, no_wrap=True, end="\n")
    line.truncate(width, overflow="ellipsis")  # by cells: some characters are two wide
    return line


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
