"""django_services.health: what is asked, and what is told of it."""

from __future__ import annotations

import dataclasses

import pytest
import redis
from django.db import DatabaseError

from django_services import db_service, openai_service, redis_service
from django_services.embedded import MODEL
from django_services.embeddings import ann_index, capture, spaces
from django_services.embeddings.declaration import indexes_on
from django_services.exceptions import AuthenticationFailed, ServiceUnavailable
from django_services.health import ServiceStatus, check_services
from django_services.testing import embed_pending
from tests.testapp.models import Article

pytestmark = pytest.mark.django_db

CANARY = "canary-7f3a"


@pytest.fixture
def configure(settings):
    def set_services(**sections: object) -> None:
        settings.DJANGO_SERVICES = settings.DJANGO_SERVICES | sections

    yield set_services
    redis_service.close()


def status_of(service: str, alias: str = "default") -> ServiceStatus:
    [found] = [s for s in check_services() if (s.service, s.alias) == (service, alias)]
    return found


# What works --------------------------------------------------------------------------


def test_the_database_tells_its_version():
    found = status_of("database")

    assert found.state == "ok"
    assert found.version.startswith("SQLite 3.")
    assert found.latency_ms >= 0


def test_the_embedded_model_is_named():
    found = status_of("openai")

    assert (found.state, found.version) == ("ok", MODEL)
    assert "embedded" in found.detail


def test_redis_tells_its_version(configure, redis_url):
    configure(REDIS={"default": {"URL": redis_url}})

    found = status_of("redis")

    assert found.state == "ok"
    assert found.version.startswith("redis ")


def test_what_is_not_configured_is_off(configure, settings):
    configure(OPENAI={})

    states = {status.service: status.state for status in check_services()}

    assert states["redis"] == states["openai"] == "off"
    assert "REDIS_URL" in status_of("redis").detail


def test_every_alias_is_asked(configure, redis_url):
    url = {"URL": redis_url}
    configure(REDIS={"a": url, "b": url}, OPENAI={"default": {}, "batch": {}})

    asked = {(status.service, status.alias) for status in check_services()}

    assert {("redis", "a"), ("redis", "b"), ("openai", "default"), ("openai", "batch")} <= asked


# The embeddings ----------------------------------------------------------------------


def test_the_backlog_is_told():
    Article.objects.create(title="Bread", body="Knead the dough.")

    found = status_of("embeddings")

    assert found.state == "ok"
    assert "1 pending" in found.detail or "1 fresh" in found.detail


def test_changes_that_are_not_captured_are_red():
    capture.uninstall("default")

    found = status_of("embeddings")

    assert found.state == "error"
    assert "testapp.Article.embeddings" in found.detail
    assert "manage.py migrate" in found.fix


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_searches_without_an_index_are_told_of(database):
    Article.objects.create(title="Bread", body="Knead the dough.")
    embed_pending()

    without = status_of("embeddings")
    for index in indexes_on("default"):
        if spaces.active(index, "default"):
            ann_index.build_index(index, "default", concurrently=False)
    with_one = status_of("embeddings")

    assert (without.state, with_one.state) == ("warning", "ok")
    assert "testapp.Article.embeddings" in without.detail
    assert "manage.py embeddings sync" in without.fix


def test_missing_tables_are_red(monkeypatch):
    def fail(_alias: str) -> list[str]:
        raise DatabaseError("no such table")

    monkeypatch.setattr(capture, "missing", fail)

    found = status_of("embeddings")

    assert found.state == "error"
    assert "manage.py migrate --database default" in found.fix


# What is down ------------------------------------------------------------------------


def test_a_redis_that_is_down_is_red(configure, redis_server):
    configure(REDIS={"default": {"URL": redis_server.url}})
    redis_server.stop()

    found = status_of("redis")

    assert found.state == "error"
    assert "REDIS_URL" in found.detail
    assert not found.is_up


def test_a_wrong_redis_password_is_red_and_unshown(configure, redis_server):
    with redis.Redis.from_url(redis_server.url, password="right") as admin:
        redis.Redis.from_url(redis_server.url).config_set("requirepass", "right")
        configure(REDIS={"default": {"URL": redis_server.url, "PASSWORD": CANARY}})

        found = status_of("redis")
        admin.config_set("requirepass", "")

    assert found.state == "error"
    assert "refused the user name or password" in found.detail
    assert CANARY not in str(dataclasses.asdict(found))


def test_a_fault_of_one_does_not_hide_the_others(monkeypatch):
    def fail(_alias: str) -> None:
        raise ServiceUnavailable("The database is away.")

    monkeypatch.setattr(db_service, "ping", fail)

    states = {status.service: status.state for status in check_services()}

    assert states["database"] == states["embeddings"] == "error"
    assert states["openai"] == "ok"


@pytest.mark.parametrize(
    "sections",
    [{"REDIS": {"default": {"URL": "http://x"}}}, {"OPENAI": {"default": {"DEADLINE": -1}}}],
    ids=["redis", "openai"],
)
def test_a_wrong_setting_is_red(configure, sections):
    configure(**sections)

    found = status_of(next(iter(sections)).lower())

    assert found.state == "error"
    assert "DJANGO_SERVICES" in found.detail


def test_no_secret_is_in_what_is_told(configure, monkeypatch):
    configure(OPENAI={"default": {"API_KEY": CANARY}})

    def fail(_alias: str) -> None:
        raise AuthenticationFailed(f"Incorrect API key provided: {CANARY}.")

    monkeypatch.setattr(openai_service, "ping", fail)

    found = status_of("openai")

    assert found.detail == "Incorrect API key provided: ***."
