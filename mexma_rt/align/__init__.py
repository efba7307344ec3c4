"""Alignment of documents (beads of sentences, in linear time) and of sentences (links of words, from token states)."""

from mexma_rt.doors import doors

__getattr__, __all__ = doors(
    __name__,
    documents="Bead align_documents",
    links="METHODS find_links",
    words="UNITS WordAlignment align_words",
    wordsplit="join_words split_words",
)
