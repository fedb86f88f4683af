"""django_services.conf: settings read strictly and live."""

from __future__ import annotations

import pytest
from django.views.debug import ExceptionReporter

from django_services import conf
from django_services.exceptions import ConfigurationError, ServiceNotConfigured

CANARY = "canary-7f3a"
REDIS_CACHE = {
    "BACKEND": "django_services.cache.RedisCache",
    "LOCATION": "redis://cache.example:6379/1",
    "OPTIONS": {"PASSWORD": CANARY},
}


@pytest.fixture
def services(settings):
    """Set DJANGO_SERVICES to the sections given."""

    def configure(**sections: object) -> None:
        settings.DJANGO_SERVICES = sections

    return configure


@pytest.fixture
def openai_section(services):
    def configure(**keys: object) -> conf.OpenAISettings:
        services(OPENAI={"default": keys})
        return conf.openai_section()

    return configure


# What is effective -------------------------------------------------------------------


def test_without_a_key_the_variable_is_named(settings):
    del settings.DJANGO_SERVICES

    with pytest.raises(ServiceNotConfigured, match="OPENAI_API_KEY"):
        conf.openai()


@pytest.mark.parametrize("key", [None, "", "  \n"])
def test_an_empty_key_is_no_key(services, key):
    services(OPENAI={"default": {"API_KEY": key}})

    with pytest.raises(ServiceNotConfigured, match="OPENAI_API_KEY"):
        conf.openai()


def test_debug_without_a_key_is_embedded(services, settings):
    services()
    settings.DEBUG = True

    assert conf.openai().is_embedded


def test_a_key_ends_the_embedded_default(services, settings):
    services(OPENAI={"default": {"API_KEY": "sk-1"}})
    settings.DEBUG = True

    assert not conf.openai().is_embedded


def test_embedded_is_embedded_even_with_a_key(services):
    services(OPENAI={"default": {"API_KEY": "sk-1", "BASE_URL": "embedded://"}})

    assert conf.openai().is_embedded


def test_a_compatible_server_needs_no_key(services):
    services(OPENAI={"default": {"BASE_URL": "http://localhost:11434/v1/"}})

    assert conf.openai().base_url == "http://localhost:11434/v1"
    assert not conf.openai().is_embedded


@pytest.mark.parametrize("url", ["", "  ", None, "https://api.openai.com/v1/"])
def test_the_default_url_is_openais_however_written(openai_section, url):
    assert openai_section(BASE_URL=url).base_url == conf.OPENAI_URL


# Aliases -----------------------------------------------------------------------------


def test_default_is_always_an_openai_alias(services):
    services(OPENAI={"batch": {"API_KEY": "sk-1"}})

    assert conf.openai_aliases() == ["default", "batch"]
    assert conf.openai("batch").api_key == "sk-1"


def test_an_unknown_alias_names_the_known(services):
    services(OPENAI={"batch": {}})

    with pytest.raises(ServiceNotConfigured, match=r"'other' is not configured.*batch"):
        conf.openai("other")


def test_keys_without_an_alias_are_told_where_they_belong(services):
    services(OPENAI={"API_KEY": CANARY})

    with pytest.raises(ConfigurationError, match=r'"default": \{"API_KEY"') as caught:
        conf.openai()
    assert CANARY not in str(caught.value)


# Redis -------------------------------------------------------------------------------


def test_without_redis_the_variable_is_named(services):
    services()

    with pytest.raises(ServiceNotConfigured, match="REDIS_URL"):
        conf.redis()
    assert conf.redis_aliases() == []


def test_a_url_may_hold_everything(services):
    services(REDIS={"default": {"URL": f"redis://me:{CANARY}@h/2?timeout=1.5"}})

    found = conf.redis()

    assert (found.url, found.username, found.password) == ("redis://h:6379/2", "me", CANARY)
    assert found.timeout == 1.5


def test_keys_beside_the_url_win(services):
    services(
        REDIS={"default": {"URL": "redis://:old@h?timeout=1", "PASSWORD": "new", "TIMEOUT": 3}}
    )

    assert (conf.redis().password, conf.redis().timeout) == ("new", 3.0)


def test_a_redis_cache_tells_where_redis_is(services, settings):
    services()
    settings.CACHES = {**settings.CACHES, "shared": REDIS_CACHE}

    assert conf.redis().url == conf.redis("shared").url == "redis://cache.example:6379/1"
    assert conf.redis().password == CANARY
    assert conf.redis_aliases() == ["shared"]


def test_djangos_own_redis_cache_is_understood(services, settings):
    services()
    settings.CACHES = {
        **settings.CACHES,
        "shared": {
            "BACKEND": "django.core.cache.backends.redis.RedisCache",
            "LOCATION": ["redis://first", "redis://second"],
            "OPTIONS": {"password": CANARY},
        },
    }

    assert conf.redis().url == "redis://first:6379/0"
    assert conf.redis().password == CANARY


def test_the_section_comes_before_the_caches(services, settings):
    services(REDIS={"default": {"URL": "redis://section"}})
    settings.CACHES = {**settings.CACHES, "shared": REDIS_CACHE}

    assert conf.redis().url == "redis://section:6379/0"


@pytest.mark.parametrize("entry", [{}, {"URL": ""}, {"URL": None}, {"URL": 1}, {"TIMEOUT": 1}])
def test_a_redis_without_a_url_is_refused(services, entry):
    services(REDIS={"default": entry})

    with pytest.raises(ConfigurationError, match=r'"REDIS".*"default".* needs a "URL"'):
        conf.redis()


