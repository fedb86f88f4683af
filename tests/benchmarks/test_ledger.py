"""What the ledger takes of a caller's time: the signal and all that hears it.

Run: python -m pytest -m benchmark -s tests/benchmarks/test_ledger.py
"""

from __future__ import annotations

import statistics
import time

import pytest
from django.dispatch import Signal

from django_services import ledger
from django_services.models import Usage
from django_services.signals import openai_call_finished

from ..ledger.calls import PAYLOAD
from ..ledger.conftest import in_thread  # noqa: F401  # a fixture

pytestmark = [
    pytest.mark.benchmark,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("database", "in_thread"),
]

ROUNDS = 60
CALLS = 100  # of a round
PAUSE = 0.02  # seconds between two rounds, in which the thread may write
MAX_US = 20.0


def test_a_call_pays_little_for_its_row(database):
    silent = Signal()
    bare, recorded = [], []
    for _ in range(ROUNDS):
        bare.append(us_of(silent))
        recorded.append(us_of(openai_call_finished))
        time.sleep(PAUSE)
    assert ledger.flush(60)

    # Of the quieter rounds: others use the machine too, and the thread writes meanwhile.
    whole, signal = (statistics.quantiles(each)[0] for each in (recorded, bare))
    print(f"\n{database}: {whole:.1f} µs for each operation, of which {signal:.1f} for a signal "
          f"that nobody hears; median {statistics.median(recorded):.1f}")  # fmt: skip
    assert Usage.objects.count() == ROUNDS * CALLS
    assert whole < MAX_US


def us_of(signal: Signal) -> float:
    start = time.perf_counter()
    for _ in range(CALLS):
        signal.send_robust(sender=None, **PAYLOAD)
    return (time.perf_counter() - start) / CALLS * 1e6
