"""The variables that this package reads: the README's table, and where each goes."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from django_services.exceptions import ConfigurationError

from .urls import base_url
from .values import (
    api_key,
    boolean,
    count,
    count_or_zero,
    dollars,
    nearest,
    one_of,
    seconds,
    seconds_or_zero,
    text_value,
)


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable that `Env` reads: a row of the README's table."""

    name: str
    default: str  # as a reader of the README understands it
    kind: str  # type or unit
    meaning: str
    convert: Callable[[str], object] = field(default=text_value, repr=False)
    place: tuple[str, ...] = field(default=(), repr=False)  # in DJANGO_SERVICES


def _openai(
    name: str,
    default: str,
    kind: str,
    meaning: str,
    *,
    convert: Callable[[str], object] = text_value,
    key: str = "",
) -> Variable:
    place = ("OPENAI", "default", key or name)
    return Variable(f"OPENAI_{name}", default, kind, meaning, convert, place)


def _embed(
    key: str, default: str, kind: str, meaning: str, convert: Callable[[str], object]
) -> Variable:
    return Variable(f"EMBED_{key}", default, kind, meaning, convert, ("EMBEDDINGS", key))


VARIABLES = (
    Variable(
        "DATABASE_URL",
        "the file db.sqlite3",
        "URL",
        "The database: `postgresql://user:password@host:5432/name` or `sqlite:///file`.",
    ),
    Variable(
        "REDIS_URL",
        "none: caches stay in the process",
        "URL",
        "Redis or Valkey, for the cache and `get_redis_client()`: `redis://:password@host:6379/0`.",
    ),
    Variable(
        "TASKS_URL",
        "`immediate://`",
        "URL",
        "The tasks backend: `immediate://`, `dummy://` or `path.to.Backend://?queues=a,b`.",
    ),
    _openai(
        "API_KEY",
        "none: the embedded model if DEBUG",
        "secret",
        "The key of the OpenAI API.",
        convert=api_key,
    ),
    _openai(
        "API_KEY_FILE",
        "none",
        "path",
        "A file that holds the key; read again when it changes.",
    ),
    _openai(
        "BASE_URL",
        "`https://api.openai.com/v1`",
        "URL",
        "A compatible server, or `embedded://` for the offline model.",
        convert=base_url,
    ),
    _openai(
        "API_VERSION",
        "none: not Azure",
        "text",
        "The API version of Azure OpenAI; `OPENAI_BASE_URL` is then your endpoint there.",
    ),
    _openai(
        "ORG_ID",
        "the key's own",
        "text",
        "The organization that calls are billed to.",
        key="ORGANIZATION",
    ),
    _openai(
        "PROJECT_ID",
        "the key's own",
        "text",
        "The project that calls are billed to.",
        key="PROJECT",
    ),
    _openai(
        "MODEL",
        "`gpt-6-luna`",
        "text",
        "The model that completes.",
    ),
    _openai(
        "EMBEDDING_MODEL",
        "`text-embedding-3-small`",
        "text",
        "The model that embeds texts and queries.",
    ),
    _openai(
        "EMBEDDING_DIMENSIONS",
        "the model's own",
        "number",
        "The length of stored vectors, at most 4000.",
        convert=count,
        key="DIMENSIONS",
    ),
    _openai(
        "DEADLINE",
        "60",
        "seconds",
        "The most that a call may take over all its attempts.",
        convert=seconds,
    ),
    _openai(
        "TASK_DEADLINE",
        "240",
        "seconds",
        "The same in background work, such as `embeddings sync`.",
        convert=seconds,
    ),
    _openai("TIMEOUT", "30", "seconds", "The most that one attempt may take.", convert=seconds),
    _openai(
        "CONNECT_TIMEOUT",
        "5",
        "seconds",
        "The most that opening a connection may take.",
        convert=seconds,
    ),
    _openai(
        "REQUESTS_PER_MINUTE",
        "as many as the service lets through",
        "number",
        "The most requests to each model, over all processes that share a Redis.",
        convert=count,
    ),
    _openai(
        "TOKENS_PER_MINUTE",
        "as many as the service lets through",
        "number",
        "The most tokens to each model, in the same way.",
        convert=count,
    ),
    _openai(
        "DAILY_BUDGET",
        "none",
        "US dollars",
        "The most that calls may cost in a day (UTC); beyond it they are refused.",
        convert=dollars,
    ),
    _openai(
        "MONTHLY_BUDGET",
        "none",
        "US dollars",
        "The same for a month.",
        convert=dollars,
    ),
    _embed(
        "ON_COMMIT",
        "`inline` with the embedded model; `task` if TASKS is not immediate; else `off`",
        "`inline`, `task`, `off`",
        "What happens to changed rows after a commit.",
        one_of("inline", "task", "off"),
    ),
    _embed("INLINE_LIMIT", "100", "rows", "The most that are embedded after one commit.", count),
    _embed(
        "CHUNK_SIZE",
        "1000",
        "characters",
        "The longest piece of a text that gets a vector of its own.",
        count,
    ),
    _embed(
        "CHUNK_OVERLAP",
        "100",
        "characters",
        "What a chunk repeats of the one before.",
        count_or_zero,
    ),
    _embed("BATCH_SIZE", "1000", "rows", "The most that a worker takes at once.", count),
    _embed(
        "CONCURRENCY",
        "16",
        "calls",
        "The most that `embeddings sync` has in flight at a remote model.",
        count,
    ),
    _embed(
        "NOTIFY",
        "True",
        "boolean",
        "Whether writers wake `embeddings sync --watch` at once (PostgreSQL).",
        boolean,
    ),
    _embed(
        "LEASE",
        "300",
        "seconds",
        "How long a worker may hold a row before another takes it.",
        seconds,
    ),
    _embed("MAX_ATTEMPTS", "5", "number", "Failed attempts before a row is set aside.", count),
    _embed(
        "RETRY_DELAY",
        "30",
        "seconds",
        "The wait before the second attempt; doubles with each.",
        seconds_or_zero,
    ),
    _embed("MAX_HITS", "1000", "rows", "The most that a search without a slice returns.", count),
    _embed(
        "QUERY_CACHE",
        "default",
        "alias in CACHES",
        "The cache that keeps the vectors of queries.",
        text_value,
    ),
    _embed(
        "QUERY_CACHE_TIMEOUT",
        "86400",
        "seconds",
        "How long the vector of a query is kept.",
        count_or_zero,
    ),
    _embed(
        "MATRIX_MEMORY",
        "1024",
        "MiB",
        "Vectors that a process may hold for searches on SQLite.",
        count,
    ),
)

