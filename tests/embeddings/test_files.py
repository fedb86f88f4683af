"""Documents: which files become one, and which are left."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from django_services.embeddings import files
from django_services.embeddings.documents import Document
from django_services.embeddings.files import add
from django_services.embeddings.models import Change
from django_services.exceptions import InvalidInput
from django_services.testing import embed_pending

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("database")]

INDEX = "django_services.Document.embeddings"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "bread.md", "# Bread at home\n\nKnead the dough.\n")
    write(tmp_path / "notes.txt", "Stir the soup.")
    write(tmp_path / "drafts" / "later.txt", "Not yet.")
    return tmp_path


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def outcomes(*paths: object, **options: object) -> dict[str, str]:
    """Return what became of each file, by its name alone."""
    added = add([str(path) for path in paths], **options)
    return {
        Path(each.name).name: f"{each.outcome}: {each.reason}" if each.reason else each.outcome
        for each in added
    }


def test_files_of_a_folder_are_stored_under_their_paths(folder):
    add([folder])

    assert set(Document.objects.values_list("name", "text")) == {
        (f"{folder}/bread.md", "# Bread at home\n\nKnead the dough.\n"),
        (f"{folder}/notes.txt", "Stir the soup."),
        (f"{folder}/drafts/later.txt", "Not yet."),
    }


def test_one_path_written_in_two_ways_is_one_document(folder, monkeypatch):
    monkeypatch.chdir(folder)

    added = add(["notes.txt", "./notes.txt", ".//notes.txt"])

    assert len(added) == 1
    assert list(Document.objects.values_list("name", flat=True)) == ["notes.txt"]


def test_title_is_the_heading_of_markdown_else_the_name_of_the_file(folder):
    add([folder], exclude=["drafts"])

    titles = dict(Document.objects.values_list("name", "title"))
    assert titles == {
        f"{folder}/bread.md": "Bread at home",
        f"{folder}/notes.txt": "notes.txt",
    }


def test_unchanged_files_are_not_embedded_again(folder, far_end):
    add([folder])
    embed_pending()
    far_end.calls.clear()

    again = outcomes(folder)
    embed_pending()

    assert set(again.values()) == {"unchanged"}
    assert far_end.calls == []
    assert not Change.objects.filter(index=INDEX).exists()


def test_changed_file_replaces_its_text(folder):
    add([folder])
    write(folder / "notes.txt", "Let the soup rest.")

    again = outcomes(folder / "notes.txt")

    assert again == {"notes.txt": "changed"}
    assert Document.objects.get(name=f"{folder}/notes.txt").text == "Let the soup rest."


def test_documents_are_found_by_meaning(folder):
    add([folder])
    embed_pending()

    found = Document.objects.search("baking").first()

    assert found.title == "Bread at home"


def test_standard_input_is_a_document_of_the_name_that_is_given():
    add(["-"], standard_input=io.BytesIO(b"Stir the soup."), name="soup")

    assert Document.objects.get(name="soup").text == "Stir the soup."


def test_each_file_is_told_as_it_is_stored(folder):
    told = []

    added = add([folder], progress=told.append)

    assert told == added


def test_more_files_than_a_batch_are_all_stored(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BATCH", 2)
    for number in range(5):
        write(tmp_path / f"{number}.txt", f"Text {number}.")

    add([tmp_path])

    assert Document.objects.count() == 5


# globs ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (["*.md"], [], {"bread.md"}),
        (["*.md", "drafts/*"], [], {"bread.md", "later.txt"}),
        ([], ["*.md"], {"notes.txt", "later.txt"}),
        ([], ["drafts"], {"bread.md", "notes.txt"}),
        ([], ["drafts/"], {"bread.md", "notes.txt"}),
        (["*.txt"], ["drafts/*.txt"], {"notes.txt"}),
    ],
)
def test_globs_choose_files_by_name_and_by_path(folder, include, exclude, expected):
    assert set(outcomes(folder, include=include, exclude=exclude)) == expected


def test_a_file_that_is_named_itself_needs_no_glob(folder):
    assert outcomes(folder / "notes.txt", include=["*.md"]) == {"notes.txt": "added"}


# what is skipped ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b" \n\t ", "empty"),
        (b"a\x00b", "binary, or not UTF-8"),
        (b"\x89PNG\r\n\x1a\n\x00", "binary, or not UTF-8"),
        ("café".encode("latin-1"), "binary, or not UTF-8"),
        (b"\xed\xa0\x80 lone surrogate", "binary, or not UTF-8"),
    ],
)
def test_files_without_a_text_are_skipped_with_the_reason(tmp_path, content, reason):
    write(tmp_path / "file", content)

    assert outcomes(tmp_path) == {"file": f"skipped: {reason}"}
    assert not Document.objects.exists()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_unicode_is_read_by_its_mark(tmp_path, encoding):
    write(tmp_path / "file.txt", "Crème brûlée 🍮".encode(encoding))

    add([tmp_path])

    assert Document.objects.get().text == "Crème brûlée 🍮"


def test_hidden_files_and_folders_are_skipped_unless_named(tmp_path):
    write(tmp_path / ".git" / "config", "secret")
    hidden = write(tmp_path / ".env", "SECRET=1")

    skipped = outcomes(tmp_path)
    named = outcomes(hidden)

    assert skipped == {".git": "skipped: hidden", ".env": "skipped: hidden"}
    assert named == {".env": "added"}


def test_links_to_folders_are_not_followed(tmp_path):
    write(tmp_path / "inside" / "notes.txt", "Stir the soup.")
    (tmp_path / "inside" / "loop").symlink_to(tmp_path)

    found = outcomes(tmp_path)

    assert found == {"loop": "skipped: a link to another folder", "notes.txt": "added"}


def test_what_is_no_regular_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")

    assert outcomes(tmp_path) == {"pipe": "skipped: not a regular file"}


def test_broken_link_in_a_folder_is_skipped(tmp_path):
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")

    assert outcomes(tmp_path) == {"gone.txt": "skipped: cannot be read: No such file or directory"}


def test_file_too_large_to_read_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_FILE_SIZE", 2 * 1024**2)
    write(tmp_path / "log.txt", b"x" * (2 * 1024**2 + 1))
    write(tmp_path / "book.txt", b"x" * (2 * 1024**2))

    assert outcomes(tmp_path) == {"book.txt": "added", "log.txt": "skipped: larger than 2 MiB"}


def test_name_that_is_not_utf_8_is_skipped(tmp_path):
    write(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")), "Stir the soup.")

    assert outcomes(tmp_path) == {
        "caf\N{REPLACEMENT CHARACTER}.txt": "skipped: its name is not UTF-8"
    }


def test_path_too_long_for_a_name_is_skipped(tmp_path):
    deep = tmp_path / ("d" * 200) / ("e" * 200) / ("f" * 100 + ".txt")
    write(deep, "Stir the soup.")

    assert outcomes(tmp_path) == {deep.name: "skipped: its path is longer than 500 characters"}


def test_missing_path_stores_nothing_of_the_others(folder):
    with pytest.raises(InvalidInput, match=r"no file or folder 'nowhere\.txt'"):
        add([folder, "nowhere.txt"])

    assert not Document.objects.exists()
