"""Lists of values in plain SQL."""

from __future__ import annotations

import pytest

from django_services.embeddings.declaration import get_index
from django_services.embeddings.models import Change, Failure
from django_services.embeddings.statements import Statements

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("database")]

KEYS = ["1", "a b", 'quoted "so"', r"back\slash", "comma, brace {}", "NULL", "ünïcode", "", "'"]


def test_texts_are_found_whatever_stands_in_them():
    Change.objects.bulk_create([Change(index="i", source=key) for key in KEYS])

    for key in KEYS:
        found = Statements("default").run_in(
            "SELECT source FROM {change} WHERE source {among}", [key, "other"]
        )

        assert found == [(key,)]


def test_numbers_are_found():
    made = Change.objects.bulk_create([Change(index="i", source=key) for key in KEYS])

    found = Statements("default").run_in(
        "SELECT id FROM {change} WHERE id {among}", [change.pk for change in made[:3]]
    )

    assert sorted(found) == sorted((change.pk,) for change in made[:3])


def test_bytes_are_found():
    index = get_index("testapp.Product")
    hashes = [bytes(range(32)), bytes([255, 92, 34] + 29 * [0])]
    index.chunk_model.objects.bulk_create(
        [
            index.chunk_model(
                source_id=1,
                space_id=1,
                number=number,
                start=0,
                end=1,
                text="t",
                content_hash=content_hash,
                vector=[1.0],
            )
            for number, content_hash in enumerate(hashes)
        ]
    )

    found = Statements("default", index).run_in(
        "SELECT content_hash FROM {chunk} WHERE content_hash {among}", hashes
    )

    assert sorted(bytes(row[0]) for row in found) == sorted(hashes)


def test_an_empty_list_runs_nothing(django_assert_num_queries):
    with django_assert_num_queries(0):
        found = Statements("default").run_in("DELETE FROM {change} WHERE id {among}", [])

    assert found == []


def test_more_values_than_a_statement_takes_are_found():
    made = Change.objects.bulk_create([Change(index="i", source=str(n)) for n in range(3_000)])

    found = Statements("default").run_in(
        "SELECT id FROM {change} WHERE source {among}", [change.source for change in made]
    )

    assert len(found) == 3_000
    assert not Failure.objects.exists()
