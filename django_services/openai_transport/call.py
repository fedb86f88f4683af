"""One call of the SDK: what it asks for, and what each turn of it means; no I/O.

Imported with the transport, since it loads httpx2.
"""

from __future__ import annotations

import datetime
import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import httpx2

from .. import conf
from ..exceptions import InvalidResponse, ServiceError, ServiceUnavailable
from ..resilience import Backoff, Deadline
from . import answers, catalogue, context, pace, tokens
from .faults import REDIRECTED, UNUSABLE, error_class, fault_in, retry_after
from .reading import Reading, Unusable, count_inputs, decode_json, read_embeddings
from .streams import Events
from .usage import UNKNOWN, Usage, usage_in

logger = logging.getLogger(__name__)

#: In ``response.extensions``: the `Reading` of an embeddings response, made once for all.
READING = "django_services.reading"

#: In ``response.extensions``: whether its reader takes it piece by piece.
_IS_STREAM = "django_services.is_stream"

#: How patient a call is, by the profile that it runs in.
BACKOFFS: dict[context.Profile, Backoff] = {
    "request": Backoff(),
    "task": Backoff(attempts=8, longest=30.0),
}

_RETRIED_STATUSES = frozenset({408, 409, 429})

#: Another attempt would fail in the same way.
_LASTING_ERRORS = (httpx2.UnsupportedProtocol, httpx2.LocalProtocolError)

#: Of these streams the last event is known; others, such as downloads, end with their bytes.
_STREAMS = frozenset({"/chat/completions", "/completions", "/responses"})

#: What costs money though its request, an upload, names no model in JSON.
_PAID_UPLOADS = ("/audio/", "/images/", "/videos")

#: Handing these over costs nothing; what a batch did is told when it is fetched.
_FREE = ("/files", "/uploads", "/batches")

