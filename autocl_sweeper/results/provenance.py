"""Where a trial comes from: its suggestion, and the sources its start was merged from."""

from __future__ import annotations

from typing import Any

from autocl_sweeper.types import Suggestion, Trial


def provenance(suggestion: Suggestion) -> dict[str, Any]:
    """Where a suggestion comes from, as far as its search says; empty where it does not."""
    carried = suggestion.carried
    found = {
        "origin": suggestion.origin,
        "source": suggestion.source,
        "source_task": None if carried is None else carried.task,
        "source_sweep": None if carried is None else carried.sweep,
        "keys_carried": None if carried is None else carried.keys,
    }
    return {name: value for name, value in found.items() if value is not None}


def origin_text(suggestion: Suggestion) -> str:
    """The same as a sentence; empty unless there is something to say beside "new"."""
    if suggestion.origin == "init":
        return "the app's own configuration"
    if suggestion.carried is None or suggestion.source is None:
        return ""
    carried, whole = suggestion.carried, len(suggestion.params)
    sweep = "" if carried.sweep is None else f" of {carried.sweep}"
    kept = f"{carried.keys} of {whole} keys carried"
    return f"carried from {carried.task}, trial {suggestion.source}{sweep}; {kept}"


def merged(trial: Trial) -> dict[str, Any]:
    """`merged_from`, where the start was merged; else nothing."""
    found = trial.outcome.merged_from if trial.outcome else {}
    return {"merged_from": dict(found)} if found else {}
