"""BERT's uncased WordPiece: the piece numbers of a text, in pure Python.

A text is cut at white space, each run at punctuation into words, each word into
the longest pieces of the vocabulary. Runs and words repeat, so both are looked
up before they are cut: this makes it as fast as a compiled tokenizer.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Mapping

#: Longer words are unknown, as in BERT.
LONGEST_WORD = 100  # characters

#: A cache that grows beyond this starts anew: the frequent words are back at once.
CACHED_WORDS = 50_000

#: Longer runs are links, digests or text without spaces: not worth remembering.
LONGEST_CACHED_RUN = 40  # characters

_ascii_words = re.compile(r"[a-z0-9]+|[!-/:-@\[-`{-~]").findall

#: First and last code points that BERT takes as a word of one character each.
_IDEOGRAPHS = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)

#: Of characters that are no part of any word: controls and what has no meaning.
_DROPPED_CATEGORIES = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Mn"})


class WordPiece:
    """Turns texts into piece numbers.

    Args:
        numbers: The vocabulary: each piece's number. A piece that continues a
            word starts with ``##``.
        unknown: Number given for a word that the pieces cannot make up.
    """

    def __init__(self, numbers: Mapping[str, int], unknown: int) -> None:
        self._runs = _Runs(_Words(numbers, unknown))

    def pieces(self, text: str) -> bytes:
        """Return the numbers of the text's pieces, as native 64-bit integers.

        Bytes because they join and reach numpy without an object for each
        number. Other white space than BERT's, such as a form feed, separates
        words too.
        """
        return b"".join(map(self._runs.__getitem__, text.lower().split()))


class _Runs(dict[str, bytes]):
    """The piece numbers of a run of lower-case characters without white space."""

    def __init__(self, words: _Words) -> None:
        super().__init__()
        self._words = words

    def __missing__(self, run: str) -> bytes:
        pieces = b"".join(map(self._words.__getitem__, words_of(run)))
        if len(run) <= LONGEST_CACHED_RUN:
            _keep(self, run, pieces)
        return pieces


class _Words(dict[str, bytes]):
    """The piece numbers of a word."""

    def __init__(self, numbers: Mapping[str, int], unknown: int) -> None:
        super().__init__()
        self._numbers = numbers
        self._unknown = array("q", [unknown]).tobytes()

    def __missing__(self, word: str) -> bytes:
        if len(word) > LONGEST_WORD:
            return self._unknown
        pieces = self._cut(word)
        _keep(self, word, pieces)
        return pieces

    def _cut(self, word: str) -> bytes:
        found = array("q")
        start, prefix = 0, ""
        while start < len(word):
            for end in range(len(word), start, -1):
                number = self._numbers.get(prefix + word[start:end])
                if number is not None:
                    break
            else:
                return self._unknown
            found.append(number)
            start, prefix = end, "##"
        return found.tobytes()


def words_in(text: str) -> list[str]:
    """Return the text's words and punctuation marks, in lower case."""
    return [word for run in text.lower().split() for word in words_of(run)]


def words_of(run: str) -> list[str]:
    """Cut a lower-case run without white space into words and punctuation marks."""
    if run.isascii():
        # A control character vanishes without parting the word around it.
        return _ascii_words(run if run.isprintable() else "".join(filter(str.isprintable, run)))
    words: list[str] = []
    word_is_open = False
    for character in unicodedata.normalize("NFD", run):
        category = unicodedata.category(character)
        if category in _DROPPED_CATEGORIES or character == "\ufffd":
            continue
        if _stands_alone(character, category):
            words.append(character)
            word_is_open = False
        elif word_is_open:
            words[-1] += character
        else:
            words.append(character)
            word_is_open = True
    return words


def _stands_alone(character: str, category: str) -> bool:
    if character.isascii():
        return not character.isalnum()
    code_point = ord(character)
    return category.startswith("P") or any(
        first <= code_point <= last for first, last in _IDEOGRAPHS
    )


def _keep(cache: dict[str, bytes], key: str, pieces: bytes) -> None:
    if len(cache) >= CACHED_WORDS:
        cache.clear()
    cache[key] = pieces
