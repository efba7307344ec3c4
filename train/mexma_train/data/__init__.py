"""From bitext to shards: the forms bitext comes in, tokenizers, held-out sentences, and the memory maps a run draws from."""
