"""The README and the guide: their code runs, their links lead somewhere."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from django.test import override_settings

from django_services import conf
from django_services.env.backends import DATABASE_OPTIONS, REDIS_OPTIONS
from tests.fake_openai import FakeOpenAI
from tests.processes import ROOT, Project

README = ROOT / "README.md"
GUIDE = ROOT / "django_services" / "README.md"
OPENAI = ROOT / "docs" / "openai.md"
PAGES = pytest.mark.parametrize("page", [README, GUIDE], ids=["README", "guide"])

#: What `django-admin startproject` writes, as far as it matters here.
STARTED = """
    ROOT_URLCONF = "urls"
    DEBUG = True
    INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "blog"]
"""
FILE = re.compile(r"# (\S+\.py)\n")


def code_blocks(page: Path, language: str = "python") -> Iterator[str]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return (code for name, code in blocks if name == language)


COMPLETION = {
    "id": "chat-1",
    "object": "chat.completion",
    "created": 0,
    "model": "gpt-6-luna",
    "choices": [
        {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": "Hello."},
        }
    ],
}


@pytest.fixture
def chat() -> Iterator[FakeOpenAI]:
    """An OpenAI that answers one chat."""
    server = FakeOpenAI()
    server.start()
    server.answer(json.dumps(COMPLETION))
    yield server
    server.stop()


@pytest.fixture
def blog(project: Project, redis_url: str) -> Project:
    """A project as a newcomer has it, and Redis."""
    project.configure(STARTED)
    project.write("urls.py", "urlpatterns = []")
    project.write("blog/__init__.py", "")
    project.write("blog/migrations/__init__.py", "")
    project.python.env["REDIS_URL"] = redis_url
    return project


@PAGES
def test_code_blocks_run_in_their_order(blog, chat, page):
    statements = []
    for code in code_blocks(page):
        file = FILE.match(code)
        if file:
            path = blog.directory / file[1]
            path.write_text((path.read_text() if path.exists() else "") + code)
        else:
            statements.append(code)
    if page is GUIDE:
        blog.configure('INSTALLED_APPS += ["django_services"]')
    blog.manage("makemigrations", "blog")
    blog.manage("migrate")

    # With a remote model the rows would wait for a sync: only the doors get it.
    remote = {"OPENAI_BASE_URL": chat.url, "OPENAI_API_KEY": "sk-test"}
    blog.python("\n".join(code for code in statements if not is_chat(code)))
    for code in filter(is_chat, statements):
        blog.python(code, env=remote)


def test_the_page_on_openai_runs(blog):
    blog.configure('INSTALLED_APPS += ["django_services"]')
    blog.manage("migrate")
    blocks = list(code_blocks(OPENAI))
    settings = [code for code in blocks if code.startswith("# settings.py")]
    rest = [code for code in blocks if code not in settings]

    body = textwrap.indent("\n".join(rest), "    ")
    blog.python(f"from django_services.testing import fake_openai\nwith fake_openai():\n{body}")

    for code in settings:
        configured: dict[str, object] = {"read_key": lambda: "sk-1"}
        exec(code, configured)
        with override_settings(DJANGO_SERVICES=configured["DJANGO_SERVICES"]):
            assert [conf.openai_section(alias) for alias in conf.openai_aliases()]


def is_chat(code: str) -> bool:
    return "chat.completions" in code


@pytest.mark.parametrize("page", [README, GUIDE, OPENAI], ids=["README", "guide", "openai"])
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        url = urlsplit(target)
        if url.scheme:
            continue  # another site's page, which a test does not visit
        linked = (page.parent / url.path).resolve() if url.path else page

        assert linked.exists(), target
        if url.fragment:
            assert url.fragment in headings(linked), target


def headings(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}


def test_the_two_commands_stand_first():
    first, second = list(code_blocks(README, "sh"))[:2]

    assert first == (
        "python3 -m venv .venv && .venv/bin/pip install -e . && .venv/bin/python manage.py demo\n"
    )
    assert '.venv/bin/pip install -e ".[test]" && .venv/bin/python -m pytest\n' in second


def test_nobody_is_sent_to_the_abandoned_package():
    for page in (README, GUIDE):
        assert not re.search(r"pip install django-services", page.read_text())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("database", {key for options in DATABASE_OPTIONS.values() for key in options}),
        ("redis", set(REDIS_OPTIONS)),
    ],
)
def test_the_guide_lists_the_options_of_urls(name, options):
    marks = rf"<!-- {name} options -->\n(.*?)<!-- /{name} options -->"
    listed = re.search(marks, GUIDE.read_text(), re.DOTALL)

    assert set(re.findall(r"`(\w+)`", listed[1])) - {"postgresql", "sqlite"} == options
