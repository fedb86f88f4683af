"""What django.setup() costs a project that has the app."""

from __future__ import annotations

import pytest

from .processes import Project

# Loading one of them costs a command or a worker up to a second.
LAZY = {"django_redis", "httpx2", "numpy", "openai", "pgvector", "redis", "rich"}
MAX_ADDED_MODULES = 30


def modules_after_setup(project: Project) -> set[str]:
    return set(project.python("import sys; print(*sys.modules)").stdout.split())


@pytest.fixture
def with_app(project: Project) -> set[str]:
    return modules_after_setup(project)


@pytest.fixture
def without_app(project: Project) -> set[str]:
    project.configure("INSTALLED_APPS.remove('django_services')")
    return modules_after_setup(project)


def test_setup_loads_no_sdk(with_app):
    assert not with_app & LAZY


def test_setup_adds_few_modules(with_app, without_app):
    added = with_app - without_app

    assert len(added) <= MAX_ADDED_MODULES, "\n".join(sorted(added))
