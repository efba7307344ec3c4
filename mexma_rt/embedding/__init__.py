"""From texts to vectors: tokenise, pack by length, run an engine, restore the order. `Encoder` is the whole of it; the service
and embed_file run it for many callers and for files of any size."""

from mexma_rt.doors import doors

__getattr__ = doors(
    __name__,
    {
        "EmbedReport": "report",
        "Embedded": "report",
        "Encoder": "encoder",
        "FileReport": "embed_file",
        "Service": "service",
        "TokenVectors": "tokens",
        "load": "encoder",
        "shared_encoder": "encoder",
    },
)
