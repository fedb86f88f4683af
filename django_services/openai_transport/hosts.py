"""Which hosts the clients may reach: any, but where a block allows some only.

Tests are guarded with it (`testing.allow_hosts`, and the pytest plugin), so that one
that forgot its fake neither waits for the network nor pays. Loads nothing.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterator
from fnmatch import fnmatchcase

#: Patterns of the hosts that may be reached besides this machine; None: any host.
_allowed: tuple[str, ...] | None = None


@contextlib.contextmanager
def allow_hosts(*patterns: str) -> Iterator[None]:
    """Let the clients reach this machine in the block, and the hosts that are named.

    A block inside another allows what that allows too. Holds for the whole process.

    Args:
        patterns: Names of hosts; ``*`` stands for any text, ``"*"`` for any host.
    """
    global _allowed  # noqa: PLW0603
    before = _allowed
    _allowed = (*(before or ()), *(pattern.lower() for pattern in patterns))
    try:
        yield
    finally:
        _allowed = before


def is_allowed(host: str) -> bool:
    """Tell whether a request may go to a host."""
    if _allowed is None or _is_this_machine(host):
        return True
    return any(fnmatchcase(host.lower(), pattern) for pattern in _allowed)


def _is_this_machine(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
