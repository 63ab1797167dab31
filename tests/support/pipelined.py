"""A real sweep of two tasks whose second begins early, and the tree it has to come to."""

from __future__ import annotations

from support.bench import Bench

COMMAND = (
    "hydra/sweeper=autocl", "task=a,b", "+hydra.sweeper.task_params.a=[{lr:1},{lr:2},{lr:3}]",
    "+hydra.sweeper.task_params.b=[{lr:4},{lr:9}]", "hydra/launcher=gpu", "hydra.launcher.cpu_slots=3",
    "hydra.launcher.warm=true",
)  # fmt: skip


def started(chain: Bench) -> set[tuple[float, ...]]:
    """The lineages of the trials so far, as their learning rates."""
    trials = {event["trial"]: event for event in chain.events("start")}

    def lineage(event):
        above = () if event["parent"] is None else lineage(trials[event["parent"]])
        return (*above, event["params"]["lr"])

    return {lineage(event) for event in trials.values()}


def check_the_tree(chain: Bench) -> None:
    """With scores lr(a) - 0.6 lr(b): 3 and 2 are the beam of a, and the children of 1 are gone."""
    told = chain.results()
    trials = {event["trial"]: event["params"]["lr"] for event in chain.events("start")}
    assert [trials[number] for number in told["beams"][1]] == [3, 2]
    assert [trials[number] for number in told["beams"][2]] == [4, 4]
    assert [entry["score"] for entry in told["chain"]] == [3, 0.6]
    parents = {event["trial"]: event["parent"] for event in chain.events("start")}
    orphans = {number for number, parent in parents.items() if trials.get(parent) == 1}
    assert {event["trial"] for event in chain.events("give_up")} == orphans and len(orphans) == 2
    assert told["given_up"]["trials"] == 2 and told["given_up"]["seconds"] > 0
    kept = {int(path.parent.name) for path in chain.sweep.glob("*/*/checkpoint")}
    assert kept == {number for beam in told["beams"].values() for number in beam}
    assert chain.nothing_is_left()
