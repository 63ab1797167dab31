"""The command line of `autocl finetune`, checked and put into the words of the sweeper."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from autocl_sweeper.errors import ConfigurationError
from autocl_sweeper.finetune import app
from autocl_sweeper.plan.param_file import read_param_file
from autocl_sweeper.plan.rounds import read_schedule
from autocl_sweeper.space import bare, is_key, literal, override
from autocl_sweeper.types import Value

EVALUATORS = {"fulltrail": "init", "populationbased": "population"}
HAZERO = "hazero"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="autocl finetune",
        description="Search hyper-parameters of a plain script in rounds. Each trial runs"
        " `python script --name=value ... --saved_params_dir=DIR` and calls"
        " autocl_sweeper.report_final_result(score). Run the same command again to continue.",
        epilog="`autocl docs finetune` explains it all.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("script", help="the Python script of one trial")
    add("rest", nargs="*", metavar="key value", help="options that every trial gets: max_len 128")
    add("--param_file", metavar="FILE", help="hparam.yaml: what is searched")
    add("--gpu", metavar="0,1", help="the cards to use; a card listed twice runs two trials")
    add("--popsize", type=_at_least_1, default=5, metavar="N", help="trials per round (5)")
    add("--round", type=_at_least_1, default=10, metavar="N", help="rounds (10)")
    now = f"{datetime.now():%Y%m%d%H%M%S}"
    add("--output_dir", metavar="DIR", default=f"output_{now}", help="default: output_<time>")
    add(
        "--evaluator",
        type=str.lower,
        choices=list(EVALUATORS),
        default="populationbased",
        help="populationbased (default): a trial continues from a good one of the round before;"
        " fulltrail: from scratch",
    )
    add(
        "--tuning_strategy",
        type=str.lower,
        default="pshe2",
        metavar="NAME",
        help="pshe2 (default), hazero, or another search: random, tpe, gp, cmaes, qmc",
    )
    more = parser.add_argument_group("more than the original has")
    add = more.add_argument
    add("--seed", type=int, default=0, metavar="N", help="same seed, same suggestions (0)")
    add("--direction", choices=("maximize", "minimize"), default="maximize")
    add("--retries", type=int, default=0, metavar="N", help="further attempts of a crashed trial")
    add("--timeout", type=float, metavar="SECONDS", help="of a trial; default: none")
    add("--jobs_per_gpu", type=_at_least_1, metavar="N", help="trials that share a card (1)")
    add("--keep_going", action="store_true", help="also after a round in which every trial failed")
    add(
        "--keep", type=_at_least_1, metavar="N", help="parents in a round; default: half of popsize"
    )
    add("--epochs", type=_at_least_1, default=1, metavar="N", help="of a continued round (1)")
    add("--first_epochs", type=_at_least_1, metavar="N", help="of round 0; default: the script's")
    add("--epochs_name", default="epochs", metavar="NAME", help="the script's option for them")
    add("--perturb", action="store_true", help="a trial takes its parent's settings, perturbed")
    add("--no_init", action="store_true", help="do not begin with the init values of the file")
    add(
        "--keep_models",
        choices=("all", "needed"),
        help="default: all with fulltrail; with populationbased those that a trial may start from",
    )
    add(
        "--replay", metavar="FILE", help="train what a schedule.yaml says again, and search nothing"
    )
    add(
        "--override",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any key of hydra.sweeper or hydra.launcher; may be given several times",
    )
    return parser


def main(arguments: Sequence[str]) -> None:
    """Raises ConfigurationError; exits as Hydra does when the sweep fails."""
    given = parser().parse_intermixed_args(arguments)
    config, overrides = translate(given)
    if given.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(dict.fromkeys(_cards(given.gpu)))
    print(f"output: {Path(given.output_dir).absolute()}", flush=True)
    app.run(config, overrides)


def translate(given: argparse.Namespace) -> tuple[DictConfig, list[str]]:
    """The app's configuration and the overrides of its multirun. Raises ConfigurationError."""
    script = Path(given.script).absolute()
    if not script.is_file():
        raise ConfigurationError(
            f"The script '{given.script}' does not exist.\n"
            "  It is the first argument that is no option. No job was started."
        )
    rest = pairs(given.rest)
    evaluator = EVALUATORS["populationbased" if given.replay else given.evaluator]
    taken = {
        app.SAVED: f"{app.SAVED!r} is set by the command: where a trial saves its model",
        app.MODEL: f"{app.MODEL!r} is set by the evaluator populationbased",
        app.OWN: f"{app.OWN!r} is an option of the command itself",
    }
    if evaluator == "population":
        taken[given.epochs_name] = (
            f"{given.epochs_name!r} is set by the evaluator populationbased, so that all trials of a"
            " round train equally long: --epochs, --first_epochs, --epochs_name"
        )
    for name in rest:
        if (why := taken.get(name)) is not None:
            raise ConfigurationError(f"{name} {rest[name]}: {why}. No job was started.")
    fixed = {
        name: f"it is given after the script too: {name} {text}" for name, text in rest.items()
    }
    initial = _initial(given, {**fixed, **taken})
    own = {
        "python": sys.executable,
        "script": str(script),
        "names": list(initial),
        "rest": [[name, text] for name, text in rest.items()],
        "epochs": given.epochs_name,
        "must_save": evaluator == "population",
    }
    config = OmegaConf.create({app.OWN: literal(own), app.MODEL: None})
    for name, value in {given.epochs_name: None, **initial}.items():
        OmegaConf.update(config, name, value, force_add=True)
    return config, _overrides(given, evaluator)


