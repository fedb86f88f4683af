"""OpenTelemetry spans and metrics of the calls, where its API is installed.

They follow the conventions for generative AI (semantic-conventions-genai, status
"Development", November 2026). Without OpenTelemetry every call gets the same `Span`,
which does nothing. What OpenTelemetry raises never reaches the call.
"""

from __future__ import annotations

import functools
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, Self
from urllib.parse import urlsplit

from .. import conf
from . import context, messages
from .usage import UNKNOWN, Usage

if TYPE_CHECKING:
    from opentelemetry import trace
    from opentelemetry.context import Context
    from opentelemetry.metrics import Histogram, Meter

P = ParamSpec("P")

logger = logging.getLogger(__name__)

#: Which operation of the conventions an endpoint is. Others, such as files, are none.
OPERATIONS = {
    "/chat/completions": "chat",
    "/responses": "chat",
    "/completions": "text_completion",
    "/embeddings": "embeddings",
    "/moderations": "moderation",
    "/images/generations": "generate_content",
    "/audio/speech": "generate_content",
}

API_TYPES = {"/chat/completions": "chat_completions", "/responses": "responses"}

#: What of a request a span tells, by its key there. None of it is the caller's text.
REQUEST_ATTRIBUTES: dict[str, tuple[str, type[int | float | str]]] = {
    "max_tokens": ("gen_ai.request.max_tokens", int),
    "max_completion_tokens": ("gen_ai.request.max_tokens", int),
    "max_output_tokens": ("gen_ai.request.max_tokens", int),
    "temperature": ("gen_ai.request.temperature", float),
    "top_p": ("gen_ai.request.top_p", float),
    "frequency_penalty": ("gen_ai.request.frequency_penalty", float),
    "presence_penalty": ("gen_ai.request.presence_penalty", float),
    "seed": ("gen_ai.request.seed", int),
    "dimensions": ("gen_ai.embeddings.dimension.count", int),
    "service_tier": ("openai.request.service_tier", str),
}

#: The same of an answer.
ANSWER_ATTRIBUTES = {
    "id": "gen_ai.response.id",
    "model": "gen_ai.response.model",
    "service_tier": "openai.response.service_tier",
    "system_fingerprint": "openai.response.system_fingerprint",
}

# The boundaries that the conventions advise.
SECONDS = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92]
TOKENS = [float(4**power) for power in range(14)]

#: Outcomes that are no error: a reader may leave a stream when it has enough.
_GOOD_OUTCOMES = frozenset({"ok", "closed"})


class Span:
    """One operation with all of its attempts; this one is watched by nobody.

    ``with span:`` makes it current, so that what HTTP instrumentation records stands
    below it. Leaving the block does not end it, since a stream goes on; but an
    exception that leaves it does.
    """

    __slots__ = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        frames: TracebackType | None,
    ) -> None:
        pass

    def retried(self, reason: str, delay: float) -> None:
        """Note that another attempt follows.

        Args:
            reason: Why: "HTTP 503", or the name of an error's class.
            delay: Seconds until it.
        """

    def received_first(self) -> None:
        """Note that a stream's first piece arrived; later pieces change nothing."""

    def end(
        self,
        *,
        outcome: str = "ok",
        status: int | None = None,
        usage: Usage | None = None,
        answer: Any = None,
        attempts: int = 1,
    ) -> None:
        """End the operation; only the first time counts.

        Args:
            outcome: "ok", "closed" (a stream that its reader left), or what went
                wrong: the name of an error's class.
            status: HTTP status of the last answer.
            usage: Its tokens; estimated ones are not told.
            answer: The decoded answer, of a stream what its last event held.
            attempts: HTTP requests that were sent.
        """


UNWATCHED = Span()


def begin(
    endpoint: str, asked: Mapping[str, Any], *, alias: str, settings: conf.OpenAISettings
) -> Span:
    """Return the span of an operation that begins now; end it with its `end`.

    Args:
        endpoint: Path below the base URL.
        asked: The request's decoded body.
        alias: The service's name in ``DJANGO_SERVICES["OPENAI"]``.
        settings: The alias's.
    """
    operation = OPERATIONS.get(endpoint)
    instruments = _instruments() if operation else None
    if operation is None or instruments is None:
        return UNWATCHED
    try:
        span = _WatchedSpan(instruments, operation, asked, settings)
        span.tell_request(endpoint, asked, alias)
    except Exception as error:  # noqa: BLE001
        # Samplers, processors and exporters are the project's: none may fail a call.
        _report(error)
        return UNWATCHED
    return span


