from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_services.embeddings.chunking import SourceText, chunk


def pieces_of(text, *, size=100, overlap=20, context=""):
    return chunk(SourceText(text, context), size=size, overlap=overlap)


def test_a_short_text_is_one_piece():
    (piece,) = pieces_of("How to compress a file.")

    assert (piece.number, piece.start, piece.end) == (0, 0, 23)
    assert piece.text == piece.content == "How to compress a file."


@pytest.mark.parametrize("text", ["", " ", "\n\t  \n", "\u2003"])
def test_blank_text_has_no_pieces(text):
    assert pieces_of(text) == []


def test_blanks_around_a_text_are_not_embedded():
    (piece,) = pieces_of("  \n word \n")

    assert piece.text == "word"
    assert (piece.start, piece.end) == (4, 8)


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("a" * 60 + "\n\n" + "b" * 60, "a" * 60),
        ("a" * 60 + "\n" + "b" * 60, "a" * 60),
        ("Word " * 12 + "end. " + "word " * 12, "Word " * 12 + "end."),
        ("word " * 40, ("word " * 20).strip()),
        ("中" * 70 + "。" + "文" * 70, "中" * 70 + "。"),
        ("a" * 250, "a" * 100),
    ],
    ids=["paragraph", "line", "sentence", "word", "ideographic", "none"],
)
def test_a_piece_ends_where_the_text_pauses(text, first):
    pieces = pieces_of(text, overlap=0)

    assert pieces[0].text == first


def test_a_pause_near_the_beginning_is_not_taken():
    pieces = pieces_of("Title\n\n" + "word " * 60, overlap=0)

    assert len(pieces[0].text) > 50


def test_neighbours_share_whole_words_up_to_the_overlap():
    text = " ".join(f"word{number}" for number in range(60))

    pieces = pieces_of(text, overlap=30)

    for before, after in pairwise(pieces):
        assert 0 < before.end - after.start <= 30
        assert text[after.start - 1] == " "


def test_later_pieces_carry_the_context_and_the_first_does_not():
    first, second, *_ = pieces_of("word " * 50, context="gzip")

    assert (first.context, second.context) == ("", "gzip")
    assert second.content == f"gzip\n\n{second.text}"


def test_equal_contents_have_equal_hashes_wherever_they_stand():
    (one,) = pieces_of("  same")
    (other,) = pieces_of("same\n")

    assert one.content_hash == other.content_hash
    assert len(one.content_hash) == 32


def test_a_context_changes_the_hash_of_the_pieces_that_carry_it():
    plain = pieces_of("word " * 50)
    titled = pieces_of("word " * 50, context="gzip")

    assert plain[0].content_hash == titled[0].content_hash
    assert plain[1].content_hash != titled[1].content_hash


def test_a_text_of_ten_megabytes_is_cut():
    text = "The quick brown fox jumps over the lazy dog. " * 230_000

    pieces = pieces_of(text, size=1_000, overlap=100)

    assert pieces[-1].end == len(text) - 1
    assert max(len(piece.text) for piece in pieces) <= 1_000


@given(
    text=st.text(alphabet="ab \n.é中🎉\u200d", max_size=400),
    size=st.integers(10, 60),
    overlap=st.integers(0, 20),
)
def test_pieces_cover_the_text_in_order_and_within_bounds(text, size, overlap):
    pieces = pieces_of(text, size=size, overlap=min(overlap, size // 2))

    covered = set()
    for number, piece in enumerate(pieces):
        assert piece.number == number
        assert piece.text == text[piece.start : piece.end]
        assert 0 < len(piece.text) <= size
        covered.update(range(piece.start, piece.end))
    assert all(text[at].isspace() for at in range(len(text)) if at not in covered)
    starts = [piece.start for piece in pieces]
    assert starts == sorted(set(starts))