#: Variables of the OpenAI SDK that this package leaves to it.
_FOREIGN = frozenset(
    {
        "OPENAI_ADMIN_KEY",
        "OPENAI_API_TYPE",
        "OPENAI_CUSTOM_HEADERS",
        "OPENAI_LOG",
        "OPENAI_WEBHOOK_SECRET",
    }
)
#: Names of earlier SDKs, too unlike the present ones to be found by likeness.
_FORMER = {"OPENAI_API_BASE": "OPENAI_BASE_URL", "OPENAI_ORGANIZATION": "OPENAI_ORG_ID"}


def variables_table() -> str:
    """Return `VARIABLES` as the Markdown table that stands in the README."""
    rows = [("Variable", "Default", "Kind", "Meaning"), ("---",) * 4]
    rows += [(f"`{row.name}`", row.default, row.kind, row.meaning) for row in VARIABLES]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def refuse_misspelt(names: Iterable[str]) -> None:
    """Refuse a name that this package does not read but whose owner meant it to.

    ``EMBED_`` is this package's own prefix; ``OPENAI_`` belongs to others too,
    so there only a name close to a known one is taken for a slip.
    """
    known = {variable.name for variable in VARIABLES}
    for name in sorted(set(names) - known - _FOREIGN):
        meant = _FORMER.get(name, "")
        if name.startswith("OPENAI_") and not meant:
            meant = "".join(difflib.get_close_matches(name, known, n=1, cutoff=0.8))
        elif name.startswith("EMBED_"):
            meant = nearest(name, (other for other in known if other.startswith("EMBED_")))
        if meant:
            raise ConfigurationError(
                f"{name} is not a variable that is read; the nearest is {meant}."
            )
