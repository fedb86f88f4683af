"""The HNSW index of a space: built once, beside everything else, and mended."""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from django.db import OperationalError, connections, transaction

from django_services import embedded
from django_services.embeddings import ann_index
from django_services.embeddings.models import Space
from django_services.exceptions import ConfigurationError, InvalidInput
from tests.embeddings.stored import random_vectors
from tests.testapp.models import Note, Product

INDEX = Product.embeddings.index
TABLE = INDEX.chunk_model._meta.db_table
DIMENSIONS = 16


@pytest.fixture
def tables(postgres_connection):
    """The tables of a few chunks on PostgreSQL, without triggers."""
    models = [Space, INDEX.chunk_model]
    with postgres_connection.cursor() as cursor:
        cursor.execute("CREATE EXTENSION IF NOT EXISTS vector")
    with postgres_connection.schema_editor() as editor:
        for model in models:
            editor.create_model(model)
    yield postgres_connection
    with postgres_connection.schema_editor() as editor:
        for model in models:
            editor.delete_model(model)


@pytest.fixture
def space(tables):
    return new_space()


@pytest.fixture
def other_session(postgres_url, tables):
    with contextlib.closing(psycopg.connect(postgres_url, autocommit=True)) as session:
        yield session


@pytest.fixture
def writer(postgres_url, tables):
    """A transaction that has written a chunk: a build waits for its end."""
    with contextlib.closing(psycopg.connect(postgres_url)) as session:
        session.execute(f"LOCK TABLE {TABLE} IN ROW EXCLUSIVE MODE")
        yield session


def new_space(dimensions=DIMENSIONS, count=50):
    """Make a space with a few chunks."""
    active = not Space.objects.using("postgres").exists()
    space = Space.objects.using("postgres").create(
        index=INDEX.label,
        model=embedded.MODEL,
        dimensions=dimensions,
        recipe=str(time.monotonic_ns()),
        state="active" if active else "building",
    )
    INDEX.chunk_model._default_manager.using("postgres").bulk_create(
        INDEX.chunk_model(
            source_id=number,
            space=space,
            number=0,
            start=0,
            end=1,
            text="",
            content_hash=b"",
            vector=vector,
        )
        for number, vector in enumerate(random_vectors(count, seed=1, dimensions=dimensions))
    )
    return space


def state(space):
    return ann_index.state(INDEX, space, "postgres")


def ensure(space, **options):
    return ann_index.ensure(INDEX, space, "postgres", **options)


def ensure_elsewhere(space, **options):
    """`ensure` as another thread calls it; its connection ends with it."""
    try:
        return ensure(space, **options)
    finally:
        connections["postgres"].close()


def wait_for(wanted, read, *arguments):
    deadline = time.monotonic() + 20
    while read(*arguments) != wanted:
        assert time.monotonic() < deadline, f"still {read(*arguments)}, not {wanted}"
        time.sleep(0.01)


def count_advisory_locks(cursor):
    cursor.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
    return cursor.fetchone()[0]


def plan(connection, space):
    vector = random_vectors(1, seed=3)[0].tolist()
    with connection.cursor() as cursor:
        cursor.execute(
            f"EXPLAIN SELECT id FROM {TABLE} WHERE space_id = {space.pk} "
            f"ORDER BY vector::halfvec({DIMENSIONS}) <=> '{vector}'::halfvec({DIMENSIONS}) LIMIT 5"
        )
        return "\n".join(line for (line,) in cursor.fetchall())


# Building -------------------------------------------------------------------------------


def test_a_missing_index_is_built_and_serves_the_search(tables, space):
    before = state(space)

    is_built = ensure(space)

    assert (before, is_built, state(space)) == ("missing", True, "ready")
    with transaction.atomic(using="postgres"), tables.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off")
        assert f"Index Scan using django_services_ann_{space.pk}" in plan(tables, space)


def test_an_index_that_is_there_is_left(space):
    ensure(space)

    assert ensure(space) is False


def test_each_space_has_its_own(tables):
    spaces = [new_space(), new_space(dimensions=3)]

    assert [ensure(space) for space in spaces] == [True, True]
    assert [state(space) for space in spaces] == ["ready", "ready"]


def test_progress_tells_the_phases_and_ends_at_one(space, writer):
    told = []

    def progress(share, phase):
        told.append((share, phase))
        writer.rollback()

    ensure(space, progress=progress)

    shares = [share for share, _ in told]
    assert told[0][1].startswith("waiting for writers")
    assert shares == sorted(shares)
    assert told[-1] == (1.0, "built")


def test_the_sessions_limits_do_not_stop_a_build(tables, space, writer):
    tables.close()
    limits = "-c statement_timeout=150 -c default_transaction_isolation=serializable"
    tables.settings_dict["OPTIONS"]["options"] = limits
    looks = []

    def progress(share, phase):
        looks.append(phase)
        if len(looks) == 3:  # 0.6 s
            writer.rollback()

    try:
        is_built = ensure(space, progress=progress)
    finally:
        tables.close()
        del tables.settings_dict["OPTIONS"]["options"]

    assert is_built


