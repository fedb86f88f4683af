"""What is committed, and what is not."""

from __future__ import annotations

import re
import subprocess
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

from .processes import ROOT

TOP = {
    "CHANGELOG.md",
    "LICENSE",
    "NOTICE",
    "README.md",
    "django_services",
    "docs",
    "example_project",
    "manage.py",
    "pyproject.toml",
    "tests",
}
NEVER = ["*.lock", "*-lock.json", "*.sqlite3", ".env", "*.pyc", "*.pem", "*.key"]

# Written in pieces, so that this file does not hold what it looks for.
MACHINE_PATH = re.compile(r"(?<![\w.}])/(?:work|root|home|Users)/\w")
INDEX_HOST = re.compile(
    "|".join([r"py" + r"pi\.(?:org|python)", r"python" + r"hosted\.", r"npm" + r"js\."])
)


@cache
def committed() -> list[Path]:
    """Return the files that git tracks; without git, those below the known names."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
        )
    except (FileNotFoundError, subprocess.CalledProcessError):
        found = [path for name in TOP for path in [ROOT / name, *(ROOT / name).rglob("*")]]
        paths = [path.relative_to(ROOT) for path in found if "__pycache__" not in path.parts]
    else:
        paths = [Path(name) for name in listed.stdout.split("\0") if name]
    return [path for path in paths if (ROOT / path).is_file()]


def lines_with(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{path}:{number}: {line.strip()}"
        for path in committed()
        for number, line in enumerate(
            (ROOT / path).read_text(encoding="utf-8", errors="ignore").splitlines(), start=1
        )
        if pattern.search(line)
    ]


def test_top_level_has_its_files_and_no_more():
    top = {path.parts[0] for path in committed()}

    assert {name for name in top if not name.startswith(".")} <= TOP


@pytest.mark.parametrize("pattern", NEVER)
def test_no_file_is_committed_that(pattern):
    assert not [path for path in committed() if fnmatch(path.name, pattern)]


def test_no_file_names_a_path_of_one_machine():
    assert not lines_with(MACHINE_PATH)


def test_no_file_names_the_host_of_a_package_index():
    assert not lines_with(INDEX_HOST)
