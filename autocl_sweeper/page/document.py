"""The page: one HTML file that asks nothing of any network."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from autocl_sweeper.compare import figures
from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.outcome import write_whole
from autocl_sweeper.overview import Overview, S, look
from autocl_sweeper.page import words
from autocl_sweeper.page.cost import cost
from autocl_sweeper.page.data import as_json, data
from autocl_sweeper.page.failures import failures
from autocl_sweeper.page.influence import influence
from autocl_sweeper.page.matrices import matrices, most_forgotten
from autocl_sweeper.page.parallel import MOST_LINES
from autocl_sweeper.page.scale import DARK, FONT, LIGHT, STEPS, variables
from autocl_sweeper.page.starts import merged_starts
from autocl_sweeper.page.story import story
from autocl_sweeper.page.tree import DONE, FAILED, GIVEN_UP, PRUNED, RUNNING, kind_of, scale_of
from autocl_sweeper.types import State, Trial

NAME = "report.html"
PACKAGES = {"jinja2": "Jinja2", "vl_convert": "vl-convert-python"}
SIGNS = {FAILED: "✕", GIVEN_UP: "◌", PRUNED: "▽", RUNNING: "◉"}
PARTS = "autocl_sweeper.page.parts"
ORDINALS = {2: "second", 3: "third"}


@dataclass(frozen=True)
class Card:
    """A trial of the best chain."""

    number: int
    stage: int
    task: str
    score: str
    params: Sequence[tuple[str, str]]


def refuse_without_packages(what: str = "autocl report") -> None:
    """Raises ConfigurationError where the extra `report` is not installed."""
    if missing := [name for module, name in PACKAGES.items() if find_spec(module) is None]:
        raise ConfigurationError(
            f"{what} needs {words.joined(missing)}, which {'is' if len(missing) == 1 else 'are'} not"
            " installed.\n  pip install 'autocl-sweeper[report]'"
        )


def write(sweep: Overview, others: Sequence[Path] = (), to: Path | None = None) -> Path:
    """Write the page, by default `report.html` in the sweep's folder. Raises ConfigurationError."""
    refuse_without_packages()
    path = to or sweep.folder / NAME
    write_whole(path, page(sweep, others).encode("utf-8", "replace"))
    return path


def page(sweep: Overview, others: Sequence[Path] = (), live: int | None = None) -> str:
    """The whole page. live: the size of the journal it shows, by which its server tells what is new."""
    templates, script = _templates(), _part("page.js")
    bundle = _bundle()
    sources = " ".join(f"'sha256-{_digest(text)}'" for text in (bundle, script))
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src {sources};"
        " base-uri 'none'; form-action 'none'"
    )
    if live is not None:
        policy += "; connect-src 'self'"
    known = data(sweep)
    text: str = templates.get_template("page.html.j2").render(
        **context(sweep, others, set(known["charts"])),
        live=live,
        policy=policy,
        style=_markup(_style()),
        bundle=_markup(bundle),
        script=_markup(script),
        data=_markup(as_json(known)),
    )
    return text


def news(sweep: Overview, others: Sequence[Path], size: int) -> str:
    """What a served page asks for when something has happened: its main part and data, as JSON."""
    known = data(sweep)
    told = context(sweep, others, set(known["charts"]))
    main: str = _templates().get_template("main.html.j2").render(**told)
    return as_json({"main": main, "data": known, "size": size})


def context(sweep: Overview, others: Sequence[Path], charts: set[str]) -> dict[str, Any]:
    """What the templates know. charts: the names of those there are."""
    trials = list(sweep.history)
    found, kinds = matrices(sweep), {kind_of(sweep, trial) for trial in trials}
    compared = [figures(one) for one in (sweep, *map(look, others))] if others else []
    mattered = influence(sweep)
    scored = any(trial.score is not None for trial in trials)
    finished = sum(t.state is State.COMPLETE for t in trials)
    handover = [
        key
        for key, what in (sweep.fingerprint.get(f"{S}handover") or {}).items()
        if what == "checkpoint"
    ]
    checkpoint = (
        sweep.chain[-1].outcome.checkpoint if sweep.chain and sweep.chain[-1].outcome else None
    )
    use = checkpoint and words.shown(f"{handover[0]}={checkpoint}" if handover else checkpoint)
    influenced = mattered.shares or mattered.suggestions or mattered.importances or mattered.origins
    known: dict[str, Any] = {
        "name": words.clean(sweep.name),
        "status": sweep.status,
        "as_of": f"{datetime.fromtimestamp(sweep.as_of).astimezone():%d %B %Y, %H:%M:%S %Z}",
        "story": story(sweep, found, compared[1:]),
        "trials": len(trials),
        "stages": sweep.stages,
        "chain": [_card(trial) for trial in sweep.chain],
        "best": sweep.chain[-1].number if sweep.chain else None,
        "use": use,
        "handover": bool(handover),
        "lineage": _lineage(sweep) if scored else "",
        "signs": [(kind, SIGNS[kind]) for kind in sorted(kinds - {DONE})],
        "scale": scale_of(sweep),
        "found": found,
        "forgotten": most_forgotten(found.dev) if found.dev else None,
        "starts": merged_starts(sweep),
        "influence": mattered,
        "mattered": bool(influenced or "parallel" in charts),
        "more_lines": f", best {MOST_LINES} of {finished:,} trials"
        if finished > MOST_LINES
        else "",
        "cost": cost(sweep),
        "failures": failures(sweep),
        "charts": charts,
        "others": compared,
        "plan": _plan(sweep),
        "made": _made(sweep),
        "example": _example(trials),
    }
    return {**known, "sections": _sections(known)}


