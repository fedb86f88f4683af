"""Who listens to async code without a thread, and who gets one."""

from __future__ import annotations

import asyncio
import threading

import pytest

from django_services.signals import QuickSignal


class Receiver:
    """Notes the thread that it is called in."""

    def __init__(self, *, quick: bool) -> None:
        self.quick = quick
        self.threads: list[int] = []

    def __call__(self, **payload: object) -> None:
        self.threads.append(threading.get_ident())

    def is_quick(self) -> bool:
        return self.quick


@pytest.fixture
def signal():
    return QuickSignal()


def send(signal):
    asyncio.run(signal.asend_robust(sender=None, number=1))


def test_a_quick_receiver_is_called_in_the_event_loop(signal):
    receiver = Receiver(quick=True)
    signal.connect(receiver)

    send(signal)

    assert receiver.threads == [threading.get_ident()]


def test_a_receiver_that_may_block_has_a_thread(signal):
    receivers = [Receiver(quick=False), Receiver(quick=True)]
    for receiver in receivers:
        signal.connect(receiver)

    send(signal)

    assert all(len(each.threads) == 1 for each in receivers)
    assert threading.get_ident() not in receivers[0].threads


def test_an_async_receiver_is_awaited_beside_a_quick_one(signal):
    told = []

    async def listen(**payload):
        await asyncio.sleep(0)
        told.append(payload["number"])

    quick = Receiver(quick=True)
    signal.connect(listen)
    signal.connect(quick)

    send(signal)

    assert told == [1]
    assert len(quick.threads) == 1