class Instruments:
    """What records: a tracer, and the histograms of a meter."""

    def __init__(self, tracer: trace.Tracer, meter: Meter) -> None:
        self.tracer = tracer
        self.duration = _histogram(
            meter, "gen_ai.client.operation.duration", "s", "GenAI operation duration.", SECONDS
        )
        self.tokens = _histogram(
            meter,
            "gen_ai.client.token.usage",
            "{token}",
            "Number of input and output tokens used.",
            TOKENS,
        )
        self.first_piece = _histogram(
            meter,
            "gen_ai.client.operation.time_to_first_chunk",
            "s",
            "Time to receive the first chunk of a stream.",
            SECONDS,
        )


def _histogram(
    meter: Meter, name: str, unit: str, description: str, boundaries: list[float]
) -> Histogram:
    return meter.create_histogram(
        name, unit, description, explicit_bucket_boundaries_advisory=boundaries
    )


def _instruments() -> Instruments | None:
    """Return what records, None where nobody does: the API alone only looks as if."""
    api = _api()
    if api is None or not api.is_provided():
        return None
    return _own_instruments()


class _Api(NamedTuple):
    """OpenTelemetry's API."""

    metrics: Any
    trace: Any

    def is_provided(self) -> bool:
        """Tell whether the project set a provider, which it may do at any time."""
        provided = (self.trace.get_tracer_provider(), self.metrics.get_meter_provider())
        return any("Proxy" not in type(provider).__name__ for provider in provided)


@functools.cache
def _api() -> _Api | None:
    try:
        from opentelemetry import metrics, trace
    except ImportError:
        return None
    return _Api(metrics, trace)


@functools.cache
def _own_instruments() -> Instruments:
    from opentelemetry import metrics, trace

    # Providers that the project sets later are found by both.
    return Instruments(trace.get_tracer("django_services"), metrics.get_meter("django_services"))


def _report(error: Exception) -> None:
    logger.warning("OpenTelemetry failed: %s", type(error).__name__)


def _harmless(note: Callable[P, None]) -> Callable[P, None]:
    """Let nothing that OpenTelemetry raises leave a note."""

    @functools.wraps(note)
    def noted(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            note(*args, **kwargs)
        except Exception as error:  # noqa: BLE001
            # As above.
            _report(error)

    return noted


class _WatchedSpan(Span):
    __slots__ = ("_common", "_instruments", "_is_ended", "_span", "_started", "_takes_content",
                 "_token", "_waits_for_first")  # fmt: skip

    def __init__(
        self,
        instruments: Instruments,
        operation: str,
        asked: Mapping[str, Any],
        settings: conf.OpenAISettings,
    ) -> None:
        from opentelemetry.trace import SpanKind

        self._started = time.perf_counter()
        self._instruments = instruments
        self._common = _common_attributes(operation, asked, settings)
        self._takes_content = settings.capture_content
        self._waits_for_first = asked.get("stream") is True
        self._is_ended = False
        self._token: Any = None
        self._span = instruments.tracer.start_span(
            " ".join(filter(None, (operation, self._common.get("gen_ai.request.model")))),
            kind=SpanKind.INTERNAL if settings.is_embedded else SpanKind.CLIENT,
            attributes=self._common,
        )

    def tell_request(self, endpoint: str, asked: Mapping[str, Any], alias: str) -> None:
        if not self._span.is_recording():
            return
        self._span.set_attributes(_asked_attributes(endpoint, asked, alias))
        if self._takes_content:
            self._span.set_attributes(_json_attributes(messages.asked_content(endpoint, asked)))

    def __enter__(self) -> Self:
        self._attach()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        frames: TracebackType | None,
    ) -> None:
        self._detach()
        if kind is not None:
            self.end(outcome=kind.__name__)

    @_harmless
    def retried(self, reason: str, delay: float) -> None:
        self._span.add_event("retry", {"reason": reason, "delay": delay})

    @_harmless
    def received_first(self) -> None:
        if not self._waits_for_first:
            return
        self._waits_for_first = False
        seconds = time.perf_counter() - self._started
        self._span.set_attribute("gen_ai.response.time_to_first_chunk", seconds)
        self._instruments.first_piece.record(seconds, self._common, self._context())

    @_harmless
    def end(
        self,
        *,
        outcome: str = "ok",
        status: int | None = None,
        usage: Usage | None = None,
        answer: Any = None,
        attempts: int = 1,
    ) -> None:
        if self._is_ended:
            return
        self._is_ended = True
        usage = usage if usage and not usage.is_estimated else UNKNOWN
        answer = answer if isinstance(answer, dict) else {}
        try:
            if self._span.is_recording():
                self._tell_end(outcome, status, usage, answer, attempts)
            self._record(outcome, usage, answer)
        finally:
            self._span.end()

    @_harmless
    def _attach(self) -> None:
        from opentelemetry import context as current

        self._token = current.attach(self._context())

    @_harmless
    def _detach(self) -> None:
        from opentelemetry import context as current

        token, self._token = self._token, None
        if token is not None:
            current.detach(token)

    def _context(self) -> Context:
        from opentelemetry.trace import set_span_in_context

        return set_span_in_context(self._span)

    def _tell_end(
        self,
        outcome: str,
        status: int | None,
        usage: Usage,
        answer: Mapping[str, Any],
        attempts: int,
    ) -> None:
        self._span.set_attributes(dict(_answer_attributes(answer)))
        self._span.set_attributes(dict(_ending_attributes(status, usage, attempts)))
        if self._takes_content:
            self._span.set_attributes(_json_attributes(messages.answered_content(answer)))
        if outcome not in _GOOD_OUTCOMES:
            from opentelemetry.trace import StatusCode

            # Without the error's message, which may quote the prompt.
            self._span.set_status(StatusCode.ERROR)
            self._span.set_attribute("error.type", outcome)

    def _record(self, outcome: str, usage: Usage, answer: Mapping[str, Any]) -> None:
        attributes = dict(self._common)
        if isinstance(model := answer.get("model"), str):
            attributes["gen_ai.response.model"] = model
        around = self._context()
        counts = {"input": usage.input_tokens, "output": usage.output_tokens}
        for kind, count in counts.items():
            if count is not None:
                of_kind = {**attributes, "gen_ai.token.type": kind}
                self._instruments.tokens.record(count, of_kind, around)
        if outcome not in _GOOD_OUTCOMES:
            attributes["error.type"] = outcome
        seconds = time.perf_counter() - self._started
        self._instruments.duration.record(seconds, attributes, around)