def pairs(words: Sequence[str]) -> dict[str, str]:
    """Options from `key value` and `key=value`. Raises ConfigurationError for a rest that is odd."""
    found: dict[str, str] = {}
    left = list(words)
    while left:
        word = left.pop(0)
        name, given, text = word.partition("=")
        name = name.removeprefix("--")
        if not given:
            if not left:
                raise ConfigurationError(
                    f"{word!r} after the script has no value.\n"
                    "  What follows it are pairs, `key value` or `key=value`. No job was started."
                )
            text = left.pop(0)
        if not name or name.startswith("-"):
            raise ConfigurationError(f"{word!r} after the script has no name. No job was started.")
        if name in found:
            raise ConfigurationError(
                f"{name!r} stands twice after the script: {found[name]} and {text}.\n"
                "  Give it once. No job was started."
            )
        found[name] = text
    return found


def _initial(given: argparse.Namespace, taken: dict[str, str]) -> dict[str, Value]:
    """The searched names with their first values; for a replay, those of the first step."""
    if given.replay is not None:
        params = read_schedule(given.replay)[0].params
        for name in map(bare, params):
            if name in taken:
                raise ConfigurationError(f"{given.replay}: {name!r}: {taken[name]}.")
        return {bare(name): value for name, value in params.items()}
    if given.param_file is None:
        raise ConfigurationError(
            "--param_file is missing: hparam.yaml says what is searched.\n"
            "  `autocl docs finetune` shows one. No job was started."
        )
    least = 2 if given.tuning_strategy == HAZERO else 1
    return dict(read_param_file(given.param_file, taken, least).init)


def _overrides(given: argparse.Namespace, evaluator: str) -> list[str]:
    keep = given.keep_models or ("all" if evaluator == "init" else "needed")
    cards = [] if given.gpu is None else _cards(given.gpu)
    values: dict[str, Value] = {
        "hydra.sweep.dir": str(Path(given.output_dir).absolute()),
        "hydra.job.name": "finetune",
        "hydra.sweeper.sequence": None,
        "hydra.sweeper.parents": evaluator,
        "hydra.sweeper.seed": given.seed,
        "hydra.sweeper.direction": given.direction,
        "hydra.sweeper.retries": given.retries,
        "hydra.sweeper.init": not given.no_init,
        "hydra.sweeper.keep_checkpoints": "all" if keep == "all" else "beam",
        "hydra.sweeper.population.model_path": app.MODEL,
        "hydra.sweeper.population.epochs": given.epochs,
        "hydra.sweeper.population.first_epochs": given.first_epochs,
        "hydra.sweeper.population.epochs_key": given.epochs_name,
        "hydra.launcher.warm": True,
        "hydra.launcher.jobs_per_device": given.jobs_per_gpu or _shared(cards),
        "hydra.launcher.timeout_s": given.timeout,
    }
    if given.replay is not None:
        values["hydra.sweeper.population.replay"] = str(Path(given.replay).absolute())
    else:
        values |= {
            "hydra.sweeper.param_file": str(Path(given.param_file).absolute()),
            "hydra.sweeper.popsize": given.popsize,
            "hydra.sweeper.rounds": given.round,
            "hydra.sweeper.population.keep": given.keep,
            "hydra.sweeper.population.perturb": given.perturb,
        }
    if given.keep_going:
        values["hydra.sweeper.max_failures"] = given.popsize * given.round
    if cards:
        values["hydra.launcher.cpu_slots"] = len(dict.fromkeys(cards))  # without GPUs
    groups = {"hydra/sweeper": "autocl", "hydra/launcher": "gpu"}
    if given.replay is None:
        groups["hydra/sweeper/search"] = given.tuning_strategy
    for text in given.override:
        if not is_key(text.partition("=")[0]) or not text.lstrip("+").startswith("hydra"):
            raise ConfigurationError(
                f"--override={text}: it sets a key of hydra.sweeper or hydra.launcher, for instance"
                " --override=hydra.launcher.free_memory=0.5. No job was started."
            )
    return [
        *(f"{key}={value}" for key, value in groups.items()),
        *(override(key, literal(value)) for key, value in values.items()),
        *given.override,
    ]


def _cards(text: str) -> list[str]:
    cards = text.split(",")
    if any(not card or card != card.strip() for card in cards):
        raise ConfigurationError(
            f"--gpu={text!r}: cards are separated by commas, without spaces: --gpu=0,1"
        )
    return cards


def _shared(cards: Sequence[str]) -> int:
    """How often each card is named."""
    counts = Counter(cards)
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{card}: {n} times" for card, n in counts.items())
        raise ConfigurationError(
            f"--gpu lists its cards unequally often ({told}).\n"
            "  A card that is listed n times runs n trials at a time. List every card equally often."
        )
    return max(counts.values(), default=1)


def _at_least_1(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number
