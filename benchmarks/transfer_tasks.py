"""Tasks of benchmarks/transfer.py: a base model, eight source tasks and few-shot targets, of three kinds.

    digits  pairs of handwritten digits (scikit-learn) on a small vision transformer trained on 0 and 1
    minilm  pairs of newsgroups on all-MiniLM-L6-v2, an encoder with its published weights
    t5      the same pairs on a tiny T5, trained here on the desks of BBC News and 40 posts of each newsgroup, the
            answer being one of these ten: a frozen model this small cannot learn a word it never answered

Text needs `python -m train.models minilm texts`, and 40 words of each are read. 96 posts of each newsgroup are
for the sources it is in, the last 16 of them as dev rows. A target has 16 training and 16 dev posts of each of
its two groups, drawn by the seed, and 50 test posts of each. No post is in two of these parts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Pair = tuple[str, str]
PARTS = {"train": "train", "valid": "dev", "test": "test"}
TEXT = "[TEXT:text] topic? -> [TEXT:label,closed_set]"
IMAGE = "[IMAGE:image,preprocess=digits] what digit is this? -> [TEXT:label,closed_set]"
FOR_SOURCES, FOR_TEST, FEW, FOR_BASE = 96, 50, 16, 40  # posts of a newsgroup
SMALL = "trainer.per_device_train_batch_size=8"
WORDS, READ = 40, 48  # of a text: words that are kept, and ids that are read


@dataclass(frozen=True)
class Tasks:
    """One kind of benchmark. A task is called like its two labels."""

    sources: Sequence[Pair]
    targets: Sequence[Pair]
    configs: Mapping[str, Mapping[str, Any]]  # task -> its section of the configuration
    base: str | None  # the task that trains the whole base model; null: the model is pretrained
    model: Sequence[str] = ()  # overrides of every job
    for_base: Sequence[str] = field(default=())
    for_source: Sequence[str] = ()
    for_target: Sequence[str] = ()

    def groups(self, target: Pair) -> dict[str, list[str]]:
        """The hand-made group of a target: the tasks that share a label with it."""
        return {"own": [named(target), *(named(s) for s in self.sources if {*s} & {*target})]}


def named(pair: Pair) -> str:
    return f"{pair[0]}_{pair[1]}".lower() if pair[0].isalpha() else f"pair_{pair[0]}{pair[1]}"


def digits(seed: int, folder: Path) -> Tasks:
    """The same images for every seed, which draws the base, the adapters and the order of rows."""
    sources = [(a, b) for a, b in ["23", "35", "89", "47", "58", "69", "27", "46"]]
    targets = [(a, b) for a, b in ["38", "56", "49"]]
    configs = {
        named(pair): {
            "_name": "digits",
            "options": [int(one) for one in pair],
            "instruction": {"template": IMAGE},
        }
        for pair in [("0", "1"), *sources, *targets]
    }
    many = ("trainer.num_train_epochs=8",)
    return Tasks(sources, targets, configs, "pair_01", (), many, many)


def cache() -> Path:
    return Path(os.environ.get("AUTOCL_CACHE") or Path.home() / ".cache/autocl-sweeper")


def posts(source: str, split: str) -> dict[str, list[str]]:
    """Label -> the beginnings of its texts, each once."""
    path = cache() / f"texts/CL_Benchmark/TC/{source}/{split}.json"
    found: dict[str, dict[str, None]] = {}
    for row in json.loads(path.read_text(encoding="utf-8")):
        text = " ".join(row["sentence"].split()[:WORDS])
        found.setdefault(row["label"], {})[text] = None
    return {label: [*texts] for label, texts in found.items()}


def newsgroups(seed: int, folder: Path) -> tuple[list[Pair], list[Pair], dict[str, Any]]:
    """Sources, targets and configurations; their rows are written to `folder`."""
    labels = ("Graphics", "Cars", "Medicine", "Space", "Religion")
    targets = [("Medicine", "Space"), ("Cars", "Religion")]
    pairs = [(a, b) for i, a in enumerate(labels) for b in labels[i + 1 :]]
    sources = [pair for pair in pairs if pair not in targets]
    rng, texts = np.random.default_rng(seed), posts("newsgroups", "train")
    few = slice(FOR_SOURCES + FOR_TEST, None)
    for pair in pairs:
        rows: dict[str, list[tuple[str, str]]] = {"train": [], "dev": [], "test": []}
        for label in pair:
            own = texts[label]
            if pair in sources:
                given, dev = own[: FOR_SOURCES - FEW], own[FOR_SOURCES - FEW : FOR_SOURCES]
            else:
                drawn = rng.choice(len(own[few]), 2 * FEW, replace=False)
                chosen = [own[few][i] for i in drawn]
                given, dev = chosen[:FEW], chosen[FEW:]
            test = own[FOR_SOURCES : FOR_SOURCES + FOR_TEST]
            for part, some in (("train", given), ("dev", dev), ("test", test)):
                rows[part] += [(text, label) for text in some]
        put(folder / named(pair), rows)
    return sources, targets, {named(pair): text_task(folder / named(pair), pair) for pair in pairs}


def text_task(folder: Path, labels: Sequence[str]) -> dict[str, Any]:
    files = {f"{key}_data": str(folder / f"{part}.tsv") for key, part in PARTS.items()}
    return {
        "instruction": {"template": TEXT},
        "preprocess": {"text": {"ans2label": {label: i for i, label in enumerate(labels)}}},
        "max_src_length": READ,
        "dataset": {**files, "selected_cols": "0:text,1:label", "micro_valid_batch_size": 32},
    }


def put(folder: Path, rows: Mapping[str, Sequence[tuple[str, str]]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part, pairs in rows.items():
        lines = (f"{text}\t{label}\n" for text, label in pairs)
        (folder / f"{part}.tsv").write_text("".join(lines), encoding="utf-8")


def minilm(seed: int, folder: Path) -> Tasks:
    sources, targets, configs = newsgroups(seed, folder)
    model = ("model=encoder", f"model.path={cache() / 'minilm'}", "trainer.learning_rate=3e-3")
    once = (SMALL, "trainer.num_train_epochs=1")
    return Tasks(sources, targets, configs, None, model, (), once)


def t5(seed: int, folder: Path) -> Tasks:
    """A T5 of two and two layers, 64 wide, with a vocabulary of the text of its base task."""
    sources, targets, configs = newsgroups(seed, folder)
    desks, test = posts("bbc_news", "train"), posts("bbc_news", "test")
    pairs = [(text, label) for label, own in test.items() for text in own]
    known = {text for text, _ in pairs}
    rows: dict[str, list[tuple[str, str]]] = {"train": [], "dev": [], "test": pairs}
    for label, own in desks.items():
        free = [(text, label) for text in own if text not in known]
        known |= {*own}
        rows["dev"] += free[:20]
        rows["train"] += free[20:]
    groups = posts("newsgroups", "train")
    for label, own in groups.items():
        rows["train"] += [(text, label) for text in own[:FOR_BASE]]
    put(folder / "topics", rows)
    configs["topics"] = text_task(folder / "topics", [*sorted(desks), *sorted(groups)])
    shape = folder / "shape"
    if not (shape / "config.json").is_file():
        from transformers import T5Config

        from train.pieces import train as make_tokenizer

        T5Config(
            vocab_size=4000, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4,
            feed_forward_proj="gated-gelu", dropout_rate=0.0, decoder_start_token_id=0,
            initializer_factor=0.3,
        ).save_pretrained(shape)  # fmt: skip
        seen = [text for text, _ in rows["train"]]
        seen += [text for own in groups.values() for text in own[:FOR_SOURCES]]
        labels = [f" {label}" for pair in [*sources, tuple(desks)] for label in pair]
        made: Any = make_tokenizer(iter([*seen, *labels]), 4000)
        made.save_pretrained(shape)
    model = (
        "model=seq2seq", f"model.path={shape}", "model.weights=random", "trainer.learning_rate=3e-3",
        "delta.target_modules=[q,k,v,o,wi_0,wi_1,wo]",
    )  # fmt: skip
    return Tasks(
        sources, targets, configs, "topics", model,
        ("trainer.per_device_train_batch_size=32", "trainer.num_train_epochs=8", "trainer.warmup_steps=50"),
        (SMALL, "trainer.num_train_epochs=4"),
    )  # fmt: skip


KINDS = {"digits": digits, "minilm": minilm, "t5": t5}
