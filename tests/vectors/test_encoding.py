"""pgvector's forms of a vector: text of two lengths, and the binary form of halfvec."""

from __future__ import annotations

import numpy as np
import pytest

from django_services.exceptions import DimensionMismatch, InvalidInput
from django_services.vectors import encoding

ROWS = np.random.default_rng(0).normal(size=(20, 12)).astype("<f4")

#: Every float16 that is a number: 2 ** 16 of them less NaN and infinity.
ALL_HALVES = np.arange(1 << 16, dtype="<u2").view("<f2")
ALL_HALVES = ALL_HALVES[np.isfinite(ALL_HALVES)].astype("<f4")


def test_text_brings_every_float32_back():
    for row in ROWS:
        assert encoding.from_text(encoding.to_text(row.tobytes())) == row.tobytes()


def test_text_of_halves_brings_every_float16_back():
    text = encoding.to_halfvec_text(ALL_HALVES.tobytes())

    read = encoding.decode(encoding.from_text(text)).astype("<f2")
    assert read.astype("<f4").tolist() == ALL_HALVES.tolist()


def test_text_of_halves_is_short():
    assert encoding.to_halfvec_text(encoding.encode([1 / 3, -2.0, 1e-8])) == "[0.33325,-2,0]"


@pytest.mark.parametrize(
    "kind", [list, lambda rows: rows, lambda rows: [r.tobytes() for r in rows]]
)
def test_halfvec_rows_come_back(kind):
    rows = encoding.to_halfvec_rows(kind(ROWS))

    expected = [encoding.encode(row.astype("<f2")) for row in ROWS]
    assert [encoding.from_halfvec(row) for row in rows] == expected


def test_the_binary_form_is_pgvectors():
    (row,) = encoding.to_halfvec_rows([encoding.encode([1.0, -2.0])])

    assert row.hex(" ", 2) == "0002 0000 3c00 c000"


def test_a_server_reads_both_forms_alike(postgres_connection):
    vectors = ALL_HALVES.reshape(16, -1)
    with postgres_connection.cursor() as cursor:
        cursor.execute("CREATE EXTENSION IF NOT EXISTS vector")
        cursor.execute("CREATE TEMPORARY TABLE copied (text halfvec, rows halfvec)")
        with cursor.copy("COPY copied (rows) FROM STDIN (FORMAT BINARY)") as copy:
            copy.set_types(["bytea"])  # the type's own bytes, as they are
            for row in encoding.to_halfvec_rows(vectors):
                copy.write_row([row])
        texts = [[encoding.to_halfvec_text(vector.tobytes())] for vector in vectors]
        cursor.executemany("INSERT INTO copied (text) VALUES (%s)", texts)
        cursor.execute("SELECT halfvec_send(coalesce(rows, text)) FROM copied")
        found = [bytes(binary) for (binary,) in cursor.fetchall()]

    assert found == 2 * encoding.to_halfvec_rows(vectors)
    assert b"".join(map(encoding.from_halfvec, found)) == 2 * ALL_HALVES.tobytes()


def test_no_rows_are_no_rows():
    assert encoding.to_halfvec_rows([]) == []


@pytest.mark.parametrize(
    "write", [encoding.to_halfvec_text, lambda v: encoding.to_halfvec_rows([v])]
)
@pytest.mark.parametrize("number", [65_520.0, -1e30])
def test_numbers_beyond_float16_are_refused(write, number):
    with pytest.raises(InvalidInput, match="at most 65,504"):
        write(encoding.encode([1.0, number]))


def test_a_matrix_with_nan_is_refused():
    with pytest.raises(InvalidInput, match="finite"):
        encoding.to_halfvec_rows(np.array([[1.0, np.nan]]))


@pytest.mark.parametrize("kind", [encoding.encode, np.array])
def test_rows_of_several_lengths_are_refused_with_their_lengths(kind):
    with pytest.raises(DimensionMismatch, match=r"\[1, 2\]"):
        encoding.to_halfvec_rows([kind([1.0]), kind([1.0, 2.0])])


@pytest.mark.parametrize("value", [b"", b"\0\2\0\0", b"\0\2\0\0\x3c\0", b"\0\1\0"])
def test_other_bytes_are_no_halfvec(value):
    with pytest.raises(InvalidInput, match="no halfvec"):
        encoding.from_halfvec(value)
