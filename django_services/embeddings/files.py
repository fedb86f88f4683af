"""Files, folders and standard input, stored as documents."""

from __future__ import annotations

import codecs
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from django.db import transaction

from ..exceptions import InvalidInput
from ..privacy import Private
from .documents import NAME_LENGTH, Document

#: Name of what is read from standard input, in a list of paths.
STANDARD_INPUT = Path("-")
#: Larger files are no texts that anyone reads; bytes.
MAX_FILE_SIZE = 20 * 1024 * 1024
#: Files that are stored in one transaction.
BATCH = 50

#: How a file tells that it is not UTF-8; the longer mark of two that begin alike first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_MARKDOWN_HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*\s*$", re.MULTILINE)
_MARKDOWN = {".md", ".markdown", ".mdx"}


class Outcome(StrEnum):
    """What became of a file."""

    ADDED = "added"
    CHANGED = "changed"
    UNCHANGED = "unchanged"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Added:
    """A file, and what became of it."""

    name: str
    outcome: Outcome
    reason: str = ""  # of skipping it


class _Unusable(Exception):
    """A file has no text to store; says why."""


@dataclass(frozen=True, slots=True)
class _File:
    """A file to read, or the reason why not to."""

    path: Path
    unusable: str = ""


@dataclass(frozen=True, slots=True)
class _Text:
    """A file's text, or the reason why it has none."""

    name: str
    title: str = field(default="", repr=False)
    text: Private[str] = field(default_factory=lambda: Private(""))
    unusable: str = ""


def add(
    paths: Sequence[str | os.PathLike[str]],
    *,
    alias: str = "default",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    standard_input: BinaryIO | None = None,
    name: str = "standard input",
    progress: Callable[[Added], object] | None = None,
) -> list[Added]:
    """Store files as documents, each named by its path as given; the next sync embeds them.

    A file whose text is stored already is left alone. Skipped are files that are
    empty, binary or not text, what cannot be read, and in folders what is hidden
    and links to other folders.

    Args:
        paths: Files, folders (with all that is in them), and ``"-"`` for standard input.
        alias: The database.
        include: Globs of which a file in a folder must match one, by its name or its
            path in the folder: ``"*.md"``, ``"guide/*"``. All files if empty.
        exclude: Globs of files and folders to leave out.
        standard_input: What ``"-"`` reads.
        name: The name of the document that ``"-"`` makes.
        progress: Called with each file as soon as it is stored.

    Raises:
        InvalidInput: A path does not exist; nothing was stored.
    """
    wanted = [Path(path) for path in paths]
    for path in wanted:
        if path != STANDARD_INPUT and not path.exists():
            raise InvalidInput(f"There is no file or folder {str(path)!r}: check the path.")
    found = (each for path in wanted for each in _files(path, include, exclude))
    texts = (_read(file, standard_input, name) for file in _each_once(found))
    done: list[Added] = []
    while batch := list(islice(texts, BATCH)):
        for added in _store(batch, alias):
            done.append(added)
            if progress is not None:
                progress(added)
    return done


def _store(texts: list[_Text], alias: str) -> list[Added]:
    documents = Document.objects.using(alias)
    with transaction.atomic(using=alias):
        names = [text.name for text in texts if not text.unusable]
        stored = {document.name: document for document in documents.filter(name__in=names)}
        return [_store_one(text, stored.get(text.name), alias) for text in texts]


def _store_one(text: _Text, stored: Document | None, alias: str) -> Added:
    if text.unusable:
        return Added(text.name, Outcome.SKIPPED, text.unusable)
    if stored and (stored.title, Private(stored.text)) == (text.title, text.text):
        return Added(text.name, Outcome.UNCHANGED)
    # Somebody else may have added it meanwhile.
    _document, is_new = Document.objects.using(alias).update_or_create(
        name=text.name, defaults={"title": text.title, "text": text.text.reveal()}
    )
    return Added(text.name, Outcome.ADDED if is_new else Outcome.CHANGED)


