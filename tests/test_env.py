"""django_services.env: URLs and variables as settings, with none of the known traps."""

from __future__ import annotations

import os
import pickle
import re
from dataclasses import MISSING, fields
from pprint import pformat

import django
import pytest
from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured

from django_services import conf
from django_services.env import VARIABLES, Env, Secret, variables_table
from django_services.exceptions import ConfigurationError

from .processes import ROOT, SERVICE_VARIABLES

CANARY = "canary-7f3a"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    for name in os.environ:
        if name.startswith(SERVICE_VARIABLES) and not name.startswith("DJANGO_"):
            monkeypatch.delenv(name)


@pytest.fixture
def env(tmp_path) -> Env:
    return Env(tmp_path)


@pytest.fixture
def database(env, monkeypatch):
    def read(url: str) -> dict:
        monkeypatch.setenv("DATABASE_URL", url)
        return env.database()

    return read


@pytest.fixture
def services(env, monkeypatch):
    def read(**variables: str) -> dict:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return env.services()

    return read


# .env files --------------------------------------------------------------------------


def test_values_come_from_the_file(tmp_path):
    (tmp_path / ".env").write_text("TASKS_URL=dummy://\n")

    assert Env(tmp_path).tasks()["BACKEND"].endswith("DummyBackend")


def test_the_environment_wins_over_the_file(tmp_path, monkeypatch):
    (tmp_path / ".env").write_text("TASKS_URL=dummy://\n")
    monkeypatch.setenv("TASKS_URL", "immediate://")

    assert Env(tmp_path).tasks()["BACKEND"].endswith("ImmediateBackend")


def test_the_file_does_not_leak_into_the_environment(tmp_path):
    (tmp_path / ".env").write_text("ONLY_IN_THE_FILE=1\n")

    Env(tmp_path)

    assert "ONLY_IN_THE_FILE" not in os.environ


