from __future__ import annotations

from array import array

import pytest

from django_services.embedded import wordpiece
from django_services.embedded.wordpiece import WordPiece, words_in

VOCABULARY = ["un", "##want", "##ed", "runn", "##ing", "want", ",", "a", "b", "ab", "漢"]
UNKNOWN = len(VOCABULARY)


@pytest.fixture
def tokenizer() -> WordPiece:
    return WordPiece({piece: number for number, piece in enumerate(VOCABULARY)}, UNKNOWN)


def pieces(tokenizer: WordPiece, text: str) -> list[str]:
    numbers = array("q", tokenizer.pieces(text))
    return [[*VOCABULARY, "[UNK]"][number] for number in numbers]


def test_words_are_cut_into_the_longest_pieces(tokenizer):
    found = pieces(tokenizer, "unwanted running")

    assert found == ["un", "##want", "##ed", "runn", "##ing"]


def test_a_word_that_cannot_be_made_up_is_unknown_as_a_whole(tokenizer):
    found = pieces(tokenizer, "want unwantedx")

    assert found == ["want", "[UNK]"]


def test_a_word_longer_than_berts_is_unknown(tokenizer):
    found = pieces(tokenizer, "a" * (wordpiece.LONGEST_WORD + 1))

    assert found == ["[UNK]"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Hello, World!", ["hello", ",", "world", "!"]),
        ("don't x_y", ["don", "'", "t", "x", "_", "y"]),
        ("Ünïcödé Naïve", ["unicode", "naive"]),
        ("a\x00b\x7f c", ["ab", "c"]),
        ("tab\tand\nline", ["tab", "and", "line"]),
        ("漢字と", ["漢", "字", "と"]),
        ("zero\u200bwidth", ["zerowidth"]),
        ("“quoted”…", ["“", "quoted", "”", "…"]),
        ("5€ a\ufffdb", ["5€", "ab"]),
        ("😀 ok", ["😀", "ok"]),
        ("", []),
    ],
)
def test_text_is_cut_into_words_as_by_bert(text, words):
    assert words_in(text) == words


def test_cached_and_fresh_answers_are_the_same(tokenizer):
    first = tokenizer.pieces("unwanted, a b ab")

    assert tokenizer.pieces("unwanted, a b ab") == first


def test_caches_do_not_grow_without_bound(tokenizer, monkeypatch):
    monkeypatch.setattr(wordpiece, "CACHED_WORDS", 10)

    for number in range(100):
        tokenizer.pieces(f"word{number}")

    assert len(tokenizer._runs) <= 10
    assert len(tokenizer._runs._words) <= 10


def test_long_runs_are_not_remembered(tokenizer):
    tokenizer.pieces("x" * (wordpiece.LONGEST_CACHED_RUN + 1))

    assert not tokenizer._runs