# Strictness --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("x", "must be a dict"),
        ({"OPENAPI": {}}, "the nearest is 'OPENAI'"),
        ({"openai": {}}, "the nearest is 'OPENAI'"),
        ({"OPENAI": "sk-1"}, "must be a dict"),
        ({"OPENAI": {"default": "sk-1"}}, "must be a dict"),
        ({"OPENAI": {"default": {"API_KEI": "x"}}}, "the nearest is 'API_KEY'"),
        ({"OPENAI": {"default": {"api_key": "x"}}}, "the nearest is 'API_KEY'"),
    ],
)
def test_a_wrong_structure_is_refused(settings, value, message):
    settings.DJANGO_SERVICES = value

    with pytest.raises(ConfigurationError, match=message):
        conf.openai()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("DEADLINE", "30", "must be a number, not a value of type str"),
        ("DEADLINE", -1, "above 0"),
        ("DEADLINE", 0, "above 0"),
        ("DEADLINE", float("nan"), "above 0"),
        ("DEADLINE", float("inf"), "above 0"),
        ("TIMEOUT", True, "must be a number, not a bool"),
        ("DIMENSIONS", 1.5, "must be a whole number"),
        ("DIMENSIONS", 0, "above 0"),
        ("DIMENSIONS", 4_001, "at most 4000"),
        ("EMBEDDING_MODEL", 3, "must be a string"),
        ("API_KEY", b"sk-1", "must be a string, not a value of type bytes"),
        ("API_KEY", "sk 1", "white space"),
        ("API_KEY", "sk-é", "printable ASCII"),
        ("BASE_URL", "file:///etc/passwd", "https://"),
        ("BASE_URL", "api.example", "not a URL"),
        ("BASE_URL", f"https://u:{CANARY}@h/v1", "credentials"),
    ],
)
def test_a_wrong_openai_value_is_refused(openai_section, key, value, message):
    with pytest.raises(ConfigurationError, match=rf'"default"\].*{message}') as caught:
        openai_section(**{key: value})

    assert CANARY not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"ON_COMMIT": "always"}, "one of inline, task, off, not 'always'"),
        ({"CHUNK_OVERLAP": -1}, "0 or above"),
        ({"CHUNK_SIZE": 100}, "CHUNK_OVERLAP that is not below"),
        ({"QUERY_CACHE": "vectors"}, "not an alias in CACHES"),
        ({"BATCH_SIZE": "many"}, "whole number"),
        ({"BATCHSIZE": 1}, "the nearest is 'BATCH_SIZE'"),
    ],
)
def test_a_wrong_embeddings_value_is_refused(services, keys, message):
    services(EMBEDDINGS=keys)

    with pytest.raises(ConfigurationError, match=message):
        conf.embeddings()


def test_zero_is_a_value_where_it_means_something(services):
    services(EMBEDDINGS={"CHUNK_OVERLAP": 0, "RETRY_DELAY": 0, "QUERY_CACHE_TIMEOUT": 0})

    found = conf.embeddings()

    assert (found.chunk_overlap, found.retry_delay, found.query_cache_timeout) == (0, 0.0, 0)


def test_none_is_not_set(openai_section):
    assert openai_section(DEADLINE=None, DIMENSIONS=None) == conf.OpenAISettings()


def test_whole_numbers_are_numbers(openai_section):
    assert openai_section(DEADLINE=30).deadline == 30.0


# Live --------------------------------------------------------------------------------


def test_an_overridden_setting_takes_effect_and_ends(services, settings):
    services(EMBEDDINGS={"BATCH_SIZE": 2})
    assert conf.embeddings().batch_size == 2

    services()

    assert conf.embeddings() == conf.EmbeddingsSettings()


def test_a_setting_changed_in_place_takes_effect(settings):
    section = {"BATCH_SIZE": 2}
    settings.DJANGO_SERVICES = {"EMBEDDINGS": section}
    conf.embeddings()

    section["BATCH_SIZE"] = 3

    assert conf.embeddings().batch_size == 3


def test_a_value_is_parsed_once(services):
    services(EMBEDDINGS={"BATCH_SIZE": 2})

    assert conf.embeddings() is conf.embeddings()


# Secrets -----------------------------------------------------------------------------


def test_no_repr_shows_a_secret(services):
    services(
        OPENAI={"default": {"API_KEY": CANARY}},
        REDIS={"default": {"URL": f"redis://:{CANARY}@h"}},
    )

    shown = repr([conf.openai(), conf.redis(), conf.redis().password, conf.openai().api_key])

    assert CANARY not in shown


def test_an_error_carries_no_frame_that_holds_a_key(services, rf):
    services(OPENAI={"default": {"API_KEY": f"{CANARY} {CANARY}"}})

    with pytest.raises(ConfigurationError) as caught:
        conf.openai()

    reporter = ExceptionReporter(rf.get("/"), caught.type, caught.value, caught.value.__traceback__)
    # The settings hide API_KEY; what could show it are the frames.
    assert CANARY not in reporter.get_traceback_html()


def test_secrets_are_known_for_redaction(services, settings):
    services(
        OPENAI={"default": {"API_KEY": "key-1"}, "other": {"API_KEY": "key-2"}},
        REDIS={"default": {"URL": "redis://:password-1@h"}},
    )

    assert {"key-1", "key-2", "password-1"} <= set(conf.secrets())