@pytest.mark.parametrize(("memory", "warnings"), [("1MB", 1), ("64MB", 0)])
def test_a_build_that_outgrows_its_memory_is_told_of(tables, caplog, memory, warnings):
    space = new_space(count=2_000)
    tables.close()
    tables.settings_dict["OPTIONS"]["options"] = f"-c maintenance_work_mem={memory}"
    try:
        is_built = ensure(space)
    finally:
        tables.close()
        del tables.settings_dict["OPTIONS"]["options"]

    told = [text for text in caplog.messages if "Raise maintenance_work_mem" in text]
    assert (is_built, len(told)) == (True, warnings)


def test_nothing_stays_in_a_pool(tables, space):
    tables.close()
    tables.settings_dict["OPTIONS"]["pool"] = {"min_size": 1, "max_size": 1, "timeout": 5}
    try:
        is_built = ensure(space)

        with tables.cursor() as cursor:
            cursor.execute("SHOW statement_timeout")
            limit = cursor.fetchone()
            wait_for(0, count_advisory_locks, cursor)  # a session ends a moment after its client
    finally:
        tables.close()
        tables.close_pool()
        del tables.settings_dict["OPTIONS"]["pool"]

    assert (is_built, limit) == (True, ("0",))


def test_only_the_owner_of_the_table_may_build(tables, space):
    with tables.cursor() as cursor:
        cursor.execute("CREATE ROLE guest; GRANT ALL ON ALL TABLES IN SCHEMA public TO guest")
    tables.close()
    tables.settings_dict["OPTIONS"]["assume_role"] = "guest"
    try:
        with pytest.raises(ConfigurationError, match="as the role that ran the migrations"):
            ensure(space)
    finally:
        tables.close()
        del tables.settings_dict["OPTIONS"]["assume_role"]
        with tables.cursor() as cursor:
            cursor.execute("DROP OWNED BY guest; DROP ROLE guest")


# Where none can be ----------------------------------------------------------------------


def test_sqlite_has_none(db):
    space = Space(pk=1, index=INDEX.label, dimensions=DIMENSIONS)

    assert ann_index.state(INDEX, space, "default") == "unsupported"
    assert ann_index.ensure(INDEX, space, "default") is False
    ann_index.build_index(INDEX, "default")
    ann_index.drop(INDEX, 1, "default")


def test_more_dimensions_than_an_index_takes_have_none(tables):
    space = Space(pk=1, index=INDEX.label, dimensions=4_001)

    assert (state(space), ensure(space)) == ("unsupported", False)


def test_inside_a_transaction_none_is_built(space):
    with transaction.atomic(using="postgres"):
        assert ensure(space) is False
        assert state(space) == "missing"


# Faults ---------------------------------------------------------------------------------


class Stop(Exception):
    """What a progress raises to stop the build."""


@pytest.mark.parametrize(
    "end",
    ["SELECT pg_cancel_backend(pid)", "SELECT pg_terminate_backend(pid)"],
    ids=["cancelled", "connection lost"],
)
def test_a_build_that_was_ended_is_mended(space, writer, other_session, end):
    def progress(share, phase):
        other_session.execute(f"{end} FROM pg_stat_progress_create_index")

    with pytest.raises(OperationalError):
        ensure(space, progress=progress)

    assert state(space) == "invalid"
    writer.rollback()
    assert (ensure(space), state(space)) == (True, "ready")


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
def test_a_progress_that_raises_stops_the_build(space, writer, error):
    def progress(share, phase):
        raise error

    with pytest.raises(error):
        ensure(space, progress=progress)

    assert state(space) == "invalid"
    writer.rollback()
    assert (ensure(space), state(space)) == (True, "ready")


def test_of_two_builders_one_builds_and_the_other_leaves(space, writer):
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(ensure_elsewhere, space)
        wait_for("building", state, space)

        second = ensure(space)
        writer.rollback()

        assert (first.result(), second, state(space)) == (True, False, "ready")


def test_builders_that_start_together_all_end_well(space):
    barrier = threading.Barrier(4)

    def build():
        barrier.wait()
        return ensure_elsewhere(space)

    with ThreadPoolExecutor(4) as pool:
        built = [task.result() for task in [pool.submit(build) for _ in range(4)]]

    assert sorted(built) == [False, False, False, True]
    assert state(space) == "ready"


def test_a_killed_clients_build_that_goes_on_is_left_alone(space, writer, other_session):
    connection = connections["postgres"]
    target = ann_index._Target.of(INDEX, space.pk, DIMENSIONS)
    sql = ann_index._create_sql(connection, target, how="CONCURRENTLY")
    with ThreadPoolExecutor(1) as pool:
        orphan = pool.submit(other_session.execute, sql)
        wait_for("building", state, space)

        assert ensure(space) is False

        writer.rollback()
        orphan.result()
    assert state(space) == "ready"