def test_two_files_do_not_mix(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    (tmp_path / "a" / ".env").write_text("ONLY_IN_A=1\n")

    Env(tmp_path / "a")

    assert "ONLY_IN_A" not in Env(tmp_path / "b")


def test_a_file_may_be_named(tmp_path):
    file = tmp_path / "production.env"
    file.write_text("TASKS_URL=dummy://\n")

    env = Env(file)

    assert env.base_dir == tmp_path
    assert env.tasks()["BACKEND"].endswith("DummyBackend")


def test_a_missing_path_is_an_error(tmp_path):
    with pytest.raises(ConfigurationError, match="no such file"):
        Env(tmp_path / "nowhere")


def test_the_file_is_found_from_the_settings_upward(tmp_path):
    (tmp_path / ".env").write_text("TASKS_URL=dummy://\n")
    settings = tmp_path / "project" / "settings.py"
    settings.parent.mkdir()
    settings.write_text("")
    code = "from django_services.env import Env\nenv = Env()"
    found: dict = {}

    exec(compile(code, settings, "exec"), found)

    assert found["env"].base_dir == tmp_path


def test_the_search_ends_at_the_project(tmp_path):
    (tmp_path / ".env").write_text("TASKS_URL=dummy://\n")
    settings = tmp_path / "project" / "settings.py"
    settings.parent.mkdir()
    settings.write_text("")
    (tmp_path / "project" / "manage.py").write_text("")
    code = "from django_services.env import Env\nenv = Env()"
    found: dict = {}

    exec(compile(code, settings, "exec"), found)

    assert found["env"].base_dir == tmp_path / "project"


@pytest.mark.parametrize("line", ["OPENAI_API_KEY = x", "OPENAI_API_KEY: x", " A=1", "just words"])
def test_a_line_that_would_be_skipped_is_an_error(tmp_path, line):
    (tmp_path / ".env").write_text(f"# settings\n{line.replace('x', CANARY)}\n")

    with pytest.raises(ConfigurationError, match="line 2") as caught:
        Env(tmp_path)

    assert CANARY not in str(caught.value)


def test_quotes_comments_and_exports_are_read(tmp_path):
    (tmp_path / ".env").write_text("# a\n\nexport A='x y'\nB=\"p#q\"\n", "utf-8-sig")

    env = Env(tmp_path)

    assert (env("A"), env("B")) == ("x y", "p#q")


# Typed reads -------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "value"), [("true", True), ("off", False), ("0", False)])
def test_booleans(env, monkeypatch, text, value):
    monkeypatch.setenv("FLAG", text)

    assert env.bool("FLAG") is value


@pytest.mark.parametrize(
    ("read", "text"),
    [("bool", "flase"), ("int", "12a"), ("float", "1e"), ("float", "nan"), ("json", "{")],
)
def test_what_cannot_be_read_is_an_error_without_the_value(env, monkeypatch, read, text):
    monkeypatch.setenv("THING", text)

    with pytest.raises(ConfigurationError, match=r"^THING ") as caught:
        getattr(env, read)("THING")

    assert text not in str(caught.value)


def test_defaults_and_lists_are_django_environs(env, monkeypatch):
    monkeypatch.setenv("HOSTS", "a,b")

    assert env.list("HOSTS") == ["a", "b"]
    assert env.int("MISSING", default=3) == 3


def test_a_variable_may_point_to_another(env, monkeypatch):
    monkeypatch.setenv("TASKS_URL", "$OTHER")
    monkeypatch.setenv("OTHER", "dummy://")

    assert env.tasks()["BACKEND"].endswith("DummyBackend")


def test_a_pointer_to_nothing_is_an_error(env, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "$MISSING")

    with pytest.raises(ConfigurationError, match="points to a variable that is not set"):
        env.database()


# DATABASES ---------------------------------------------------------------------------


def test_sqlite_beside_the_file_is_the_default(env, tmp_path):
    setting = env.database()

    assert setting["NAME"] == str(tmp_path / "db.sqlite3")
    assert setting["OPTIONS"]["transaction_mode"] == "IMMEDIATE"


def test_an_empty_variable_is_an_unset_one(database, tmp_path):
    assert database("  ")["NAME"] == str(tmp_path / "db.sqlite3")


def test_a_default_may_be_given(env):
    assert env.database("ANALYTICS_URL", default="sqlite://:memory:")["NAME"] == ":memory:"


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("sqlite:///data/x.db", "{here}/data/x.db"),
        ("sqlite:////var/x%20y.db", "/var/x y.db"),
        ("sqlite://:memory:", ":memory:"),
        ("sqlite:///:memory:", ":memory:"),
    ],
)
def test_sqlite_paths(database, tmp_path, url, name):
    assert database(url)["NAME"] == name.format(here=tmp_path)


@pytest.mark.parametrize("url", ["sqlite://x.db", "sqlite://", "sqlite:///"])
def test_a_sqlite_url_without_a_clear_file_is_refused(database, url):
    with pytest.raises(ConfigurationError, match="sqlite:///file"):
        database(url)


def test_sqlite_options_reach_the_connection(database):
    setting = database("sqlite:///x.db?timeout=3&synchronous=FULL&journal_mode=DELETE")

    assert setting["OPTIONS"] == {
        "transaction_mode": "IMMEDIATE",
        "timeout": 3.0,
        "init_command": "PRAGMA journal_mode=DELETE; PRAGMA synchronous=FULL",
    }


def test_postgresql_has_a_pool_that_checks_its_connections(database):
    setting = database("postgresql://me:secret@db.local:5433/shop")

    assert setting == {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "shop",
        "USER": "me",
        "PASSWORD": "secret",
        "HOST": "db.local",
        "PORT": "5433",
        "CONN_MAX_AGE": 0,
        "CONN_HEALTH_CHECKS": True,
        "OPTIONS": {
            "connect_timeout": 5,
            "pool": {
                "min_size": 1,
                "max_size": 10,
                "timeout": 5.0,
                "max_lifetime": 3600.0,
                "max_idle": 600.0,
            },
        },
    }


