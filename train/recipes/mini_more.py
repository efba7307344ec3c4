"""mexma-mini trained on: the stages of mini.py after the warm start, from the weights that the wheel ships.

mexma-export rebuild mexma-mini runs/shipped    # the fp32 checkpoint of the bundled model
mexma-train prepare pairs.tsv shards --tokenizer runs/shipped/tokenizer.json
mexma-train teach shards --teacher use_quantized.onnx --like mexma-mini    # its vectors, turned to the model's
mexma-train run train/recipes/mini_more.py shards runs/more --initial-checkpoint runs/shipped

pairs.tsv and the teacher: see mini.py.
"""

from dataclasses import replace
from pathlib import Path

from mexma_train.config import load_recipe

MINI = load_recipe(Path(__file__).with_name("mini.py"))
assert MINI.ranking
RECIPE = replace(
    MINI,
    name="mexma-mini-more",
    warmup=None,
    sampling=replace(MINI.sampling, seed=43),  # not the draws of the first time once more
    ranking=replace(MINI.ranking, steps=900, distil_pool=8_192),
)
