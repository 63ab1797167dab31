"""The command `autocl` as a person or a program calls it, in its own process."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.bench import REPOSITORY, Bench, autocl
from support.journals import Written, written_anew
from support.sweeps import crossed, failing

from autocl_sweeper.cli import main
from autocl_sweeper.journal import read

pytestmark = pytest.mark.usefixtures("no_fsync")


def said(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def test_the_exit_status_is_0_for_an_answer_1_for_what_cannot_be_read_and_2_for_wrong_usage(
    tmp_path,
):
    assert autocl("--version").stdout.startswith("autocl-sweeper ")
    nothing = autocl("status", tmp_path)
    assert nothing.returncode == 1 and "holds no sweep" in nothing.stderr and not nothing.stdout
    assert autocl("statsu").returncode == 2


def test_status_says_how_far_the_sweep_is(tmp_path, capsys):
    folder = crossed(tmp_path / "s")
    lines = said(capsys, "status", folder).splitlines()
    assert lines[0] == "finished"
    assert lines[1].split("    ")[0] == "  best 0.8333, trial 6 (1 > 2 > 6)"
    assert lines[1].endswith("10 of 10 done")


def test_status_of_an_open_sweep_counts_what_runs_and_failed(tmp_path, capsys):
    Written(tmp_path).two_stages()
    found = json.loads(said(capsys, "status", "--json", tmp_path))
    assert (found["stage"], found["running"], found["failed"], found["best"]) == (2, 1, 1, 0.625)
    assert found["status"] == "stopped" and found["lineage"] == [0, 4]


def test_the_newest_sweep_below_multirun_is_meant_by_default(tmp_path):
    for n, name in enumerate(("2026-01-01/10-00-00", "2026-01-02/09-00-00")):
        (tmp_path / "multirun" / name).mkdir(parents=True)
        folder = Written(tmp_path / "multirun" / name).two_stages().folder
        os.utime(folder / "journal.jsonl", (n, n))
    found = json.loads(autocl("status", "--json", cwd=tmp_path).stdout)
    assert found["folder"].endswith("2026-01-02/09-00-00")
    lost = autocl("status", cwd=tmp_path / "multirun")
    assert lost.returncode == 1 and "No sweep folder is named" in lost.stderr


def test_show_tells_all_of_a_trial_and_how_to_repeat_it(tmp_path, capsys):
    folder = failing(tmp_path / "s", tail=["Traceback", "\x1b[31mboom\x1b[0m <b>"])
    text = said(capsys, "show", 1, folder)
    assert "trial 1, stage 1 (a): fail" in text and "exited with 1 after 4 s" in text
    assert "boom <b>" in text and "\x1b" not in text and "lr=2" in text
    found = json.loads(said(capsys, "show", "--json", 1, folder))
    assert found["state"] == "FAIL" and found["params"] == {"lr": 2} and found["cause"] == "exit"
    assert found["folder"] == str(folder / "1_a/1")
    assert main(["show", "9", str(folder)]) == 1
    assert "its trials are 0 to 2" in capsys.readouterr().err


def test_the_repeating_command_keeps_the_programs_options_and_leaves_hydras_out(tmp_path, capsys):
    sweep = Written(tmp_path)
    sweep.start(0)
    sweep.finish(0, 0.5)
    sweep.journal.close()
    lines = read(tmp_path)
    lines[0]["command"] = "python app.py -cn other -m hydra/sweeper=autocl lr=1,2"
    lines[1]["overrides"] = ["lr=1", "name='a b'", "hydra.sweep.subdir=0"]
    written_anew(tmp_path, lines)
    found = json.loads(said(capsys, "show", "--json", 0, tmp_path))
    assert found["command"] == """python app.py -cn other lr=1 'name='"'"'a b'"'"''"""


def test_best_prints_the_chain_and_the_overrides_of_each_stage(tmp_path, capsys):
    folder = crossed(tmp_path / "s")
    text = said(capsys, "best", folder).splitlines()
    first = "The best chain reaches 0.833 average accuracy on three tasks and forgets 0.150."
    assert text[0] == first
    assert [line.split()[3] for line in text[1:4]] == ["1", "2", "6"]
    overrides = said(capsys, "best", "--overrides", folder).splitlines()
    assert overrides[0] == "task=a lr=2" and overrides[2] == "task=c lr=1 p=2"
    found = json.loads(said(capsys, "best", "--json", folder))
    assert [one["trial"] for one in found] == [1, 2, 6]


def test_commands_of_a_folder_that_was_moved_name_its_checkpoints_where_they_lie_now(
    tmp_path, capsys
):
    folder = crossed(tmp_path / "s")
    lines = read(folder)
    lines[0]["command"] = "python app.py -m task=a,b,c"
    for line in lines:
        if line["event"] == "finish":
            line["checkpoint"] = f"trials/{line['trial']}/checkpoint"
        elif line["event"] == "start" and line["parent"] is not None:
            there = f"/old/runs/s/trials/{line['parent']}/checkpoint"
            other = there.replace("checkpoint", "checkpoint_2")
            line["overrides"] = [f"init_from={there}", f"all=['{there}','/old/runs/s/x','{other}']"]
    written_anew(folder, lines)
    now = f"{folder}/trials/1/checkpoint"
    told = said(capsys, "best", "--overrides", folder).splitlines()[1]
    assert shlex.split(told) == [f"init_from={now}", f"all=['{now}','{folder}/x','{now}_2']"]
    assert f"init_from={now}" in shlex.split(said(capsys, "show", "2", folder))


def test_best_of_a_sweep_without_a_score_is_refused(tmp_path, capsys):
    Written(tmp_path).journal.close()
    assert main(["best", str(tmp_path)]) == 1
    assert "no trial has a score yet" in capsys.readouterr().err


def test_report_writes_the_page_and_says_where(tmp_path, capsys):
    folder = crossed(tmp_path / "s")
    assert said(capsys, "report", folder).strip() == str(folder / "report.html")
    assert "forgets 0.150" in (folder / "report.html").read_text()
    found = json.loads(said(capsys, "report", "--json", "--out", tmp_path / "r.html", folder))
    assert found["bytes"] == (tmp_path / "r.html").stat().st_size < 1_300_000


def blocked(tmp_path: Path) -> str:
    """A folder for the path of a Python that then has no extra `report`."""
    blocker = tmp_path / "blocked"
    blocker.mkdir()
    (blocker / "sitecustomize.py").write_text(
        "import importlib.util as u\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda n, *a: None if n in ('jinja2', 'vl_convert') else find(n, *a)\n"
    )
    return str(blocker)


def test_without_the_extra_the_report_names_it(tmp_path):
    folder = crossed(tmp_path / "s")
    done = autocl("report", folder, PYTHONPATH=f"{blocked(tmp_path)}{os.pathsep}{REPOSITORY}")
    assert done.returncode == 1 and "pip install 'autocl-sweeper[report]'" in done.stderr
    assert "Jinja2 and vl-convert-python" in done.stderr


def test_plot_draws_by_the_ending_of_its_file(tmp_path, capsys):
    folder = crossed(tmp_path / "s")
    assert (
        said(capsys, "plot", "tree", "--out", tmp_path / "t.svg", folder).strip().endswith("t.svg")
    )
    assert (tmp_path / "t.svg").read_text().startswith("<svg")
    said(capsys, "plot", folder, "matrix", "--out", tmp_path / "m.png")
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit) as ended:
        main(["plot", "pie", str(folder)])
    assert ended.value.code == 2 and "choose from tree, matrix" in capsys.readouterr().err


def test_watch_prints_a_line_an_event_where_there_is_no_terminal(tmp_path, capsys):
    lines = said(capsys, "watch", "--once", failing(tmp_path / "s")).splitlines()
    told = [line.split(" ", 2)[2] for line in lines]
    assert told[:2] == ["1_a/0 started", "1_a/0 complete 0.5000 in 1.0 s"]
    assert "1_a/2 FAIL after 1.0 s: exited with 1 after 5 s" in told
    assert told[-2:] == ["stage 1 a done, beam 0 (0.5000)", "the sweep is over"]
    events = [
        json.loads(line) for line in said(capsys, "watch", "--json", tmp_path / "s").splitlines()
    ]
    assert [one["event"] for one in events][-2:] == ["select", "end"]


def test_doctor_names_what_is_there_and_ends_with_0(tmp_path):
    done = autocl("doctor", "--json", cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    found = {one["about"]: one for one in json.loads(done.stdout)}
    assert done.returncode == 0, done.stdout + done.stderr
    assert found["plugin"]["state"] == "ok" and found["Hydra"]["text"][:2] == "1."


def test_doctor_ends_with_1_where_a_sweep_would_not_run(tmp_path):
    (tmp_path / "file").write_text("")
    done = autocl(
        "doctor", cwd=tmp_path, CUDA_VISIBLE_DEVICES="", AUTOCL_LEASE_DIR=str(tmp_path / "file")
    )
    assert done.returncode == 1 and "WRONG  leases" in done.stdout


def test_a_journal_of_another_version_is_refused_with_a_sentence(tmp_path, capsys):
    Written(tmp_path).journal.close()
    written_anew(tmp_path, [record | {"version": 2} for record in read(tmp_path)])
    for command in (["status"], ["report"], ["best"], ["show", "0"], ["watch"]):
        assert main([*command, str(tmp_path)]) == 1
        assert "journal of version 2" in capsys.readouterr().err


def test_shells_complete_commands_by_argcomplete(tmp_path):
    told = tmp_path / "told"
    environ = {"_ARGCOMPLETE": "1", "COMP_LINE": "autocl sta", "COMP_POINT": "10"}
    environ["_ARGCOMPLETE_IFS"] = "\n"
    autocl(**environ, _ARGCOMPLETE_STDOUT_FILENAME=str(told))
    assert told.read_text().split() == ["status"]
    environ |= {"COMP_LINE": "autocl plot t", "COMP_POINT": "13"}
    autocl(**environ, _ARGCOMPLETE_STDOUT_FILENAME=str(told))
    assert {"tree", "timeline"} <= set(told.read_text().split())


def swept(benches: Callable[..., Bench], before: str = "") -> tuple[str, Path]:
    """What the smallest app printed, swept with a report at the end; and its folder."""
    bench = benches(REPOSITORY / "examples/minimal/app.py")
    ours = ("hydra/sweeper=autocl", "hydra.sweeper.report=true", "task=low,high", "rate=0.5,1.0")
    return bench.run(*ours, PYTHONPATH=f"{before}{os.pathsep}{REPOSITORY}"), bench.sweep


def test_a_sweep_that_asks_leaves_the_page_of_its_end_with_its_command(tmp_path, benches):
    _, sweep = swept(benches)
    text = (sweep / "report.html").read_text()
    assert "finished</span>" in text and "hydra.sweep.dir=…/sweep" in text
    assert str(tmp_path) not in text


def test_without_the_extra_a_sweep_that_asks_says_so_and_ends_well(tmp_path, benches):
    told, sweep = swept(benches, blocked(tmp_path))
    assert "optimization_results.yaml" in told
    assert "no report.html: autocl report needs Jinja2 and vl-convert-python" in told
    assert not (sweep / "report.html").exists()


def test_a_sweep_that_does_not_ask_imports_nothing_of_the_report(tmp_path):
    code = (
        "import sys; import autocl_sweeper.hydra_sweep; "
        "print([m for m in sys.modules if m.startswith(('autocl_sweeper.page', 'jinja2', 'vl_convert'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.strip() == "[]", done.stderr