def test_builds_on_one_table_take_turns(space, writer):
    other = new_space(dimensions=3)
    told = []

    def progress(share, phase):
        told.append(phase)
        writer.rollback()

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(ensure_elsewhere, other)
        wait_for("building", state, other)

        second = ensure(space, progress=progress)

        assert (first.result(), second) == (True, True)
    assert told[0] == "waiting for another build"
    assert (state(space), state(other)) == ("ready", "ready")


@pytest.mark.parametrize(
    "definition",
    [
        "hnsw ((vector::halfvec(8)) halfvec_cosine_ops) WITH (m=16, ef_construction=128) {where}",
        "hnsw ((vector::halfvec(16)) halfvec_l2_ops) WITH (m=16, ef_construction=128) {where}",
        "hnsw ((vector::halfvec(16)) halfvec_cosine_ops) WITH (m=8, ef_construction=128) {where}",
        "hnsw ((vector::halfvec(16)) halfvec_cosine_ops) WITH (m=16, ef_construction=64) {where}",
        "hnsw ((vector::halfvec(16)) halfvec_cosine_ops) {where}",
        "hnsw ((vector::halfvec(16)) halfvec_cosine_ops) WITH (m=16, ef_construction=128)",
        "btree (space_id)",
    ],
)
def test_an_index_of_another_definition_is_built_anew(other_session, tables, definition):
    space = new_space(count=0)
    definition = definition.format(where=f"WHERE space_id = {space.pk}")
    name = f"django_services_ann_{space.pk}"
    other_session.execute(f"CREATE INDEX {name} ON {TABLE} USING {definition}")

    assert state(space) == "invalid"
    assert (ensure(space), state(space)) == (True, "ready")


# What happens to the table --------------------------------------------------------------


def test_the_index_outlives_migrations_of_the_table(tables, space):
    ensure(space)
    with tables.schema_editor() as editor:
        editor.alter_db_table(INDEX.chunk_model, TABLE, "renamed")
        editor.execute("ALTER TABLE renamed ALTER COLUMN source_id TYPE text")
        editor.alter_db_table(INDEX.chunk_model, "renamed", TABLE)

    assert state(space) == "ready"


def test_a_table_with_odd_names_gets_its_index(tables):
    index = Note.embeddings.index
    model = index.chunk_model
    space = Space.objects.using("postgres").create(
        index=index.label, model="m", dimensions=3, recipe="r", state="active"
    )
    table, column = model._meta.db_table, model._meta.get_field("space").column
    model._meta.db_table, model._meta.get_field("space").column = "Odd table", "Spa ce"
    try:
        with tables.schema_editor() as editor:
            editor.create_model(model)

        assert ann_index.ensure(index, space, "postgres")
        assert ann_index.state(index, space, "postgres") == "ready"
    finally:
        with tables.schema_editor() as editor:
            editor.delete_model(model)
        model._meta.db_table, model._meta.get_field("space").column = table, column


# Dropping -------------------------------------------------------------------------------


def test_an_index_is_dropped(space):
    ensure(space)

    ann_index.drop(INDEX, space.pk, "postgres")

    assert state(space) == "missing"


def test_an_index_is_dropped_inside_a_transaction(space):
    ensure(space)

    with transaction.atomic(using="postgres"):
        ann_index.drop(INDEX, space.pk, "postgres")
        assert state(space) == "missing"


def test_dropping_none_is_nothing(space):
    ann_index.drop(INDEX, space.pk, "postgres")
    with transaction.atomic(using="postgres"):
        ann_index.drop(INDEX, space.pk, "postgres")


def test_an_index_being_built_is_dropped_when_it_is_done(space, writer):
    with ThreadPoolExecutor(1) as pool:
        building = pool.submit(ensure_elsewhere, space)
        wait_for("building", state, space)
        threading.Timer(0.3, writer.rollback).start()

        ann_index.drop(INDEX, space.pk, "postgres")

        assert building.result()
    assert state(space) == "missing"


# By hand --------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrently", [True, False])
def test_the_active_spaces_index_is_built_by_hand(space, concurrently):
    ann_index.build_index(INDEX, "postgres", concurrently=concurrently)

    assert state(space) == "ready"


def test_an_index_is_built_in_a_transaction_and_taken_back_with_it(space):
    with transaction.atomic(using="postgres"):
        for _ in range(2):
            ann_index.build_index(INDEX, "postgres", concurrently=False)
        inside = state(space)
        transaction.set_rollback(True, using="postgres")

    assert (inside, state(space)) == ("ready", "missing")


def test_a_concurrent_build_in_a_transaction_is_refused(space):
    with (
        transaction.atomic(using="postgres"),
        pytest.raises(InvalidInput, match="concurrently=False"),
    ):
        ann_index.build_index(INDEX, "postgres")


def test_without_embeddings_there_is_nothing_to_build(tables):
    with pytest.raises(InvalidInput, match="embeddings sync"):
        ann_index.build_index(INDEX, "postgres")