def test_postgresql_options_are_typed(database):
    setting = database(
        "postgres://u@h/db?pool=true&pool_max_size=4&pool_timeout=1.5&conn_health_checks=false"
        "&connect_timeout=3&sslmode=require&isolation_level=serializable"
    )

    options = setting["OPTIONS"]
    assert setting["CONN_HEALTH_CHECKS"] is False
    assert (options["pool"]["max_size"], options["pool"]["timeout"]) == (4, 1.5)
    assert (options["connect_timeout"], options["sslmode"]) == (3, "require")
    assert options["isolation_level"] == 4


def test_session_settings_go_to_libpq_in_milliseconds(database):
    setting = database(
        "postgres://u@h/db?statement_timeout=2.5&search_path=a,%20b&options=-c%20x=1"
    )

    assert setting["OPTIONS"]["options"] == (
        r"-c x=1 -c statement_timeout=2500 -c search_path=a,\ b"
    )


def test_without_a_pool_connections_may_persist(database):
    setting = database("postgres://u@h/db?pool=false&conn_max_age=60")

    assert setting["CONN_MAX_AGE"] == 60
    assert "pool" not in setting["OPTIONS"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("conn_max_age=60", "add pool=false"),
        ("pool=false&pool_max_size=3", "remove one or the other"),
        ("pool_min_size=5&pool_max_size=3", "pool_min_size above pool_max_size"),
        ("pool=maybe", "'pool' that must be true or false"),
        ("pool_max_size=0", "'pool_max_size' that must be a whole number above 0"),
        ("connect_timeout=-1", "'connect_timeout' that must be"),
        ("sslmode=yes", "must be one of disable"),
        ("pool_max_szie=3", "no option 'pool_max_szie'; the nearest is 'pool_max_size'"),
        ("pool=true&pool=true", "'pool' twice"),
        ("pool", "'pool' no value"),
    ],
)
def test_a_wrong_postgresql_option_is_refused(database, options, message):
    with pytest.raises(ConfigurationError, match=f"^DATABASE_URL.*{re.escape(message)}"):
        database(f"postgres://u@h/db?{options}")


@pytest.mark.parametrize(
    ("authority", "host", "port"),
    [
        ("u@h", "h", ""),
        ("u@[::1]:5433", "::1", "5433"),
        ("u@a:5433,b", "a,b", "5433,5432"),
        ("u@%2Ftmp%2Fpg", "/tmp/pg", ""),
        ("u@", "", ""),
    ],
)
def test_postgresql_hosts(database, authority, host, port):
    setting = database(f"postgresql://{authority}/db")

    assert (setting["HOST"], setting["PORT"]) == (host, port)


def test_a_socket_may_stand_in_the_options(database):
    assert database("postgresql://u@/db?host=/tmp/pg")["HOST"] == "/tmp/pg"


@pytest.mark.parametrize(
    ("written", "password"),
    [("p%40ss%2Fw%23rd", "p@ss/w#rd"), ("p@ss", "p@ss"), ("a:b", "a:b"), ("%C3%BC", "ü")],
)
def test_passwords_that_are_clear_are_read(database, written, password):
    setting = database(f"postgres://u:{written}@h/db")

    assert (setting["PASSWORD"], setting["HOST"]) == (password, "h")


@pytest.mark.parametrize(
    "password",
    ["p@ss/w#rd", "pa/ss", "12/ss", "pa?ss", "pa?pool=false", "pa#ss", "pa ss", "100%", "a\\b"],
)
@pytest.mark.parametrize("scheme", ["postgres", "redis"])
def test_passwords_that_are_not_encoded_are_refused_unshown(env, monkeypatch, scheme, password):
    monkeypatch.setenv("SOME_URL", f"{scheme}://u:{CANARY}{password}@host.example/0")
    read = env.database if scheme == "postgres" else env.cache

    with pytest.raises(ConfigurationError, match="percent-encode") as caught:
        read("SOME_URL")

    assert CANARY not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://u@h/db", r"env\.db_url"),
        ("localhost/db", "is not a URL"),
        ("postgres://u@h", "name the database"),
        ("postgres://u@h/a/b", "name the database"),
        ("postgres://u@h:0/db", "port"),
        ("postgres://u@h:99999/db", "port"),
        ("postgres://u@h:x/db", "port"),
        ("postgres://u:%00@h/db", "no text"),
        ("postgres://u:%FF@h/db", "no text"),
    ],
)
def test_a_database_url_that_cannot_be_used_is_refused(database, url, message):
    with pytest.raises(ConfigurationError, match=message):
        database(url)


