"""From texts to vectors: tokenise, pack by length, run an engine, restore the order. `Encoder` does all of it; the service runs
it for many callers, embed_file for files of any size; the proof runs golden sentences through an engine."""

from mexma_rt.doors import doors

__getattr__, __all__ = doors(
    __name__,
    encoder="Encoder",
    files="FileReport Slab write_vectors",
    loading="DEFAULT_MODEL embed embed_file load shared_encoder",
    packing="pack",
    prompts="Prompted named_prompt",
    proof="prove",
    reading="Reading",
    report="EmbedReport Embedded how_to_keep warn_if_truncated",
    service="Service",
    settings="EmbedSettings",
    similarity="pairwise_cosines",
    tokenizer="Tokenizer",
    tokens="TokenVectors embed_tokens",
)
