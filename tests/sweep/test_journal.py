"""A journal is believed only as it was written, and only where its sweep put it."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.bench import Bench, wait_until
from support.journals import Written

from autocl_sweeper.errors import (
    DiskError,
    JournalDamagedError,
    JournalLostError,
    SweepLockedError,
)
from autocl_sweeper.journal import NAME, RESCUED, Journal, fold, read


def reopened(folder: Path) -> list[dict[str, object]]:
    journal = Journal(folder)
    journal.close()
    return [dict(record) for record in journal.records]


def without_sums(data: bytes) -> bytes:
    """The journal as earlier versions wrote it."""
    lines = [json.loads(line) for line in data.splitlines()]
    for line in lines:
        del line["crc"]
    return b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines)


def write_byte(path: Path, place: int, byte: int) -> None:
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(bytes([byte]))


# -- damage -----------------------------------------------------------------------------------------


def test_none_of_3000_flipped_bits_is_believed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Flips at the end drop what they damage and say so; all others are refused with the line's number."""
    Written(tmp_path).two_stages()
    data = (tmp_path / NAME).read_bytes()
    records = reopened(tmp_path)
    chance = random.Random(12)
    refused = dropped = 0
    for _ in range(3000):
        place, bit = chance.randrange(len(data)), chance.randrange(8)
        write_byte(tmp_path / NAME, place, data[place] ^ 1 << bit)
        try:
            found = read(tmp_path)
        except JournalDamagedError as error:
            refused += 1
            assert "is not as it was written" in str(error)
            write_byte(tmp_path / NAME, place, data[place])
            continue
        # A flip of the line end between the last two makes one line of them.
        assert found in (records[:-1], records[:-2]), (place, bit)
        if not dropped:
            assert reopened(tmp_path) == found
            assert "torn or damaged: it is ignored" in caplog.text
            (tmp_path / NAME).write_bytes(data)
        write_byte(tmp_path / NAME, place, data[place])
        dropped += 1
    assert (refused > 2000, dropped > 0, refused + dropped) == (True, True, 3000)


def test_lines_that_are_missing_doubled_or_exchanged_are_refused(tmp_path: Path) -> None:
    Written(tmp_path).two_stages()
    lines = (tmp_path / NAME).read_bytes().splitlines(keepends=True)
    for place in range(1, len(lines) - 2):
        missing = [*lines[:place], *lines[place + 1 :]]
        doubled = [*lines[:place], *lines[place - 1 :]]
        exchanged = [*lines[:place], lines[place + 1], lines[place], *lines[place + 2 :]]
        for damaged in (missing, doubled, exchanged):
            (tmp_path / NAME).write_bytes(b"".join(damaged))
            with pytest.raises(JournalDamagedError):
                read(tmp_path)


def test_a_journal_without_checksums_is_read_and_covered_from_its_next_session_on(
    tmp_path: Path,
) -> None:
    Written(tmp_path).two_stages()
    records = reopened(tmp_path)
    old = without_sums((tmp_path / NAME).read_bytes())
    (tmp_path / NAME).write_bytes(old)
    journal = Journal(tmp_path)
    assert journal.records == records
    journal.open_session({})
    journal.append("select", stage=2, beam=[4])
    journal.close()
    assert len(reopened(tmp_path)) == len(records) + 2
    data = (tmp_path / NAME).read_bytes()
    assert data.startswith(old)
    (tmp_path / NAME).write_bytes(data.replace(b'"score": 0.75', b'"score": 0.76'))
    with pytest.raises(JournalDamagedError):
        read(tmp_path)


def test_lines_are_json_with_their_fields_first(tmp_path: Path) -> None:
    Written(tmp_path).two_stages()
    for line in (tmp_path / NAME).read_text().splitlines():
        keys = list(json.loads(line))
        assert (keys[0], keys[-2:]) == ("event", ["time", "crc"])


def test_a_beam_of_unknown_trials_is_no_history(tmp_path: Path) -> None:
    written = Written(tmp_path)
    written.start(0)
    written.finish(0, 0.5)
    written.select(1, 7)
    written.journal.close()
    with pytest.raises(KeyError, match="7"):
        fold(read(tmp_path))


