"""How fast the embedded model is, bare and through the whole of ``embed()``.

Run it with ``python -m tests.benchmarks.bench_embedded``. Both figures come from
one process on the same texts, so their ratio does not depend on the machine.
"""

from __future__ import annotations

import inspect
import os
import pkgutil
import random
import statistics
import time
from collections.abc import Callable

TEXTS = 5_000
TOKENS = 83  # a text of the library, on average
ROUNDS = 5


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    import django

    django.setup()
    import numpy as np

    from django_services.embedded.model import load
    from django_services.openai_service import embed

    del np  # numpy is loaded before the clock starts
    started = time.perf_counter()
    model = load()
    print(f"load                {(time.perf_counter() - started) * 1000:8.1f} ms")
    texts = sample(model.tokens)
    tokens = statistics.mean(map(model.tokens, texts))
    print(f"texts               {len(texts):8,} of {tokens:.0f} tokens")
    embed(texts[:1])
    bare, whole = fastest(lambda: model.encode(texts)), fastest(lambda: embed(texts))
    print(f"bare model          {len(texts) / bare:8,.0f} texts/s")
    print(f"embed()             {len(texts) / whole:8,.0f} texts/s")
    print(f"overhead            {(whole - bare) / len(texts) * 1e6:8.1f} µs a text")
    print(f"embed() to bare     {bare / whole:8.2f}")
    query = fastest(lambda: embed(["how do I compress a file?"]))
    print(f"one query           {query * 1000:8.2f} ms")


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


def fastest(run: Callable[[], object]) -> float:
    """Return the seconds of the fastest round: the others met somebody else's work."""
    rounds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        run()
        rounds.append(time.perf_counter() - started)
    return min(rounds)


if __name__ == "__main__":
    main()
