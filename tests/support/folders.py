"""Folders with tiny models and tokenizers, made by the libraries that real ones are made by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def corpus() -> list[str]:
    from train.data.generated import MAKERS

    rows = [*MAKERS["sentiment"](()), *MAKERS["parity"](())]
    texts = [" ".join(map(str, row.values())) for row in rows]
    return [*texts, "does this praise? review: is the number of bits even or odd?"]


def tokenizer(kind: str) -> Any:
    """A tokenizer trained on the tasks' text, by its kind.

    wordpiece: as BERT's; bpe: byte-level as BART's; unigram: as T5's; gpt2: bpe with one mark, and none
    around text; llama: BPE that puts a blank before text, and a begin mark.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers.trainers import BpeTrainer, UnigramTrainer, WordPieceTrainer
    from transformers import PreTrainedTokenizerFast

    trainer: Any
    if kind == "llama":
        return _llamas()
    if kind == "wordpiece":
        marks = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
                 "pad_token": "[PAD]", "mask_token": "[MASK]"}  # fmt: skip
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.normalizer = normalizers.BertNormalizer()
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece()
        trainer = WordPieceTrainer(vocab_size=150, special_tokens=[*marks.values()])
    elif kind in ("gpt2", "bpe"):
        marks = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>",
                 "unk_token": "<unk>", "mask_token": "<mask>"}  # fmt: skip
        if kind == "gpt2":
            marks = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        trainer = BpeTrainer(
            vocab_size=400,
            special_tokens=[*dict.fromkeys(marks.values())],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
    else:
        marks = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
        made = Tokenizer(models.Unigram())
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.decoder = decoders.Metaspace()
        trainer = UnigramTrainer(
            vocab_size=120, special_tokens=[*marks.values(), "<extra_id_0>"], unk_token="<unk>"
        )
    made.train_from_iterator(corpus(), trainer)
    if kind == "wordpiece":
        pairs = [("[CLS]", 1), ("[SEP]", 2)]
        made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, pairs)
    elif kind == "bpe":
        pairs = [("<s>", 0), ("</s>", 2)]
        made.post_processor = processors.TemplateProcessing("<s> $A </s>", None, pairs)
    elif kind == "unigram":
        made.post_processor = processors.TemplateProcessing("$A </s>", None, [("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, **marks)


def _llamas() -> Any:
    """As LLaMA 2's: the blank before text is the normalizer's, so that a text's own would be a second."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.BPE(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    marks = ["<unk>", "<s>", "</s>"]
    words.train_from_iterator(corpus(), BpeTrainer(vocab_size=200, special_tokens=marks))
    learned = json.loads(words.to_str())["model"]
    merges = [tuple(pair) for pair in learned["merges"]]
    made = Tokenizer(models.BPE(vocab=learned["vocab"], merges=merges, unk_token="<unk>"))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


TOKENIZERS = {"t5": "unigram", "llama": "llama", "gpt2": "gpt2", "bert": "wordpiece", "bart": "bpe",
              "words": "wordpiece"}  # fmt: skip


def make_folder(kind: str, path: Path) -> Path:
    """Save a tiny model of random weights and its tokenizer to `path`; of `words` the tokenizer alone.

    No model but T5 and BART has dropout.
    """
    import torch
    from transformers import (
        BartConfig,
        BartForConditionalGeneration,
        BertConfig,
        BertModel,
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        T5Config,
        T5ForConditionalGeneration,
    )

    tokenizer(TOKENIZERS[kind]).save_pretrained(path)
    if kind == "words":
        return path
    torch.manual_seed(0)
    model: Any
    if kind == "t5":
        model = T5ForConditionalGeneration(
            T5Config(vocab_size=128, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
                     pad_token_id=0, eos_token_id=1, decoder_start_token_id=0)
        )  # fmt: skip
    elif kind == "bart":
        model = BartForConditionalGeneration(
            BartConfig(vocab_size=400, d_model=16, encoder_layers=1, decoder_layers=1,
                       encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
                       decoder_ffn_dim=32, max_position_embeddings=140, bos_token_id=0,
                       pad_token_id=1, eos_token_id=2, decoder_start_token_id=2,
                       forced_eos_token_id=2)
        )  # fmt: skip
    elif kind == "llama":
        model = LlamaForCausalLM(
            LlamaConfig(vocab_size=200, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                        num_key_value_heads=1, intermediate_size=32, max_position_embeddings=256,
                        bos_token_id=1, eos_token_id=2, initializer_range=0.3)
        )  # fmt: skip
    elif kind == "gpt2":
        model = GPT2LMHeadModel(
            GPT2Config(vocab_size=400, n_embd=16, n_layer=2, n_head=2, n_positions=256,
                       bos_token_id=0, eos_token_id=0, initializer_range=0.3, resid_pdrop=0.0,
                       embd_pdrop=0.0, attn_pdrop=0.0)
        )  # fmt: skip
    else:
        model = BertModel(
            BertConfig(vocab_size=150, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                       intermediate_size=32, max_position_embeddings=160, initializer_range=0.3,
                       hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        )  # fmt: skip
    model.save_pretrained(path)
    return path