# -- a disk that is full ----------------------------------------------------------------------------


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file of this process grows beyond `size` bytes, as on a full disk, inside."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_an_event_that_does_not_fit_leaves_no_part_of_itself(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append("start", trial=0)
    data = (tmp_path / NAME).read_bytes()
    for room in (0, 1, 30):
        with files_up_to(len(data) + room), pytest.raises(DiskError) as raised:
            journal.append("start", trial=1)
        assert os.strerror(errno.EFBIG) in str(raised.value)
        assert "rerun the same command" in str(raised.value)
        assert (tmp_path / NAME).read_bytes() == data
    journal.append("start", trial=2)
    journal.close()
    assert [record["trial"] for record in reopened(tmp_path)] == [0, 2]


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "Free some space there"),
        (errno.EDQUOT, "have your quota raised"),
        (errno.EIO, "dmesg says more"),
        (errno.EROFS, "Mount it writable again"),
    ],
)
def test_every_way_a_disk_refuses_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str
) -> None:
    journal = Journal(tmp_path)
    journal.append("start", trial=0)

    def refuse(file: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", refuse)
        with pytest.raises(DiskError) as raised:
            journal.append("start", trial=1)
    journal.close()
    told = str(raised.value)
    assert f"'{tmp_path / NAME}' could not be written: {os.strerror(number)}" in told
    assert remedy in told and "It lies on the file system '/" in told
    assert [record["trial"] for record in reopened(tmp_path)] == [0]


# -- who has the folder -----------------------------------------------------------------------------


def test_a_removed_journal_stops_its_sweep_and_is_rescued(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append("start", trial=0)
    (tmp_path / NAME).unlink()
    with pytest.raises(SweepLockedError):  # a second controller does not get in
        Journal(tmp_path)
    assert not (tmp_path / NAME).exists()
    with pytest.raises(JournalLostError, match=RESCUED):
        journal.append("start", trial=1)
    journal.close()
    (tmp_path / RESCUED).rename(tmp_path / NAME)
    assert [record["trial"] for record in reopened(tmp_path)] == [0]


def test_a_replaced_folder_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    journal = Journal(folder)
    journal.append("start", trial=0)
    shutil.rmtree(folder)
    with pytest.raises(JournalLostError):
        journal.append("start", trial=1)
    assert not folder.exists()
    other = Journal(folder)
    other.append("start", trial=5)
    with pytest.raises(JournalLostError):
        journal.append("start", trial=1)
    journal.close()
    other.close()
    assert [path.name for path in folder.iterdir()] == [NAME]
    assert [record["trial"] for record in reopened(folder)] == [5]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_signal_between_two_bytes_leaves_whole_lines(tmp_path: Path, number: int) -> None:
    """A writer is hit again and again while it appends; what it leaves is continued each time."""
    code = (
        "import sys; from pathlib import Path; from autocl_sweeper.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1])); print(len(journal.records), flush=True)\n"
        "while True:\n"
        "    try:\n"
        "        journal.append('start', trial=1, text='x' * 5000)\n"
        "    except KeyboardInterrupt:\n"
        "        journal.append('end'); break\n"
    )
    for round_number in range(5):
        writer = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert writer.stdout is not None and writer.stdout.readline()
        size = (tmp_path / NAME).stat().st_size
        wait_until(lambda s=size: (tmp_path / NAME).stat().st_size > s + 20_000, "it writes")
        writer.send_signal(number)
        writer.wait()
        writer.stdout.close()
        records = read(tmp_path)
        ends = sum(record["event"] == "end" for record in records)
        assert ends == (round_number + 1 if number == signal.SIGINT else 0)


# -- whole sweeps -----------------------------------------------------------------------------------

LAUNCHER = ("hydra/launcher=gpu", "hydra.launcher.cpu_slots=1", "hydra.launcher.warm=true")
COMMAND = ("hydra/sweeper=autocl", "task=a", "lr=1,2", *LAUNCHER)


def test_a_sweep_whose_journal_goes_stops_and_the_rescued_one_continues(chain: Bench) -> None:
    process = chain.start_held(1, *COMMAND)
    (chain.sweep / NAME).unlink()
    chain.hold.unlink()
    output = chain.finish(process, 1)
    assert f"JournalLostError: '{chain.sweep / NAME}' was removed or replaced" in output
    wait_until(chain.nothing_is_left, "its jobs are gone")
    refusal = chain.run(*COMMAND, status=1)
    assert "holds trials, but its journal is missing" in refusal
    assert "Traceback" not in output + refusal
    (chain.sweep / RESCUED).rename(chain.sweep / NAME)
    chain.run(*COMMAND)
    assert [event["score"] for event in chain.finished().values()] == [1.0, 2.0]
    assert len(chain.ledger("start")) == 2  # what had finished was taken over


def test_an_empty_journal_among_trials_is_refused_and_left_as_it_is(chain: Bench) -> None:
    chain.run(*COMMAND)
    before = {path: path.read_bytes() for path in chain.sweep.rglob("*") if path.is_file()}
    for spoil in (lambda p: p.write_bytes(b""), lambda p: p.write_bytes(b"\0" * 300), Path.unlink):
        spoil(chain.sweep / NAME)
        assert "holds trials, but its journal is missing" in chain.run(*COMMAND, status=1)
    after = {path: path.read_bytes() for path in chain.sweep.rglob("*") if path.is_file()}
    del before[chain.sweep / NAME], after[chain.sweep / NAME]
    assert before == after


def test_the_cost_of_many_events_at_once_grows_with_their_number_alone(tmp_path):
    def cost_s(count: int) -> float:
        journal = Journal(tmp_path / str(count))
        events = [("report", {"trial": 0, "attempt": 1, "step": 9, "score": 0.5})] * count
        begun = time.process_time()
        journal.extend(events)
        took = time.process_time() - begun
        journal.close()
        return took

    small = min(cost_s(1000 + n) for n in range(5))
    assert cost_s(20_000) < 60 * small  # 20 times as much; copied with every line it was 200 times
