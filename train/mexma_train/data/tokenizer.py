"""Trains and loads tokenizers: SentencePiece unigram with XLM-R's special ids, in a `tokenizer.json`.

Ids: <s>=0 <pad>=1 </s>=2 <unk>=3, pieces, <mask> last, as in XLM-R. Text is NFKC-normalised, runs of white space and control
characters become one space, and a piece never spans a space (Metaspace).
"""

from __future__ import annotations

import io
import os
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from mexma_rt.errors import FileError, InputError, require_extra
from mexma_train.config import TokenizerConfig
from mexma_train.data.bitext import Row

SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")


def sample_lines(rows: Iterable[Row], config: TokenizerConfig) -> list[str]:
    """Return a reservoir sample of the lines of each language, English included, so that small languages get pieces too."""
    rng = random.Random(config.seed)
    kept: dict[str, list[str]] = {}
    seen: Counter[str] = Counter()
    previous_english = None
    for row in rows:
        sides = [(row.lang, row.text)]
        if row.english != previous_english:
            sides.append(("eng", row.english))
        previous_english = row.english
        for lang, text in sides:
            pool = kept.setdefault(lang, [])
            limit = config.lines_per_language * (config.english_share if lang == "eng" else 1)
            seen[lang] += 1
            if len(pool) < limit:
                pool.append(text)
            elif (slot := rng.randrange(seen[lang])) < len(pool):
                pool[slot] = text
    return [text for pool in kept.values() for text in pool]


def train_tokenizer(lines: list[str], config: TokenizerConfig) -> Tokenizer:
    """Return a tokenizer of exactly `config.vocab_size` entries, trained on `lines` with sentencepiece.

    sentencepiece took minutes where the trainer of `tokenizers` had not finished after nine (46 M characters, 2 cores).
    Raises InputError if there is too little text for that many pieces.
    """
    require_extra("train", "sentencepiece")
    import sentencepiece

    normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(r"[\s\p{Cc}\p{Cf}]+"), " "), normalizers.Strip()]
    )
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([normalizer.normalize_str(line) for line in lines]),
            model_writer=model,
            model_type="unigram",
            vocab_size=config.vocab_size - 2,  # <pad> and <mask> are added below
            character_coverage=config.character_coverage,
            max_sentencepiece_length=config.max_piece_length,
            normalization_rule_name="identity",  # normalised above, and by the saved tokenizer
            num_threads=os.cpu_count() or 1,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise InputError(
            f"sentencepiece could not make {config.vocab_size} pieces from {len(lines)} lines: {error}\n"
            "Give more text, or a smaller vocab_size in the recipe."
        ) from None
    trained = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    learnt = [(trained.id_to_piece(i), trained.get_score(i)) for i in range(3, trained.get_piece_size())]

    tokenizer = Tokenizer(models.Unigram([*((token, 0.0) for token in SPECIALS), *learnt, ("<mask>", 0.0)], unk_id=3))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    tokenizer.add_special_tokens([AddedToken("<mask>", special=True, normalized=False, lstrip=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load a tokenizer.json (XLM-R's own or one from `train_tokenizer`) with truncation and padding turned off.

    Raises FileError if it is missing or damaged, InputError unless <s> <pad> </s> <unk> are ids 0 to 3 and <mask> is the last:
    the losses and the position ids rely on that.
    """
    if not Path(path).is_file():
        raise FileError(f"{path} is not a file. Type: mexma-train tokenizer PAIRS {path}")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception for damaged JSON
        raise FileError(f"{path} is not a readable tokenizer.json: {error}. Copy or make it again.") from None
    tokenizer.no_truncation()  # both can be saved in the file
    tokenizer.no_padding()
    ids = [tokenizer.token_to_id(token) for token in (*SPECIALS, "<mask>")]
    expected = [0, 1, 2, 3, tokenizer.get_vocab_size() - 1]
    if ids != expected:
        raise InputError(
            f"{path}: <s> <pad> </s> <unk> <mask> have ids {ids}, but XLM-R's are {expected}. Give XLM-R's tokenizer.json, or "
            "make one: mexma-train tokenizer PAIRS tokenizer.json"
        )
    return tokenizer
