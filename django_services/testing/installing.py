"""Puts a fake in the network's place, for a block, a test or a class of tests."""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import os
import unittest
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from .. import conf, openai_service
from .fake import FakeOpenAI

#: The argument by which a decorated test gets its fake, and the attribute of a TestCase.
NAME = "fake_openai"

_runs = itertools.count(1)


def fake_openai() -> Faking:
    """Answer every call of our clients in this process, whatever the settings say.

    As a context manager it gives the `FakeOpenAI`. As a decorator it serves functions,
    async ones too, which get the fake if they have an argument ``fake_openai``; and
    classes: each test of a ``TestCase`` finds a new one in ``self.fake_openai``.

    Needs no key. Holds for the whole process: all threads and event loops. The answers
    pass through all that real ones do: retries, deadlines, limits, validation, the signal.
    """
    return Faking()


class Faking:
    """What `fake_openai` returns: a context manager and a decorator."""

    def __init__(self) -> None:
        self._opened: list[ExitStack] = []

    def __enter__(self) -> FakeOpenAI:
        opened = ExitStack()
        fake = opened.enter_context(_installed())
        self._opened.append(opened)
        return fake

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._opened.pop().close()

    def __call__(self, target: Any) -> Any:
        if not inspect.isclass(target):
            return _decorated(target)
        if issubclass(target, unittest.TestCase):
            return _with_set_up(target)
        for name, test in list(vars(target).items()):
            if name.startswith("test") and callable(test):
                setattr(target, name, _decorated(test))
        return target


@contextlib.contextmanager
def _installed() -> Iterator[FakeOpenAI]:
    from ..openai_transport import clients, waiting
    from .transport import FakeTransport

    fake = FakeOpenAI()
    before = clients.replacement, waiting.instead, conf.fake_network

    def place(replacement: Any, instead: Any, name: str) -> None:
        clients.replacement = replacement
        waiting.instead = instead
        conf.fake_network = name
        _begin_anew()

    # The process's id: two of them may share a cache.
    run = f"fake-{os.getpid()}-{next(_runs)}"
    place(lambda alias: FakeTransport(fake, alias), fake.waits.append, run)
    try:
        yield fake
    finally:
        place(*before)


def _begin_anew() -> None:
    """Forget clients, and what was learned from the answers of another network."""
    from ..openai_transport import controls, pace, shared

    openai_service.close()
    for state in (controls, pace, shared):
        state.forget()


def _decorated(test: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(test)
    wants_fake = NAME in signature.parameters

    def given(fake: FakeOpenAI) -> dict[str, FakeOpenAI]:
        return {NAME: fake} if wants_fake else {}

    if inspect.iscoroutinefunction(test):

        @functools.wraps(test)
        async def faked(*args: Any, **kwargs: Any) -> Any:
            with _installed() as fake:
                return await test(*args, **kwargs, **given(fake))
    else:

        @functools.wraps(test)
        def faked(*args: Any, **kwargs: Any) -> Any:
            with _installed() as fake:
                return test(*args, **kwargs, **given(fake))

    # pytest would take the argument for a fixture.
    kept = [each for name, each in signature.parameters.items() if name != NAME]
    faked.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    return faked


def _with_set_up(case: type[unittest.TestCase]) -> type[unittest.TestCase]:
    set_up = case.setUp

    @functools.wraps(set_up)
    def setUp(self: unittest.TestCase) -> None:
        setattr(self, NAME, self.enterContext(_installed()))
        set_up(self)

    case.setUp = setUp  # type: ignore[method-assign]
    return case
