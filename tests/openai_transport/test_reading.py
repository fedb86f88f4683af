from __future__ import annotations

import numpy as np
import pytest

from django_services.openai_transport.reading import (
    Unusable,
    count_inputs,
    decode_json,
    read_embeddings,
)

from ..fake_openai import encoded


def body(*rows, indexes=None):
    indexes = range(len(rows)) if indexes is None else indexes
    return {
        "data": [
            {"index": index, "embedding": row} for index, row in zip(indexes, rows, strict=True)
        ]
    }


@pytest.mark.parametrize("row", [[3.0, 4.0], [3, 4], encoded([3, 4])])
def test_rows_of_each_encoding_are_read_and_normalised(row):
    reading = read_embeddings(body(row), 1)

    assert reading.vectors[0].tolist() == pytest.approx([0.6, 0.8])
    assert reading.vectors.dtype == np.float32
    assert not reading.faults


def test_rows_are_mapped_by_index():
    reading = read_embeddings(body([0, 1], [1, 0], indexes=[1, 0]), 2)

    assert reading.vectors.tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("answer", "count"),
    [
        (body([1, 0]), 2),
        (body([1, 0], [0, 1]), 1),
        (body([1, 0], [0, 1], indexes=[0, 0]), 2),
        (body([1, 0], [0, 1], indexes=[1, 2]), 2),
        (body([1, 0], [0, 1], indexes=[-1, 0]), 2),
        (body([1, 0], [0, 1], indexes=["0", "1"]), 2),
        (body([1, 0], [0, 1], indexes=[False, True]), 2),
        (body([1, 0], indexes=[None]), 1),
        (body(None), 1),
        (body(["a", "b"]), 1),
        ({"data": [[1, 0]]}, 1),
        ({"data": {}}, 1),
        ({}, 1),
        ([], 1),
        (None, 1),
    ],
)
def test_a_response_that_cannot_be_mapped_is_unusable(answer, count):
    with pytest.raises(Unusable):
        read_embeddings(answer, count)


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ([float("nan"), 1.0], "not finite"),
        ([float("inf"), 1.0], "not finite"),
        ([1e300, 1.0], "not finite"),
        ([10**400, 1], "holds no numbers"),
        ([0.0, 0.0], "all zeros"),
        ([1.0], "1 dimensions, not 2"),
        ([1.0, 2.0, 3.0], "3 dimensions, not 2"),
        (["1", "2"], "holds no numbers"),
        ([True, False], "holds no numbers"),
        ([None, None], "holds no numbers"),
        ([], "holds no numbers"),
        (None, "holds no numbers"),
        ("not base64!", "holds no numbers"),
        ("AAA=", "holds no numbers"),
        (encoded([float("nan"), 1]), "not finite"),
        (encoded([1.0]), "1 dimensions, not 2"),
    ],
)
def test_a_faulty_row_spoils_no_other(row, fault):
    reading = read_embeddings(body([1, 0], row, [0, 1]), 3)

    assert reading.vectors.tolist() == [[1, 0], [0, 0], [0, 1]]
    assert list(reading.faults) == [1]
    assert fault in reading.faults[1]


def test_another_length_may_be_asked_for():
    reading = read_embeddings(body([1, 0], [1, 0, 0], [0, 1]), 3).at(3)

    assert reading.vectors[1].tolist() == [1, 0, 0]
    assert list(reading.faults) == [0, 2]


@pytest.mark.parametrize("content", [b"", b"<html>", b'{"data": [', b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_json_decodes_to_none(content):
    assert decode_json(content) is None


@pytest.mark.parametrize(
    ("given", "count"), [("text", 1), (["a", "b"], 2), ([1, 2, 3], 1), ([[1], [2]], 2), ([], 0)]
)
def test_inputs_are_counted_in_all_their_forms(given, count):
    assert count_inputs(given) == count
