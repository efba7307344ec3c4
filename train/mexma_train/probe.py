"""Applies the model under training to raw text: sentence vectors, and the share of masked tokens it predicts right."""

from __future__ import annotations

import numpy as np
import torch
from tokenizers import Tokenizer

from mexma_rt.backends.packed_attention import make_layout
from mexma_rt.backends.packed_encoder import Encoder, position_numbers
from mexma_train.batch import MaskedSide, join_sides, whole_totals
from mexma_train.data.shards import Ragged
from mexma_train.masking import mask_tokens
from mexma_train.model import Mexma

BATCH_TOKENS = 8_192  # tokens of an evaluation batch


def tokenise(tokenizer: Tokenizer, texts: list[str], max_tokens: int) -> list[np.ndarray]:
    """Return the ids of each text with <s> and </s>, cut to max_tokens as in training batches."""
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    return [np.array([0, *encoding.ids[: max_tokens - 2], 2]) for encoding in encodings]


def ragged(sentences: list[np.ndarray]) -> Ragged:
    """Return sentences of ids laid end to end."""
    return Ragged(ids=np.concatenate(sentences), lengths=np.array([len(s) for s in sentences]))


def embed_texts(encoder: Encoder, tokenizer: Tokenizer, texts: list[str], *, max_tokens: int, attention: str) -> np.ndarray:
    """Return normalised sentence vectors float32 [n, D] in the order of the texts; dropout off, no gradient."""
    return embed_sentences(encoder, tokenise(tokenizer, texts, max_tokens), attention=attention)


def embed_sentences(encoder: Encoder, sentences: list[np.ndarray], *, attention: str) -> np.ndarray:
    """Like `embed_texts`, for sentences that are already ids, <s> and </s> included."""
    by_length = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
    device, training = encoder.embeddings.LayerNorm.weight.device, encoder.training
    vectors = np.empty((len(sentences), encoder.config.hidden_size), np.float32)
    encoder.eval()
    with torch.no_grad():
        for rows in _runs(by_length, [len(s) for s in sentences]):
            batch = ragged([sentences[i] for i in rows])
            layout = make_layout(batch.lengths, attention, device)
            positions = position_numbers(batch.ids, batch.lengths)
            ids, positions_T = (torch.from_numpy(x).to(device) for x in (batch.ids, positions))
            states = encoder(ids, positions_T, layout, layout.starts_S)
            vectors[rows] = torch.nn.functional.normalize(states.float()).cpu().numpy()
    encoder.train(training)
    return vectors


def masked_accuracy(
    model: Mexma, tokenizer: Tokenizer, pairs: list[tuple[str, str]], *, max_tokens: int, ratio: float, attention: str
) -> float:
    """Return the percentage of masked tokens that the head predicts right on (text, english) pairs; masks never change."""
    vocab_size, device, training = model.head.bias.numel(), model.head.bias.device, model.training
    sides = [tokenise(tokenizer, [pair[i] for pair in pairs], max_tokens) for i in range(2)]
    lengths = [len(a) + len(b) for a, b in zip(*sides, strict=True)]
    right = masked = 0
    model.eval()
    with torch.no_grad():
        for rows in _runs(sorted(range(len(pairs)), key=lengths.__getitem__), lengths):
            rng = np.random.default_rng((0, rows[0]))
            masked_sides = []
            for side in sides:
                batch = ragged([side[i] for i in rows])
                hidden = mask_tokens(batch.ids, ratio, vocab_size, rng)
                masked_sides.append(MaskedSide(clean=batch.ids, masked=hidden.ids, chosen=hidden.chosen, lengths=batch.lengths))
            source, target = masked_sides
            micro = join_sides(source, target, whole_totals(source, target)).to(device)
            _, states_MD = model.states(micro, attention)
            for states, labels in zip(states_MD.split(1024), micro.labels.split(1024), strict=True):
                logits = torch.nn.functional.linear(states, model.encoder.embeddings.word_embeddings.weight, model.head.bias)
                right += int((logits.argmax(dim=1) == labels).sum())
            masked += len(micro.labels)
    model.train(training)
    return 100 * right / max(1, masked)


def _runs(order: list[int], lengths: list[int]) -> list[list[int]]:
    """Cut an order of sentences into runs of at most BATCH_TOKENS tokens; a longer sentence is a run by itself."""
    runs: list[list[int]] = []
    filled = BATCH_TOKENS
    for i in order:
        if filled + lengths[i] > BATCH_TOKENS:
            runs.append([])
            filled = 0
        runs[-1].append(i)
        filled += lengths[i]
    return runs
