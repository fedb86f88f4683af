"""Products in threads of our own: the same numbers, whoever computes them."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from django_services.vectors import products as module
from django_services.vectors.products import products


@pytest.fixture
def shared(monkeypatch):
    """Let small matrices be shared out among threads, in many blocks."""
    monkeypatch.setattr(module, "SHARED_FROM", 0)
    monkeypatch.setattr(module, "BLOCK", 4 * 16 * 7)


def random(count):
    generator = np.random.default_rng(count)
    return generator.normal(size=(count, 16)).astype("<f4"), generator.normal(size=16).astype("<f4")


@pytest.mark.parametrize("count", [1, 6, 7, 8, 1000])
@pytest.mark.parametrize("cores", [1, 2, 8])
def test_shared_products_are_those_of_one_thread(shared, monkeypatch, count, cores):
    monkeypatch.setattr(module.os, "cpu_count", lambda: cores)
    vectors, vector = random(count)

    assert products(vectors, vector).tolist() == np.vecdot(vectors, vector).tolist()


def test_helpers_that_never_begin_are_not_waited_for(shared):
    release = threading.Event()
    busy = [module._pool().submit(release.wait) for _ in range(module.MOST_HELPERS)]
    vectors, vector = random(100)

    assert len(products(vectors, vector)) == 100

    release.set()
    assert all(helper.result(timeout=10) for helper in busy)


def test_an_error_of_a_helper_is_raised(shared):
    vectors, _vector = random(100)

    with pytest.raises(ValueError, match="mismatch"):
        products(vectors, np.ones(3, dtype="<f4"))
