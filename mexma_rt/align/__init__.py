"""Alignment inside documents and sentences: beads of sentences in linear time, links of words by token states."""

from mexma_rt.doors import doors

__getattr__ = doors(
    __name__,
    {
        "Bead": "documents",
        "WordAlignment": "words",
        "align_documents": "documents",
        "align_words": "words",
    },
)
