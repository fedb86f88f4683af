"""What the app adds to the start of a project's every process.

Run: python -m pytest -m benchmark -s tests/benchmarks/test_setup.py
"""

from __future__ import annotations

import pytest

from ..processes import Project

pytestmark = pytest.mark.benchmark

RUNS = 15
MAX_ADDED_MS = 10.0

TIMED_SETUP = """
    import time
    start = time.perf_counter()
    import django
    django.setup()
    print((time.perf_counter() - start) * 1000)
"""


def setup_ms(project: Project) -> float:
    return float(project.python(TIMED_SETUP, setup=False).stdout)


def test_app_adds_little_to_setup(tmp_path):
    with_app, without_app = Project(tmp_path / "with"), Project(tmp_path / "without")
    without_app.configure("INSTALLED_APPS.remove('django_services')")

    # In turns, and the best of each: what else the machine does slows both alike.
    pairs = [(setup_ms(with_app), setup_ms(without_app)) for _ in range(RUNS)]
    best_with, best_without = (min(column) for column in zip(*pairs, strict=True))

    added = best_with - best_without
    print(f"\ndjango.setup(): {best_without:.1f} ms without the app, {added:+.1f} ms with it")
    assert added <= MAX_ADDED_MS
