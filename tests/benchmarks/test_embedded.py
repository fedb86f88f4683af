"""How fast the embedded model is, bare and through the whole of ``embed()``.

Run: python -m pytest -m benchmark -s tests/benchmarks/test_embedded.py
"""

from __future__ import annotations

import inspect
import pkgutil
import random
import statistics
import time
from collections.abc import Callable

import pytest

from django_services.embedded import model
from django_services.openai_service import embed

pytestmark = pytest.mark.benchmark

TEXTS = 5_000
TOKENS = 83  # a text of the library, on average
ROUNDS = 5
REFERENCE = 19_000  # texts/s of the bare model, as its makers measured it
MIN_RATIO = 0.5


def test_embed_keeps_the_models_pace():
    loaded = model.load()
    texts = sample(loaded.tokens)

    seconds = fastest(lambda: loaded.encode(texts), lambda: embed(texts))
    bare, whole = (TEXTS / each for each in seconds)

    tokens = statistics.mean(map(loaded.tokens, texts))
    print(f"\n{TEXTS:,} texts of {tokens:.0f} tokens: bare model {bare:,.0f} texts/s, "
          f"embed() {whole:,.0f} texts/s ({whole / bare:.2f})")  # fmt: skip
    # Both are measured in one run; the reference's machine is another.
    assert whole >= MIN_RATIO * min(bare, REFERENCE)


def test_load_and_query_are_quick():
    load, query = fastest(model.load.__wrapped__, lambda: embed(["how do I compress a file?"]))

    print(f"\nload {load * 1000:.1f} ms, one query {query * 1000:.2f} ms")
    assert query < 0.01


def sample(count: Callable[[str], int]) -> list[str]:
    """Return different texts of the standard library's documentation, each of `TOKENS`."""
    words = documentation().split()
    random.Random(1).shuffle(words)  # the same each time
    texts: list[str] = []
    while len(texts) < TEXTS:
        start = len(texts) * 17 % (len(words) - TOKENS)
        size = TOKENS * 2 // 3
        text = " ".join(words[start : start + size])
        while count(text) > TOKENS:
            text = text.rsplit(" ", 1)[0]
        texts.append(text)
    return texts


def documentation() -> str:
    """Return the docstrings of the standard library's plain modules."""
    found: list[str] = []
    for name in ("argparse", "asyncio", "collections", "datetime", "email", "json", "logging",
                 "os", "pathlib", "random", "shutil", "socket", "subprocess", "threading",
                 "unittest", "urllib.request", "zipfile"):  # fmt: skip
        module = pkgutil.resolve_name(name)
        for _, member in inspect.getmembers(module):
            if inspect.isroutine(member) or inspect.isclass(member):
                found.append(inspect.getdoc(member) or "")
    return "\n".join(found)


def fastest(*runs: Callable[[], object]) -> list[float]:
    """Return the seconds of each one's fastest round: the others met somebody else's work."""
    # In turns, so that what else the machine does slows all alike.
    rounds = [[_seconds(run) for run in runs] for _ in range(ROUNDS)]
    return [min(column) for column in zip(*rounds, strict=True)]


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
