"""Estimates what a run will take (parameters, updates, tokens, arithmetic, memory) without building or loading anything.

Parameters and updates are exact. Tokens follow from the mean length of a pair. Arithmetic is what the model's formulas need,
without what a program may add (recomputation, padding), so it can be the numerator of an MFU. Memory is an upper estimate for
CUDA with `run.attention` varlen or flex: its parts are counted one by one, but need not all peak at the same moment, and what
torch itself takes (context, workspaces, fragmentation) is not included. For XLM-R large it is 3 to 4 % above the bytes of the
tensors alive at the peak (counted on CPU with torch's fake tensors: tests/train/test_estimate.py); it has not been measured on
a GPU. The warm start is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from mexma_rt.errors import InputError
from mexma_train.config import MexmaConfig, ModelConfig, Recipe

SPECIALS = 4  # <s> and </s> of both sides of a pair: never masked
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Sizes of a run. `encoder` includes `words`; `head` includes its bias over the pieces, not the tied word matrix."""

    encoder: int  # parameters
    words: int  # parameters of the word embeddings
    head: int  # parameters
    trained: int  # parameters that the optimiser moves
    updates: int
    pairs: int  # per update, all processes
    tokens: float  # clean tokens of both sides per update, all processes; the encoder sees each twice
    masked: float  # masked tokens per update, all processes
    flops: dict[str, float]  # per update, all processes, by part
    memory: dict[str, float]  # bytes of one process, by part
    passes: float  # over the pairs of the shards

    @property
    def parameters(self) -> int:
        """Parameters of encoder and head together."""
        return self.encoder + self.head


def estimate(recipe: Recipe, *, vocab_size: int, mean_pair_tokens: float, pairs: int, world: int) -> Estimate:
    """Return the sizes of the MEXMA stage of a recipe on shards of `pairs` pairs, run by `world` processes.

    `mean_pair_tokens` is the mean number of clean tokens in a pair: both sides, <s> and </s> included, cut at max_tokens. The
    shape is the recipe's `model`, even if an initial checkpoint replaces it. Raises InputError as `steps_of` does.
    """
    config, shape = recipe.mexma, recipe.model
    words = vocab_size * shape.hidden_size
    encoder, head = encoder_parameters(shape, vocab_size), head_parameters(shape, vocab_size)
    trained = encoder + head - (words if config.freeze_words else 0)
    updates = steps_of(config, pairs=pairs, mean_pair_tokens=mean_pair_tokens, world=world)
    micro = micro_pairs(config, mean_pair_tokens)
    update_pairs = micro * config.accumulation * world
    micro_tokens = micro * mean_pair_tokens
    pieces = vocab_size
    if config.sampled_pieces:  # the batch's own pieces are added: at most one for each token
        pieces = min(vocab_size, config.sampled_pieces + round(micro_tokens * world))
    return Estimate(
        encoder=encoder,
        words=words,
        head=head,
        trained=trained,
        updates=updates,
        pairs=update_pairs,
        tokens=update_pairs * mean_pair_tokens,
        masked=_masked(config, update_pairs, mean_pair_tokens),
        flops=_flops(recipe, update_pairs, mean_pair_tokens, pieces),
        memory=_memory(recipe, encoder + head, trained, words, micro_tokens, pieces, world),
        passes=updates * update_pairs / pairs if pairs else 0.0,
    )