def _each_once(files: Iterable[_File]) -> Iterator[_File]:
    seen: set[Path] = set()
    for file in files:
        if file.path not in seen:
            seen.add(file.path)
            yield file


def _files(top: Path, include: Sequence[str], exclude: Sequence[str]) -> Iterator[_File]:
    """Yield the files of a path; what the globs leave out is not mentioned."""
    if top == STANDARD_INPUT or not top.is_dir():
        yield _File(top)
        return
    for walked, folders, files in os.walk(top):
        folder = Path(walked)
        for path in sorted(folder / name for name in folders):
            reason = _reason_not_to_enter(path)
            is_excluded = _matches(path, top, exclude)
            if reason or is_excluded:
                folders.remove(path.name)
            if reason and not is_excluded:
                yield _File(path, reason)
        folders.sort()
        for path in sorted(folder / name for name in files):
            is_included = not include or _matches(path, top, include)
            if is_included and not _matches(path, top, exclude):
                yield _File(path, "hidden" if path.name.startswith(".") else "")


def _reason_not_to_enter(folder: Path) -> str:
    if folder.name.startswith("."):
        return "hidden"
    return "a link to another folder" if folder.is_symlink() else ""


def _matches(path: Path, top: Path, globs: Sequence[str]) -> bool:
    names = (path.name, path.relative_to(top).as_posix())
    return any(fnmatch(name, glob.rstrip("/")) for name in names for glob in globs)


def _read(file: _File, standard_input: BinaryIO | None, name: str) -> _Text:
    """Return a file's text under the name that its document gets."""
    shown = name if file.path == STANDARD_INPUT else _printable(file.path)
    try:
        _check_name(shown, file)
        text = _decoded(_content(file.path, standard_input))
    except _Unusable as unusable:
        return _Text(shown, unusable=str(unusable))
    except OSError as error:
        return _Text(shown, unusable=f"cannot be read: {error.strerror or type(error).__name__}")
    return _Text(shown, _title(file.path, text), text)


def _printable(path: Path) -> str:
    """Return a path as text that can be printed and stored, whatever bytes it has."""
    return os.fsencode(path).decode(errors="replace")


def _check_name(name: str, file: _File) -> None:
    if file.unusable:
        raise _Unusable(file.unusable)
    if file.path != STANDARD_INPUT and name != str(file.path):
        raise _Unusable("its name is not UTF-8")
    if len(name) > NAME_LENGTH:
        raise _Unusable(f"its path is longer than {NAME_LENGTH} characters")


def _content(path: Path, standard_input: BinaryIO | None) -> Private[bytes]:
    if path == STANDARD_INPUT:
        content = Private(standard_input.read(MAX_FILE_SIZE + 1) if standard_input else b"")
    elif stat.S_ISREG(path.stat().st_mode):
        with path.open("rb") as opened:
            content = Private(opened.read(MAX_FILE_SIZE + 1))
    else:
        # Opening a pipe or a device could wait for ever.
        raise _Unusable("not a regular file")
    if len(content.reveal()) > MAX_FILE_SIZE:
        raise _Unusable(f"larger than {MAX_FILE_SIZE // 1024**2} MiB")
    return content


def _decoded(content: Private[bytes]) -> Private[str]:
    encoding = next((name for mark, name in _MARKS if content.reveal().startswith(mark)), "utf-8")
    try:
        text = Private(content.reveal().decode(encoding).replace("\r\n", "\n"))
    except UnicodeDecodeError:
        raise _Unusable("binary, or not UTF-8") from None
    if "\x00" in text.reveal():
        raise _Unusable("binary, or not UTF-8")
    if not text.reveal().strip():
        raise _Unusable("empty")
    return text


def _title(path: Path, text: Private[str]) -> str:
    """Return a Markdown file's first heading, else the file's name."""
    if path == STANDARD_INPUT:
        return ""
    heading = path.suffix.lower() in _MARKDOWN and _MARKDOWN_HEADING.search(text.reveal())
    return heading[1][:NAME_LENGTH] if heading else path.name
