"""A chain of adapters as one adapter of plain peft, or merged into its base.

    python -m train.export 3_agnews/7/checkpoint agnews_adapter            one adapter
    python -m train.export 3_agnews/7/checkpoint agnews_model --merged     a whole model

The one adapter is [A_1; A_2; ...] and [s_1 B_1, s_2 B_2, ...] with scaling 1. Every A stays as it is, the
scalings go into B: an orthogonal loss against it is that against the chain. (peft's add_weighted_adapter
with `cat` puts them into A.) It loads as any adapter: PeftModel.from_pretrained(base, folder).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from train.chain import CheckpointError, Node, base_of, walk
from train.config.sections import ModelSettings
from train.config.typed import SettingsError

HEADED = (  # ends of the classes of transformers that model=headed takes
    "ForMultipleChoice", "ForQuestionAnswering", "ForSequenceClassification", "ForTokenClassification",
    "ForObjectDetection",
)  # fmt: skip
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def export(checkpoint: Path, folder: Path, merged: bool = False) -> None:
    """Write the chain that ends in `checkpoint` to the new `folder`.

    Raises CheckpointError for a damaged chain, SettingsError where there is nothing to export.
    """
    if folder.exists() and any(folder.iterdir()):
        raise SettingsError(f"{folder}: is not empty; give a new folder")
    nodes = walk(checkpoint)
    adapters = _adapters(nodes)
    if not adapters:
        raise SettingsError(
            f"{checkpoint}: its chain has no adapter; the whole model is in {base_of(nodes)}"
        )
    configs = [json.loads((one / CONFIG).read_text()) for one in adapters]
    if configs[-1].get("peft_type") != "LORA":  # one for the whole chain: nothing to concatenate
        what = configs[-1].get("peft_type") or configs[-1].get("delta_type")
        raise SettingsError(
            f"{checkpoint}: its chain has one {what}, in {adapters[-1]}; only LoRA is exported"
        )
    _concatenate(adapters, configs, folder, _base(nodes))
    if merged:
        _merge(folder, _base(nodes))


def _adapters(nodes: Sequence[Node]) -> list[Path]:
    """Folders of the adapters that are active together, first task first."""
    first = max((i for i, node in enumerate(nodes) if node.is_whole), default=0)
    places = [(i + 1, node) for i, node in enumerate(nodes) if i >= first and node.kind]
    kinds = {str(node.kind) for _, node in places}
    if kinds != {"adapters"}:  # of one that is trained on, the last has what all tasks taught it
        places = places[-1:]
    return [node.folder / f"task{place}" for place, node in places]


def _base(nodes: Sequence[Node]) -> str:
    folder = base_of(nodes)
    if folder is not None:
        return str(folder)
    if nodes[0].base is None:
        raise CheckpointError(
            f"checkpoint {nodes[0].folder}: node.json does not say where its base is"
        )
    return nodes[0].base["path"]


def _concatenate(
    adapters: Sequence[Path], configs: Sequence[Mapping[str, Any]], folder: Path, base: str
) -> None:
    from safetensors.torch import load_file, save_file

    from train.delta.lora import concatenated

    states = [load_file(one / WEIGHTS) for one in adapters]
    scalings = [config["lora_alpha"] / config["r"] for config in configs]
    ranks = [int(config["r"]) for config in configs]
    made = concatenated(states, ranks, scalings)
    names = {re.sub(r"^base_model\.model\.|\.lora_[AB]\.weight$", "", key) for key in made}
    whole = dict(configs[-1]) | {
        "r": sum(ranks),
        "lora_alpha": sum(ranks),
        "target_modules": sorted(names),
        "base_model_name_or_path": base,
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(whole, indent=2, sort_keys=True) + "\n")
    save_file(made, folder / WEIGHTS, {"format": "pt"})


def _merge(folder: Path, base: str) -> None:
    """Put a whole model and its tokenizer in the place of the adapter in `folder`."""
    import transformers
    from peft import PeftModel
    from transformers import AutoTokenizer

    from train.data.pretrained import TOKENIZERS, described, read
    from train.model.family import family_of
    from train.model.stored import load_base

    where = Path(base) if Path(base).is_dir() else None
    config = {} if where is None else described(base, "config.json", "base") or {}
    architecture = str((config.get("architectures") or [""])[0])
    model: Any
    if config.get("model_type") in ("vit", "unify"):
        model = family_of(ModelSettings(kind=config["model_type"]), where).load(Path(base))
    elif where is not None and architecture.endswith(HEADED):
        model = load_base(getattr(transformers, architecture), where)
    else:
        model = family_of(ModelSettings(kind="pretrained", path=base)).build()
    merged = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    for file in (CONFIG, WEIGHTS):
        (folder / file).unlink()
    merged.save_pretrained(str(folder))
    if where is None or any((where / file).is_file() for file in TOKENIZERS):
        read(AutoTokenizer.from_pretrained, base, "base").save_pretrained(str(folder))


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m train.export", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("checkpoint", type=Path, help="the last checkpoint of the chain")
    parser.add_argument("folder", type=Path, help="where the export goes; must be new")
    parser.add_argument("--merged", action="store_true", help="a whole model instead of an adapter")
    options = parser.parse_args(argv)
    export(options.checkpoint, options.folder, options.merged)
    print(f"{options.folder}: {'model' if options.merged else 'adapter'} of {options.checkpoint}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (SettingsError, CheckpointError) as error:
        sys.exit(str(error))
