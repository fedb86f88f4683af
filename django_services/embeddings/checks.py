"""System checks of the declarations; no I/O.

| id | what is wrong |
|---|---|
| django_services.E101 | a lookup names no field |
| django_services.E102 | the model is unmanaged |
| django_services.E103 | chunk size or overlap out of range |
| django_services.E104 | the embedding model or its dimensions cannot be stored |
| django_services.E105 | a router parts the model from the tables of its embeddings |
| django_services.E106 | the primary key has several columns |
| django_services.E107 | the name of the table or of a column has a quote in it |
| django_services.W101 | what a condition reads cannot be seen |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from django.core import checks
from django.db import connections, models, router

from ..exceptions import ConfigurationError, ServiceError
from . import spaces
from .capture import watch
from .declaration import Embeddings, declarations, indexes
from .models import Change, Space

CHUNK_SIZES = range(50, 8_001)  # characters; OpenAI takes 8,192 tokens a text
MAX_DIMENSIONS = 4_000  # of an indexable halfvec, pgvector

Message = checks.CheckMessage


def check_declarations(**_: Any) -> list[Message]:
    """Check every declaration of the project."""
    composite = [index for index in declarations() if index.model._meta.is_composite_pk]
    refused = [_refuse_key(index) for index in composite]
    return refused + [found for index in indexes() for check in _CHECKS for found in check(index)]


def _check_lookups(index: Embeddings) -> Iterator[Message]:
    try:
        watch.watches(index)
    except ConfigurationError as error:
        yield checks.Error(
            str(error),
            hint="Embeddings takes names of fields, through relations with a double underscore.",
            obj=index.model,
            id="django_services.E101",
        )


def _check_managed(index: Embeddings) -> Iterator[Message]:
    if not index.model._meta.managed:
        yield checks.Error(
            f"{index.label}: the model is unmanaged, so Django may not own its table.",
            hint="Declare the embeddings on a managed model, or store the texts as Documents.",
            obj=index.model,
            id="django_services.E102",
        )


def _check_chunks(index: Embeddings) -> Iterator[Message]:
    try:
        size, overlap = index.chunk_size, index.chunk_overlap
    except ConfigurationError:
        return  # the settings' own check says it
    if size not in CHUNK_SIZES or not 0 <= overlap <= size // 2:
        yield checks.Error(
            f"{index.label}: chunks of {size} characters with an overlap of {overlap}.",
            hint=f"chunk_size= takes {CHUNK_SIZES[0]} to {CHUNK_SIZES[-1]} characters, "
            "chunk_overlap= at most half of it.",
            obj=index.model,
            id="django_services.E103",
        )


def _check_model(index: Embeddings) -> Iterator[Message]:
    try:
        dimensions = spaces.declared(index).dimensions
        problem = f"{dimensions} dimensions" if not 1 <= dimensions <= MAX_DIMENSIONS else ""
    except ServiceError as error:
        problem = str(error)
    if problem:
        yield checks.Error(
            f"{index.label}: {problem}",
            hint=f"Vectors have 1 to {MAX_DIMENSIONS} dimensions: set model= and dimensions=, "
            "or OPENAI_EMBEDDING_MODEL and OPENAI_EMBEDDING_DIMENSIONS.",
            obj=index.model,
            id="django_services.E104",
        )


def _check_router(index: Embeddings) -> Iterator[Message]:
    for alias in connections:
        if not router.allow_migrate_model(alias, index.model):
            continue
        for table in (index.chunk_model, Change, Space):
            if not router.allow_migrate_model(alias, table):
                yield checks.Error(
                    f"{index.label} migrates on {alias!r}, {table._meta.label} does not.",
                    hint="A source and its embeddings share a database: let your router allow "
                    "django_services and the chunk model wherever the model migrates.",
                    obj=index.model,
                    id="django_services.E105",
                )


def _refuse_key(index: Embeddings) -> Message:
    return checks.Error(
        f"{index.label}: a primary key of several columns cannot be embedded, "
        "since no foreign key can point to it.",
        hint="Give the model a primary key of one column, and a UniqueConstraint of those "
        "that are its key now.",
        obj=index.model,
        id="django_services.E106",
    )


def _check_names(index: Embeddings) -> Iterator[Message]:
    options = index.model._meta
    names = [options.db_table, *(str(field.column) for field in options.concrete_fields)]
    for name in names:
        if '"' in name or "%" in name:
            yield checks.Error(
                f"{index.label}: the name {name!r} has a quote or a percent sign in it.",
                hint="Set db_table or db_column to a name without.",
                obj=index.model,
                id="django_services.E107",
            )


def _check_condition(index: Embeddings) -> Iterator[Message]:
    if index.condition is not None and _reads_a_subquery(index.condition) and not index.watch:
        yield checks.Warning(
            f"{index.label}: what the condition's subquery reads cannot be watched.",
            hint="Name the lookups whose change may change it: Embeddings(…, watch=(…)).",
            obj=index.model,
            id="django_services.W101",
        )


def _reads_a_subquery(part: Any) -> bool:
    if isinstance(part, models.Q):
        return any(_reads_a_subquery(child) for child in part.children)
    if isinstance(part, tuple):
        return _reads_a_subquery(part[1])
    return isinstance(part, (models.Exists, models.Subquery, models.QuerySet))


_CHECKS: tuple[Callable[[Embeddings], Iterator[Message]], ...] = (
    _check_lookups,
    _check_managed,
    _check_chunks,
    _check_model,
    _check_router,
    _check_names,
    _check_condition,
)