def test_errors_are_djangos_too(database):
    with pytest.raises(ImproperlyConfigured):
        database("nonsense")


# CACHES ------------------------------------------------------------------------------


def test_without_redis_the_cache_is_local(env):
    assert env.cache()["BACKEND"] == "django.core.cache.backends.locmem.LocMemCache"


@pytest.fixture
def cache(env, monkeypatch):
    def read(url: str) -> dict:
        monkeypatch.setenv("REDIS_URL", url)
        return env.cache()

    return read


def test_redis_keeps_the_password_out_of_the_location(cache):
    setting = cache(f"redis://me:{CANARY}@h:6380/2?timeout=1.5&max_connections=7")

    assert setting["LOCATION"] == "redis://h:6380/2"
    assert setting["OPTIONS"] == {
        "USERNAME": "me",
        "PASSWORD": CANARY,
        "SOCKET_TIMEOUT": 1.5,
        "CONNECTION_POOL_KWARGS": {"max_connections": 7},
    }


@pytest.mark.parametrize(
    ("url", "location"),
    [
        ("redis://h", "redis://h:6379/0"),
        ("redis://", "redis://localhost:6379/0"),
        ("redis://h?db=3", "redis://h:6379/3"),
        ("valkey://h/2", "redis://h:6379/2"),
        ("valkeys://h/2", "rediss://h:6379/2"),
        ("redis://[::1]:7000/1", "redis://[::1]:7000/1"),
        ("unix:///run/redis.sock?db=2", "unix:///run/redis.sock?db=2"),
        ("unix://:pw@/run/redis.sock", "unix:///run/redis.sock?db=0"),
    ],
)
def test_redis_locations(cache, url, location):
    assert cache(url)["LOCATION"] == location


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis+sentinel://h", "Sentinel or a Cluster"),
        ("rediss+cluster://h", "Sentinel or a Cluster"),
        ("memcached://h", "must start with redis://"),
        ("redis://pw@h", "user name and no password"),
        ("redis://h/1?db=2", "one database by its number"),
        ("redis://h/zero", "one database by its number"),
        ("redis://a,b/0", "one host"),
        ("redis://h?ssl_certfile=x", "rediss://"),
        ("redis://h?timout=3", "the nearest is 'timeout'"),
        ("redis://h?timeout=0", "seconds above 0"),
        ("unix://run/redis.sock", "unix:///path"),
    ],
)
def test_a_redis_url_that_cannot_be_used_is_refused(cache, url, message):
    with pytest.raises(ConfigurationError, match=f"^REDIS_URL.*{message}"):
        cache(url)


def test_tls_options_reach_the_pool(cache):
    setting = cache("rediss://h?ssl_cert_reqs=none&ssl_check_hostname=false")

    assert setting["OPTIONS"]["CONNECTION_POOL_KWARGS"] == {
        "ssl_cert_reqs": "none",
        "ssl_check_hostname": False,
    }


# TASKS -------------------------------------------------------------------------------


@pytest.fixture
def tasks(env, monkeypatch):
    def read(url: str) -> dict:
        monkeypatch.setenv("TASKS_URL", url)
        return env.tasks()

    return read


