"""The commands' arguments, output and exit codes; what they do is tested where it is done."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from django.core.management import CommandError, call_command
from django.test import override_settings

from django_services.embeddings.models import Change, Failure
from django_services.embeddings.sync import Report
from django_services.exceptions import QuotaExhausted, RateLimited
from django_services.management.commands import embeddings as command
from django_services.testing import embed_pending
from tests.processes import ROOT
from tests.testapp.models import Article, Note

pytestmark = pytest.mark.django_db

NAME = "testapp.Article.embeddings"
NOT_ON_COMMIT = {
    "OPENAI": {"default": {"BASE_URL": "embedded://"}},
    "EMBEDDINGS": {"ON_COMMIT": "off"},
}


def run(*arguments: str, **options: object) -> str:
    output = io.StringIO()
    call_command("embeddings", *arguments, **options, stdout=output, stderr=io.StringIO())
    return output.getvalue()


def run_json(*arguments: str) -> object:
    return json.loads(run(*arguments, "--json"))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def articles() -> list[Article]:
    rows = [
        Article(title="Bread", body="Knead the dough, then bake it in the oven."),
        Article(title="Engine", body="A piston turns fuel into motion."),
        Article(title="Orchestra", body="Violins and trumpets play a symphony."),
    ]
    return Article.objects.bulk_create(rows)


# sync -----------------------------------------------------------------------------------


def test_sync_embeds_what_is_pending_and_says_how_much(articles):
    output = run("sync", NAME)

    assert "3 rows brought in step: 3 texts embedded, 3 chunks stored" in output
    assert "rows/s" in output


def test_sync_says_that_there_is_nothing_to_do(articles):
    run("sync")

    output = run("sync")

    assert output == "Nothing to embed: everything is in step.\n"


def test_sync_prints_numbers_for_a_script(articles):
    report = run_json("sync", NAME)

    assert report == {
        "sources": 3,
        "embedded": 3,
        "stored": 3,
        "removed": 0,
        "failed": 0,
        "activated": [],
    }


def test_sync_of_one_label_leaves_the_others(articles):
    Note.objects.create(subject="Remember the milk")

    run("sync", "testapp.Article")

    assert Change.objects.filter(index="testapp.Note.embeddings").exists()


def test_sync_takes_batches_of_the_size_that_is_asked_for(articles, far_end):
    run("sync", NAME, "--batch-size", "2")

    assert [len(call) for call in far_end.calls] == [2, 1]


def test_sync_fails_where_a_row_failed(articles, far_end):
    far_end.failures["piston"] = QuotaExhausted("No credit.")

    with pytest.raises(CommandError, match=r"1 rows? could not be embedded.*--retry-failed"):
        run("sync", NAME)


def test_sync_tries_again_what_was_set_aside(articles, far_end):
    far_end.failures["piston"] = QuotaExhausted("No credit.")
    embed_pending()
    far_end.failures.clear()

    run("sync", NAME, "--retry-failed")

    assert not Failure.objects.exists()
    assert articles[1].embeddings.count() == 1


def test_sync_ends_with_one_sentence_where_the_service_cannot_be_used(articles, far_end):
    far_end.outage = QuotaExhausted("The account has no credit left.")

    with pytest.raises(CommandError, match=r"^The account has no credit left\.$"):
        run("sync", NAME)


def test_sync_shows_a_bar_on_a_terminal(articles):
    terminal = Terminal()

    call_command("embeddings", "sync", NAME, stdout=terminal)

    assert "━" in terminal.getvalue()
    assert "3/3" in terminal.getvalue()


def test_sync_shows_no_bar_in_a_pipe(articles):
    output = run("sync", NAME)

    assert "━" not in output
    assert "\x1b" not in output


def test_watch_prints_one_line_for_each_sync_and_goes_on_after_an_error(articles, monkeypatch):
    def watch(sync: Callable[[], Report], **_: object) -> Iterator[object]:
        yield RateLimited("Too many requests.")
        yield sync()
        yield sync()
        raise KeyboardInterrupt

    monkeypatch.setattr("django_services.embeddings.watch.watch", watch)
    output, errors = io.StringIO(), io.StringIO()

    with pytest.raises(SystemExit) as ended:
        call_command("embeddings", "sync", NAME, "--watch", "--json", stdout=output, stderr=errors)

    assert [json.loads(line)["sources"] for line in output.getvalue().splitlines()] == [3]
    assert errors.getvalue().splitlines()[0] == "Too many requests. Trying again."
    assert ended.value.code == 130


@pytest.mark.django_db(transaction=True)
def test_watch_embeds_what_another_process_writes_and_ends_on_sigterm(run_python):
    watching = run_python.start(
        """
        from django.core.management import call_command
        call_command("embeddings", "sync", "--watch", "--json")
        """
    )

    with override_settings(DJANGO_SERVICES=NOT_ON_COMMIT):
        Article.objects.create(title="Bread", body="Knead the dough.")
    report = json.loads(watching.stdout.readline())
    watching.terminate()

    assert report["stored"] == 1
    assert watching.wait(timeout=30) == 0
    assert "Traceback" not in watching.stderr.read()


# add ------------------------------------------------------------------------------------


def test_add_says_what_became_of_each_file_and_embeds(tmp_path):
    (tmp_path / "soup.txt").write_text("Stir the soup slowly.")
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\x00\x01")

    output = run("add", str(tmp_path))

    assert f"    added  {tmp_path}/soup.txt\n" in output
    assert f"  skipped  {tmp_path}/photo.jpg (binary, or not UTF-8)\n" in output
    assert run_json("status", "django_services.Document")[0]["fresh"] == 1


def test_add_can_leave_embedding_for_later(tmp_path):
    (tmp_path / "soup.txt").write_text("Stir the soup slowly.")

    output = run("add", str(tmp_path), "--no-sync")

    assert "manage.py embeddings sync" in output
    assert Change.objects.filter(index="django_services.Document.embeddings").count() == 1


def test_add_reads_standard_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Stir the soup slowly.")))

    result = run_json("add", "-", "--name", "soup")

    assert result["files"] == [{"name": "soup", "outcome": "added", "reason": ""}]
    assert result["sync"]["stored"] == 1


def test_add_of_a_missing_path_is_one_sentence():
    with pytest.raises(CommandError, match=r"^There is no file or folder 'nowhere\.txt'"):
        run("add", "nowhere.txt")


# search ---------------------------------------------------------------------------------


def test_search_prints_score_name_and_passage(articles):
    embed_pending()

    output = run("search", "baking bread at home", "--limit", "1")

    assert output.splitlines()[0].split() == [output.split()[0], "Bread"]
    assert 0.3 < float(output.split()[0]) <= 1
    assert "       Knead the dough, then bake it in the oven." in output


def test_search_in_all_declarations_puts_the_best_first(articles):
    Note.objects.create(subject="How to bake bread")
    embed_pending()

    hits = run_json("search", "how to bake bread")

    assert [hit["label"] for hit in hits[:2]] == ["testapp.Note.embeddings", NAME]
    assert [hit["score"] for hit in hits] == sorted((h["score"] for h in hits), reverse=True)


def test_search_in_one_declaration_leaves_the_others(articles):
    Note.objects.create(subject="How to bake bread")
    embed_pending()

    hits = run_json("search", "how to bake bread", "--index", "testapp.article")

    assert {hit["label"] for hit in hits} == {NAME}


def test_search_before_the_first_sync_says_what_to_run():
    with pytest.raises(CommandError, match=r"manage\.py embeddings sync"):
        run("search", "bread")


@pytest.mark.parametrize("query", ["", "   "])
def test_search_for_nothing_is_one_sentence(articles, query):
    embed_pending()

    with pytest.raises(CommandError, match="not empty"):
        run("search", query)


# status ---------------------------------------------------------------------------------


def test_status_counts_rows_by_their_state(articles, far_end):
    far_end.failures["piston"] = QuotaExhausted("No credit.")
    embed_pending()
    Article.objects.create(title="New", body="A new one.")

    (found,) = run_json("status", NAME)

    assert (found["sources"], found["fresh"], found["pending"], found["failed"]) == (4, 2, 1, 1)
    assert found["model"] == "embedded-wordpiece-256"


def test_status_says_why_rows_failed(articles, far_end):
    far_end.failures["piston"] = QuotaExhausted("No credit.")
    embed_pending()

    output = run("status", NAME)

    assert f"{NAME}: 1 failed: No credit." in output
    assert "--retry-failed" in output


def test_status_cuts_no_column_in_a_pipe(articles):
    output = run("status")

    assert "django_services.Document.embeddings" in output
    assert "…" not in output


# reconcile and uninstall ----------------------------------------------------------------


def test_reconcile_finds_what_no_trigger_saw(articles):
    embed_pending()
    run("uninstall", "--noinput")
    Article.objects.filter(title="Bread").update(body="Something else.")

    output = run("reconcile", NAME)

    assert "3 rows checked, 1 out of step, 0 with embeddings but gone" in output
    assert "manage.py embeddings sync" in output


def test_reconcile_finds_nothing_where_all_is_in_step(articles):
    embed_pending()

    (found,) = run_json("reconcile", NAME)

    assert found == {
        "label": NAME,
        "database": "default",
        "checked": 3,
        "stale": 0,
        "orphaned": 0,
    }


def test_uninstall_removes_triggers_and_says_what_remains():
    output = run("uninstall", "--noinput")

    assert "triggers removed from database 'default'" in output
    assert "What remains" in output
    assert run_json("uninstall", "--noinput") == {"default": 0}


@pytest.mark.parametrize("answer", ["", "n", "no", "what?"])
def test_uninstall_asks_first(monkeypatch, answer):
    monkeypatch.setattr("builtins.input", lambda _question: answer)

    with pytest.raises(CommandError, match="Nothing was removed"):
        run("uninstall")


def test_uninstall_without_anybody_to_ask_names_the_option(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO())

    with pytest.raises(CommandError, match="--noinput"):
        run("uninstall")


# wrong arguments ------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["sync", "status", "reconcile"])
def test_unknown_label_names_the_nearest(verb):
    with pytest.raises(CommandError, match=r"did you mean testapp\.Article\.embeddings\?"):
        run(verb, "testapp.Artikle.embeddings")


@pytest.mark.parametrize("size", ["0", "-1", "two", "1.5", "²"])
def test_batch_size_that_is_no_count_is_refused(size):
    with pytest.raises(CommandError, match="not a whole number of at least 1"):
        run("sync", f"--batch-size={size}")


def test_unknown_database_names_the_known():
    with pytest.raises(CommandError, match=r"no database 'elsewhere' in DATABASES: default"):
        run("sync", "--database", "elsewhere")


def test_options_of_every_command_may_stand_behind_the_verb(articles):
    output = run("sync", NAME, "--no-color", "-v", "0", "--traceback")

    assert "3 rows" in output


def test_run_before_migrate_names_migrate(project):
    project.models(
        "class Item(models.Model):\n    name = models.TextField()\n"
        '    embeddings = Embeddings("name")\n'
    )

    for arguments in (["sync"], ["search", "x"]):
        result = project.manage("embeddings", *arguments, check=False)

        assert result.returncode == 1
        assert result.stderr.count("\n") == 1, result.stderr
        assert "run manage.py migrate first" in result.stderr


@pytest.mark.django_db(transaction=True)
def test_closed_output_ends_quietly(articles):
    embed_pending()
    reader, writer = os.pipe()
    os.close(reader)

    with os.fdopen(writer, "wb") as closed:
        result = subprocess.run(
            [sys.executable, "-m", "django", "embeddings", "status"],
            cwd=ROOT,
            env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"},
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
        )

    assert result.stderr == ""
    assert result.returncode == 141


def test_interrupt_ends_without_a_traceback(articles, monkeypatch):
    def interrupt(*_args: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_by_database", interrupt)
    errors = io.StringIO()

    with pytest.raises(SystemExit) as ended:
        call_command("embeddings", "sync", stdout=io.StringIO(), stderr=errors)

    assert ended.value.code == 130
    assert errors.getvalue() == "Stopped. What is pending stays pending.\n"
