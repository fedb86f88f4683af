"""Django settings of the tests: the embedded defaults, whatever the environment says."""

import atexit
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any


def _scratch() -> Path:
    """Return a directory of this test run; children of the run share their parent's."""
    inherited = os.environ.get("DJANGO_SERVICES_TEST_SCRATCH")
    if inherited:
        return Path(inherited)
    scratch = Path(tempfile.mkdtemp(prefix="django-services-tests-"))
    os.environ["DJANGO_SERVICES_TEST_SCRATCH"] = str(scratch)
    owner = os.getpid()

    def remove() -> None:
        # A forked child must not take the directory from its parent.
        if os.getpid() == owner:
            shutil.rmtree(scratch, ignore_errors=True)

    atexit.register(remove)
    return scratch


def _database() -> dict[str, Any]:
    """Return the database that a process is told, else a SQLite file of this test run."""
    told = os.environ.get("DJANGO_SERVICES_TEST_DATABASE", "")
    if "://" in told:
        from .databases import entry

        return entry(told)
    # A file and not ":memory:", so that other threads and processes meet the same rows.
    name = told or str(_scratch() / f"db{os.environ.get('PYTEST_XDIST_WORKER', '')}.sqlite3")
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": name,
        "TEST": {"NAME": name},
        "OPTIONS": {
            "timeout": 20,
            # A writer that first reads would fail at once, not wait, where another wrote meanwhile.
            "transaction_mode": "IMMEDIATE",
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
        },
    }


SECRET_KEY = "tests only"
DEBUG = False
ALLOWED_HOSTS = ["*"]
USE_TZ = True

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django_services",
    "tests.testapp",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
ROOT_URLCONF = "tests.urls"
STATIC_URL = "static/"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

DATABASES = {"default": _database()}
CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
_services = os.environ.get("DJANGO_SERVICES_TEST_SERVICES", "")  # JSON, told to a process
DJANGO_SERVICES = json.loads(_services or '{"OPENAI": {"default": {"BASE_URL": "embedded://"}}}')

PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # fast
