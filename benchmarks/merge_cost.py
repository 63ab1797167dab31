"""What merging and scoring cost: 32 LoRAs of T5-base size, and a pass over dev against plain evaluations.

    python benchmarks/merge_cost.py merge      seconds of one core, and the peak memory of the process
    python benchmarks/merge_cost.py score      needs `python -m train.models minilm texts`

merge: rank 10 on q and v of 36 attentions, 768 wide, by the rule svd, from reading the files to the merged folder.
score: eight LoRAs on MiniLM, 64 rows; loss, el2n and logits_labels_cos in one pass, against a forward pass and the
cross entropy of each source alone. Processor time, so that other work on the machine counts for little.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the training app lies beside its train.py

LORAS, WIDTH, RANK = 32, 768, 10
SOURCES, ROWS, BATCH, REPEATS = 8, 64, 16, 3


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def merging(root: Path) -> None:
    import torch
    from peft import LoraConfig
    from safetensors.torch import save_file

    from train.config.merging import MergeSettings
    from train.merge.apply import merge, write_merged
    from train.merge.plan import make_plan

    torch.manual_seed(0)
    names = [
        f"base_model.model.{stack}.block.{block}.layer.{layer}.{attention}.{name}"
        for stack, attentions in (
            ("encoder", ("SelfAttention",)),
            ("decoder", ("SelfAttention", "EncDecAttention")),
        )
        for block in range(12)
        for layer, attention in enumerate(attentions)
        for name in "qv"
    ]
    config = LoraConfig(r=RANK, lora_alpha=16, target_modules=["q", "v"])
    config.base_model_name_or_path = "t5-base"
    for number in range(LORAS):
        state = {}
        for name in names:
            state[f"{name}.lora_A.weight"] = torch.randn(RANK, WIDTH)
            state[f"{name}.lora_B.weight"] = torch.randn(WIDTH, RANK)
        folder = root / f"task{number}"
        config.save_pretrained(str(folder))
        save_file(state, folder / "adapter_model.safetensors", {"format": "pt"})
    before, began, wall = peak_mib(), time.process_time(), time.perf_counter()
    plan, sources = make_plan(MergeSettings(sources=str(root)))
    write_merged(merge(plan, sources), plan, root / "merged")
    seconds, waited = time.process_time() - began, time.perf_counter() - wall
    print(
        f"{LORAS} LoRAs of {len(names)} modules, {WIDTH} wide, rank {RANK}: {seconds:.1f} s of processor time"
        f" ({waited:.1f} s by the clock), peak {peak_mib():.0f} MiB, {before:.0f} of it before"
    )


def scoring(root: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transfer import Bench
    from transfer_tasks import minilm, named
    from transformers import AutoModel

    from train.config.merging import MergeSettings
    from train.config.task import LossSettings
    from train.data.rows import load as load_rows
    from train.loop.criterion import loss_sum
    from train.loop.evaluation import in_batches
    from train.merge.sources import read_source
    from train.score.holder import Holder, family_for
    from train.score.scoring import score

    tasks = minilm(0, root / "texts")
    target = named(tasks.sources[0])
    run, plans = Bench(0, tasks, root, 0).run(target, [])
    for number in range(SOURCES):
        torch.manual_seed(number)
        config = LoraConfig(r=8, lora_alpha=32, target_modules=["query", "value"])
        model: Any = get_peft_model(AutoModel.from_pretrained(run.model.path), config)
        for name, p in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=0.02)
        model.save_pretrained(str(root / f"s{number}"), save_embedding_layers=False)
    sources = [read_source(f"s{n}", str(root / f"s{n}")) for n in range(SOURCES)]
    family, base = family_for(run, plans, sources[0])
    holder = Holder(base, torch.device("cpu"))
    rows = load_rows(plans[target], run.evaluation)
    few = type(rows)(rows.train, (list(rows.train(0)) + list(rows.dev))[:ROWS], rows.test)
    task = family.meeting(plans[target])
    settings = MergeSettings(method="loss", batch_size=BATCH)

    def one_pass() -> None:
        score(task, few, sources, holder, settings, None, {})

    def plain() -> None:
        with torch.inference_mode():
            for one in sources:
                model = holder.put(one)
                for _, examples in in_batches(task, few, "dev"):
                    for start in range(0, len(examples), BATCH):
                        batch = task.batch(examples[start : start + BATCH])
                        loss_sum(task.logits(model, batch), batch["labels"], LossSettings(), 0)

    one_pass()  # the first one loads the adapters
    took = {name: best(work) for name, work in (("pass", one_pass), ("plain", plain))}
    print(json.dumps({name: round(seconds, 2) for name, seconds in took.items()}))
    print(
        f"{SOURCES} sources, {ROWS} rows: one pass takes {took['pass'] / took['plain']:.2f} times"
        f" {SOURCES} plain evaluations"
    )


def best(work: Callable[[], None]) -> float:
    """The least processor time of a few repetitions."""
    found = []
    for _ in range(REPEATS):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["merge", "score"])
    what = parser.parse_args().what
    with tempfile.TemporaryDirectory() as place:
        {"merge": merging, "score": scoring}[what](Path(place))
