"""Models, configurations and tokenizers as a folder of Hugging Face stores them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from train.config.sections import ModelSettings
from train.config.typed import SettingsError
from train.data.pretrained import CONFIG, described, located, read, require_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# `model_type` of a config.json that is no encoder-decoder -> the family that takes it.
ENCODERS = (
    "albert", "bert", "camembert", "convbert", "deberta", "deberta-v2", "distilbert", "electra", "ernie",
    "modernbert", "mpnet", "nomic_bert", "roberta", "roformer", "squeezebert", "xlm-roberta",
    "xlm-roberta-xl",
)  # fmt: skip
DECODERS = (
    "bloom", "codegen", "cohere", "exaone4", "falcon", "gemma", "gemma2", "gemma3_text", "gpt2",
    "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "granite", "llama", "mistral", "mixtral", "mpt", "olmo",
    "olmo2", "olmo3", "opt", "phi", "phi3", "qwen2", "qwen3", "smollm3", "stablelm", "starcoder2",
)  # fmt: skip
TAKES = {
    "seq2seq": "T5, BART and their kind",
    "causal": "LLaMA, GPT-2 and their kind",
    "encoder": "BERT, RoBERTa and their kind",
}


def kind_of(config: Mapping[str, Any]) -> str | None:
    """The family for a config.json, by its `model_type`; null where that is in no table."""
    if config.get("is_encoder_decoder"):
        return "seq2seq"
    name = config.get("model_type")
    return "encoder" if name in ENCODERS else "causal" if name in DECODERS else None


def settled(settings: ModelSettings, base: Path | None = None) -> ModelSettings:
    """`settings` with the family that `pretrained` stands for: that of the config.json of the model.

    Loads no torch; for a name of the hub its config.json is asked for there. Raises SettingsError.
    """
    if settings.kind != "pretrained":
        return settings
    name, key = (settings.path, "model.path") if base is None else (str(base), "init_from")
    assert name is not None
    config = described(name, CONFIG, key)
    if config is None:
        from transformers import AutoConfig

        config = read(AutoConfig.from_pretrained, name, key).to_dict()
    found = kind_of(config)
    if found is None:
        raise SettingsError(
            f"{key}={name}: no family is known for its model_type "
            f"'{config.get('model_type')}'; say which one it is: model=seq2seq, causal or encoder"
        )
    return replace(settings, kind=found)  # type: ignore[arg-type]


def load_base(kind: type[Any], base: Path, model_type: str | None = None) -> PreTrainedModel:
    """A model of `kind` from the folder `base`, which must hold `model_type` if one is given."""
    found = json.loads((base / "config.json").read_text())["model_type"]
    if model_type not in (None, found):
        raise ValueError(f"it holds a model of type {found}; that of model._name is {model_type}")
    model: PreTrainedModel = kind.from_pretrained(base, local_files_only=True, use_safetensors=True)
    return model


@dataclass(frozen=True)
class Stored:
    """What families of a folder have in common: that of `model.path` or, later in a chain, its `base`."""

    settings: ModelSettings
    base: Path | None = None

    may_lack: ClassVar[tuple[str, ...]] = ()  # parts of the model that stored weights need not have

    @property
    def auto(self) -> str:
        """The class of transformers that makes the model."""
        raise NotImplementedError

    @property
    def auto_class(self) -> Any:
        import transformers

        return getattr(transformers, self.auto)

    def check_folder(self) -> None:
        """Refuse a folder without configuration or tokenizer, or of another family. Loads no torch."""
        settings = self.settings
        assert settings.path is not None
        if settings.tokenizer is not None:
            require_tokenizer(settings.tokenizer, "model.tokenizer")
        config = described(settings.path, CONFIG, "model.path")
        found = settings.kind if config is None else kind_of(config)
        of_two = settings.kind == "seq2seq"
        if found not in (settings.kind, None) or (of_two and found is None):
            what = config.get("model_type", "model") if config else "model"
            other = f". It is for model={found}" if found else ""
            is_none = "is no encoder-decoder" if of_two else f"is of {TAKES[str(found)]}"
            raise SettingsError(
                f"model.path={settings.path}: holds a {what}, which {is_none}; {settings.kind} takes "
                f"{TAKES[settings.kind]}{other}"
            )
        if settings.tokenizer is None:
            require_tokenizer(settings.path, "model.path")

    @property
    def source(self) -> str | None:
        """Where the untrained weights can be read again; null where only a checkpoint has them."""
        if self.base is not None or not self.settings.is_pretrained:
            return None
        assert self.settings.path is not None
        folder = located(self.settings.path, "model.path")
        return self.settings.path if folder is None else str(folder)

    def folder_with(self, file: str) -> tuple[str, str]:
        """The folder of the base where that has the file, else of the settings; and its key."""
        if self.base is not None and (self.base / file).is_file():
            return str(self.base), "init_from"
        assert self.settings.path is not None
        return self.settings.path, "model.path"

    def tokenizer(self) -> tuple[Any, str]:
        """The tokenizer of the base, or of the settings, and the setting it is from."""
        from transformers import AutoTokenizer

        name, key = self.folder_with("tokenizer_config.json")
        if key == "model.path" and self.settings.tokenizer:
            name, key = self.settings.tokenizer, "model.tokenizer"
        return read(AutoTokenizer.from_pretrained, name, key), f"{key}={name}"

    def config(self) -> Any:
        """The configuration of the base, or that of the folder with `model.config` over it."""
        from transformers import AutoConfig

        if self.base is not None:
            return read(AutoConfig.from_pretrained, str(self.base), "init_from")
        path = self.settings.path
        assert path is not None
        config = read(AutoConfig.from_pretrained, path, "model.path")
        for key, value in self.settings.config.items():
            if not hasattr(config, key):
                known = ", ".join(sorted(k for k in config.to_diff_dict() if not k.startswith("_")))
                raise SettingsError(
                    f"model.config.{key}={value}: the configuration of model.path={path} has no such "
                    f"value; it has {known}"
                )
            setattr(config, key, value)
        return config

    def check_ids(self, n_ids: int, config: Any, where: str) -> None:
        """Refuse a tokenizer with more ids than stored weights embed: embeddings are never resized."""
        if n_ids > config.vocab_size and self.settings.weights != "random":
            raise SettingsError(
                f"{where}: the tokenizer has {n_ids} ids, but the weights of "
                f"model.path={self.settings.path} embed {config.vocab_size}; they do not belong "
                "together. model.weights=random makes a model of this shape for the tokenizer"
            )

    def model(self, config: Any) -> PreTrainedModel:
        """The stored model in float32, of safetensors, or a random one of its shape.

        Random weights are from torch's global generator. Raises SettingsError where those stored are not whole.
        """
        import torch

        path = self.settings.path
        assert path is not None
        made: PreTrainedModel
        if self.settings.weights == "random":
            try:
                made = self.auto_class.from_config(config)
            except ValueError as error:  # of another kind
                raise SettingsError(f"model.path={path}: {error}") from error
            return made
        how = {"config": config, "use_safetensors": True, "dtype": torch.float32}
        made, loading = read(
            self.auto_class.from_pretrained, path, "model.path", output_loading_info=True, **how
        )
        missing = [k for k in loading["missing_keys"] if not any(one in k for one in self.may_lack)]
        if missing:  # transformers would make them up
            raise SettingsError(
                f"model.path={path}: its weights lack {sorted(missing)[:3]}, so they are not of "
                f"{type(made).__name__}; model.weights=random trains one of this shape from scratch"
            )
        return made

    def load(self, base: Path) -> PreTrainedModel:
        return load_base(self.auto_class, base)
