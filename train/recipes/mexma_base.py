"""MEXMA's small model: XLM-R base under the recipe of the large one (arXiv 2409.12737, facebookresearch/mexma 761079a).

hf download FacebookAI/xlm-roberta-base tokenizer.json --local-dir xlm-r
mexma-train prepare pairs.tsv.zst shards --tokenizer xlm-r/tokenizer.json
mexma-train run train/recipes/mexma_base.py shards runs/base --device cuda --dry-run        # then without --dry-run

The paper reports this model (277 million parameters); the hyper-parameters it was trained with are not known. Here they are the
large model's: mexma_large.py has their reasons and sources, the languages and the deviations that `--original` restores. Both
models have the same 250,002 pieces, so they can share shards.
"""

from mexma_train.config import MexmaConfig, ModelConfig, Recipe, SamplingConfig

RECIPE = Recipe(
    name="mexma-base",
    initial_checkpoint="FacebookAI/xlm-roberta-base",
    model=ModelConfig(
        hidden_size=768, layers=12, heads=12, intermediate_size=3072, max_positions=514, norm_eps=1e-5,  # XLM-R base's config
        dropout=0.1,  # XLM-R's config
        head_layers=6,  # the code's only head: 42,527,232 parameters at this width
        head_heads=8,  # as in the large one; of 96 dimensions each
        head_intermediate_size=3072,  # XLMRobertaConfig's default, here also the encoder's
        head_norm_eps=1e-12,  # XLMRobertaConfig's default
    ),
    # From here on as in mexma_large.py, which has the reasons.
    sampling=SamplingConfig(order="epochs", bucket=1, distinct_english=True, seed=42),
    mexma=MexmaConfig(
        epochs=3,
        batch_pairs=150,
        accumulation=2,
        max_tokens=200,
        lr=1e-4,
        warmup_share=0.3,
        warmup_start=0.1,
        schedule="update",
        weight_decay=0.0,
        clip=1.2,
        precision="bf16",
        mask_ratio=0.4,
        masks="independent",
        random_pieces="ordinary",
        mlm_weight=1.0,
        align_weight=1.0,
        koleo_weight=0.01,
        reduction="update",
        gather_vectors=False,
        seed=42,
    ),
)  # fmt: skip
