"""``manage.py services``: arguments, output and exit codes."""

from __future__ import annotations

import csv
import datetime
import io
import json
from decimal import Decimal

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from django_services.health import ServiceStatus
from django_services.management.commands import services as command
from django_services.models import Usage
from tests.ledger.calls import end_call

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


# usage


@pytest.fixture
def calls(db):
    """Two operations: one of a known cost, one that failed and of an unknown one."""
    end_call(tenant="acme", cost=Decimal("1.5"))
    end_call(tenant="", cost=None, outcome="RateLimited", status=429, input_tokens=1_500)


def today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def test_usage_is_a_table_by_day(calls):
    output, code = run("usage")

    assert code == 0
    assert output.splitlines()[1].split() == [
        *(today(), "2", "1", "2,500", "800", "100"),
        *("$1.5000", "+", "1", "unknown"),
    ]
    assert output.splitlines()[2].startswith("total")
    assert "2 operations" in output
    assert "PRICES" in output


def test_usage_by_several_keys_has_a_column_for_each(calls):
    output, _ = run("usage", "--by", "tenant,model")

    heading, *lines = output.splitlines()
    assert heading.split()[:3] == ["tenant", "model", "operations"]
    assert lines[0].split()[:3] == ["acme", "gpt-6-luna", "1"]
    assert lines[1].split()[0] == "(none)"
    assert lines[1].endswith("unknown")


def test_a_cost_too_small_to_show_is_not_shown_as_none(db):
    end_call(cost=Decimal("0.00001"))

    assert "<$0.0001" in run("usage")[0]


def test_usage_of_nothing_is_one_sentence(db):
    output, code = run("usage", "--since", "2026-01-01", "--until", "2026-01-31")

    assert code == 0
    assert output == "No operations from 2026-01-01 to 2026-01-31.\n"


def test_usage_as_json(calls):
    told = json.loads(run("usage", "--json", "--by", "tenant")[0])

    assert list(told) == ["since", "until", "by", "rows", "total"]
    assert [row["tenant"] for row in told["rows"]] == ["acme", ""]
    assert told["rows"][1]["cost"] is None
    assert told["total"]["cost"] == 1.5


def test_usage_as_csv(calls):
    end_call(tenant="small", cost=Decimal("0.00000002"))
    rows = list(csv.DictReader(io.StringIO(run("usage", "--csv", "--by", "tenant")[0])))

    assert [row["tenant"] for row in rows] == ["acme", "small", ""]
    assert [row["cost"] for row in rows] == ["1.5", "0.00000002", ""]
    assert rows[0]["input_tokens"] == "1000"


def test_usage_looks_back_a_month(calls):
    Usage.objects.update(at=timezone.now() - datetime.timedelta(days=31))

    assert run("usage")[0].startswith("No operations")
    assert "2 operations" in run("usage", "--since", "31d")[0]


def test_usage_on_a_terminal_has_bars(calls, monkeypatch):
    Usage.objects.filter(tenant="").update(cost=0.75, at=timezone.now() - datetime.timedelta(1))
    monkeypatch.setattr("django_services.management.console.is_terminal", lambda _: True)
    monkeypatch.setenv("COLUMNS", "120")

    output, _ = run("usage")

    assert [line.count("▇") for line in output.splitlines()[1:4]] == [10, 20, 0]


def test_prune_removes_old_rows(calls):
    Usage.objects.filter(tenant="").update(at=timezone.now() - datetime.timedelta(days=91))

    output, _ = run("usage", "--prune", "90")

    assert output == "1 row removed from the ledger.\n"
    assert Usage.objects.count() == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--by", "colour"], "'colour' is none of day, model"),
        (["--since", "yesterday"], "write 2026-11-01, or 7d"),
        (["--since", "99999999999d"], "is no day"),
        (["--prune", "0"], "is not a number of days"),
        (["--json", "--csv"], "not allowed with"),
    ],
)
def test_a_wrong_argument_of_usage_is_told(arguments, told, capsys):
    with pytest.raises(CommandError) as error:
        run("usage", *arguments)

    assert told in str(error.value)


def test_usage_before_the_first_migration_names_the_fix(db, monkeypatch):
    monkeypatch.setattr(Usage._meta, "db_table", "nowhere")

    with pytest.raises(CommandError, match=r"manage\.py migrate"):
        run("usage")
