"""django_services.openai_transport.checks: what is set and would not work, by stable ids."""

from __future__ import annotations

import datetime
import inspect
import re

import pytest

from django_services import checks as all_checks
from django_services.openai_transport import checks
from django_services.openai_transport.checks import check_openai, check_sharing

AZURE = "https://mine.openai.azure.com"
OTHER = "https://llm.example.com/v1"


@pytest.fixture(autouse=True)
def today(monkeypatch):
    monkeypatch.setattr(checks, "_today", lambda: datetime.date(2026, 11, 23))


@pytest.fixture
def found(settings):
    """Return the ids found of an alias, which has a key unless it says otherwise."""

    def found(check=check_openai, **alias) -> list[str]:
        settings.DJANGO_SERVICES = {"OPENAI": {"default": {"API_KEY": "sk-1"} | alias}}
        found.messages = check()
        assert all(message.hint for message in found.messages)
        assert "sk-1" not in str(found.messages)
        return [message.id.removeprefix("django_services.") for message in found.messages]

    return found


def test_the_defaults_are_sound(found):
    assert found() == []
    assert found(check_sharing) == []


@pytest.mark.parametrize(
    ("alias", "debug", "ids"),
    [
        ({}, False, []),
        ({"API_KEY": ""}, False, []),
        ({"MODEL": "gpt-6.1-sol"}, False, ["W201"]),
        ({"MODEL": "gpt-6.1-sol"}, True, []),
        ({"MODEL": "gpt-6.1-sol", "API_KEY": "sk-1"}, False, []),
        ({"MODEL": "gpt-6.1-sol", "API_KEY": lambda: "sk-1"}, False, []),
        ({"MODEL": "gpt-6.1-sol", "API_KEY_FILE": "/run/secrets/key"}, False, []),
        ({"MODEL": "gpt-6.1-sol", "BASE_URL": OTHER}, False, []),
        ({"API_KEY_FILE": "key"}, False, ["W202"]),
    ],
)
def test_keys(settings, alias, debug, ids):
    settings.DEBUG = debug
    settings.DJANGO_SERVICES = {"OPENAI": {"default": alias}}

    assert [message.id.removeprefix("django_services.") for message in check_openai()] == ids


def test_a_key_is_neither_asked_for_nor_read(found, tmp_path):
    assert found(API_KEY=lambda: pytest.fail("asked")) == []
    assert found(API_KEY="", API_KEY_FILE=str(tmp_path / "missing")) == []


@pytest.mark.parametrize(
    ("base_url", "more", "ids"),
    [
        ("https://api.openai.com/v1", {}, []),
        ("https://eu.api.openai.com/v1", {}, []),
        ("https://api.openai.com", {}, ["E201"]),
        ("https://eu.api.openai.com/", {}, ["E201"]),
        ("https://api.openai.com/v1/chat/completions", {}, ["E201"]),
        ("https://llm.example.com/v1/embeddings", {}, ["E201"]),
        (OTHER, {}, []),
        ("https://llm.example.com", {}, []),
        (AZURE, {}, ["E201"]),
        (AZURE, {"API_VERSION": "2026-01-01"}, []),
        (f"{AZURE}/openai/v1", {}, []),
        ("http://llm.example.com/v1", {}, ["W203"]),
        ("http://8.8.8.8/v1", {}, ["W203"]),
        ("http://api.openai.com/v1", {}, ["W203"]),
        ("http://10.0.0.5:8000/v1", {}, []),
        ("http://127.0.0.1:8000/v1", {}, []),
        ("http://[::1]:8000/v1", {}, []),
        ("http://localhost:8000/v1", {}, []),
        ("http://vllm:8000/v1", {}, []),
        ("http://llm.internal/v1", {}, []),
        ("embedded://", {}, []),
    ],
)
def test_addresses(found, base_url, more, ids):
    assert found(BASE_URL=base_url, **more) == ids


@pytest.mark.parametrize(
    ("alias", "ids"),
    [
        ({"MODEL": "gpt-6.1-sol"}, []),
        ({"MODEL": "gpt-6-luna-2026-08-01"}, []),
        ({"MODEL": "gpt-6-lunar"}, ["W204"]),
        ({"MODEL": "ft:gpt-6-lunar:org::1"}, []),
        ({"MODEL": "gpt-7", "PRICES": {"gpt-7": {"INPUT": 1, "OUTPUT": 5}}}, []),
        ({"EMBEDDING_MODEL": "text-embedding-3-smal", "DIMENSIONS": 9}, ["W204"]),
        ({"MODERATION_MODEL": "omni"}, ["W204"]),
        ({"MODEL": "text-embedding-3-small"}, ["E202"]),
        ({"EMBEDDING_MODEL": "gpt-6-luna"}, ["E202"]),
        ({"MODEL": "gpt-4o"}, ["W205"]),  # 2027-01-14: in 52 days
        ({"MODEL": "gpt-5"}, ["W205"]),  # 2026-12-11
        ({"MODEL": "gpt-5.1"}, []),  # 2027-04-01: in 129 days
        ({"MODEL": "gpt-4"}, ["E203"]),  # 2026-10-23
        ({"MODEL": "gpt-4o-2024-05-13"}, ["E203"]),
        ({"MODEL_LIMITS": {"gpt-6-luna": {"REQUESTS_PER_MINUTE": 5}}}, []),
        ({"MODEL_LIMITS": {"gpt-6-lun": {"REQUESTS_PER_MINUTE": 5}}}, ["W204"]),
    ],
)
def test_models(found, alias, ids):
    assert found(**alias) == ids
    assert found(**alias, BASE_URL="https://eu.api.openai.com/v1") == ids
    assert found(**alias, BASE_URL=OTHER) == []
    assert found(**alias, BASE_URL=AZURE, API_VERSION="2026-01-01") == []


