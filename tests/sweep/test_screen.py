"""The screen is never the reason: a sweep ends well without one, and shows all text as text."""

from __future__ import annotations

import csv
import io
import logging
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.bench import Bench

from autocl_sweeper.display.panel import Glance, JobLine, Panel
from autocl_sweeper.display.screen import PatientStream, four, patient_screen, screen
from autocl_sweeper.plain import plain

APP = """
import hydra
from hydra.core.config_store import ConfigStore
from pathlib import Path
from hydra.core.hydra_config import HydraConfig

ConfigStore.instance().store("config", {"task": "a", "x": 0, "t": "", "err": None, "init_from": None})
ERRORS = {"ansi": "\\x1b]0;owned\\x07\\x1b[2J\\x1b[31mred", "cr": "a\\rb, c", "bare": "bad \\udc80"}

@hydra.main(config_path=None, config_name="config", version_base="1.3")
def main(cfg):
    (Path(HydraConfig.get().runtime.output_dir) / "checkpoint").mkdir()
    if cfg.err:
        raise RuntimeError(ERRORS[cfg.err])
    return float(cfg.x)

if __name__ == "__main__":
    main()
"""
SWEEPER = ("-m", "hydra/sweeper=autocl", "hydra/launcher=gpu", "hydra.launcher.cpu_slots=1")


@pytest.fixture
def bench(benches: Callable[..., Bench], tmp_path: Path) -> Bench:
    (tmp_path / "app.py").write_text(APP)
    return benches(tmp_path / "app.py")


def command(bench: Bench, *more: str) -> list[str]:
    folder = f"hydra.sweep.dir={bench.sweep}"
    return [sys.executable, str(bench.app), *SWEEPER, "x=0,1", folder, *more]


def finished(bench: Bench) -> list[dict[str, str]]:
    with open(bench.sweep / "trials.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    "closed",
    [
        *(pytest.param(streams, marks=pytest.mark.slow) for streams in (">&-", ">&- 2>&-")),
        "<&- >&- 2>&-",
        ">/dev/full 2>/dev/full",
    ],
)
def test_a_sweep_with_closed_or_full_streams_ends_with_all_its_results(
    bench: Bench, closed: str
) -> None:
    shell = ["bash", "-c", f'exec "$@" {closed}', "bash", *command(bench)]
    done = subprocess.run(shell, cwd=bench.folder, env=bench.environment, timeout=200)
    assert done.returncode == 0
    assert [row["state"] for row in finished(bench)] == ["COMPLETE", "COMPLETE"]
    assert (bench.sweep / "journal.jsonl").read_text().splitlines()[-1].count('"end"') == 1


def test_a_sweep_ends_when_its_output_is_not_read(bench: Bench) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)
    done = subprocess.run(
        command(bench), cwd=bench.folder, env=bench.environment, stdout=writer, stderr=writer,
        timeout=200,
    )  # fmt: skip
    os.close(writer)
    os.close(reader)
    assert done.returncode == 0 and len(finished(bench)) == 2


