from __future__ import annotations

import pytest

from django_services.testing import fake_openai


@pytest.fixture
def fake():
    """The fake that a project's tests have, and not the server of this package's own tests."""
    with fake_openai() as fake:
        yield fake