# What is told ------------------------------------------------------------------------


def _common_attributes(
    operation: str, asked: Mapping[str, Any], settings: conf.OpenAISettings
) -> dict[str, Any]:
    """Return what samplers and metrics need: few values, each of them met often."""
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "azure.ai.openai" if settings.api_version else "openai",
    }
    if isinstance(model := asked.get("model"), str):
        attributes["gen_ai.request.model"] = model
    if not settings.is_embedded:
        attributes |= _server(settings.base_url)
    return attributes


@functools.lru_cache(maxsize=64)
def _server(base_url: str) -> dict[str, Any]:
    parts = urlsplit(base_url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return {"server.address": parts.hostname or "", "server.port": port}


def _asked_attributes(endpoint: str, asked: Mapping[str, Any], alias: str) -> dict[str, Any]:
    attributes: dict[str, Any] = {"django_services.alias": alias}
    for key, (name, kind) in REQUEST_ATTRIBUTES.items():
        value = asked.get(key)
        if isinstance(value, int | float) and kind is float:
            attributes[name] = float(value)
        elif isinstance(value, kind):
            attributes[name] = value
    if endpoint in API_TYPES:
        attributes["openai.api.type"] = API_TYPES[endpoint]
        attributes["gen_ai.request.stream"] = asked.get("stream") is True
    if isinstance(count := asked.get("n"), int) and count != 1:
        attributes["gen_ai.request.choice.count"] = count
    if endpoint == "/embeddings" and isinstance(encoding := asked.get("encoding_format"), str):
        attributes["gen_ai.request.encoding_formats"] = [encoding]
    return attributes | _attribution()


def _attribution() -> dict[str, Any]:
    for_whom = context.attribution()
    named = {
        "django_services.tenant": for_whom.tenant,
        "django_services.feature": for_whom.feature,
        "user.id": for_whom.user,
    }
    return {name: value for name, value in named.items() if value}


def _answer_attributes(answer: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, name in ANSWER_ATTRIBUTES.items():
        if isinstance(value := answer.get(key), str):
            yield name, value
    if reasons := messages.finish_reasons(answer):
        yield "gen_ai.response.finish_reasons", reasons


def _ending_attributes(
    status: int | None, usage: Usage, attempts: int
) -> Iterator[tuple[str, Any]]:
    if status is not None:
        yield "http.response.status_code", status
    if attempts > 1:
        yield "http.request.resend_count", attempts - 1
    if usage.input_tokens is not None:
        yield "gen_ai.usage.input_tokens", usage.input_tokens
    if usage.cached_tokens:
        yield "gen_ai.usage.cache_read.input_tokens", usage.cached_tokens
    if usage.output_tokens is not None:
        yield "gen_ai.usage.output_tokens", usage.output_tokens


def _json_attributes(content: Mapping[str, Any]) -> dict[str, str]:
    # As JSON: not every exporter takes structured attributes.
    return {name: json.dumps(value, ensure_ascii=False) for name, value in content.items()}