def steps_of(config: MexmaConfig, *, pairs: int, mean_pair_tokens: float, world: int) -> int:
    """Return the updates of a run: `steps`, or what `epochs` amount to.

    Epochs are counted as in facebookresearch/mexma: an epoch is as many micro-batches as are full on every process, and every
    `accumulation`-th is an update. (The original also drops a left-over micro-batch at the end of each epoch: at most
    epochs - 1 updates fewer.) With batch_tokens, a micro-batch counts as the pairs of mean length that it holds. Raises
    InputError if that gives no update.
    """
    if config.steps is not None:
        if config.steps < 1:
            raise InputError(f"mexma.steps is {config.steps}; a run needs at least 1 update.")
        return config.steps
    assert config.epochs is not None  # MexmaConfig has exactly one of the two
    batch = micro_pairs(config, mean_pair_tokens)
    updates = int(config.epochs * (pairs // (batch * world)) // config.accumulation)
    if updates < 1:
        raise InputError(
            f"{config.epochs:g} epochs of {pairs:,} pairs are not enough for one update, which takes "
            f"{batch * world * config.accumulation:,} pairs ({batch:,} a micro-batch, {world} processes, {config.accumulation} "
            "micro-batches). Lower --mexma.batch-pairs or --mexma.accumulation, or give --mexma.steps instead of epochs."
        )
    return updates


def micro_pairs(config: MexmaConfig, mean_pair_tokens: float) -> int:
    """Return the pairs per micro-batch of one process: batch_pairs, or as many of mean length as fit batch_tokens (>= 1)."""
    if config.batch_tokens is None:
        return config.batch_pairs
    return max(1, int(config.batch_tokens // mean_pair_tokens))


def encoder_parameters(shape: ModelConfig, vocab_size: int) -> int:
    """Parameters of XLM-R without pooler: the tables of words, positions and one type, a LayerNorm, the layers."""
    tables = (vocab_size + shape.max_positions + 1) * shape.hidden_size
    return tables + 2 * shape.hidden_size + shape.layers * layer_parameters(shape.hidden_size, shape.intermediate_size)


def head_parameters(shape: ModelConfig, vocab_size: int) -> int:
    """Parameters of the token head: its layers and its bias over the pieces; its matrix is the encoder's word embeddings."""
    return shape.head_layers * layer_parameters(shape.hidden_size, shape.head_intermediate_size) + vocab_size


def layer_parameters(width: int, intermediate: int) -> int:
    """Parameters of a layer: query, key, value, output and two feed-forward products, all with bias; two LayerNorms."""
    return 4 * (width * width + width) + 2 * width * intermediate + intermediate + width + 4 * width


def layer_bytes(width: int, intermediate: int, heads: int, precision: str, dropout: float) -> float:
    """Bytes per token that autograd keeps of one layer for the backward pass, on CUDA.

    Counted along packed_encoder.Layer, with D = width and F = intermediate, in the type of the products unless stated:
        the input of query, key and value                  D
        query, key, value, and the context                 4 D (the context is also the input of the output product)
        the softmax's normaliser                           4 bytes a head
        each LayerNorm's input and two statistics          fp32 D + 8 bytes, twice
        the feed-forward's input                           D
        GELU's input and output                            2 F
        each dropout's mask                                D bytes, twice
    Residual sums keep nothing. tests/train/test_estimate.py compares this with torch's saved tensors on CPU: the bytes are
    equal except for dropout, whose mask is as wide as the states there. torch.compile may keep less.
    """
    product = 4 if precision == "fp32" else 2
    kept = product * ((1 + 4 + 1) * width + 2 * intermediate) + 4 * heads + 2 * (4 * width + 8)
    return kept + (2 * width if dropout else 0)


def _masked(config: MexmaConfig, pairs: int, mean_pair_tokens: float) -> float:
    return config.mask_ratio * pairs * max(0.0, mean_pair_tokens - SPECIALS)


def _flops(recipe: Recipe, pairs: int, mean_pair_tokens: float, pieces: int) -> dict[str, float]:
    """6 per weight and token (2 forward, 4 backward), and the products of attention, which have no weights.

    The encoder's layers see every clean token twice, the head's only the masked copy. The last layer of each computes its
    output and feed-forward products only where they are read: <s> of the clean copies and all of the masked ones in the
    encoder, masked tokens in the head. The vocabulary product runs over masked tokens. For attention every sentence counts as
    half a pair of mean length, which gives a lower bound (the sum of squares is least when all are equal). Frozen words need
    no gradient: 4 instead of 6.
    """
    config, shape, width = recipe.mexma, recipe.model, recipe.model.hidden_size
    tokens, masked = pairs * mean_pair_tokens, _masked(recipe.mexma, pairs, mean_pair_tokens)

    def layers(count: int, intermediate: int, seen: float, read: float) -> float:
        after = width * width + 2 * width * intermediate  # weights behind the attention
        return 6 * (count * (3 * width * width + after) * seen - after * (seen - read))

    squares = 2 * pairs * (mean_pair_tokens / 2) ** 2  # of the lengths of the clean sentences
    return {
        "encoder layers": layers(shape.layers, shape.intermediate_size, 2 * tokens, tokens + 2 * pairs),
        "head layers": layers(shape.head_layers, shape.head_intermediate_size, tokens, masked),
        "vocabulary": (4 if config.freeze_words else 6) * masked * width * pieces,
        "attention": 3 * 2 * 2 * width * squares * (2 * shape.layers + shape.head_layers),  # q k^T and the weighted sum of v
    }


def _memory(
    recipe: Recipe, parameters: int, trained: int, words: int, micro_tokens: float, pieces: int, world: int
) -> dict[str, float]:
    config, shape, width = recipe.mexma, recipe.model, recipe.model.hidden_size
    sharded = recipe.run.parallel == "fsdp" and world > 1
    share, half = (1 / world if sharded else 1.0), config.precision != "fp32"
    layers = 2 * shape.layers * layer_bytes(width, shape.intermediate_size, shape.heads, config.precision, shape.dropout)
    layers += shape.head_layers * layer_bytes(
        width, shape.head_intermediate_size, shape.head_heads, config.precision, shape.dropout
    )
    # Ids and positions (8 bytes each), the LayerNorm's input and statistics, dropout's mask: for both copies of a token.
    embeddings = 2 * (16 + 4 * width + 8 + (width if shape.dropout else 0))
    chunk = min(recipe.run.vocabulary_chunk, max(1.0, config.mask_ratio * micro_tokens))
    parts = {
        "weights, fp32": 4 * parameters * share,
        "gradients, fp32": 4 * trained * share,
        "AdamW moments, fp32": 8 * trained * share,
        # Autocast's copies of the layers' matrices live from the forward pass to the backward one, and are not sharded.
        "half-precision copies of the layers' matrices": 2 * _layer_matrices(shape) if half else 0.0,
        # FSDP gathers the words, which the embedding and the loss both read, and their gradient before it is sharded.
        "words and their gradient, gathered by FSDP": 8 * words if sharded else 0.0,
        "activations": micro_tokens * (layers + embeddings),
        # vocabulary.py: logits and a temporary second copy (sum with the bias, exponentials), or the slope in half precision.
        "logits of a chunk, fp32, twice": 8 * chunk * pieces,
        # vocabulary.py: the sum and a chunk's product, and the matrix in half precision.
        "gradient of the vocabulary product": (0 if config.freeze_words else 8 * pieces * width) + 2 * pieces * width * half,
    }
    return {name: size for name, size in parts.items() if size}


def _layer_matrices(shape: ModelConfig) -> int:
    encoder = shape.layers * (4 * shape.hidden_size + 2 * shape.intermediate_size)
    head = shape.head_layers * (4 * shape.hidden_size + 2 * shape.head_intermediate_size)
    return shape.hidden_size * (encoder + head)


def describe(estimate: Estimate) -> str:
    """Return the estimate as a table to print."""
    flops, memory = sum(estimate.flops.values()), sum(estimate.memory.values())
    shares = ", ".join(f"{name} {value / flops:.0%}" for name, value in estimate.flops.items())
    rows = [
        ("parameters", f"{estimate.parameters:,}"),
        ("  encoder", f"{estimate.encoder:,}, of which word embeddings {estimate.words:,}"),
        ("  head", f"{estimate.head:,}"),
        ("  trained", f"{estimate.trained:,}"),
        ("updates", f"{estimate.updates:,} ({estimate.passes:.3g} passes over the pairs)"),
        ("an update, all processes", f"{estimate.pairs:,} pairs, about {estimate.tokens:,.0f} clean tokens"),
        ("", f"the encoder sees each twice, clean and masked; {estimate.masked:,.0f} are masked"),
        ("FLOPs of an update", f"{flops:.3g} ({shares})"),
        ("memory of a process", f"about {memory / GIB:.2f} GiB if batches are of mean length; without torch's own"),
        *((f"  {name}", f"{size / GIB:.2f} GiB") for name, size in estimate.memory.items()),
    ]
    column = max(len(name) for name, _ in rows) + 2
    return "\n".join(f"{name:<{column}}{value}".rstrip() for name, value in rows)
