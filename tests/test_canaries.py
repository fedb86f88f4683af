"""FO11: a key, a password and a text that nobody may see, wherever people look."""

from __future__ import annotations

from textwrap import dedent

import pytest

KEY = "sk-canary-key-4711"
PASSWORD = "canary-password-4711"
TEXT = "canary-text-4711"

SETTINGS = """
    from django_services.env import Env

    env = Env()
    DEBUG = True
    CACHES = {"default": env.cache()}
    DJANGO_SERVICES = env.services()
    LOGGING = {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"stderr": {"class": "logging.StreamHandler"}},
        "root": {"handlers": ["stderr"], "level": "DEBUG"},
        # Django's own log of SQL holds what is stored, by its nature.
        "loggers": {"django.db.backends": {"level": "INFO"}},
    }
"""


@pytest.fixture
def shop(project, fake_openai):
    project.models("""
        class Item(models.Model):
            name = models.CharField(max_length=100)
            embeddings = Embeddings("name")
    """)
    project.configure(SETTINGS)
    project.python.env |= {
        "OPENAI_API_KEY": KEY,
        "OPENAI_BASE_URL": fake_openai.url,
        "OPENAI_EMBEDDING_DIMENSIONS": "8",
        # Nothing listens there.
        "REDIS_URL": f"redis://user:{PASSWORD}@127.0.0.1:9/0",
    }
    project.migrate()
    project.python(f'from shop.models import Item; Item.objects.create(name="{TEXT}")')
    return project


COMMANDS = """
    import sys
    from django.core.management import ManagementUtility

    for line in sys.stdin.read().splitlines():
        print("$", line)
        try:
            ManagementUtility(["manage.py", *line.split()]).execute()
        except SystemExit as error:
            print("exit code", error.code)
        except Exception:
            import traceback
            traceback.print_exc()
"""

LINES = """
    check
    check --deploy
    services check
    services check --json
    embeddings status --json
    embeddings sync
    embeddings sync --retry-failed --traceback
    embeddings reconcile --json
"""


def test_commands_logs_and_notes_show_no_secret(shop, fake_openai):
    shown, notes = "", []
    fake_openai.refuse(lambda text: text == TEXT)
    for status, code in [(200, None), (401, "invalid_api_key")]:
        message = f"cannot embed {TEXT} with {KEY} of {PASSWORD}"
        if status != 200:
            fake_openai.fail(status, code, message=message, times=20)
        result = shop.python.run(["-c", dedent(COMMANDS)], stdin=dedent(LINES).strip(), check=False)
        shown += result.stdout + result.stderr
        notes += shop.query("SELECT message FROM django_services_failure")
        fake_openai._answers.clear()

    # All of them ran, and the far end refused what they sent.
    assert shown.count("$ embeddings reconcile") == 2
    assert notes
    found = [canary for canary in (KEY, PASSWORD, TEXT) if canary in shown + repr(notes)]
    assert found == []
