"""The offline embedding model: texts in, vectors out, no network and no key.

A static table of WordPieces (see ``MODEL_CARD.md``): a text's vector is the
sum of its pieces' rows, of length 1. Imported when the model is first used,
since it loads numpy and 16 MB of numbers.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import DIMENSIONS
from .wordpiece import WordPiece, words_in

#: What follows in a text is not read, as in the model that this one was fitted to.
PIECES_READ = 512

_DATA = Path(__file__).parent / "data"


class Encoding(NamedTuple):
    """What the model made of some texts, in their order."""

    #: ``float32``, shape ``(texts, dimensions)``, rows of L2 norm 1.
    vectors: np.ndarray
    #: Number of pieces of each text, those not read included.
    tokens: list[int]


class EmbeddedModel:
    """The table and its tokenizer.

    Args:
        vectors: ``int8``, one row for each piece.
        scale: What each row is multiplied by.
        vocabulary: The pieces, in the order of the rows.
    """

    def __init__(self, vectors: np.ndarray, scale: np.ndarray, vocabulary: list[str]) -> None:
        # One more row, of zeros, for unknown words: they add nothing to the sum.
        self._table = np.zeros((len(vectors) + 1, vectors.shape[1]), np.float32)
        np.multiply(vectors, scale.astype(np.float32)[:, None], out=self._table[:-1])
        numbers = {piece: number for number, piece in enumerate(vocabulary)}
        self._tokenizer = WordPiece(numbers, unknown=len(vectors))

    def tokens(self, text: str) -> int:
        """Return the number of pieces in the text."""
        return len(self._tokenizer.pieces(text)) // 8

    def encode(self, texts: Iterable[str], dimensions: int = DIMENSIONS) -> Encoding:
        """Return a vector for each text; equal texts have equal vectors.

        Args:
            texts: Of each, the first 512 pieces are read. One without a single
                known word is represented by its words' digests: it is found by
                the same words, not by meaning.
            dimensions: 1 to 256.
        """
        texts = list(texts)
        pieces = [np.frombuffer(self._tokenizer.pieces(text), np.int64) for text in texts]
        vectors = _unit(self._sums(pieces)[:, :dimensions])
        for row in np.flatnonzero(~vectors.any(axis=1)):
            vectors[row] = _digest_vector(texts[row], dimensions)
        return Encoding(vectors, [len(numbers) for numbers in pieces])

    def _sums(self, pieces: list[np.ndarray]) -> np.ndarray:
        sums = np.zeros((len(pieces), self._table.shape[1]), np.float32)
        longest = min(PIECES_READ, max(map(len, pieces), default=0))
        # One small buffer for all texts stays in the processor's cache.
        rows = np.empty((longest, self._table.shape[1]), np.float32)
        for position, numbers in enumerate(pieces):
            read = rows[: min(len(numbers), PIECES_READ)]
            # "clip" lets numpy write into the buffer directly; no number is out of range.
            self._table.take(numbers[:PIECES_READ], axis=0, out=read, mode="clip")
            np.add.reduce(read, axis=0, out=sums[position])
        return sums


@functools.cache
def load() -> EmbeddedModel:
    """Return the model, read from the package's files on first use."""
    return EmbeddedModel(
        np.load(_DATA / "vectors.npy"),
        np.load(_DATA / "scale.npy"),
        (_DATA / "vocab.txt").read_text(encoding="utf-8").split("\n"),
    )


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Return the rows at L2 norm 1; rows of zeros stay."""
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    unit: np.ndarray = vectors / np.where(norms > 0, norms, 1)[:, None]
    return unit


def _digest_vector(text: str, dimensions: int) -> np.ndarray:
    """Return a vector that depends on which words the text has, and on nothing else.

    Unknown words, such as Chinese ones, would otherwise sum to a vector of zeros,
    which no embedding API returns and no distance can rank.
    """
    total = np.sum([_digest(word) for word in words_in(text) or [text]], axis=0)[:dimensions]
    if not total.any():  # words that cancel each other out
        total = _digest(text)[:dimensions]
    vector: np.ndarray = _unit(total[None])[0]
    return vector


def _digest(word: str) -> np.ndarray:
    digest = hashlib.shake_256(word.encode("utf-8", "surrogatepass")).digest(DIMENSIONS)
    # Odd numbers, so that no axis is zero.
    numbers: np.ndarray = np.frombuffer(digest, np.int8).astype(np.float32) * 2 + 1
    return numbers
