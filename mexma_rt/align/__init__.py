"""Alignment inside documents and sentences: beads of sentences in linear time, links of words by token states."""

from mexma_rt.doors import doors

__getattr__, __all__ = doors(
    __name__,
    documents="Bead align_documents",
    links="METHODS find_links",
    words="UNITS WordAlignment align_words",
    wordsplit="join_words split_words",
)
