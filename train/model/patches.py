"""T5 whose encoder also reads images: patches at the places of the `<image>` ids."""

from __future__ import annotations

from typing import Any

import torch
from transformers import T5Config, T5ForConditionalGeneration
from transformers.modeling_outputs import Seq2SeqLMOutput


class UnifyConfig(T5Config):
    """T5's, with the size of the images it reads."""

    model_type = "unify"

    def __init__(
        self, image_size: int = 8, num_channels: int = 1, patch_size: int = 2, **kwargs: Any
    ) -> None:
        self.image_size = image_size
        self.num_channels = num_channels
        self.patch_size = patch_size
        super().__init__(**kwargs)


class UnifyModel(T5ForConditionalGeneration):
    """T5 whose encoder also reads image patches."""

    config_class = UnifyConfig

    def __init__(self, config: UnifyConfig) -> None:
        super().__init__(config)
        side = config.image_size // config.patch_size
        self.patches = torch.nn.Linear(config.patch_size**2 * config.num_channels, config.d_model)
        self.patch_positions = torch.nn.Parameter(torch.zeros(side**2, config.d_model))
        self.image_id = config.vocab_size - 1
        torch.nn.init.normal_(self.patch_positions)
        self.post_init()  # type: ignore[no-untyped-call]

    def embed(self, input_ids: torch.Tensor, pixel_values: torch.Tensor | None) -> torch.Tensor:
        """Embeddings (n x length x d), patches (images x C x H x W) at their places in order."""
        embed: Any = self.get_input_embeddings()  # type: ignore[no-untyped-call]
        embeddings: torch.Tensor = embed(input_ids)
        if pixel_values is None:
            return embeddings
        size = self.config.patch_size
        cut = torch.nn.functional.unfold(pixel_values, size, stride=size).transpose(1, 2)
        patches = self.patches(cut.to(self.patches.weight.dtype)) + self.patch_positions
        places = (input_ids == self.image_id).unsqueeze(-1).expand_as(embeddings)
        return embeddings.masked_scatter(places, patches.to(embeddings.dtype))

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        # Named here because `generate` looks for them among the parameters.
        attention_mask: torch.Tensor | None = None,
        encoder_outputs: Any = None,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput:
        if input_ids is not None:
            kwargs["inputs_embeds"] = self.embed(input_ids, pixel_values)
        output: Seq2SeqLMOutput = super().forward(
            attention_mask=attention_mask, encoder_outputs=encoder_outputs, **kwargs
        )
        return output
