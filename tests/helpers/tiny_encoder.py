"""A text encoder of BERT's kind as small as it goes, with a vocabulary of its own, as `save_pretrained` writes one."""

from __future__ import annotations

from pathlib import Path

import torch

# whole words, and one that is put together from sub-tokens
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "빨간", "파란", "운동", "##화", "신발", "가방", "red", "shoe", "##s", "bag"]


def write_tiny_encoder(folder: Path, *, pooler: bool = True) -> Path:
    """Write configuration, weights (drawn, of 12 numbers) and tokenizer; reads at most 10 tokens."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir(parents=True)
    words = folder / "words.txt"
    words.write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    vocabulary = {word: number for number, word in enumerate(VOCABULARY)}
    BertTokenizerFast(vocab=vocabulary, do_lower_case=True, strip_accents=False, model_max_length=10).save_pretrained(folder)
    words.unlink()
    config = BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertModel(config, add_pooling_layer=pooler).eval()
        for parameter in model.parameters():  # larger than as drawn, so that texts differ
            parameter.data.mul_(10)
    model.save_pretrained(folder)
    return folder
