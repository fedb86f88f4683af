"""The plugin in the hands of other projects: small ones, run by pytest itself."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points

# Before a run in this process: what it imports anew, pytester would take away again.
from django_services.openai_transport import clients, governor  # noqa: F401

from .processes import ROOT

pytest_plugins = ["pytester"]

IN_PROCESS = ("-p", "no:django", "-p", "no:xdist", "-p", "no:cacheprovider", "-q")

SETTINGS = """
    SECRET_KEY = "tests"
    INSTALLED_APPS = ["django.contrib.contenttypes", "django_services"]
    DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
    DJANGO_SERVICES = {"OPENAI": {"default": {"API_KEY": "sk-real", "CONNECT_TIMEOUT": 0.01}}}
    USE_TZ = True
"""

PROJECT = """
    import openai, pytest
    from django_services.exceptions import ConfigurationError
    from django_services.openai_service import aembed, embed, get_openai_client
    from django_services.testing import fake_openai as faked

    def test_fixture(fake_openai):
        fake_openai.reply("Hello.")

        response = get_openai_client().responses.create(model="gpt-6-luna", input="Hi.")

        assert response.output_text == "Hello."
        fake_openai.assert_called("/responses", times=1)

    def test_guard():
        with pytest.raises(ConfigurationError, match="may not reach api.openai.com"):
            embed(["text"])

    @faked()
    def test_decorator(fake_openai, tmp_path):
        embed(["text"])

        fake_openai.assert_embedded("text")
        assert tmp_path.exists()

    @faked()
    class TestClass:
        def test_method(self, fake_openai):
            embed(["text"])

            fake_openai.assert_called(times=1)

    @pytest.mark.parametrize("texts", [["a"], ["b"]])
    @faked()
    def test_parametrized(texts, fake_openai):
        embed(texts)

        fake_openai.assert_embedded(texts[0])
"""

FAILING = """
    from django_services.openai_service import embed

    def test_fails(fake_openai):
        embed(["Bake the bread."])

        fake_openai.assert_embedded("Stir the soup.")
"""


def test_the_plugin_is_installed():
    (plugin,) = (each for each in entry_points(group="pytest11") if each.name == "django_services")

    assert plugin.value == "django_services.pytest_plugin"


def test_a_project_without_settings_is_left_alone(pytester, monkeypatch):
    monkeypatch.delenv("DJANGO_SETTINGS_MODULE", raising=False)
    pytester.makepyfile(
        """
        import sys

        def test_nothing_is_loaded():
            sdks = {"openai", "httpx2", "numpy", "redis", "psycopg", "django.db.models"}
            assert not sdks & set(sys.modules)
        """
    )

    # As from a manage.py, which has imported the package before pytest begins.
    result = pytester.run(
        sys.executable,
        "-c",
        "import django_services, pytest; pytest.main(['-p', 'no:cacheprovider', '-W', 'error'])",
    )

    result.assert_outcomes(passed=1)


def test_a_project_has_the_fixture_and_the_guard(pytester, monkeypatch):
    pytester.makepyfile(project_settings=SETTINGS, test_project=PROJECT, test_failing=FAILING)
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "project_settings")
    monkeypatch.setenv("PYTHONPATH", f"{pytester.path}:{ROOT}")

    result = pytester.runpytest_subprocess("-q", "-p", "no:cacheprovider", "-W", "error")

    result.assert_outcomes(passed=6, failed=1)
    result.stdout.fnmatch_lines(
        ["E * Expected *Stir the soup.* to be embedded, found none.", 'E * "Bake the bread."']
    )
    # The test's own line is shown, and none of the fake's.
    result.stdout.no_fnmatch_line("*calls.py*")


# The guard, as a project sets it


def run_in_process(pytester, code):
    pytester.makepyfile(
        f"import pytest\nfrom django_services.openai_transport.hosts import is_allowed\n{code}"
    )
    return pytester.runpytest_inprocess(*IN_PROCESS)


def test_hosts_of_a_marker_are_allowed_in_its_test(pytester):
    result = run_in_process(
        pytester,
        """
@pytest.mark.openai_hosts("api.openai.com", "*.example.com")
def test_marked():
    assert is_allowed("api.openai.com")
    assert is_allowed("eu.example.com")

def test_other():
    assert not is_allowed("api.openai.com")
""",
    )

    result.assert_outcomes(passed=2)


def test_hosts_of_the_option_are_allowed_everywhere(pytester):
    pytester.makeini(
        "[pytest]\naddopts = --strict-markers\ndjango_services_allow_hosts = a.example b.example"
    )

    result = run_in_process(
        pytester,
        """
@pytest.mark.openai_hosts("c.example")
def test_both():
    assert is_allowed("a.example") and is_allowed("b.example") and is_allowed("c.example")
    assert not is_allowed("d.example")
""",
    )

    result.assert_outcomes(passed=1)


def test_this_repositorys_fixture_of_the_same_name_comes_first(fake_openai):
    assert fake_openai.url.startswith("http://127.0.0.1")
