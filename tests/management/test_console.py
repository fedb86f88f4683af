"""What is shown of long work."""

from __future__ import annotations

import io

from django_services.management.console import Building


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_build_ends_with_a_line_in_a_pipe():
    pipe = io.StringIO()

    with Building(pipe, "shop.Item") as building:
        building.show_phase(0.5, "loading")
        building.show_phase(1.0, "built")

    assert pipe.getvalue() == "shop.Item: 100%, built\n"


def test_a_build_says_now_and_then_how_far_it_is_in_a_pipe(monkeypatch):
    monkeypatch.setattr("django_services.management.console.LINE_INTERVAL", 0)
    pipe = io.StringIO()

    with Building(pipe, "shop.Item") as building:
        building.show_phase(0.5, "loading")

    assert pipe.getvalue().splitlines()[0] == "shop.Item: 50%, loading"


def test_a_build_is_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()

    with Building(terminal, "shop.Item") as building:
        building.show_phase(0.5, "loading")

    assert "shop.Item: loading" in terminal.getvalue()
    assert "50%" in terminal.getvalue()


def test_a_silent_build_shows_nothing_in_a_pipe():
    pipe = io.StringIO()

    with Building(pipe, "shop.Item", silent=True) as building:
        building.show_phase(1.0, "built")

    assert pipe.getvalue() == ""
