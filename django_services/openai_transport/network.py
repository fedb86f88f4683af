"""The wire under the governing transport: connections, proxies, exact deadlines.

The SDK's timeouts bound each read; a server that drips a byte at a time never
meets them. Here each operation on a socket gets no more than what the running
call has left. Imported when a client is built, since it loads httpx2.
"""

from __future__ import annotations

import contextlib
import functools
import ssl
import urllib.request
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit

import httpcore2
import httpx2

from ..resilience import Deadline
from . import answers, hosts
from .faults import HOST_NOT_ALLOWED

#: The deadline of the call that runs in this thread, if one does.
_deadline: ContextVar[Deadline | None] = ContextVar("django_services_openai_deadline", default=None)


def open_transport(base_url: str, limits: httpx2.Limits) -> httpx2.HTTPTransport:
    """Return a transport whose every socket operation ends by `until`'s deadline."""
    transport = _Wire(verify=_tls_context(), limits=limits, proxy=proxy_for(base_url))
    # httpx2 passes no backend of ours to its pool; a test holds the attribute in place.
    pool = transport._pool
    pool._network_backend = _BoundedBackend(pool._network_backend)
    return transport


def open_async_transport(base_url: str, limits: httpx2.Limits) -> httpx2.AsyncHTTPTransport:
    """Return a transport for an event loop, whose timeouts bound it exactly."""
    return _AsyncWire(verify=_tls_context(), limits=limits, proxy=proxy_for(base_url))


def proxy_for(base_url: str) -> str | None:
    """Return the proxy that the environment names for this address.

    httpx2 reads it only where it makes the transport itself.
    """
    parts = urlsplit(base_url)
    if urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    proxies = urllib.request.getproxies()
    return proxies.get(parts.scheme) or proxies.get("all")


@contextlib.contextmanager
def until(deadline: Deadline) -> Iterator[None]:
    """Bound the socket operations of this thread in the block."""
    token = _deadline.set(deadline)
    try:
        yield
    finally:
        _deadline.reset(token)


class _Wire(httpx2.HTTPTransport):
    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        if not hosts.is_allowed(request.url.host):
            return _not_allowed(request)
        return super().handle_request(request)


class _AsyncWire(httpx2.AsyncHTTPTransport):
    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if not hosts.is_allowed(request.url.host):
            return _not_allowed(request)
        return await super().handle_async_request(request)


def _not_allowed(request: httpx2.Request) -> httpx2.Response:
    host = request.url.host
    message = (
        f"Tests may not reach {host}; nothing was sent. Answer the call with "
        f"django_services.testing.fake_openai, in pytest a fixture too; or answer it offline "
        f"with OPENAI_BASE_URL=embedded://; or allow the host: "
        f'@pytest.mark.openai_hosts("{host}"), the ini option django_services_allow_hosts, or '
        f'django_services.testing.allow_hosts("{host}").'
    )
    return answers.error(request, 421, message, HOST_NOT_ALLOWED, is_final=True)


@functools.cache
def _tls_context() -> ssl.SSLContext:
    # Reading the certificates costs more than all else in a client, of which each event
    # loop has its own.
    return httpx2.create_ssl_context()


def _bounded(timeout: float | None, expired: type[Exception]) -> float | None:
    deadline = _deadline.get()
    if deadline is None:
        return timeout
    if deadline.has_passed:
        raise expired("the call's deadline has passed")
    return deadline.limit(timeout)


class _BoundedBackend(httpcore2.NetworkBackend):
    def __init__(self, backend: httpcore2.NetworkBackend) -> None:
        self._backend = backend

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        timeout = _bounded(timeout, httpcore2.ConnectTimeout)
        return _BoundedStream(
            self._backend.connect_tcp(host, port, timeout, local_address, socket_options)
        )

    def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        timeout = _bounded(timeout, httpcore2.ConnectTimeout)
        return _BoundedStream(self._backend.connect_unix_socket(path, timeout, socket_options))

    def sleep(self, seconds: float) -> None:
        self._backend.sleep(seconds)


class _BoundedStream(httpcore2.NetworkStream):
    def __init__(self, stream: httpcore2.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _bounded(timeout, httpcore2.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _bounded(timeout, httpcore2.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.NetworkStream:
        timeout = _bounded(timeout, httpcore2.ConnectTimeout)
        return _BoundedStream(self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