#: What Azure puts before an endpoint.
_AZURE_PREFIX = re.compile(r"^/openai(?:/deployments/[^/]+|/v1)?(?=/)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How the calls of one alias are governed."""

    alias: str
    base_url: str
    settings: conf.OpenAISettings

    def deadline(self, profile: context.Profile) -> float:
        """Return the seconds over all attempts of a call; one given a longer timeout has that.

        A stream is bound by it until it starts, and then by the timeout of each read.
        """
        return self.settings.task_deadline if profile == "task" else self.settings.deadline


class Call:
    """One call: what it asks for, its deadline, its attempts and its verdicts."""

    def __init__(self, policy: Policy, request: httpx2.Request) -> None:
        self.request = request
        self.policy = policy
        self.settings = policy.settings
        self.attempts = 0
        self.attribution = context.attribution()
        self._started = time.monotonic()
        self._failures = 0
        self._timeouts: Mapping[str, float | None] = request.extensions.get("timeout", {})
        profile = context.current_profile()
        self._backoff = BACKOFFS[profile]
        self.deadline = Deadline.after(
            max(policy.deadline(profile), self._timeouts.get("read") or 0.0)
        )
        self.asked = _json_of(request)
        self._decoded: tuple[httpx2.Response, Any] | None = None
        path = request.url.path.removeprefix(urlsplit(policy.base_url).path.rstrip("/"))
        self.endpoint = _AZURE_PREFIX.sub("", path) if policy.settings.api_version else path

    # What it asks for

    @property
    def model(self) -> str | None:
        model = self.asked.get("model")
        return model if isinstance(model, str) else None

    @property
    def is_paid(self) -> bool:
        """Whether the service may ask money for it, as far as the request tells."""
        return self.request.method == "POST" and (
            self.model is not None or self.endpoint.startswith(_PAID_UPLOADS)
        )

    @property
    def _is_free(self) -> bool:
        """Whether nothing is asked for it: it looks something up, or hands something over."""
        return self.request.method != "POST" or self.endpoint.startswith(_FREE)

    @property
    def credentials(self) -> int:
        """What stands for the key that is sent, in this process only."""
        headers = self.request.headers
        return hash(headers.get("authorization") or headers.get("api-key"))

    @property
    def limit(self) -> conf.Limit:
        """What may be sent to its model each minute: as set, else as the service told."""
        given = self.settings.limit_of(self.model)
        told = pace.limit_of(self.policy.alias, self.model)
        return conf.Limit(
            requests=given.requests or told.requests, tokens=given.tokens or told.tokens
        )

    def estimated_tokens(self) -> int:
        """Return about how many tokens it will take of the limit a minute."""
        return tokens.estimate(self.asked)

    def highest_cost(self) -> Decimal | None:
        """Return what it may cost at most; None if nobody knows."""
        return tokens.most_expensive(
            self.asked, endpoint=self.endpoint, prices=self.settings.prices
        )

    def cost(self, ending: Ending) -> Decimal | None:
        """Return what it cost in US dollars; None if nobody knows."""
        if not self.attempts or ending.is_refused or self._is_free:
            return Decimal(0)
        return catalogue.cost(self.model, ending.usage, prices=self.settings.prices)

    # Its attempts

    def start_attempt(self) -> None:
        """Give the attempt no longer than the call has left."""
        self.attempts += 1
        self.request.extensions["timeout"] = {
            name: self.deadline.limit(self._timeouts.get(name))
            for name in ("connect", "read", "write", "pool")
        }

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

    def _is_worth_retrying(self, response: httpx2.Response) -> bool:
        status = response.status_code
        if status < 300:
            return False
        told = response.headers.get("x-should-retry")  # the API's own word on it
        if told in ("true", "false"):
            return told == "true"
        if not self.error_of(response).retryable:
            return False
        return status in _RETRIED_STATUSES or status >= 500

    def _delay(self, reason: str, asked: float | None = None) -> float | None:
        if not self._may_be_sent_again():
            return None
        delay = self._backoff.delay(self._failures, asked)
        if delay is None or delay >= self.deadline.remaining:
            return None
        logger.info(
            "OpenAI %r: %s failed (%s), attempt %d follows in %.1f s",
            self.policy.alias,
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

    # What an answer means

    def is_stream(self, response: httpx2.Response) -> bool:
        """Tell whether the caller reads the body himself, piece by piece."""
        known: bool | None = response.extensions.get(_IS_STREAM)
        if known is None:
            known = response.extensions[_IS_STREAM] = response.status_code < 300 and (
                self.request.headers.get("x-stainless-raw-response") == "stream"
                or response.headers.get("content-type", "").startswith("text/event-stream")
            )
        return known

    def verdict_on(self, response: httpx2.Response) -> httpx2.Response:
        """Return the response, or the error that it amounts to."""
        response.request = self.request
        if self.is_stream(response):
            return response
        if 300 <= response.status_code < 400:
            return self._redirected(response)
        if response.status_code >= 300:
            return response
        # What was read already has its time; the SDK would find none.
        response.elapsed = datetime.timedelta(seconds=time.monotonic() - self._started)
        if self.endpoint == "/embeddings":
            return self._embeddings(response)
        return self._json_answer(response) if self._expects_json else response

    def error_of(self, response: httpx2.Response) -> type[ServiceError]:
        """Return which of our errors an answer of status 300 or above means."""
        return error_class(response.status_code, self.code_of(response))

    def code_of(self, response: httpx2.Response) -> str | None:
        """Return the service's own short word for what is wrong."""
        return fault_in(self._body_of(response)).code

    @property
    def _expects_json(self) -> bool:
        return self.request.headers.get("accept") == "application/json"

    def _json_answer(self, response: httpx2.Response) -> httpx2.Response:
        if not response.content and response.status_code == 204:
            return response
        kind = response.headers.get("content-type", "application/json").partition(";")[0]
        # Transcriptions and the like may be asked for as text.
        if kind.endswith("json") and not isinstance(self._body_of(response), (dict, list)):
            return self._unusable("The answer is no JSON object.")
        if kind == "text/html":
            return self._unusable("The answer is a web page.")
        return response

    def _embeddings(self, response: httpx2.Response) -> httpx2.Response:
        count = count_inputs(self.asked.get("input"))
        try:
            reading = read_embeddings(self._body_of(response), count)
        except Unusable as fault:
            return self._unusable(f"The embeddings response is unusable: {fault}.")
        if reading.faults:
            position, reason = next(iter(reading.faults.items()))
            message = f"The embedding at index {position} is unusable: {reason}."
            response = answers.error(self.request, 502, message, UNUSABLE, is_final=True)
        response.extensions[READING] = reading
        return response

    def _unusable(self, message: str) -> httpx2.Response:
        return answers.error(self.request, 502, message, UNUSABLE)

    def _redirected(self, response: httpx2.Response) -> httpx2.Response:
        message = (
            f"The server answered with a redirect (HTTP {response.status_code}), which is not "
            "followed, since the request would go to another address. Set OPENAI_BASE_URL to "
            "the address that answers."
        )
        return answers.error(self.request, 421, message, REDIRECTED, is_final=True)

    def _body_of(self, response: httpx2.Response) -> Any:
        """Return the decoded answer; decoded once, since it may be megabytes."""
        if self._decoded is None or self._decoded[0] is not response:
            self._decoded = (response, decode_json(response.content))
        return self._decoded[1]

    # How it ended

    def ending(self, response: httpx2.Response) -> Ending:
        """Return how the call ended with the answer that the caller gets."""
        body = self._body_of(response)
        if response.status_code >= 300:
            return Ending(outcome=self.error_of(response).__name__, response=response, body=body)
        usage = usage_in(body) or UNKNOWN
        self._learn_pace(response, usage)
        return Ending(usage=usage, response=response, body=body)

    def ending_of_stream(
        self, response: httpx2.Response, events: Events, error: BaseException | None, *, whole: bool
    ) -> Ending:
        """Return how a stream ended.

        Args:
            response: The answer that was streamed.
            events: What its events told.
            error: What broke it.
            whole: Whether it was read to its end.
        """
        tells_its_end = self.endpoint in _STREAMS
        is_whole = events.is_complete if tells_its_end else whole
        outcome = "ok" if is_whole else "closed"
        if error is not None:
            outcome = ServiceUnavailable.__name__
        elif events.has_failed or (whole and not is_whole):
            outcome = InvalidResponse.__name__
        return Ending(
            outcome=outcome,
            usage=events.usage or (self._estimated(events) if tells_its_end else UNKNOWN),
            response=response,
            body=events.last,
        )

    def payload(self, ending: Ending) -> dict[str, Any]:
        """Return the payload of the signal that the call ended."""
        response, usage = ending.response, ending.usage
        return {
            "alias": self.policy.alias,
            "endpoint": self.endpoint,
            "model": self.model,
            "outcome": ending.outcome,
            "status": response.status_code if response else None,
            "request_id": response.headers.get("x-request-id") if response else None,
            "attempts": self.attempts,
            "elapsed_ms": (time.monotonic() - self._started) * 1_000,
            "input_tokens": usage.input_tokens,
            "cached_tokens": usage.cached_tokens,
            "output_tokens": usage.output_tokens,
            "is_estimated": usage.is_estimated,
            "cost": self.cost(ending),
            "is_embedded": self.settings.is_embedded,
            "tenant": self.attribution.tenant,
            "user": self.attribution.user,
            "feature": self.attribution.feature,
        }

    def _estimated(self, events: Events) -> Usage:
        return Usage(
            input_tokens=self.estimated_tokens(),
            output_tokens=events.pieces,
            is_estimated=True,
        )

    def _learn_pace(self, response: httpx2.Response, usage: Usage) -> None:
        pace.learn(
            self.policy.alias,
            self.model,
            limits_told(response),
            seconds=response.elapsed.total_seconds(),
            tokens=usage.input_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a call ended: what is told of it, and settled by it."""

    outcome: str = "ok"  # or the name of our error's class, or "closed"
    usage: Usage = UNKNOWN
    response: httpx2.Response | None = None
    #: The decoded answer; of a stream what its last event told.
    body: Any = None

    @property
    def is_refused(self) -> bool:
        """Whether the service did nothing for it, and so asks for nothing."""
        return self.response is not None and 300 <= self.response.status_code < 500


def limits_told(response: httpx2.Response) -> dict[str, str]:
    """Return what an answer's headers say of the service's limits."""
    # One look at all of them: httpx2 goes through all for each that is asked for.
    return {
        name.decode("ascii").lower(): value.decode("ascii", "replace")
        for name, value in response.headers.raw
        if name[:12].lower() == b"x-ratelimit-"
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
