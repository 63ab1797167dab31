"""Source deltas read from folders: what they are, and what makes two of them the same or no pair.

A folder of peft (adapter_config.json, adapter_model.safetensors), the same of our own modules
(`delta_type` instead of `peft_type`), a checkpoint of a chain (its last task's delta), or a `.pt` file of
named tensors, which is read without running anything in it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from train.chain import base_of, walk
from train.config.typed import option
from train.merge.rules import MergeError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PEFT = {"LORA": "lora", "IA3": "ia3", "PROMPT_TUNING": "prompt"}
OWN = ("adapter", "prefix")

# Keys of peft's LoraConfig that do not change what the saved factors mean, or are compared below.
HARMLESS = {
    "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "task_type",
    "inference_mode", "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules",
    "fan_in_fan_out", "layers_to_transform", "layers_pattern",
}  # fmt: skip
PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")  # they leave the base model as it is
WHY = {
    "use_rslora": "its scaling is alpha / sqrt(r)",
    "use_dora": "it has magnitudes beside the factors",
    "lora_bias": "it has a bias beside the factors",
    "bias": "it trained biases of the base model",
    "modules_to_save": "it trained whole layers beside the factors",
    "rank_pattern": "its modules have different ranks",
    "alpha_pattern": "its modules have different scalings",
}


@dataclass(frozen=True, kw_only=True)
class SourceRecord:
    """A source as a plan remembers it."""

    name: str = option(help="its task")
    path: str = option(help="as given")
    kind: str = option(help="lora, ia3, prompt, adapter, prefix; tensors: of a .pt file")
    base: str = option("", "the model it is for; empty: not said")
    sha256: str = option(help="of names, types, shapes and values of its tensors")
    fingerprint: str | None = option(None, "of the weights of its base model")
    rank: int | None = option(None, "of LoRA")
    alpha: float | None = option(None, "of LoRA")
    flags: dict[str, Any] = option({}, "what else decides what its weights mean")
    trial: int | None = option(None, "of the sweep it is from")
    stage: int | None = option(None, "of the sweep it is from")


@dataclass(frozen=True, kw_only=True)
class Source(SourceRecord):
    """One delta. Two with the same weights, rank, alpha and flags are the same delta."""

    folder: Path  # of its files
    config: Mapping[str, Any]  # adapter_config.json
    state: Mapping[str, torch.Tensor]

    @property
    def record(self) -> SourceRecord:
        names = [one.name for one in fields(SourceRecord)]
        return SourceRecord(**{name: getattr(self, name) for name in names})

    @property
    def scaling(self) -> float:
        """Of LoRA: alpha / r."""
        assert self.rank and self.alpha is not None
        return self.alpha / self.rank

    @property
    def identity(self) -> tuple[Any, ...]:
        flags = json.dumps(self.flags, sort_keys=True)
        return (self.kind, self.sha256, self.rank, self.alpha, flags)


def located(given: Mapping[str, str] | Sequence[str] | str | None) -> dict[str, str]:
    """Task -> path as given, in order. Raises MergeError where there is none, or two of one name."""
    if given is None or not given:
        raise MergeError("merge.sources is empty: give the folders of the deltas to merge")
    if isinstance(given, Mapping):
        return {str(name): str(path) for name, path in given.items()}
    if isinstance(given, str):
        library = Path(given)
        inside = sorted(p for p in library.glob("*") if is_delta(p)) if library.is_dir() else []
        given = [given] if is_delta(library) else [str(p) for p in inside]
        if not given:
            raise MergeError(f"merge.sources={library}: it is no delta, and no folder in it is one")
    found: dict[str, str] = {}
    for path in given:
        name = task_of(Path(path))
        if name in found:
            raise MergeError(
                f"merge.sources: {found[name]} and {path} are both of task '{name}'; give a mapping of "
                "names to folders"
            )
        found[name] = str(path)
    return found


def is_delta(path: Path) -> bool:
    return path.suffix == ".pt" or any((path / name).is_file() for name in (CONFIG, "node.json"))


def task_of(path: Path) -> str:
    """The task in node.json of a checkpoint, or the name of the folder or file."""
    if (path / "node.json").is_file():
        return walk(path)[-1].task
    return path.stem if path.suffix == ".pt" else path.resolve().name


def read_source(name: str, path: str) -> Source:
    """The delta at `path`. Raises MergeError, which names it, and CheckpointError for a chain."""
    place = Path(path)
    if not place.exists():
        raise MergeError(
            f"source '{name}': there is no {place} in {Path.cwd()}. A source is a job's checkpoint folder, "
            "a folder of a peft adapter or a file of tensors: correct merge.sources"
        )
    if place.is_file():
        return _of_file(name, path)
    base, fingerprint, folder = "", None, place
    if (place / "node.json").is_file():
        nodes = walk(place)
        folder = place / f"task{len(nodes)}"
        whole = base_of(nodes)
        said = nodes[0].base or {}
        base = str(whole or said.get("path", ""))
        fingerprint = None if whole else said.get("fingerprint")
    if not (folder / CONFIG).is_file():
        what = "trained the whole model" if (place / "base").is_dir() else "holds no delta"
        raise MergeError(f"source '{name}': {place} {what}: there is no {folder / CONFIG}")
    try:
        config = json.loads((folder / CONFIG).read_text())
        from safetensors.torch import load_file

        state = load_file(folder / WEIGHTS)
    except Exception as error:  # what the libraries raise on damage
        raise MergeError(f"source '{name}': {folder} cannot be read: {error}") from error
    kind = _kind(name, folder, config)
    lora = kind == "lora"
    trial = re.fullmatch(r"\d+", place.resolve().parent.name)
    stage = re.match(r"(\d+)_", place.resolve().parent.parent.name)
    return Source(
        name=name,
        path=path,
        folder=folder,
        kind=kind,
        base=base or str(config.get("base_model_name_or_path") or ""),
        fingerprint=fingerprint or config.get("base_fingerprint"),
        rank=int(config["r"]) if lora else None,
        alpha=float(config["lora_alpha"]) if lora else None,
        flags=_flags(name, kind, config),
        sha256=hash_of(state),
        trial=int(trial[0]) if trial and stage else None,
        stage=int(stage[1]) if trial and stage else None,
        config=config,
        state=state,
    )


def _kind(name: str, folder: Path, config: Mapping[str, Any]) -> str:
    own, peft = config.get("delta_type"), config.get("peft_type")
    if own in OWN:
        return str(own)
    if peft in PEFT:
        return PEFT[peft]
    raise MergeError(
        f"source '{name}': {folder / CONFIG} is of type {own or peft}, which cannot be merged. There are "
        f"{', '.join([*PEFT, *OWN])}"
    )


def _flags(name: str, kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """What must be equal among sources. Raises MergeError for what no rule can merge."""
    if kind in OWN:
        left = ("base_model_name_or_path", "base_fingerprint")
        return {k: v for k, v in config.items() if k not in left}
    if saved := config.get("modules_to_save"):
        raise MergeError(f"source '{name}': modules_to_save={saved}: {WHY['modules_to_save']}")
    if kind == "ia3":
        return {"fan_in_fan_out": bool(config.get("fan_in_fan_out"))}
    if kind == "prompt":
        return {"num_virtual_tokens": config.get("num_virtual_tokens")}
    from peft import LoraConfig

    defaults = vars(LoraConfig())
    for key, value in sorted(config.items()):
        start = key == "init_lora_weights" and value in PLAIN_STARTS
        if not value or key in HARMLESS or start or value == defaults.get(key):
            continue
        why = WHY.get(key, "the factors alone do not say what it does")
        raise MergeError(
            f"source '{name}': {key}={value}: {why}, and merging would be silently wrong. Train it "
            "without, or merge it into its base model first"
        )
    return {"fan_in_fan_out": bool(config.get("fan_in_fan_out"))}


def _of_file(name: str, path: str) -> Source:
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # an unpickler raises anything
        raise MergeError(f"source '{name}': {path} cannot be read as tensors: {error}") from error
    if not isinstance(state, Mapping) or not all(
        isinstance(v, torch.Tensor) for v in state.values()
    ):
        raise MergeError(f"source '{name}': {path} must map names to tensors, and nothing else")
    return Source(
        name=name, path=path, kind="tensors", sha256=hash_of(state), folder=Path(path).parent,
        config={}, state=dict(state),
    )  # fmt: skip


def hash_of(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of all names, types, shapes and values."""
    found = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach().cpu().contiguous()
        found.update(f"{key} {value.dtype} {tuple(value.shape)} ".encode())
        found.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def refuse_mixture(sources: Sequence[Source]) -> None:
    """Raises MergeError where sources are not for one model, not of one kind, or the same twice."""
    first = sources[0]
    for i, one in enumerate(sources):
        if bad := [k for k, v in one.state.items() if not bool(torch.isfinite(v).all())]:
            raise MergeError(f"tensor '{bad[0]}' of '{one.name}' holds a NaN or an infinite value")
        if one.kind != first.kind:
            raise MergeError(f"'{first.name}' is {first.kind}, '{one.name}' is {one.kind}")
        mine, theirs = _bases(one, first)
        if mine != theirs:
            raise MergeError(
                f"'{first.name}' is for the base model {first.base or '(not said)'} ({theirs[:12]}), "
                f"'{one.name}' for {one.base or '(not said)'} ({mine[:12]}): their deltas have nothing in "
                "common"
            )
        if one.flags != first.flags:
            raise MergeError(
                f"'{first.name}' has {first.flags}, '{one.name}' has {one.flags}: they must be equal"
            )
        for other in sources[:i]:
            if other.identity == one.identity:
                raise MergeError(
                    f"'{other.name}' ({other.path}) and '{one.name}' ({one.path}) are the same delta: it "
                    "would count twice"
                )


def _bases(one: Source, other: Source) -> tuple[str, str]:
    """What identifies the base models of both: fingerprints, or else names."""
    if one.fingerprint and other.fingerprint:
        return one.fingerprint, other.fingerprint
    return one.base, other.base


def read_all(given: Mapping[str, str], names: Iterable[str]) -> list[Source]:
    """The named ones of the sources, read and compared. Raises MergeError."""
    sources = [read_source(name, given[name]) for name in names]
    refuse_mixture(sources)
    return sources
