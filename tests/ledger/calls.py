"""Operations as the transport tells them, and a ledger that records as in production."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from django_services.signals import openai_call_finished

PAYLOAD: dict[str, Any] = {
    "alias": "default",
    "endpoint": "/chat/completions",
    "model": "gpt-6-luna",
    "outcome": "ok",
    "status": 200,
    "request_id": "req_1",
    "attempts": 1,
    "elapsed_ms": 812.5,
    "input_tokens": 1_000,
    "cached_tokens": 400,
    "output_tokens": 50,
    "is_estimated": False,
    "cost": Decimal("0.000125"),
    "is_embedded": False,
    "tenant": "acme",
    "user": "7",
    "feature": "chat",
}


def end_call(**told: Any) -> None:
    """Say that an operation ended, as the transport does."""
    openai_call_finished.send(sender=None, **(PAYLOAD | told))
