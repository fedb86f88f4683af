"""Threads for a sync: their number, their errors, their end."""

from __future__ import annotations

import threading
import time

import pytest

from django_services.embeddings import threads
from django_services.embeddings.threads import Stop, running, wait_for


def test_with_none_a_call_runs_in_the_callers_own_thread():
    with running(0) as none:
        future = none.submit(threading.get_ident)

    assert future.result() == threading.get_ident()


def test_several_calls_are_in_flight_at_once_and_no_more():
    meeting = threading.Barrier(3, timeout=10)
    now, most = 0, 0
    lock = threading.Lock()

    def call() -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        meeting.wait()
        with lock:
            now -= 1

    with running(3) as three:
        futures = [three.submit(call) for _ in range(6)]
        assert wait_for(futures, Stop())

    assert most == 3


def test_an_error_is_the_futures():
    def fail() -> None:
        raise ZeroDivisionError

    for most in (0, 1, 2):
        with running(most) as several:
            future = several.submit(fail)
            wait_for([future], Stop())

        with pytest.raises(ZeroDivisionError):
            future.result()


def test_a_call_that_hangs_keeps_no_process_from_ending(run_python):
    ended = run_python(
        """
        import threading
        from django_services.embeddings.threads import running
        with running(2) as two:
            two.submit(threading.Event().wait)
        print("ended")
        """
    )

    assert ended.stdout == "ended\n"


def test_a_stop_leaves_calls_so_much_time_and_no_more(monkeypatch):
    monkeypatch.setattr(threads, "GRACE", 0.2)
    stop, hanging = Stop(), threading.Event()

    with running(2) as two:
        quick, slow = two.submit(lambda: time.sleep(0.05)), two.submit(hanging.wait)
        stop.set()
        quick_ended, slow_ended = wait_for([quick], stop), wait_for([slow], stop)
        hanging.set()

    assert (quick_ended, slow_ended) == (True, False)


def test_what_waits_for_a_thread_is_not_begun_after_the_end():
    hanging, begun = threading.Event(), []

    with running(2) as two:
        in_flight = [two.submit(hanging.wait) for _ in range(2)]
        waiting = two.submit(lambda: begun.append(1))
        while not all(future.running() for future in in_flight):
            time.sleep(0.01)
    hanging.set()
    assert wait_for(in_flight, Stop())

    assert waiting.cancelled()
    assert not begun


def test_a_stop_ends_a_sleep():
    stop = Stop()
    threading.Timer(0.05, stop.set).start()

    stop.sleep(60)

    assert stop.is_set


def test_what_a_thread_does_at_its_end_is_waited_for():
    ended = []

    with running(1, ending=lambda: ended.append(threading.get_ident())) as one:
        ident = one.submit(threading.get_ident).result()

    assert ended == [ident]
