"""The transport under the official client: every call's attempts, deadline and verdict.

One place for ``client.responses.create()`` and for ``embed()``. The SDK's own
retries are off; a call that the SDK sends again all the same (after
``client.with_options(max_retries=…)``) is attempted once. Imported when a client
is built, since it loads httpx2.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx2

from ..conf import OpenAISettings
from ..exceptions import ServiceUnavailable
from ..resilience import Backoff, Deadline
from ..signals import openai_call_finished
from . import context, pace, waiting
from .faults import MESSAGE, REDIRECTED, UNUSABLE, error_class, fault_in, retry_after
from .network import until
from .reading import Reading, Unusable, count_inputs, decode_json, read_embeddings

logger = logging.getLogger(__name__)

#: In ``response.extensions``: the `Reading` of an embeddings response, made once for all.
READING = "django_services.reading"

BACKOFF = Backoff()

_RETRIED_STATUSES = frozenset({408, 409, 429})

#: Another attempt would fail in the same way.
_LASTING_ERRORS = (httpx2.UnsupportedProtocol, httpx2.LocalProtocolError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How the calls of one alias are governed."""

    alias: str
    base_url: str
    settings: OpenAISettings

    @property
    def deadline(self) -> float:
        """Seconds over all attempts of a call. A call given a longer ``timeout=`` has that.

        A stream is bound by it until it starts, and then by the timeout of each read.
        """
        is_task = context.current_profile() == "task"
        return self.settings.task_deadline if is_task else self.settings.deadline


class GovernedTransport(httpx2.BaseTransport):
    """Governs the calls of a sync client.

    Args:
        inner: What sends one request and returns its answer.
    """

    def __init__(self, inner: httpx2.BaseTransport, policy: Policy) -> None:
        self._inner = inner
        self._policy = policy

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        call = _Call(self._policy, request)
        while True:
            call.start_attempt()
            try:
                with until(call.deadline):
                    response = self._inner.handle_request(request)
                    if not call.is_stream(response):
                        response.read()
            except httpx2.RequestError as error:
                delay = call.delay_after_error(error)
                if delay is None:
                    call.send_signal(call.failure())
                    raise
            else:
                response = call.verdict_on(response)
                delay = call.delay_after(response)
                if delay is None:
                    call.send_signal(call.ending(response))
                    return response
                response.close()
            waiting.sleep(delay)

    def close(self) -> None:
        self._inner.close()


