"""One base model that takes the deltas of several sources in turn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from train.config.sections import DeltaSettings, Run
from train.data.task_plan import TaskPlan
from train.delta.delta import delta_of
from train.delta.own import tensors_of
from train.merge.rules import MergeError
from train.merge.sources import CONFIG, Source
from train.model.checkpoints import fingerprint
from train.model.family import Family, family_of
from train.model.fit import fitted


def family_for(run: Run, plans: Mapping[str, TaskPlan], source: Source) -> tuple[Family, Any]:
    """The family and the base model a source is for. Raises MergeError where it is another's."""
    inside = Path(source.base)
    of_chain = inside.name == "base" and (inside.parent / "node.json").is_file()
    settings = fitted(run.model, plans.values())
    family = family_of(settings, inside if of_chain else None)
    model = family.load(inside) if of_chain else family.build()
    found = fingerprint(model)
    if source.fingerprint is not None and source.fingerprint != found:
        raise MergeError(
            f"source '{source.name}' is for the base model {source.base} ({source.fingerprint[:12]}); "
            f"model.path={run.model.path} has other weights ({found[:12]})"
        )
    return family, model


class Holder:
    """The base model with the delta of one source at a time, frozen and in eval mode."""

    def __init__(self, base: Any, device: torch.device) -> None:
        self.model = base.to(device).requires_grad_(False).eval()
        self.device = device
        self.names: dict[tuple[Any, ...], str] = {}  # identity of a source -> its adapter in peft

    def put(self, source: Source) -> torch.nn.Module:
        """The model with this delta alone. Raises MergeError for a kind that has no place in a model."""
        if source.kind in ("adapter", "prefix"):
            return self._put_own(source)
        if source.kind not in ("lora", "ia3"):
            raise MergeError(
                f"source '{source.name}': a delta of kind {source.kind} is merged as it is, and not put into "
                "a model; score lora, ia3, adapter or prefix"
            )
        from peft import PeftModel

        if source.identity not in self.names:
            name = f"source{len(self.names)}"
            place = str(source.folder)
            if isinstance(self.model, PeftModel):
                self.model.load_adapter(place, adapter_name=name, is_trainable=False)
            else:
                self.model = PeftModel.from_pretrained(self.model, place, adapter_name=name)
            self.names[source.identity] = name
            self.model.to(self.device)
        self.model.set_adapter(self.names[source.identity])
        self.model.requires_grad_(False).eval()
        return self.model  # type: ignore[no-any-return]

    def _put_own(self, source: Source) -> torch.nn.Module:
        if not tensors_of(self.model):
            sizes = {
                k: source.config[k]
                for k in ("size", "num_tokens", "bottleneck")
                if k in source.config
            }
            settings = DeltaSettings(kind=source.kind, **sizes)  # type: ignore[arg-type]
            with torch.random.fork_rng():  # what it draws is overwritten
                delta_of(settings).attach(self.model, "source", ())
        own = tensors_of(self.model)
        if different := sorted(own.keys() ^ source.state.keys()):
            raise MergeError(
                f"source '{source.name}': {source.folder / CONFIG} is for other layers than the model has: "
                f"'{different[0]}'"
            )
        with torch.no_grad():
            for key, p in own.items():
                p.copy_(source.state[key])
                p.requires_grad_(False)
        self.model.eval()
        return self.model  # type: ignore[no-any-return]

    def delta(self) -> dict[str, torch.nn.Parameter]:
        """The parameters of the delta that is in place, by name."""
        own = tensors_of(self.model)
        if own:
            return own
        active = getattr(self.model, "active_adapter", None)
        return {
            name: p
            for name, p in self.model.named_parameters()
            if active in name.split(".") and (".lora_" in name or ".ia3_" in name)
        }
