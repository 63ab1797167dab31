"""Any text-to-text model of transformers from a folder: T5, BART and their kind."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.config.sections import ModelSettings
from train.config.typed import SettingsError
from train.data.pretrained import CONFIG, described, read, require_tokenizer
from train.data.task_plan import TaskPlan
from train.data.vocabulary import Vocabulary
from train.model.family import MakeFamily, Meeting, load_base
from train.model.fit import images

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Seq2Seq:
    """The family of `model=seq2seq`: weights of the folder, in float32, or random ones of its shape."""

    settings: ModelSettings
    base: Path | None = None

    def check(self, plans: Iterable[TaskPlan], begins: bool) -> None:
        if begins:
            self._check_folders()
        for plan in plans:
            for slot, _, _ in images(plan):
                raise SettingsError(
                    f"task.{plan.name}: {slot} is an image, and model=seq2seq reads text alone. "
                    "model=unify_tiny reads both, with model.tokenizer by the tokenizer of a folder"
                )

    def _check_folders(self) -> None:
        assert self.settings.path is not None
        if self.settings.tokenizer is not None:
            require_tokenizer(self.settings.tokenizer, "model.tokenizer")
        config = described(self.settings.path, CONFIG, "model.path")
        if config is not None and not config.get("is_encoder_decoder"):
            raise SettingsError(
                f"model.path={self.settings.path}: holds a {config.get('model_type', 'model')}, which "
                "is no encoder-decoder; seq2seq takes T5, BART and their kind"
            )
        if self.settings.tokenizer is None:
            require_tokenizer(self.settings.path, "model.path")

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokenizer of the base, or of the settings. Raises SettingsError."""
        from transformers import AutoTokenizer

        settings = self.settings
        key = "model.tokenizer" if settings.tokenizer else "model.path"
        name = settings.tokenizer or settings.path
        if self.base is not None and (self.base / "tokenizer_config.json").is_file():
            name, key = str(self.base), "init_from"
        assert name is not None
        tokenizer = read(AutoTokenizer.from_pretrained, name, key)
        config = self._config()
        if self.base is None and settings.weights == "random" and settings.tokenizer is not None:
            # Marks of the tokenizer that the shape was first trained with.
            config.decoder_start_token_id = config.pad_token_id = None
        made = Vocabulary(tokenizer, f"{key}={name}", config)
        if made.own > config.vocab_size and settings.weights != "random":
            raise SettingsError(
                f"{key}={name}: the tokenizer has {made.own} ids, but the weights of "
                f"model.path={settings.path} embed {config.vocab_size}; they do not belong together. "
                "model.weights=random makes a model of this shape for the tokenizer"
            )
        return made

    def _config(self) -> Any:
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

    def build(self) -> PreTrainedModel:
        """Also refuses weights that are not whole."""
        from transformers import GenerationConfig

        config, vocabulary = self._config(), self.vocabulary
        model = self._random(config) if self.settings.weights == "random" else self._stored(config)
        # Answers are searched as the task's generator_args say, not as the folder's author did.
        model.generation_config = GenerationConfig(
            pad_token_id=vocabulary.pad,
            eos_token_id=vocabulary.eos,
            decoder_start_token_id=vocabulary.start[0],
        )
        return model

    def _random(self, config: Any) -> PreTrainedModel:
        from transformers import AutoModelForSeq2SeqLM

        vocabulary = self.vocabulary
        config.vocab_size = max(config.vocab_size, vocabulary.size)
        config.pad_token_id, config.eos_token_id = vocabulary.pad, vocabulary.eos
        config.decoder_start_token_id = vocabulary.start[0]
        try:
            model: PreTrainedModel = AutoModelForSeq2SeqLM.from_config(config)
        except ValueError as error:  # of another kind
            raise SettingsError(f"model.path={self.settings.path}: {error}") from error
        return model

    def _stored(self, config: Any) -> PreTrainedModel:
        import torch
        from transformers import AutoModelForSeq2SeqLM

        assert self.settings.path is not None
        model: PreTrainedModel
        model, loading = read(
            AutoModelForSeq2SeqLM.from_pretrained,
            self.settings.path,
            "model.path",
            config=config,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
        if loading["missing_keys"]:  # transformers would make them up
            raise SettingsError(
                f"model.path={self.settings.path}: its weights lack "
                f"{sorted(loading['missing_keys'])[:3]}, so they are not of {type(model).__name__}; "
                "model.weights=random trains one of this shape from scratch"
            )
        return model

    def save(self, model: PreTrainedModel | PeftModel, base: Path) -> None:
        """The tokenizer goes beside the weights: the folder both are from may not stay."""
        model.save_pretrained(str(base))
        self.vocabulary.save(base)

    def load(self, base: Path) -> PreTrainedModel:
        from transformers import AutoModelForSeq2SeqLM

        return load_base(AutoModelForSeq2SeqLM, base)

    def meeting(self, plan: TaskPlan) -> Meeting:
        from train.model.text_answer import TextAnswer

        return TextAnswer(plan, 0, self.vocabulary)


FAMILY: MakeFamily = Seq2Seq
