"""The example project: its library, its demo, its pages."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator

import pytest

from example_project.library import stdlib
from tests.processes import ROOT, PythonRunner

QUESTION = "/?q=how+do+I+compress+a+file%3F"
MODULES = "/?q=compress&kind=module"
SCRIPT = "/?q=%3Cscript%3Ealert(1)%3C/script%3E"
ADMIN = "/admin/library/entry/?q=how+do+I+compress+a+file%3F"
PATHS = ("/", QUESTION, MODULES, SCRIPT, ADMIN)


@pytest.fixture(scope="module")
def parts() -> dict[str, stdlib.Documentation]:
    return {part.name: part for part in stdlib.read()}


@pytest.fixture(scope="module")
def example(tmp_path_factory) -> Iterator[PythonRunner]:
    """The example project on a database of its own."""
    directory = tmp_path_factory.mktemp("example")
    runner = PythonRunner(
        ROOT,
        {
            "DJANGO_SETTINGS_MODULE": "example_project.settings",
            "DATABASE_URL": f"sqlite:///{directory}/db.sqlite3",
            "COLUMNS": "80",
        },
    )
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def first_demo(example) -> str:
    return example.run(["manage.py", "demo"], timeout=120).stdout


# reading --------------------------------------------------------------------------------


def test_library_has_some_five_thousand_entries(parts):
    assert 4_500 <= len(parts) <= 6_000


@pytest.mark.parametrize(
    ("name", "kind", "module"),
    [
        ("gzip", "module", "gzip"),
        ("gzip.compress", "function", "gzip"),
        ("collections.Counter", "class", "collections"),
        ("collections.Counter.most_common", "method", "collections"),
        ("str.join", "method", "builtins"),
        ("threading.Lock", "class" if sys.version_info >= (3, 13) else "function", "threading"),
    ],
)
def test_a_part_is_known_by_the_name_to_import(parts, name, kind, module):
    assert (parts[name].kind, parts[name].module) == (kind, module)


def test_a_part_belongs_to_the_module_that_offers_it_first(parts):
    assert "multiprocessing.dummy.Lock" not in parts


@pytest.mark.parametrize("module", sorted(stdlib.SKIPPED))
def test_skipped_modules_are_not_even_imported(parts, module):
    assert not any(part.module.split(".")[0] == module for part in parts.values())


def test_every_entry_says_something(parts):
    assert all(part.text.strip() for part in parts.values())


def test_signatures_are_the_same_in_every_process(parts):
    assert not [part for part in parts.values() if " at 0x" in part.signature]


def test_no_default_shows_the_environment(parts):
    assert not [part for part in parts.values() if "environ(" in part.signature]


def test_names_fit_their_column(parts):
    assert max(map(len, parts)) <= 200


# the demo -------------------------------------------------------------------------------


def test_demo_answers_questions_and_says_who_answered(first_demo):
    answers = first_demo.split("how do I compress a file?\n")[1].splitlines()

    assert answers[0].split()[1] in {"gzip.compress", "bz2.compress", "lzma.compress"}
    assert "Who answered: embedded-wordpiece-256, 256 dimensions" in first_demo
    assert "rows/s" in first_demo
    assert all(name in first_demo for name in ("OPENAI_API_KEY", "DATABASE_URL", "REDIS_URL"))


def test_demo_in_a_pipe_is_plain_text(first_demo):
    assert "\x1b" not in first_demo
    assert "━" not in first_demo


def test_second_demo_embeds_nothing_and_says_so(first_demo, example):
    again = example.run(["manage.py", "demo"], timeout=120).stdout

    assert "0 new, 0 changed, 0 removed" in again
    assert "Nothing to embed: everything is in step." in again
    assert again.split("how do I compress")[1] == first_demo.split("how do I compress")[1]


def test_loading_brings_back_what_was_altered_and_lost(first_demo, example):
    result = example(
        """
        from example_project.library.loading import load
        from example_project.library.models import Entry
        Entry.objects.filter(name="gzip").update(text="nothing")
        Entry.objects.filter(name="bz2").delete()
        Entry.objects.create(name="of.another.python", summary="Gone.", text="Gone.")
        loaded = load()
        print(loaded.created, loaded.changed, loaded.removed, load().changed)
        print(Entry.objects.get(name="gzip").text.splitlines()[0])
        """
    ).stdout

    assert result == "1 1 1 0\nFunctions that read and write gzipped files.\n"


# the pages ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pages(first_demo, example) -> dict[str, str]:
    """What the pages show, by their addresses."""
    output = example(
        f"""
        import json
        from django.contrib.auth.models import User
        from django.test import Client
        user = User.objects.create(username="ada", is_staff=True, is_superuser=True)
        client = Client(SERVER_NAME="localhost")
        client.force_login(user)
        pages = {{}}
        for path in {PATHS!r}:
            response = client.get(path)
            assert response.status_code == 200, path
            pages[path] = response.content.decode()
        print(json.dumps(pages))
        """
    ).stdout
    found: dict[str, str] = json.loads(output)
    return found


def test_page_shows_hits_with_score_and_passage(pages):
    page = pages[QUESTION]

    assert "<code>gzip.compress</code>" in page
    assert 'title="cosine similarity">0.7' in page
    assert "Compress data in one shot" in page


def test_page_can_be_limited_to_a_kind(pages):
    page = pages[MODULES]

    assert "module of " in page
    assert "function of " not in page


def test_page_escapes_what_was_asked(pages):
    page = pages[SCRIPT]

    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_page_without_a_question_suggests_some(pages):
    assert "how do I compress a file?</a>" in pages["/"]


def test_admin_finds_entries_by_meaning_the_nearest_first(pages):
    found = re.findall(r'<th class="field-name">.*?>([\w.]+)</a>', pages[ADMIN])

    assert found[:2] == ["gzip.compress", "bz2.compress"]


def test_project_passes_its_checks_and_needs_no_migration(example):
    example.run(["manage.py", "check"])
    example.run(["manage.py", "makemigrations", "--check", "--dry-run"])


def test_production_needs_a_secret_of_its_own(example):
    reading = "from django.conf import settings; settings.SECRET_KEY"

    result = example(reading, env={"DJANGO_DEBUG": "false"}, setup=False, check=False)

    assert "SECRET_KEY setting must not be empty" in result.stderr
