"""``manage.py services``: arguments, output and exit codes."""

from __future__ import annotations

import io
import json

import pytest
from django.core.management import call_command

from django_services.health import ServiceStatus
from django_services.management.commands import services as command

UP = ServiceStatus(service="database", alias="default", state="ok", latency_ms=1.25, version="X 1")
OFF = ServiceStatus(service="redis", alias="default", state="off", detail="Not configured.")
DOWN = ServiceStatus(
    service="redis", alias="default", state="error", detail="It is away.", fix="Start it."
)


@pytest.fixture
def statuses(monkeypatch):
    """Let the services be in these states, in one round after the other; the last stays."""

    def answer(*rounds: list[ServiceStatus]) -> list[int]:
        asked: list[int] = []

        def check() -> list[ServiceStatus]:
            asked.append(len(asked))
            return rounds[min(len(asked), len(rounds)) - 1]

        monkeypatch.setattr(command, "check_services", check)
        monkeypatch.setattr(command, "_PAUSE", 0.01)
        return asked

    return answer


def run(*arguments: str) -> tuple[str, int]:
    """Return what the command printed and its exit code."""
    output = io.StringIO()
    try:
        call_command("services", *arguments, stdout=output)
    except SystemExit as ended:
        return output.getvalue(), int(ended.code or 0)
    return output.getvalue(), 0


def test_all_up_is_exit_code_0(statuses):
    statuses([UP, OFF])

    output, code = run("check")

    assert code == 0
    assert "1.2" in output
    assert "X 1" in output


def test_an_error_is_exit_code_1_and_tells_the_fix(statuses):
    statuses([UP, DOWN])

    output, code = run("check")

    assert code == 1
    assert "It is away. Start it." in output


def test_json_is_a_list_of_states(statuses):
    statuses([UP, DOWN])

    output, code = run("check", "--json")

    assert code == 1
    assert [status["state"] for status in json.loads(output)] == ["ok", "error"]
    assert json.loads(output)[1]["fix"] == "Start it."


def test_wait_asks_again_until_all_are_up(statuses):
    asked = statuses([DOWN], [DOWN], [UP])

    _, code = run("check", "--wait", "30")

    assert code == 0
    assert len(asked) == 3


def test_wait_gives_up(statuses):
    asked = statuses([DOWN])

    _, code = run("check", "--wait", "0.05")

    assert code == 1
    assert len(asked) > 1


def test_without_wait_it_asks_once(statuses):
    asked = statuses([DOWN])

    run("check")

    assert len(asked) == 1


@pytest.mark.parametrize("seconds", ["-1", "soon", "nan", "inf"])
def test_wait_takes_seconds(project, seconds):
    result = project.manage("services", "check", f"--wait={seconds}", check=False)

    assert result.returncode == 2
    assert "is not a number of seconds" in result.stderr


def test_an_unknown_verb_names_the_known(project):
    result = project.manage("services", "chekc", check=False)

    assert result.returncode == 2
    assert "check" in result.stderr


def test_it_runs_before_the_first_migration(project):
    result = project.manage("services", "check", "--json", check=False)

    states = {status["service"]: status for status in json.loads(result.stdout)}
    assert result.returncode == 1
    assert states["database"]["state"] == "ok"
    assert "manage.py migrate" in states["embeddings"]["fix"]


def test_it_runs_where_a_setting_is_wrong(project):
    project.configure('DJANGO_SERVICES = {"OPENAI": {"default": {"DEADLINE": -1}}}')

    result = project.manage("services", "check", check=False)

    assert result.returncode == 1
    assert "DEADLINE" in result.stdout