def test_redis_url_does_not_imply_a_tasks_backend(env, monkeypatch):
    monkeypatch.setenv("REDIS_URL", "redis://h")
    package = "django.tasks" if django.VERSION >= (6, 0) else "django_tasks"

    assert env.tasks() == {"BACKEND": f"{package}.backends.immediate.ImmediateBackend"}


def test_the_backend_can_be_imported(tasks):
    from django.utils.module_loading import import_string

    assert import_string(tasks("dummy://")["BACKEND"]).__name__ == "DummyBackend"


def test_a_backend_is_named_by_its_path(tasks):
    assert tasks("shop.tasks_backend.Queue://?queues=mail,slow") == {
        "BACKEND": "shop.tasks_backend.Queue",
        "QUEUES": ["mail", "slow"],
    }


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis://h", "no message queue"),
        ("immediately://", "immediate://"),
        ("immediate://host", "and end there"),
        ("immediate://?queue=a", "the nearest is 'queues'"),
        ("immediate://?queues=a,,b", "names with commas"),
    ],
)
def test_a_tasks_url_that_cannot_be_used_is_refused(tasks, url, message):
    with pytest.raises(ConfigurationError, match=message):
        tasks(url)


# DJANGO_SERVICES ---------------------------------------------------------------------


def test_without_variables_nothing_is_set(services):
    assert services() == {"OPENAI": {"default": {}}, "EMBEDDINGS": {}}


def test_every_variable_reaches_its_setting(services):
    found = services(
        OPENAI_API_KEY=" sk-abc\n",
        OPENAI_BASE_URL="https://api.example/v1/",
        OPENAI_ORG_ID="org",
        OPENAI_PROJECT_ID="proj",
        OPENAI_EMBEDDING_MODEL="text-embedding-3-large",
        OPENAI_EMBEDDING_DIMENSIONS="512",
        OPENAI_DEADLINE="9.5",
        OPENAI_TIMEOUT="3",
        OPENAI_CONNECT_TIMEOUT="1",
        REDIS_URL="redis://:pw@h",
        EMBED_ON_COMMIT="task",
        EMBED_RETRY_DELAY="0",
    )

    assert found == {
        "OPENAI": {
            "default": {
                "API_KEY": "sk-abc",
                "BASE_URL": "https://api.example/v1",
                "ORGANIZATION": "org",
                "PROJECT": "proj",
                "EMBEDDING_MODEL": "text-embedding-3-large",
                "DIMENSIONS": 512,
                "DEADLINE": 9.5,
                "TIMEOUT": 3.0,
                "CONNECT_TIMEOUT": 1.0,
            }
        },
        "REDIS": {"default": {"URL": "redis://h:6379/0", "PASSWORD": "pw"}},
        "EMBEDDINGS": {"ON_COMMIT": "task", "RETRY_DELAY": 0.0},
    }


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (f"{CANARY} b", "white space"),
        (f"{CANARY}\nb", "white space"),
        (f"{CANARY}é", "printable ASCII"),
        (f"{CANARY}\x07", "printable ASCII"),
        (f'"{CANARY}"', "quotes"),
    ],
)
def test_a_key_that_cannot_be_one_is_refused_unshown(services, key, message):
    with pytest.raises(ConfigurationError, match=f"^OPENAI_API_KEY.*{message}") as caught:
        services(OPENAI_API_KEY=key)

    assert CANARY not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("api.example/v1", "not a URL"),
        ("file:///etc/passwd", "https://"),
        ("https://u:p@api.example/v1", "credentials"),
        ("https:///v1", "no host"),
        ("https://api.example/v1?key=1", "query"),
        ("https://api.example:x/v1", "port"),
    ],
)
def test_a_base_url_that_cannot_be_used_is_refused(services, url, message):
    with pytest.raises(ConfigurationError, match=f"^OPENAI_BASE_URL.*{message}"):
        services(OPENAI_BASE_URL=url)


