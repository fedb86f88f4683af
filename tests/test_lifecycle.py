"""django_services.lifecycle, privacy and exceptions: what all services stand on."""

from __future__ import annotations

import asyncio
import copy
import gc
import inspect
import logging
import pickle
import threading
from pprint import pformat

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.test import override_settings
from django.views.debug import ExceptionReporter

from django_services import exceptions
from django_services.exceptions import ServiceError
from django_services.lifecycle import Managed, ManagedPerLoop, close_all
from django_services.privacy import Private, Texts

CANARY = "canary-7f3a"


class Client:
    """Counts how often it was closed."""

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self.closed = 0

    def close(self) -> None:
        self.closed += 1

    async def aclose(self) -> None:
        self.closed += 1


@pytest.fixture
def managed() -> Managed[Client]:
    return Managed("test", Client, Client.close)


@pytest.fixture
def per_loop() -> ManagedPerLoop[Client]:
    return ManagedPerLoop("test", Client, Client.aclose)


# Managed -----------------------------------------------------------------------------


def test_an_alias_has_one_client(managed):
    assert managed.get("a") is managed.get("a")
    assert managed.get("a") is not managed.get("b")
    assert managed.get("b").alias == "b"


def test_asking_whether_it_is_open_opens_nothing(managed):
    assert not managed.is_open("a")

    managed.get("a")

    assert managed.is_open("a")


def test_threads_that_race_get_one_client_built_once():
    started = threading.Barrier(8)
    built = []

    def build(alias: str) -> Client:
        # Gives the others time to come in, were there no lock.
        threading.Event().wait(0.05)
        built.append(alias)
        return Client(alias)

    managed = Managed("test", build, Client.close)
    found = []

    def use() -> None:
        started.wait()
        found.append(managed.get("a"))

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert built == ["a"]
    assert len({id(client) for client in found}) == 1


def test_a_client_that_could_not_be_built_is_tried_again():
    outcomes = iter([RuntimeError("no"), Client("a")])

    def build(_alias: str) -> Client:
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    managed = Managed("test", build, Client.close)
    with pytest.raises(RuntimeError):
        managed.get("a")

    assert managed.get("a").alias == "a"


def test_close_closes_and_the_next_use_builds_anew(managed):
    first, other = managed.get("a"), managed.get("b")

    managed.close("a")

    assert (first.closed, other.closed) == (1, 0)
    assert managed.get("a") is not first
    assert managed.get("b") is other


def test_close_without_an_alias_closes_all(managed):
    clients = [managed.get("a"), managed.get("b")]

    managed.close()

    assert [client.closed for client in clients] == [1, 1]


def test_a_client_that_does_not_close_is_logged(caplog):
    def close(_client: Client) -> None:
        raise OSError("broken pipe")

    managed = Managed("test", Client, close)
    managed.get("a")

    with caplog.at_level(logging.WARNING):
        managed.close()

    assert "did not close cleanly" in caplog.text
    assert not managed.is_open("a")


def test_a_changed_setting_drops_and_closes(managed):
    client = managed.get("a")

    with override_settings(DJANGO_SERVICES={}):
        assert client.closed == 1
        assert managed.get("a") is not client


def test_another_setting_does_not(managed):
    client = managed.get("a")

    setting_changed.send(sender=None, setting="LANGUAGE_CODE", value="de", enter=True)

    assert managed.get("a") is client
    assert not client.closed


def test_a_service_may_name_its_settings():
    managed = Managed("test", Client, Client.close, settings=frozenset({"CACHES"}))
    client = managed.get("a")

    setting_changed.send(sender=None, setting="CACHES", value={}, enter=True)

    assert client.closed == 1


def test_close_all_closes_every_service(managed):
    other = Managed("other", Client, Client.close)

    clients = [managed.get("a"), other.get("a")]

    close_all()

    assert [client.closed for client in clients] == [1, 1]


def test_a_service_that_is_gone_is_not_kept():
    managed = Managed("test", Client, Client.close)
    client = managed.get("a")

    del managed
    gc.collect()
    close_all()

    assert not client.closed


def test_forgetting_closes_nothing(managed):
    client = managed.get("a")

    managed.forget()

    assert not client.closed
    assert managed.get("a") is not client


FORK = """
    import os, sys, threading
    from django_services.lifecycle import Managed

    class Client:
        closed = False
        def __init__(self, alias): self.pid = os.getpid()
        def close(self):
            print("closed by", "parent" if os.getpid() == parent else "child", flush=True)

    parent = os.getpid()
    managed = Managed("test", Client, Client.close)
"""


def test_a_forked_child_builds_its_own_and_leaves_the_parents(run_python):
    result = run_python(
        FORK
        + """
    client = managed.get("a")
    child = os.fork()
    if not child:
        mine = managed.get("a")
        print("own" if mine.pid == os.getpid() else "inherited", flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    print("kept" if managed.get("a") is client else "lost", flush=True)
    """,
        setup=False,
    )

    assert result.stdout.splitlines() == ["own", "kept", "closed by parent"]


