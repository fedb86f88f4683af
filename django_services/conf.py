"""The settings of django_services, typed; the only reader of django.conf.settings.

Every section is one frozen dataclass. They are read live, so that
``override_settings`` takes effect, and parsed once for each value.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from django.conf import settings

from .exceptions import ServiceNotConfigured

EMBEDDED_URL = "embedded://"
OPENAI_URL = "https://api.openai.com/v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAISettings:
    """``DJANGO_SERVICES["OPENAI"][alias]``."""

    api_key: str = field(default="", repr=False)
    base_url: str = OPENAI_URL
    organization: str = ""
    project: str = ""
    deadline: float = 60.0  # seconds, over all attempts of one call
    timeout: float = 30.0  # seconds, of one attempt
    connect_timeout: float = 5.0  # seconds
    embedding_model: str = "text-embedding-3-small"
    dimensions: int | None = None  # of stored vectors; None: the model's own


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisSettings:
    """``DJANGO_SERVICES["REDIS"][alias]``."""

    url: str = field(repr=False)
    timeout: float = 2.0  # seconds, of one command
    connect_timeout: float = 1.0  # seconds
    max_connections: int = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingsSettings:
    """``DJANGO_SERVICES["EMBEDDINGS"]``."""

    on_commit: str | None = None  # "inline", "task" or "off"; None: by the model and TASKS
    inline_limit: int = 100  # sources embedded after one commit
    chunk_size: int = 1_000  # characters
    chunk_overlap: int = 100  # characters
    batch_size: int = 500  # sources claimed at once
    lease: float = 300.0  # seconds, that a worker may hold a source
    max_attempts: int = 5  # before a source is set aside
    retry_delay: float = 30.0  # seconds before the second attempt; doubles
    max_hits: int = 1_000  # of a search that is not sliced
    query_cache: str = "default"  # alias in CACHES for query vectors
    query_cache_timeout: int = 24 * 60 * 60  # seconds
    matrix_memory: int = 1_024  # MiB of vectors that a process may hold (SQLite)