class AsyncGovernedTransport(httpx2.AsyncBaseTransport):
    """Governs the calls of an async client; see `GovernedTransport`."""

    def __init__(self, inner: httpx2.AsyncBaseTransport, policy: Policy) -> None:
        self._inner = inner
        self._policy = policy

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        call = _Call(self._policy, request)
        while True:
            call.start_attempt()
            try:
                response = await self._attempt(call)
            except httpx2.RequestError as error:
                delay = call.delay_after_error(error)
                if delay is None:
                    await call.asend_signal(call.failure())
                    raise
            else:
                response = call.verdict_on(response)
                delay = call.delay_after(response)
                if delay is None:
                    await call.asend_signal(call.ending(response))
                    return response
                await response.aclose()
            await waiting.asleep(delay)

    async def _attempt(self, call: _Call) -> httpx2.Response:
        try:
            async with asyncio.timeout(call.deadline.remaining):
                response = await self._inner.handle_async_request(call.request)
                if not call.is_stream(response):
                    await response.aread()
        except TimeoutError:
            raise httpx2.ReadTimeout("the call's deadline has passed") from None
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Call:
    """One call of the SDK: decides what its transport then does; no I/O."""

    def __init__(self, policy: Policy, request: httpx2.Request) -> None:
        self.request = request
        self._policy = policy
        self._started = time.monotonic()
        self._failures = 0
        self._timeouts: Mapping[str, float | None] = request.extensions.get("timeout", {})
        self.deadline = Deadline.after(max(policy.deadline, self._timeouts.get("read") or 0.0))
        self._asked = _json_of(request)
        self._decoded: tuple[httpx2.Response, Any] | None = None
        self.endpoint = request.url.path.removeprefix(urlsplit(policy.base_url).path.rstrip("/"))

    def start_attempt(self) -> None:
        """Give the attempt no longer than the call has left."""
        self.request.extensions["timeout"] = {
            name: self.deadline.limit(self._timeouts.get(name))
            for name in ("connect", "read", "write", "pool")
        }

    def is_stream(self, response: httpx2.Response) -> bool:
        """Tell whether the caller reads the body himself, piece by piece."""
        return response.status_code < 300 and (
            self.request.headers.get("x-stainless-raw-response") == "stream"
            or response.headers.get("content-type", "").startswith("text/event-stream")
        )

    def verdict_on(self, response: httpx2.Response) -> httpx2.Response:
        """Return the response, or the error that it amounts to."""
        response.request = self.request
        if self.is_stream(response):
            return response
        if 300 <= response.status_code < 400:
            return self._redirected(response)
        if self.endpoint == "/embeddings" and response.status_code < 300:
            return self._embeddings(response)
        return response

    def delay_after(self, response: httpx2.Response) -> float | None:
        """Return the seconds until the next attempt; None if this answer is the last."""
        self._failures += 1
        if not self._is_worth_retrying(response):
            return None
        return self._delay(f"HTTP {response.status_code}", retry_after(response.headers))

    def delay_after_error(self, error: httpx2.RequestError) -> float | None:
        """Return the seconds until the next attempt; None if the error stands."""
        self._failures += 1
        if isinstance(error, _LASTING_ERRORS):
            return None
        return self._delay(type(error).__name__)

    def ending(self, response: httpx2.Response) -> dict[str, Any]:
        """Return the signal's payload for the answer that the caller gets."""
        if self.is_stream(response):
            return self._payload("ok", response)
        # What was read already has its time; the SDK would find none.
        response.elapsed = datetime.timedelta(seconds=time.monotonic() - self._started)
        body = self._body_of(response)
        if response.status_code < 300:
            usage = body.get("usage") if isinstance(body, dict) else None
            payload = self._payload("ok", response, usage if isinstance(usage, dict) else {})
            pace.learn(
                payload["alias"],
                payload["model"],
                response.headers,
                seconds=response.elapsed.total_seconds(),
                tokens=payload["input_tokens"],
            )
            return payload
        error = error_class(response.status_code, fault_in(body).code)
        return self._payload(error.__name__, response)

    def failure(self) -> dict[str, Any]:
        """Return the signal's payload where no answer came."""
        return self._payload(ServiceUnavailable.__name__)

    def send_signal(self, payload: dict[str, Any]) -> None:
        # Robust: whoever listens must not make a call fail that went well.
        openai_call_finished.send_robust(sender=GovernedTransport, **payload)

    async def asend_signal(self, payload: dict[str, Any]) -> None:
        await openai_call_finished.asend_robust(sender=GovernedTransport, **payload)

    def _is_worth_retrying(self, response: httpx2.Response) -> bool:
        status = response.status_code
        if status < 300:
            return False
        told = response.headers.get("x-should-retry")  # the API's own word on it
        if told in ("true", "false"):
            return told == "true"
        if not error_class(status, fault_in(self._body_of(response)).code).retryable:
            return False
        return status in _RETRIED_STATUSES or status >= 500

    def _body_of(self, response: httpx2.Response) -> Any:
        """Return the decoded answer; decoded once, since it may be megabytes."""
        if self._decoded is None or self._decoded[0] is not response:
            self._decoded = (response, decode_json(response.content))
        return self._decoded[1]

    def _delay(self, reason: str, asked: float | None = None) -> float | None:
        if not self._may_be_sent_again():
            return None
        delay = BACKOFF.delay(self._failures, asked)
        if delay is None or delay >= self.deadline.remaining:
            return None
        logger.info(
            "OpenAI %r: %s failed (%s), attempt %d follows in %.1f s",
            self._policy.alias,
            self.endpoint,
            reason,
            self._failures + 1,
            delay,
        )
        return delay

    def _may_be_sent_again(self) -> bool:
        # Above zero the SDK is retrying: two owners of retries would multiply them.
        if self.request.headers.get("x-stainless-retry-count", "0") != "0":
            return False
        # Any other body, such as an upload's, can be read only once.
        return isinstance(self.request.stream, httpx2.ByteStream)

    def _embeddings(self, response: httpx2.Response) -> httpx2.Response:
        count = count_inputs(self._asked.get("input"))
        try:
            reading = read_embeddings(self._body_of(response), count)
        except Unusable as fault:
            return self._answer(502, f"The embeddings response is unusable: {fault}.", UNUSABLE)
        if reading.faults:
            position, reason = next(iter(reading.faults.items()))
            message = f"The embedding at index {position} is unusable: {reason}."
            response = self._answer(502, message, UNUSABLE, final=True)
        response.extensions[READING] = reading
        return response

    def _redirected(self, response: httpx2.Response) -> httpx2.Response:
        message = (
            f"The server answered with a redirect (HTTP {response.status_code}), which is not "
            "followed, since the request would go to another address. Set OPENAI_BASE_URL to "
            "the address that answers."
        )
        return self._answer(421, message, REDIRECTED, final=True)

    def _answer(
        self, status: int, message: str, code: str, *, final: bool = False
    ) -> httpx2.Response:
        """Return an answer of our own in the API's shape, so that the SDK raises its own error."""
        error = {"message": message, "type": "django_services", "param": None, "code": code}
        headers = {"content-type": "application/json"}
        if final:
            headers["x-should-retry"] = "false"
        return httpx2.Response(
            status,
            headers=headers,
            content=json.dumps({"error": error}).encode(),
            extensions={MESSAGE: message},
            request=self.request,
        )

    def _payload(
        self,
        outcome: str,
        response: httpx2.Response | None = None,
        usage: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        usage = usage or {}
        model = self._asked.get("model")
        return {
            "alias": self._policy.alias,
            "endpoint": self.endpoint,
            "model": model if isinstance(model, str) else None,
            "outcome": outcome,
            "status": response.status_code if response else None,
            "request_id": response.headers.get("x-request-id") if response else None,
            "elapsed_ms": (time.monotonic() - self._started) * 1000,
            "input_tokens": usage.get("prompt_tokens", usage.get("input_tokens")),
            "output_tokens": usage.get("completion_tokens", usage.get("output_tokens")),
        }


def reading_of(response: httpx2.Response) -> Reading | None:
    """Return the vectors that the transport read from the response, if it held any."""
    reading = response.extensions.get(READING)
    return reading if isinstance(reading, Reading) else None


def _json_of(request: httpx2.Request) -> dict[str, Any]:
    if not request.headers.get("content-type", "").startswith("application/json"):
        return {}
    try:
        body = decode_json(request.content)
    except httpx2.RequestNotRead:
        return {}
    return body if isinstance(body, dict) else {}
