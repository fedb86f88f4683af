"""A query's vector: made once, cached safely, and private."""

from __future__ import annotations

import logging
import traceback
from typing import Any

import pytest
from django.core.cache import caches
from django.core.cache.backends.locmem import LocMemCache
from django.test import RequestFactory
from django.utils.translation import gettext_lazy
from django.views.debug import ExceptionReporter

from django_services import openai_service
from django_services.embeddings.models import Space
from django_services.exceptions import ServiceNotConfigured, ServiceUnavailable
from django_services.openai_transport import embedding_cache
from django_services.openai_transport.context import attributed, uncached
from tests.testapp.models import Article

from .stored import new_space, random_vectors, store

pytestmark = pytest.mark.django_db

SECRET = "canary-of-the-query"


@pytest.fixture(autouse=True)
def article() -> Any:
    caches["default"].clear()
    article = Article.objects.create(title="t")
    index = Article.embeddings.index
    store(index, new_space(index), {article: random_vectors(2, seed=1)})
    yield article
    caches["default"].clear()


@pytest.fixture
def embedded_texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    texts: list[str] = []
    embed = openai_service.embed

    def counted(given: list[str], **options: Any) -> Any:
        texts.extend(given)
        return embed(given, **options)

    monkeypatch.setattr(openai_service, "embed", counted)
    return texts


@pytest.fixture
def outage(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """OpenAI is down; the list grows by the number of texts of each call."""
    calls: list[int] = []

    def fail(given: list[str], **_: Any) -> Any:
        calls.append(len(given))
        del given  # as embed() hides its argument from the debug page
        raise ServiceUnavailable("OpenAI did not answer within 60 s.")

    monkeypatch.setattr(openai_service, "embed", fail)
    return calls


class BrokenCache(LocMemCache):
    def get(self, *_: Any, **__: Any) -> Any:
        raise ConnectionError("cache is down")

    set = get


def test_a_text_is_embedded_when_evaluated_and_once(embedded_texts):
    hits = Article.objects.search("a text")
    assert embedded_texts == []

    assert len(hits) == hits.count() == len(hits.filter(views=0)) == 1

    assert embedded_texts == ["a text"]


def test_the_cache_answers_equal_texts(embedded_texts):
    for _ in range(3):
        list(Article.objects.search("a text"))

    assert embedded_texts == ["a text"]


def test_tenants_do_not_share_query_vectors(embedded_texts):
    for tenant in ("acme", "other", "acme"):
        with attributed(tenant=tenant):
            list(Article.objects.search("a text"))

    assert embedded_texts == ["a text", "a text"]


def test_uncached_searches_embed_anew(embedded_texts):
    list(Article.objects.search("a text"))

    with uncached():
        list(Article.objects.search("a text"))

    assert embedded_texts == ["a text", "a text"]


def test_another_process_finds_the_query_in_the_cache(embedded_texts):
    expected = list(Article.objects.search("a text"))
    embedding_cache.forget()

    assert list(Article.objects.search("a text")) == expected
    assert embedded_texts == ["a text"]


def test_cached_queries_answer_while_openai_is_down(monkeypatch):
    expected = list(Article.objects.search("a text"))
    monkeypatch.setattr(openai_service, "embed", lambda *_, **__: pytest.fail("embedded again"))

    assert list(Article.objects.search("a text")) == expected


def test_the_cache_tells_texts_and_dimensions_apart(embedded_texts):
    index = Article.embeddings.index
    list(Article.objects.search("a text"))
    list(Article.objects.search("another"))
    store(index, new_space(index, dimensions=8), {Article.objects.get(): [[1.0] * 8]})

    assert len(Article.objects.search("a text")) == 1
    assert embedded_texts == ["a text", "another", "a text"]


@pytest.mark.parametrize("planted", [b"short", "text", {"a": 1}, None, 5, b"\x00" * 4096])
def test_what_was_planted_in_the_cache_is_a_miss(planted, embedded_texts, monkeypatch):
    monkeypatch.setattr(LocMemCache, "get", lambda *_, **__: planted)

    assert len(Article.objects.search("a text")) == 1
    assert embedded_texts == ["a text"]


def test_a_broken_cache_does_not_break_search(settings, caplog):
    settings.CACHES = {"default": {"BACKEND": f"{__name__}.BrokenCache"}}

    assert len(Article.objects.search(SECRET)) == 1
    assert "ConnectionError" in caplog.text
    assert SECRET not in caplog.text


def test_the_cache_holds_neither_text_nor_pickled_arrays():
    list(Article.objects.search(SECRET))

    stored = caches["default"]._cache
    assert all(SECRET not in key and SECRET.encode() not in value for key, value in stored.items())
    (key,) = (key.split(":", 2)[2] for key in stored if "query" in key)
    assert type(caches["default"].get(key)) is bytes


def test_an_outage_is_one_clear_error(outage):
    with pytest.raises(ServiceUnavailable, match="did not answer"):
        list(Article.objects.search("a text"))


def test_repr_after_a_failure_asks_no_more(outage):
    hits = Article.objects.search("a text")
    with pytest.raises(ServiceUnavailable):
        list(hits)

    shown = [repr(hits), repr(hits), repr(hits.filter(views=1))]

    assert shown == ["<ArticleQuerySet not evaluated: ServiceUnavailable>"] * 3
    assert outage == [1]


def test_an_evaluation_after_a_failure_tries_again(outage, monkeypatch):
    hits = Article.objects.search("a text")
    with pytest.raises(ServiceUnavailable):
        list(hits)
    monkeypatch.undo()

    assert len(hits) == 1
    assert repr(hits) == "<ArticleQuerySet [<Article: t>]>"


def test_the_model_of_the_space_must_still_be_at_hand():
    Space.objects.update(model="text-embedding-3-small")

    with pytest.raises(ServiceNotConfigured, match=r"text-embedding-3-small.*OPENAI_API_KEY"):
        list(Article.objects.search("a text"))


def test_lazy_translations_and_other_scripts_are_texts():
    for text in (gettext_lazy("Search"), "Ünïcödé 🙂", "بحث", " blanks around "):
        assert len(Article.objects.search(text)) == 1


def test_the_query_is_in_no_repr_log_or_debug_page(outage, caplog, settings):
    settings.DEBUG = True
    caplog.set_level(logging.DEBUG)
    hits = Article.objects.search(SECRET)
    try:
        list(hits.filter(views=1))
    except ServiceUnavailable as error:
        reporter = ExceptionReporter(
            RequestFactory().get("/"), type(error), error, error.__traceback__
        )
        pages = reporter.get_traceback_html() + reporter.get_traceback_text()
        pages += "".join(traceback.format_exception(error))

    search = hits.query.search
    assert SECRET not in repr((search, search.wanted, hits))
    assert SECRET not in caplog.text
    assert SECRET not in pages


@pytest.mark.parametrize("bad", [SECRET + "\ud800", (SECRET,)])
def test_a_refused_query_is_in_no_debug_page(bad):
    try:
        Article.embeddings.search(bad)
    except ValueError as error:
        reporter = ExceptionReporter(
            RequestFactory().get("/"), type(error), error, error.__traceback__.tb_next
        )
        page = reporter.get_traceback_html().encode(errors="replace").decode()

    assert SECRET not in page.split("Traceback", 1)[0]
    assert "search() takes a text" in page
