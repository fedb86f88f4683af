"""The matrix: exact, immutable, and cheap to change."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from django_services.vectors import arithmetic
from django_services.vectors.matrix import Matrix, Rows, room_for

DIMENSIONS = 8


class Row(NamedTuple):
    id: int
    key: Any
    vector: bytes


def columns(rows):
    return Rows(*zip(*rows, strict=True)) if rows else Rows((), (), ())


def rows_of(vectors, groups=None, first=1):
    keys = range(len(vectors)) if groups is None else groups
    return [
        Row(first + n, key, np.asarray(vector, dtype="<f4").tobytes())
        for n, (vector, key) in enumerate(zip(vectors, keys, strict=True))
    ]


def random_rows(count, groups, seed=0):
    random = np.random.default_rng(seed)
    return rows_of(random.normal(size=(count, DIMENSIONS)), random.integers(0, groups, count))


def matrix_of(rows, capacity=None):
    return Matrix.build(
        DIMENSIONS, room_for(len(rows)) if capacity is None else capacity, [columns(rows)]
    )


def brute_force(rows, query, wanted, keys=None):
    best = {}
    for row in rows:
        distance = arithmetic.cosine_distance(row.vector, query)
        if keys is None or row.key in keys:
            best[row.key] = min(best.get(row.key, (9.0, 0)), (distance, row.id))
    order = sorted(best, key=lambda key: (best[key][0], key))
    last = best[order[min(wanted, len(order)) - 1]][0] if order else 0
    return [best[key][1] for n, key in enumerate(order) if n < wanted or best[key][0] == last]


QUERY = np.random.default_rng(42).normal(size=DIMENSIONS).astype("<f4").tobytes()


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 80),
    groups=st.integers(1, 40),
    wanted=st.integers(1, 100),
    seed=st.integers(0, 1000),
    share=st.none() | st.floats(0, 1),
)
def test_hits_equal_brute_force(count, groups, wanted, seed, share):
    rows = random_rows(count, groups, seed)
    keys = None if share is None else set(range(int(groups * share)))

    found = matrix_of(rows).nearest(QUERY, wanted, keys)

    assert found.ids == brute_force(rows, QUERY, wanted, keys)
    assert found.distances == sorted(found.distances)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    steps=st.lists(st.tuples(st.sets(st.integers(1, 50)), st.booleans()), max_size=12),
)
def test_changes_equal_a_new_build(seed, steps):
    rows = {row.id: row for row in random_rows(30, 12, seed)}
    matrix = matrix_of(list(rows.values()))
    for number, (ids, is_deletion) in enumerate(steps):
        written = [] if is_deletion else random_rows(50, 15, seed + number + 1)
        written = [row for row in written if row.id in ids]
        for id_ in ids:
            rows.pop(id_, None)
        rows.update((row.id, row) for row in written)

        matrix = matrix.changed(ids, columns(written))

        assert len(matrix) == len(rows)
        assert matrix.nearest(QUERY, 5).ids == brute_force(rows.values(), QUERY, 5)


def test_a_changed_matrix_leaves_the_old_one_as_it_was():
    rows = random_rows(40, 20)
    matrix = matrix_of(rows)
    before = matrix.nearest(QUERY, 10)

    near = rows_of([np.frombuffer(QUERY, "<f4")], [99], first=1)
    changed = matrix.changed({rows[0].id}, columns(near))

    assert matrix.nearest(QUERY, 10) == before
    assert changed.nearest(QUERY, 1).ids == [1]
    assert changed.storage is matrix.storage


def test_two_changes_of_one_matrix_do_not_meet():
    rows = random_rows(40, 20)
    matrix = matrix_of(rows)
    near = rows_of([np.frombuffer(QUERY, "<f4")], [98], first=100)
    far = rows_of([-np.frombuffer(QUERY, "<f4")], [99], first=101)

    one, other = matrix.changed({100}, columns(near)), matrix.changed({101}, columns(far))

    assert one.nearest(QUERY, 1).ids == [100]
    assert other.nearest(QUERY, 50).ids == brute_force([*rows, *far], QUERY, 50)
    assert matrix.nearest(QUERY, 50, [98, 99]).ids == []


def test_a_storage_of_mostly_dead_rows_is_left():
    rows = random_rows(400, 400)
    matrix = matrix_of(rows)

    for start in range(0, 300, 10):
        matrix = matrix.changed({row.id for row in rows[start : start + 10]}, columns([]))

    assert len(matrix) == 100
    assert matrix.storage.used < 200
    assert matrix.nearest(QUERY, 20).ids == brute_force(rows[300:], QUERY, 20)


def test_more_rows_than_expected_find_room():
    rows = random_rows(500, 100)

    matrix = Matrix.build(DIMENSIONS, 3, map(columns, [rows[:10], rows[10:300], rows[300:]]))

    assert matrix.nearest(QUERY, 10).ids == brute_force(rows, QUERY, 10)


def test_ties_at_the_last_place_all_come():
    same = np.ones(DIMENSIONS)
    matrix = matrix_of(rows_of([same] * 6, [5, 3, 1, 0, 2, 4]))

    found = matrix.nearest(QUERY, 2)

    assert found.ids == [4, 3, 5, 2, 6, 1]  # in the order of their keys


def test_of_equal_rows_of_a_group_the_first_counts():
    same = np.ones(DIMENSIONS)
    rows = [*rows_of([same], ["a"], first=9), *rows_of([same], ["a"], first=2)]

    assert matrix_of(rows).nearest(QUERY, 1).ids == [2]


def test_a_zero_vector_comes_last():
    rows = rows_of([np.zeros(DIMENSIONS), -np.frombuffer(QUERY, "<f4")], ["zero", "opposite"])

    assert matrix_of(rows).nearest(QUERY, 2).ids == [2, 1]


def test_nothing_is_found_in_nothing():
    empty = matrix_of([])

    assert empty.nearest(QUERY, 5).ids == []
    assert empty.changed({1}, columns(random_rows(1, 1))).nearest(QUERY, 5).ids == [1]
    assert matrix_of(random_rows(5, 5)).nearest(QUERY, 5, ["unknown"]).ids == []


def test_near_duplicates_are_told_apart():
    base = np.frombuffer(QUERY, "<f4").astype(np.float64)
    vectors = [base + step * 1e-4 * np.arange(DIMENSIONS) for step in range(200, 0, -1)]
    rows = rows_of(vectors)

    assert matrix_of(rows).nearest(QUERY, 7).ids == brute_force(rows, QUERY, 7)


def test_threads_that_change_one_matrix_get_each_their_own():
    rows = random_rows(200, 50)
    matrix = matrix_of(rows, capacity=10_000)
    results: dict[int, list[int]] = {}

    def change(number: int) -> None:
        mine = rows_of([np.frombuffer(QUERY, "<f4")], [1000 + number], first=1000 + number)
        for _ in range(20):
            results[number] = matrix.changed({mine[0].id}, columns(mine)).nearest(QUERY, 1).ids

    threads = [threading.Thread(target=change, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert results == {number: [1000 + number] for number in range(4)}
