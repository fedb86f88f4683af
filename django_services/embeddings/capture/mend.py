"""A fault of capture never fails a user's write: broken triggers are dropped.

SQLite refuses a statement on a table whose trigger names a table or column that
is gone, such as one of ours after ``DROP TABLE``. Only this process's own
connections can be mended; another program that writes to the file meets the
error itself.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from django.db.utils import DatabaseError, OperationalError

from .triggers import PREFIX

logger = logging.getLogger(__name__)

#: What SQLite says when a trigger cannot run, or stands in the way of ALTER TABLE.
#: The name found stands in the SQL of the triggers to blame.
_BROKEN = (
    r"^no such table: main\.(?P<table>.+)$"
    rf"|^no such column: {PREFIX}\d+\.(?P<column>.+)$"
    rf"|^error in trigger (?P<trigger>{PREFIX}\w+)\b"
)

#: Takes ``execute, sql, params, many, context``, as ``connection.execute_wrapper`` does.
ExecuteWrapper = Callable[[Callable[..., Any], str, Any, bool, dict[str, Any]], Any]


def wrap_connections(wrapper: ExecuteWrapper, *, vendor: str | None = None) -> None:
    """Pass every statement of every connection through a wrapper, once.

    Args:
        wrapper: Called as those of ``connection.execute_wrapper``.
        vendor: Only connections of this vendor; None: of any.
    """

    def wrap(connection: BaseDatabaseWrapper, **_: Any) -> None:
        if vendor not in (None, connection.vendor) or wrapper in connection.execute_wrappers:
            return
        # At the front: `connection.execute_wrapper` takes its own from the end.
        connection.execute_wrappers.insert(0, wrapper)

    uid = f"{wrapper.__module__}.{wrapper.__qualname__}"
    connection_created.connect(wrap, weak=False, dispatch_uid=uid)
    for connection in connections.all(initialized_only=True):
        wrap(connection)


def repeat_without_broken_triggers(
    execute: Callable[..., Any], sql: str, params: Any, many: bool, context: dict[str, Any]
) -> Any:
    """Run a statement; if a trigger of ours is in its way, drop that and run it again."""
    again = params
    if many and isinstance(params, Iterator):
        # A statement that cannot be prepared has read one row at most.
        first = list(islice(params, 1))
        params, again = chain(first, params), chain(first, params)
    try:
        return execute(sql, params, many, context)
    except OperationalError as error:
        if not _drop_broken(context["connection"], str(error)):
            raise
    # A trigger may name more than one thing that is gone; each time one less is left.
    return repeat_without_broken_triggers(execute, sql, again, many, context)


def _drop_broken(connection: BaseDatabaseWrapper, message: str) -> bool:
    """Drop the triggers that an error speaks of; tell whether there were any."""
    from . import sqlite  # not loaded by every process that has the app

    broken = re.match(_BROKEN, message)
    if broken is None:
        return False
    named = next(name for name in broken.groups() if name)
    try:
        held = sqlite.existing(connection)
        names = [name for name, sql in held.items() if f'"{named}"'.lower() in sql.lower()]
        sqlite.drop(connection, names)
    except DatabaseError:
        # A read-only database, or a lock: the statement's own error says more.
        return False
    if names:
        logger.error(
            "Changes on %r are no longer all captured: %s triggers named %s, which is gone, and "
            "were dropped so that the write could go on. Run: manage.py migrate && "
            "manage.py embeddings sync (or, to stop using embeddings, embeddings uninstall)",
            connection.alias,
            len(names),
            named,
        )
    return bool(names)
