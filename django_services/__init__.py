"""PostgreSQL, Redis and OpenAI for Django, and embeddings kept in step with the data.

The names below load on first use (PEP 562): importing this package, or having
it in ``INSTALLED_APPS``, loads no SDK.

PYTEST_DONT_REWRITE: a project may run pytest from its manage.py, after this was imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "Embeddings",
    "SearchManager",
    "SearchQuerySet",
    "acomplete",
    "aembed",
    "amoderate",
    "astream",
    "attributed",
    "complete",
    "count_tokens",
    "embed",
    "get_async_openai_client",
    "get_openai_client",
    "get_redis_client",
    "init_db",
    "moderate",
    "register",
    "stream",
    "streaming_response",
]

_MODULES = {
    "Embeddings": "embeddings",
    "SearchManager": "embeddings",
    "SearchQuerySet": "embeddings",
    "acomplete": "openai_service",
    "aembed": "openai_service",
    "amoderate": "openai_service",
    "astream": "openai_service",
    "attributed": "openai_service",
    "complete": "openai_service",
    "count_tokens": "openai_service",
    "embed": "openai_service",
    "get_async_openai_client": "openai_service",
    "get_openai_client": "openai_service",
    "get_redis_client": "redis_service",
    "init_db": "db_service",
    "moderate": "openai_service",
    "register": "embeddings",
    "stream": "openai_service",
    "streaming_response": "openai_service",
}

if TYPE_CHECKING:
    from .db_service import init_db
    from .embeddings import Embeddings, SearchManager, SearchQuerySet, register
    from .openai_service import (
        acomplete,
        aembed,
        amoderate,
        astream,
        attributed,
        complete,
        count_tokens,
        embed,
        get_async_openai_client,
        get_openai_client,
        moderate,
        stream,
        streaming_response,
    )
    from .redis_service import get_redis_client


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f".{_MODULES[name]}", __name__)
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