def test_a_fork_while_another_thread_builds_does_not_hang_the_child(run_python):
    result = run_python(
        FORK
        + """
    building, forked = threading.Event(), threading.Event()

    def slow(alias):
        building.set()
        forked.wait(30)
        return Client(alias)

    managed = Managed("test", slow, Client.close)
    thread = threading.Thread(target=managed.get, args=["a"])
    thread.start()
    building.wait(30)
    child = os.fork()
    if not child:
        forked.set()
        managed.get("a")
        os._exit(0)
    print(os.waitpid(child, 0)[1])
    forked.set()
    thread.join()
    """,
        setup=False,
        timeout=30,
        env={"PYTHONWARNINGS": "ignore"},  # of forking with threads, which is the test
    )

    assert result.stdout.splitlines()[0] == "0"


def test_clients_are_closed_at_exit(run_python):
    result = run_python(FORK + "    managed.get('a')", setup=False)

    assert result.stdout.splitlines() == ["closed by parent"]


# ManagedPerLoop ----------------------------------------------------------------------


def test_a_loop_has_one_client(per_loop):
    async def use() -> list[Client]:
        return [per_loop.get("a"), per_loop.get("a"), per_loop.get("b")]

    first, second, other = asyncio.run(use())

    assert first is second
    assert first is not other


def test_each_loop_has_its_own(per_loop):
    async def use() -> Client:
        return per_loop.get("a")

    assert asyncio.run(use()) is not asyncio.run(use())


def test_loops_of_two_threads_run_side_by_side(per_loop):
    both = threading.Barrier(2)
    found = []

    async def use() -> None:
        found.append(per_loop.get("a"))
        await asyncio.to_thread(both.wait)
        found.append(per_loop.get("a"))

    threads = [threading.Thread(target=lambda: asyncio.run(use())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(found) == 4
    assert len({id(client) for client in found}) == 2


def test_clients_of_ended_loops_are_dropped(per_loop):
    async def use() -> None:
        per_loop.get("a")

    for _ in range(5):
        asyncio.run(use())

    assert len(per_loop._held._clients) == 1


def test_outside_of_a_loop_there_is_no_client(per_loop):
    with pytest.raises(RuntimeError, match="no running event loop"):
        per_loop.get("a")


def test_close_reaches_the_clients_of_all_loops(per_loop):
    loops = [asyncio.new_event_loop() for _ in range(2)]

    async def use() -> Client:
        return per_loop.get("a")

    clients = [loop.run_until_complete(use()) for loop in loops]
    per_loop.close("a")
    for loop in loops:
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()

    assert [client.closed for client in clients] == [1, 1]


def test_a_client_is_closed_by_the_end_of_its_loop(per_loop):
    async def use() -> Client:
        return per_loop.get("a")

    assert asyncio.run(use()).closed == 1


# Privacy -----------------------------------------------------------------------------


def test_private_shows_kind_and_size_only():
    private = Private(CANARY)

    assert repr(private) == str(private) == f"<private str of length {len(CANARY)}>"
    assert repr(Private(3)) == "<private int>"
    assert private.reveal() == CANARY


def test_private_compares_by_value():
    assert Private("a") == Private("a")
    assert Private("a") != Private("b")
    assert Private("a") != "a"
    assert len({Private("a"), Private("a"), Private("b")}) == 2


def test_texts_show_their_number_only():
    texts = Texts([CANARY, "b"])

    assert repr(texts) == str(texts) == f"{texts}" == "<2 private texts>"
    assert CANARY not in pformat({"texts": [texts]})


def test_texts_are_a_sequence():
    texts = Texts(["a", "b", "c"])

    assert (len(texts), texts[1], list(texts), "b" in texts) == (3, "b", ["a", "b", "c"], True)
    assert isinstance(texts[1:], Texts)
    assert list(texts[1:]) == ["b", "c"]


def test_texts_do_not_follow_the_callers_list():
    given = ["a"]

    texts = Texts(given)
    given.append("b")

    assert list(texts) == ["a"]


def test_neither_shows_on_a_traceback_page(rf):
    def fail(private: Private[str], texts: Texts) -> None:
        raise KeyError(len(texts))

    with pytest.raises(KeyError) as caught:
        fail(Private(CANARY), Texts([CANARY]))

    # This frame holds the canary only in a constant.
    reporter = ExceptionReporter(rf.get("/"), caught.type, caught.value, caught.tb.tb_next)
    assert CANARY not in reporter.get_traceback_html()


# Exceptions --------------------------------------------------------------------------

ERRORS = [
    error
    for _, error in inspect.getmembers(exceptions, inspect.isclass)
    if issubclass(error, ServiceError)
]


def make(error: type[ServiceError]) -> ServiceError:
    return error("It failed.", status=429, code="slow", request_id="req-1", retry_after=2.5)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(
    "carry", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy]
)
def test_errors_travel_whole(error, carry):
    arrived = carry(make(error))

    assert type(arrived) is error
    assert str(arrived) == "It failed."
    assert vars(arrived) == {
        "status": 429,
        "code": "slow",
        "request_id": "req-1",
        "retry_after": 2.5,
    }


@pytest.mark.parametrize("error", ERRORS)
def test_every_error_has_a_docstring(error):
    assert error.__doc__


@pytest.mark.parametrize("error", ["ConfigurationError", "ServiceNotConfigured", "MissingExtra"])
def test_configuration_errors_are_djangos_too(error):
    assert issubclass(getattr(exceptions, error), ImproperlyConfigured)


def test_wrong_arguments_are_value_errors():
    assert issubclass(exceptions.InvalidInput, ValueError)


def test_only_what_may_pass_is_retryable():
    retryable = {error.__name__ for error in ERRORS if error.retryable}

    assert retryable == {"ServiceUnavailable", "RateLimited", "InvalidResponse"}
