"""Splits text into words for `align_words`: at white space and, in scripts without it, into characters.

In Chinese and Japanese each character is taken as a word; in Thai, Lao, Khmer and Burmese each orthographic cluster (a letter
with its vowel signs, tone marks and subscript letters). Both are smaller than words; for better results pass lists of words
from a segmenter for the language (such as jieba, fugashi, pythainlp, khmer-nltk) instead of strings.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

# Scripts without spaces between words, as (first, last) code points; with their punctuation, so that it is split off.
_SOUTH_EAST_ASIA = [(0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0xA9E0, 0xA9FF), (0xAA60, 0xAA7F)]
_HAN_AND_KANA = [(0x2E80, 0x312F), (0x31A0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x1B000, 0x1B16F)]
_HAN_AND_KANA += [(0xFE30, 0xFE4F), (0xFF01, 0xFF0F), (0xFF1A, 0xFF20), (0xFF3B, 0xFF40), (0xFF5B, 0xFF9F), (0x20000, 0x3FFFF)]
_SPACELESS = re.compile("[" + "".join(f"{chr(a)}-{chr(b)}" for a, b in _SOUTH_EAST_ASIA + _HAN_AND_KANA) + "]")

_BEFORE_LETTER = frozenset("เแโใไເແໂໃໄ")  # Thai and Lao vowels written before the letter that they follow in speech
_SUBSCRIPT = frozenset("\u17d2\u1039")  # make the next Khmer or Burmese letter a subscript of the one before
_AFTER_LETTER = frozenset("ะาำๅະາຳﾞﾟ")  # belong to the letter before, but are not marks to Unicode


def split_words(text: str) -> list[tuple[int, int]]:
    """Return the words of a text as (start, end) in characters, ascending."""
    spans = [match.span() for match in re.finditer(r"\S+", text)]
    if text.isascii() or not _SPACELESS.search(text):
        return spans
    return [part for start, end in spans for part in _split_run(text, start, end)]


def join_words(words: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """Join a list of words to (text, spans of the words): with spaces, but none between scripts that use none."""
    text, spans = "", []
    for word in words:
        if text and word and not (_SPACELESS.match(text[-1]) and _SPACELESS.match(word[0])):
            text += " "
        spans.append((len(text), len(text) + len(word)))
        text += word
    return text, spans


def _split_run(text: str, start: int, end: int) -> list[tuple[int, int]]:
    cuts = [index for index in range(start + 1, end) if _is_boundary(text[index - 1], text[index])]
    return list(zip([start, *cuts], [*cuts, end], strict=True))


def _is_boundary(before: str, after: str) -> bool:
    if not (_SPACELESS.match(before) or _SPACELESS.match(after)):
        return False
    if before in _BEFORE_LETTER or before in _SUBSCRIPT or after in _AFTER_LETTER:
        return False
    return not (unicodedata.category(after).startswith("M") or (before.isdecimal() and after.isdecimal()))