def _sections(known: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = known["found"]
    every = (
        ("chain", "Best chain" if len(known["chain"]) > 1 else "Best trial", known["chain"]),
        ("lineage", "Lineage" if known["stages"] > 1 else "By score", known["lineage"]),
        ("forgetting", "Forgetting", found.dev or found.test),
        ("starts", "Merged starts", known["starts"]),
        ("mattered", "What mattered", known["mattered"]),
        ("time", "Time", "timeline" in known["charts"]),
        ("curves", "Learning curves", "curves" in known["charts"]),
        ("failures", "Failures", known["failures"]),
        ("comparison", "Comparison", known["others"]),
        ("all", "All trials", known["trials"]),
        ("made", "How it was made", True),
    )
    return [(anchor, label) for anchor, label, there in every if there]


def _card(trial: Trial) -> Card:
    params = trial.suggestion.params.items()
    told = [(words.bare_key(key), words.setting(value)) for key, value in params]
    return Card(trial.number, trial.stage, words.clean(trial.task), words.score(trial.score), told)


def _lineage(sweep: Overview) -> str:
    """What the tree shows of this sweep, in a sentence or two."""
    if sweep.stages < 2:
        return "The best trial on top."
    ranks = []
    for trial in sweep.chain:
        beam = sweep.history.beams.get(trial.stage, ())
        if trial.number in beam and beam.index(trial.number):
            ranks.append((trial.stage, beam.index(trial.number) + 1))
    told = "Each column is a stage, best trial on top."
    if not sweep.history.beams:
        return told
    if not ranks:
        return f"{told} The best chain is the best trial of every stage."
    rank = max(rank for _, rank in ranks)
    place = "trials below the best"
    if all(one == rank for _, one in ranks):
        place = f"the {ORDINALS.get(rank, f'{rank}th')}-best trial"
    stages = words.joined([str(stage) for stage, _ in ranks])
    return (
        f"{told} The best chain passes through {place} of stage{'s' * (len(ranks) > 1)} {stages}."
    )


def _plan(sweep: Overview) -> str:
    tasks = [words.clean(task) for task in sweep.tasks]
    planned = "" if sweep.planned is None else f" in {words.counted(sweep.planned, 'trial')}"
    if not tasks:
        return f"One stage{planned}."
    width = sweep.fingerprint.get(f"{S}top_k")
    order = f"{words.counted(len(tasks), 'task')} in order{planned}: {words.joined(tasks)}."
    return f"{order} The beam keeps {width} trials."


def _made(sweep: Overview) -> dict[str, str]:
    """Command, settings, search space, configuration and versions; no path of this machine."""
    fingerprint = sweep.fingerprint
    settings = {key.removeprefix(S): v for key, v in fingerprint.items() if key.startswith(S)}
    versions: Mapping[str, str] = sweep.setup.get("versions") or {}
    command = sweep.setup.get("command")
    jobs = fingerprint.get("configuration")
    named = [Path(path).name for path in (sweep.setup.get("configuration") or {}).get("files", {})]
    read = f"files: {words.joined(sorted(set(named)))}\n" if named else ""
    return {
        "command": words.command_line(command) if isinstance(command, str) else "",
        "settings": words.shown(json.dumps(settings, indent=2, ensure_ascii=False)),
        "space": words.shown(
            json.dumps(fingerprint.get("search space"), indent=2, ensure_ascii=False)
        ),
        "configuration": words.shown(read + json.dumps(jobs, indent=2, ensure_ascii=False)),
        "versions": words.shown("\n".join(f"{name} {number}" for name, number in versions.items())),
    }


def _example(trials: Sequence[Trial]) -> str:
    """A filter that means something here."""
    for trial in trials[:1]:
        params = trial.suggestion.params.items()
        named = (
            f" {words.bare_key(k)}<{words.setting(v)}" for k, v in params if isinstance(v, float)
        )
        return f"{words.clean(trials[-1].task)}{next(named, '')} failed".strip()
    return ""


# -- parts ------------------------------------------------------------------------------------------


def _templates() -> Any:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    known = Environment(
        loader=FunctionLoader(_part), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    for function in (
        words.score,
        words.drop,
        words.share,
        words.duration,
        words.counted,
        words.clean,
    ):
        known.globals[function.__name__] = function
    return known


def _markup(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)


def _part(name: str) -> str:
    return files(PARTS).joinpath(name).read_text("utf-8")


def _style() -> str:
    steps = "".join(f".s{n}{{background:var(--s{n})}}" for n in range(STEPS))
    known = {"LIGHT": variables(LIGHT), "DARK": variables(DARK), "FONT": FONT, "STEPS": steps}
    text = _part("page.css")
    for name, value in known.items():
        text = text.replace(f"THEME_{name}", value)
    return text


@cache
def _bundle() -> str:
    """Vega and what embeds it, as vl-convert has them: a second of work, kept in the user's cache."""
    import vl_convert

    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    kept = home / "autocl-sweeper" / f"vega-{version(PACKAGES['vl_convert'])}.js"
    with suppress(OSError, UnicodeDecodeError):
        return kept.read_text("utf-8")
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    text = bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--")
    with suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_whole(kept, text.encode())
    return text


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
