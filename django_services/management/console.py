"""What the commands show: a progress bar on a terminal, plain lines in a pipe.

Imported by commands only, since it loads rich.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self, TextIO

from rich.console import Console  # noqa: TID253  # a module of commands
from rich.progress import (  # noqa: TID253
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table  # noqa: TID253
from rich.text import Text  # noqa: TID253

#: Seconds between two lines about the same work in a pipe.
LINE_INTERVAL = 5.0
#: Width of text in a pipe, where there is no terminal to fit; characters.
PIPE_WIDTH = 100
#: What a shell reports of a program that SIGPIPE ended.
EXIT_BROKEN_PIPE = 141
#: What a shell reports of a program that Ctrl-C ended.
EXIT_INTERRUPTED = 130


def plain(stream: Any) -> TextIO:
    """Return the stream under Django's wrapper, which ends every write with a newline."""
    inner: TextIO = getattr(stream, "_out", stream)
    return inner


class _Console(Console):
    """rich's console, of which `ending_quietly` hears that the reader has gone."""

    def on_broken_pipe(self) -> None:
        raise  # noqa: PLE0704  # called where BrokenPipeError is handled


class Work:
    """Shows how far one piece of work is: a bar that moves, or a line now and then.

    Args:
        stream: Where to show it.
        title: What is worked on.
        unit: What is counted, in the plural: ``"rows"``.
        silent: Show no lines, only a bar on a terminal.
        started: When the work began, by the monotonic clock; now if left.
    """

    def __init__(
        self,
        stream: TextIO,
        title: str,
        unit: str,
        *,
        silent: bool = False,
        started: float | None = None,
    ) -> None:
        self.title = title
        self.unit = unit
        self.done = 0
        self._stream = stream
        self._silent = silent
        self._shown = time.monotonic()
        self._started = self._shown if started is None else started
        self._bar = self._new_bar() if is_terminal(stream) else None
        if self._bar is not None:
            self._task = self._bar.add_task(title, total=None)
            self._bar.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()

    def show(self, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` units are done."""
        self.done = done
        # More may come in while the work goes on.
        total = max(done, total)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, refresh=True)
        elif time.monotonic() - self._shown >= LINE_INTERVAL:
            self._print(f"{done:,} of {total:,}")

    def finish(self) -> None:
        """Leave the bar, or a last line, as it stands now."""
        if self._bar is not None:
            self._bar.stop()
        elif self.done:
            self._print(f"{self.done:,}")

    def _print(self, count: str) -> None:
        self._shown = time.monotonic()
        if not self._silent:
            self._stream.write(f"{self.title}: {count} {self.unit}, {self.rate()}\n")
            self._stream.flush()

    def rate(self) -> str:
        """Return how fast the work is, over all its time."""
        seconds = max(time.monotonic() - self._started, 1e-6)
        return f"{self.done / seconds:,.0f} {self.unit}/s"

    def _new_bar(self) -> Progress:
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _RateColumn(self),
            TimeRemainingColumn(),
            console=_Console(file=self._stream),
        )


class Building(Work):
    """Shows work that is measured in parts of a whole, of phases that differ in speed."""

    def __init__(self, stream: TextIO, title: str, *, silent: bool = False) -> None:
        self._phase = ""
        super().__init__(stream, title, "%", silent=silent)

    def show_phase(self, share: float, phase: str) -> None:
        """Show that a share, 0 to 1, of the work is done, and what is being done now."""
        self._phase = phase
        if self._bar is not None:
            self._bar.update(self._task, description=f"{self.title}: {phase}")
        self.show(round(100 * share), 100)

    def _print(self, count: str) -> None:
        del count  # of hundredths
        self._shown = time.monotonic()
        if not self._silent:
            self._stream.write(f"{self.title}: {self.done}%, {self._phase}\n")
            self._stream.flush()

    def _new_bar(self) -> Progress:
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=_Console(file=self._stream),
        )


class _RateColumn(ProgressColumn):
    def __init__(self, work: Work) -> None:
        super().__init__()
        self._work = work

    def render(self, task: Task) -> Text:
        return Text(self._work.rate() if task.completed else "")


def is_terminal(stream: Any) -> bool:
    """Tell whether a person reads the stream, and may see it change."""
    isatty = getattr(stream, "isatty", None)
    return bool(isatty and isatty()) and not Console(file=stream).is_dumb_terminal


def width(stream: Any) -> int:
    """Return the characters that a line of the stream holds."""
    return shutil.get_terminal_size().columns if is_terminal(stream) else PIPE_WIDTH


def print_table(
    stream: TextIO, columns: Mapping[str, str], rows: Sequence[Sequence[object]]
) -> None:
    """Print rows under headings; of the columns' values, "right" aligns numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for heading, alignment in columns.items():
        table.add_column(heading, justify=alignment, no_wrap=True)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row))
    # In a pipe no column is cut, however long it is.
    _Console(file=stream, width=None if is_terminal(stream) else 1_000).print(table)


def indented(text: str, by: int, *, width: int, lines: int) -> str:
    """Return a text as at most so many lines of a width, moved to the right."""
    margin = " " * by
    return textwrap.fill(
        " ".join(text.split()),
        max(width, by + 20),
        initial_indent=margin,
        subsequent_indent=margin,
        max_lines=lines,
        placeholder=" …",
        break_on_hyphens=False,
    )


@contextlib.contextmanager
def ending_quietly(stdout: Any, on_interrupt: Callable[[], object]) -> Iterator[None]:
    """End without a traceback where the reader has gone or somebody pressed Ctrl-C."""
    try:
        yield
        # Here and not at exit, where Python could only complain of a closed pipe.
        stdout.flush()
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_BROKEN_PIPE)
    except KeyboardInterrupt:
        on_interrupt()
        sys.exit(EXIT_INTERRUPTED)
