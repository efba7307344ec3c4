"""MEXMA as published: XLM-R large, English with 80 languages, three epochs (arXiv 2409.12737, facebookresearch/mexma 761079a).

hf download FacebookAI/xlm-roberta-large tokenizer.json --local-dir xlm-r
mexma-train prepare pairs.tsv.zst shards --tokenizer xlm-r/tokenizer.json
mexma-train run train/recipes/mexma_large.py shards runs/large --device cuda --dry-run      # then without --dry-run

"README" below is the training command in the README of facebookresearch/mexma, and "default" a default of its flags.
Both were read; what is said of the paper is second-hand, from notes on it.

The recipe deviates from the original on purpose in these settings, all of which `--original` restores:
    masks             independent streams for source and target; the original seeds both alike, so equal shapes get equal masks
    random_pieces     ordinary ones only; the original inserts <pad> too, which shifts the position numbers after it
    schedule          counts updates; the original's counts micro-batches, so the rate of an update depends on accumulation
    reduction         means over the whole update; the original takes means over each process's micro-batch, in which a masked
                      token weighs more if there are fewer of them, so the loss depends on how a batch is split
    precision         bf16 instead of fp16: the range of fp32, so no loss scaling and no update skipped when fp16 overflows
    distinct_english  no English segment twice in a batch: KoLeo takes -log of the distance of two vectors of the same sentence

Not known, and therefore not claimed: the corpora (beyond a subset of the NLLB-200 bitext, 15 to 25 million sentences a
language), the number of processes (the README's command starts one), updates, hours. An update is 300 pairs per process.

81 languages: English and, as the README evaluates, acm aeb afr amh ary arz asm azb azj bel ben bos bul cat ces ckb cym dan deu
ell epo est eus fin fra gla gle glg guj hau heb hin hrv hun hye ind isl ita jav jpn kan kat kaz khm kir kor lao mal mar mkd mya
nld nno nob npi pol por ron rus san sin slk slv snd som spa srp sun swe swh tam tel tha tur uig ukr urd vie xho zho_Hant. That
these are also the languages of training is inferred from their number. Nothing below depends on them: the shards decide.
"""

from mexma_train.config import MexmaConfig, ModelConfig, Recipe, SamplingConfig

RECIPE = Recipe(
    name="mexma-large",
    initial_checkpoint="FacebookAI/xlm-roberta-large",  # README; its language-model head is not used
    model=ModelConfig(
        hidden_size=1024, layers=24, heads=16, intermediate_size=4096, max_positions=514, norm_eps=1e-5,  # XLM-R large's config
        dropout=0.1,  # hidden and embeddings, XLM-R's config; the original sets attention dropout to 0 in encoder and head
        head_layers=6,  # README
        head_heads=8,  # README
        head_intermediate_size=3072,  # XLMRobertaConfig's default, which the original's head gets whatever the encoder's width
        head_norm_eps=1e-12,  # likewise; the encoder has 1e-5
    ),
    sampling=SamplingConfig(
        order="epochs",  # the original samples a permutation of the pairs for each epoch: no temperature, no weights
        bucket=1,  # packed batches have no padding that buckets of similar lengths would save; the original has none either
        distinct_english=True,  # deviation: see above
        seed=42,  # default
    ),
    mexma=MexmaConfig(
        epochs=3,  # README
        batch_pairs=150,  # README, per process
        accumulation=2,  # README
        max_tokens=200,  # README, special tokens included
        lr=1e-4,  # README; the default is 2e-5
        warmup_share=0.3,  # README: linear over the first 30 % of the schedule ...
        warmup_start=0.1,  # README: ... from a tenth of lr, then cosine to 0
        schedule="update",  # deviation: see above
        weight_decay=0.0,  # README: None, which the original makes 0.0 rather than AdamW's 0.01
        clip=1.2,  # README
        precision="bf16",  # deviation: see above
        mask_ratio=0.4,  # README; 30 to 60 % are good according to the paper
        masks="independent",  # deviation: see above
        random_pieces="ordinary",  # deviation: see above
        mlm_weight=1.0,  # README; of the mean of both sides, as in the code (the paper has the sum)
        align_weight=1.0,  # README
        koleo_weight=0.01,  # README
        reduction="update",  # deviation: see above
        gather_vectors=False,  # the original's KoLeo sees one process's micro-batch
        seed=42,  # default
    ),
)  # fmt: skip
