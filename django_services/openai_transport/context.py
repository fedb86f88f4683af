"""What travels beside a call: for whom it is made, and how patient it may be.

Context variables, so that it reaches the raw client's calls too, in every thread
and task that copies its caller's context.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Literal, NamedTuple, TypeVar

T = TypeVar("T")

Profile = Literal["request", "task"]


class Attribution(NamedTuple):
    """For whom a call is made; "" where it was not said."""

    tenant: str = ""
    user: str = ""
    feature: str = ""


_NOBODY = Attribution()
_attribution: ContextVar[Attribution] = ContextVar("django_services_attribution", default=_NOBODY)
_profile: ContextVar[Profile] = ContextVar("django_services_profile", default="request")
_is_uncached: ContextVar[bool] = ContextVar("django_services_uncached", default=False)


@contextlib.contextmanager
def attributed(
    *, tenant: object = None, user: object = None, feature: object = None
) -> Iterator[None]:
    """Say for whom the calls in the block are made: for budgets, the ledger and spans.

    What is None stays as the block around has it.

    Args:
        tenant: Whose data it is; embeddings that are cached are not shared by tenants.
        user: Who asked. An id, not a name: it is stored.
        feature: What the call is for, such as "search".
    """
    given = {"tenant": tenant, "user": user, "feature": feature}
    said = {name: str(value) for name, value in given.items() if value is not None}
    with _set(_attribution, _attribution.get()._replace(**said)):
        yield


def attribution() -> Attribution:
    return _attribution.get()


@contextlib.contextmanager
def profile(name: Profile) -> Iterator[None]:
    """Give the calls in the block the patience of a web request, or of background work.

    A "task" has the alias's TASK_DEADLINE and more attempts.
    """
    with _set(_profile, name):
        yield


def current_profile() -> Profile:
    return _profile.get()


@contextlib.contextmanager
def uncached() -> Iterator[None]:
    """Take no embedding from the cache in the block, and keep none there."""
    with _set(_is_uncached, True):
        yield


def is_uncached() -> bool:
    return _is_uncached.get()


@contextlib.contextmanager
def _set(variable: ContextVar[T], value: T) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