@pytest.mark.parametrize(
    ("day", "ids"),
    [
        ("2026-10-15", []),
        ("2026-10-16", ["W205"]),
        ("2027-01-13", ["W205"]),
        ("2027-01-14", ["E203"]),
        ("2028-01-01", ["E203"]),
    ],
)
def test_the_day_of_a_shutdown(found, monkeypatch, day, ids):
    monkeypatch.setattr(checks, "_today", lambda: datetime.date.fromisoformat(day))

    assert found(MODEL="gpt-4o") == ids


def test_the_nearest_model_is_one_that_stays_and_of_the_kind(found):
    found(MODEL="gpt-4x", EMBEDDING_MODEL="text-embedding-3-lage", DIMENSIONS=9)

    chat, embedding = (message.msg for message in found.messages)
    assert checks.catalogue.find(re.search(r"nearest is '([^']+)'", chat)[1]).shutdown is None
    assert "'text-embedding-3-large'" in embedding


@pytest.mark.parametrize(
    ("alias", "ids"),
    [
        ({"TIMEOUT": 60, "DEADLINE": 60}, []),
        ({"TIMEOUT": 61, "DEADLINE": 60}, ["W206"]),
        ({"CONNECT_TIMEOUT": 31}, ["W206"]),
        ({"DEADLINE": 241}, ["W206"]),
        ({"TASK_DEADLINE": 299}, []),
        ({"TASK_DEADLINE": 300}, ["W207"]),
    ],
)
def test_deadlines(found, alias, ids):
    assert found(**alias) == ids


def test_a_lease_that_cannot_be_read_is_anothers_matter(settings):
    settings.DJANGO_SERVICES = {
        "OPENAI": {"default": {"API_KEY": "sk-1"}},
        "EMBEDDINGS": {"LEASE": "x"},
    }

    assert check_openai() == []


BUDGET = {"PER": "tenant", "PERIOD": "day", "USD": 1}


@pytest.mark.parametrize(
    "budget", [{"DAILY_BUDGET": 0}, {"MONTHLY_BUDGET": 9}, {"BUDGETS": [BUDGET]}]
)
@pytest.mark.parametrize(
    ("alias", "ids"),
    [
        ({}, []),
        ({"MODEL": "gpt-5.5"}, ["W208"]),  # no price is known
        ({"MODEL": "gpt-5.6-terra"}, ["W208"]),  # nor how long its answers get
        ({"MODEL": "gpt-5.5", "PRICES": {"gpt-5.5": {"INPUT": 1, "OUTPUT": 5}}}, ["W208"]),
        ({"MODEL": "gpt-6.2-astra", "PRICES": {"gpt-6.2-astra": {"INPUT": 1, "OUTPUT": 5}}}, []),
        ({"EMBEDDING_MODEL": "voyage", "BASE_URL": OTHER}, ["W208"]),
        ({"EMBEDDING_MODEL": "v", "BASE_URL": OTHER, "PRICES": {"v": {"INPUT": 0.1}}}, []),
    ],
)
def test_budgets(found, budget, alias, ids):
    assert found(**alias) == []
    assert found(**alias, **budget) == ids


@pytest.mark.parametrize(
    ("alias", "ids"),
    [
        ({"TOKENS_PER_MINUTE": 8_192}, []),
        ({"TOKENS_PER_MINUTE": 8_191}, ["W209"]),
        ({"MODEL_LIMITS": {"gpt-6-luna": {"TOKENS_PER_MINUTE": 100}}}, ["W209"]),
    ],
)
def test_limits(found, alias, ids):
    assert found(**alias) == ids


@pytest.mark.parametrize(
    "alias",
    [
        {"REQUESTS_PER_MINUTE": 5},
        {"TOKENS_PER_MINUTE": 9_000},
        {"MODEL_LIMITS": {"gpt-6-luna": {"REQUESTS_PER_MINUTE": 5}}},
        {"DAILY_BUDGET": 1},
        {"BUDGETS": [BUDGET]},
    ],
)
def test_limits_and_budgets_that_no_redis_shares(settings, found, alias):
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}

    assert found(check_sharing, **alias) == ["W210"]

    settings.DJANGO_SERVICES = settings.DJANGO_SERVICES | {
        "REDIS": {"default": {"URL": "redis://h"}}
    }
    assert check_sharing() == []

    settings.DJANGO_SERVICES = settings.DJANGO_SERVICES | {"REDIS": {"default": {}}}
    assert check_sharing() == []


@pytest.mark.parametrize("value", ["x", {"OPENAI": {"API_KEY": "x"}}, {"OPENAI": {"a": {"X": 1}}}])
def test_what_cannot_be_read_is_told_once(settings, value):
    settings.DJANGO_SERVICES = value

    assert check_openai() == []
    assert check_sharing() == []
    assert len(all_checks.check_settings()) == 1


def test_each_alias_is_checked(settings):
    settings.DJANGO_SERVICES = {
        "OPENAI": {
            "default": {"API_KEY": "sk-1", "MODEL": "gpt-4"},
            "second": {"API_KEY": "sk-2", "MODEL": "gpt-4"},
        }
    }

    first, second = check_openai()

    assert "'default'" in first.msg
    assert "'second'" in second.msg


def test_every_id_stands_in_the_table():
    code = inspect.getsource(checks).removeprefix(f'"""{checks.__doc__}"""')
    table = re.findall(r"^\| django_services\.([EW]\d+) \|", checks.__doc__, re.MULTILINE)

    assert sorted(table) == sorted(set(re.findall(r'"django_services\.([EW]\d+)"', code))) != []
