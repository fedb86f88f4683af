from __future__ import annotations

import hashlib
from array import array
from pathlib import Path

import numpy as np
import pytest

import django_services.embedded
from django_services.embedded import DIMENSIONS
from django_services.embedded.model import PIECES_READ, EmbeddedModel, load

FOLDER = Path(django_services.embedded.__file__).parent


@pytest.fixture(scope="module")
def model() -> EmbeddedModel:
    return load()


def similarity(model: EmbeddedModel, first: str, second: str) -> float:
    one, other = model.encode([first, second]).vectors
    return float(one @ other)


def test_vector_is_the_normalised_sum_of_the_scaled_rows(model):
    vocabulary = (FOLDER / "data/vocab.txt").read_text(encoding="utf-8").split("\n")
    rows, scale = np.load(FOLDER / "data/vectors.npy"), np.load(FOLDER / "data/scale.npy")
    numbers = [vocabulary.index(piece) for piece in ("open", "a", "file", "?")]
    total = (rows[numbers] * scale[numbers].astype(np.float32)[:, None]).sum(axis=0)

    vector = model.encode(["Open a file?"]).vectors[0]

    np.testing.assert_allclose(vector, total / np.linalg.norm(total), atol=1e-6)


def test_related_texts_are_nearer_than_unrelated(model):
    related = similarity(model, "how do I compress a file?", "gzip compression of files")

    assert related > similarity(model, "how do I compress a file?", "a recipe for apple pie") + 0.4


def test_a_text_has_the_same_vector_alone_and_in_a_batch(model):
    batch = model.encode(["one text", "another, longer text of words", "文件"]).vectors

    for row, text in zip(batch, ["one text", "another, longer text of words", "文件"], strict=True):
        assert np.array_equal(row, model.encode([text]).vectors[0])


@pytest.mark.parametrize("dimensions", [1, 64, DIMENSIONS])
def test_shorter_vectors_are_the_first_axes_normalised(model, dimensions):
    first = model.encode(["shorter vectors"]).vectors[:, :dimensions]

    vectors = model.encode(["shorter vectors"], dimensions).vectors

    np.testing.assert_allclose(vectors, first / np.linalg.norm(first), rtol=1e-5)


def test_unknown_words_do_not_change_the_vector(model):
    assert similarity(model, "compress a file", "compress a file 漢字") == pytest.approx(1)


def test_only_the_first_pieces_are_read_and_all_are_counted(model):
    read = "file " * PIECES_READ

    encoding = model.encode([read, read + "apple pie " * 50])

    assert np.array_equal(*encoding.vectors)
    assert encoding.tokens == [PIECES_READ, PIECES_READ + 100]


def test_a_text_of_unknown_words_is_found_by_the_same_words_only(model):
    assert similarity(model, "数据 文件", "文件 数据") == pytest.approx(1)
    assert similarity(model, "数据", "天气") < 0.5


@pytest.mark.parametrize("text", ["文件", "\u200b", "\x00", "ж" * 200, "😀", "\ud800"])
@pytest.mark.parametrize("dimensions", [1, DIMENSIONS])
def test_no_text_has_a_vector_of_zeros(model, text, dimensions):
    vectors = model.encode([text], dimensions).vectors

    assert np.linalg.norm(vectors[0]) == pytest.approx(1)


def test_no_texts_give_no_vectors(model):
    encoding = model.encode([])

    assert encoding.vectors.shape == (0, DIMENSIONS)
    assert encoding.tokens == []


def test_piece_numbers_are_as_wide_as_the_model_reads_them():
    assert array("q").itemsize == np.dtype(np.int64).itemsize


@pytest.mark.parametrize(
    ("name", "digest"),
    [("vectors.npy", "19bea794"), ("scale.npy", "aab95ec5"), ("vocab.txt", "d58b4011")],
)
def test_the_files_are_those_of_the_model_card(name, digest):
    content = (FOLDER / "data" / name).read_bytes()

    assert hashlib.sha256(content).hexdigest().startswith(digest)


def test_licence_and_notices_ship_with_the_weights():
    notice = (FOLDER / "NOTICE").read_text()

    assert "modified: distilled to a static table" in notice
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in notice
    assert "Apache License" in (FOLDER / "LICENSE").read_text()