def test_a_sweep_goes_on_when_its_terminal_is_gone_and_sighup_is_ignored(bench: Bench) -> None:
    ours, theirs = pty.openpty()
    bench.hold.touch()
    shell = ["bash", "-c", 'trap "" HUP; exec "$@"', "bash", *command(bench)]
    sweep = subprocess.Popen(
        shell, cwd=bench.folder, env=bench.environment, stdin=theirs, stdout=theirs,
        stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    assert os.read(ours, 1)  # it has begun to speak
    os.close(ours)
    assert sweep.wait(300) == 0
    assert [row["state"] for row in finished(bench)] == ["COMPLETE", "COMPLETE"]


def test_markup_control_sequences_and_other_alphabets_are_shown_as_text(bench: Bench) -> None:
    odd = ("task=[/b]", "t='[/INST]','[INST] ü :smile:'", "err=null,ansi,cr,bare")
    words = command(bench, "hydra.launcher.warm=true", *odd)
    ascii_only = bench.environment | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(words, cwd=bench.folder, env=ascii_only, capture_output=True, timeout=200)
    assert done.returncode == 0, done.stderr
    said = done.stdout.decode("ascii") + done.stderr.decode("ascii")
    assert "[/INST]" in said and "\\xfc :smile:" in said
    assert "RuntimeError: red" in said and not {"\x1b", "\x07", "\r"} & set(said)
    rows = finished(bench)
    assert len(rows) == 16
    assert {row["param/t"] for row in rows} == {"[/INST]", "[INST] ü :smile:"}


class Executor:
    def devices(self) -> dict[int, tuple[str, ...]]:
        return {}


# -- one stream -------------------------------------------------------------------------------------


class Broken(io.TextIOBase):
    encoding = "ascii"

    def write(self, text: str) -> int:
        raise ValueError("I/O operation on closed file")

    def flush(self) -> None:
        raise OSError(5, "Input/output error")


def test_a_stream_that_is_closed_takes_what_is_written() -> None:
    stream = PatientStream(Broken())
    assert stream.write("a") == 1 and stream.flush() is None  # type: ignore[func-returns-value]


def test_what_a_full_pipe_lost_is_counted_when_it_is_read_again() -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w", encoding="utf-8") as file:
        stream = PatientStream(file)
        for _ in range(40):
            stream.write("é" * 2048)
        read = os.read(reader, 1 << 20).decode()
        stream.write("again")
        rest = os.read(reader, 1 << 20).decode()
    os.close(reader)
    assert read == "é" * 32768
    assert rest == f"\n[{40 * 2048 - 32768} characters could not be shown]\nagain"


@pytest.fixture
def handler() -> Iterator[logging.StreamHandler[io.StringIO]]:
    made = logging.StreamHandler(sys.stdout)
    logging.getLogger("of_a_test").addHandler(made)  # type: ignore[arg-type]
    yield made  # type: ignore[misc]
    logging.getLogger("of_a_test").removeHandler(made)  # type: ignore[arg-type]


def test_log_handlers_are_patient_in_the_block_and_as_before_behind_it(
    handler: logging.StreamHandler[io.StringIO],
) -> None:
    before = sys.stdout
    with patient_screen():
        assert isinstance(handler.stream, PatientStream) and sys.stdout is handler.stream
        with patient_screen():
            assert sys.stdout is handler.stream
    assert sys.stdout is before is handler.stream


class Writes:
    """As the stream of MLflow's log handler: no file, and no way to ask for a terminal."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def write(self, text: str) -> None:
        self.texts.append(text)

    def flush(self) -> None:
        pass


def test_log_files_and_streams_of_others_go_on_beside_a_panel(tmp_path: Path) -> None:
    made, other = logging.FileHandler(tmp_path / "log", mode="w", delay=True), Writes()
    logger = logging.getLogger("of_a_file")
    logger.handlers = [made, logging.StreamHandler(other)]  # type: ignore[type-var]
    panel = Panel(Executor(), lambda: Glance(0, 1, 0, 0, 0.0), lambda number: JobLine(""))
    with patient_screen():
        panel.start()
        logger.error("one")
        panel.stop()
    logger.error("two")
    logger.handlers = []
    made.close()
    assert (tmp_path / "log").read_text() == "".join(other.texts) == "one\ntwo\n"


def test_a_console_shows_strings_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table

    table = Table("[bold]x", "[/y]")
    table.add_row("[/INST] \x1b[31mred", ":smile:")
    screen().print(table)
    screen().print("[red]a[/red] [/nothing]")
    shown = capsys.readouterr().out
    assert "[bold]x" in shown and "[/INST] red" in shown and ":smile:" in shown
    assert "[red]a[/red] [/nothing]" in shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü [x]\n\ty", "plain ü [x]\n\ty"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07a\x1b]8;;http://x\x1b\\b", "ab"),
        ("\x1bP1$r\x1b\\a\x1b(Bb\x1bc\x9b2Kd", "abd"),
        ("10%\r20%\r\nend\x07\x00\x85", "10% 20%\nend"),
        ("safe\u202etxt.exe", "safetxt.exe"),
        ("\x1b[", ""),
    ],
)
def test_no_text_moves_the_cursor(text: str, shown: str) -> None:
    assert plain(text) == shown


@pytest.mark.parametrize(
    ("score", "shown"),
    [(0.98524, "0.9852"), (0.0012345, "0.001234"), (-3e-5, "-3e-05"), (12.5, "12.5000"), (None, "-")],
)  # fmt: skip
def test_small_scores_keep_four_digits(score: float | None, shown: str) -> None:
    assert four(score) == shown