@pytest.mark.parametrize("url", ["embedded://", "http://localhost:11434/v1"])
def test_base_urls(services, url):
    assert services(OPENAI_BASE_URL=url)["OPENAI"]["default"]["BASE_URL"] == url


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("OPENAI_APIKEY", "OPENAI_API_KEY"),
        ("OPENAI_API_BASE", "OPENAI_BASE_URL"),
        ("OPENAI_ORGANIZATION", "OPENAI_ORG_ID"),
        ("OPENAI_DEADLNE", "OPENAI_DEADLINE"),
        ("EMBED_BATCHSIZE", "EMBED_BATCH_SIZE"),
        ("EMBED_SOMETHING_ELSE", "EMBED_"),
    ],
)
def test_a_misspelt_variable_names_the_nearest(services, name, meant):
    with pytest.raises(ConfigurationError, match=f"^{name} .*{meant}"):
        services(**{name: "1"})


@pytest.mark.parametrize("name", ["OPENAI_LOG", "OPENAI_ADMIN_KEY", "OPENAI_CHAT_PROMPT_STYLE"])
def test_variables_of_others_are_left_alone(services, name):
    assert services(**{name: "1"}) == services()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OPENAI_DEADLINE", "-1"),
        ("OPENAI_TIMEOUT", "soon"),
        ("OPENAI_EMBEDDING_DIMENSIONS", "1.5"),
        ("EMBED_ON_COMMIT", "always"),
        ("EMBED_CHUNK_OVERLAP", "-1"),
    ],
)
def test_a_value_of_another_type_is_refused(services, name, value):
    with pytest.raises(ConfigurationError, match=f"^{name} must be"):
        services(**{name: value})


# Secrets -----------------------------------------------------------------------------


def test_a_secret_is_a_string_that_repr_hides():
    secret = Secret(CANARY)

    assert secret == CANARY
    assert f"{secret}" == CANARY
    assert CANARY not in repr(secret) + pformat({"a": [secret]})
    assert pickle.loads(pickle.dumps(secret)) == CANARY


def test_no_password_shows_on_the_debug_page(env, monkeypatch, settings, rf):
    from django.views.debug import ExceptionReporter

    monkeypatch.setenv("DATABASE_URL", f"postgres://u:{CANARY}@h/db")
    monkeypatch.setenv("REDIS_URL", f"redis://u:{CANARY}@h")
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    settings.DEBUG = True
    # Not by override_settings(), which warns of what follows from new databases.
    monkeypatch.setattr(django_settings, "DATABASES", {"default": env.database()})
    settings.CACHES = {"default": env.cache()}
    settings.DJANGO_SERVICES = env.services()
    local = [env.database(), env.cache(), env.services()]

    try:
        local.remove(None)
    except ValueError as error:
        reporter = ExceptionReporter(rf.get("/"), type(error), error, error.__traceback__)

    assert CANARY not in reporter.get_traceback_html()
    assert CANARY not in reporter.get_traceback_text()


# The README's table ------------------------------------------------------------------


def test_the_table_of_the_readme_is_the_codes():
    readme = (ROOT / "README.md").read_text()

    table = re.search(r"<!-- variables -->\n+(.*?)\n+<!-- /variables -->", readme, re.DOTALL)

    assert table, "README.md needs the markers <!-- variables --> and <!-- /variables -->"
    assert table[1] == variables_table()


@pytest.mark.parametrize(
    "variable", [v for v in VARIABLES if v.place], ids=[v.name for v in VARIABLES if v.place]
)
def test_the_table_tells_the_defaults_of_the_settings(variable):
    kind = {"OPENAI": conf.OpenAISettings, "EMBEDDINGS": conf.EmbeddingsSettings}[variable.place[0]]
    [entry] = [entry for entry in fields(kind) if entry.name.upper() == variable.place[-1]]
    assert entry.default is not MISSING

    if entry.default:
        value = entry.default
        shown = str(int(value) if isinstance(value, float) else value)
        assert variable.default.strip("`") == shown


def test_setup_does_not_load_django_environ(run_python):
    result = run_python("import sys; print('environ' in sys.modules)")

    assert result.stdout.strip() == "False"
