"""Inputs and outputs of every graph of a bundle: tensor names, and special token ids."""

from __future__ import annotations

from dataclasses import dataclass

INPUTS = INPUT_IDS, ATTENTION_MASK = ("input_ids", "attention_mask")  # int64 [B, L] each, padded on the right
# float32 [B, D], not normalised, and float32 [B, L, D]. (Not "embedding": torch's exporter uses that name inside the graph.)
OUTPUTS = SENTENCE, TOKENS = ("sentence_embedding", "last_hidden_state")
BOS, PAD, EOS, UNK = 0, 1, 2, 3  # <s> <pad> </s> <unk> of XLM-R


@dataclass(frozen=True, kw_only=True)
class SpecialIds:
    """The ids that a tokenizer puts before and after a text, and its padding id; XLM-R's by default."""

    bos: int = BOS
    pad: int = PAD
    eos: int = EOS


XLMR = SpecialIds()
