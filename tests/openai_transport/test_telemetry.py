"""Spans and metrics: the conventions' names, nobody's text, and never in the way."""

from __future__ import annotations

import builtins
import json
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NoOpTracerProvider, SpanKind, StatusCode

from django_services import conf
from django_services.openai_transport import context, telemetry
from django_services.openai_transport.usage import Usage

REMOTE = conf.OpenAISettings(api_key="sk-x", base_url="https://models.example:8443/v1")
EMBEDDED = conf.OpenAISettings(base_url=conf.EMBEDDED_URL)
SECRET = "canary-in-the-prompt"
CHAT = {
    "model": "gpt-6-luna",
    "messages": [{"role": "user", "content": SECRET}],
    "temperature": 0,
    "max_completion_tokens": 50,
    "stop": [SECRET],
    "n": 2,
}
ANSWER = {
    "id": "chatcmpl-1",
    "model": "gpt-6-luna-2026-08-01",
    "choices": [
        {"message": {"role": "assistant", "content": SECRET}, "finish_reason": "stop"},
        {"message": {"role": "assistant", "content": SECRET}, "finish_reason": "length"},
    ],
}


class Recorded:
    """What OpenTelemetry's SDK got."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        tracers = TracerProvider(shutdown_on_exit=False)
        tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        meters = MeterProvider([self._reader], shutdown_on_exit=False)
        self.tracer = tracers.get_tracer("tests")
        self.meter = meters.get_meter("tests")

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    @property
    def span(self) -> ReadableSpan:
        (span,) = self.spans
        return span

    def points(self, name: str) -> list[Any]:
        data = self._reader.get_metrics_data()
        found = data.resource_metrics[0].scope_metrics[0].metrics if data else []
        return [
            point for metric in found if metric.name == name for point in metric.data.data_points
        ]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    recorded = Recorded()
    instruments = telemetry.Instruments(recorded.tracer, recorded.meter)
    monkeypatch.setattr(telemetry, "_instruments", lambda: instruments)
    return recorded


def begin(
    endpoint: str = "/chat/completions",
    asked: dict[str, Any] | None = None,
    settings: conf.OpenAISettings = REMOTE,
) -> telemetry.Span:
    return telemetry.begin(endpoint, asked or CHAT, alias="default", settings=settings)


def embedding(**options: Any) -> telemetry.Span:
    return begin("/embeddings", {"model": "m", "input": [SECRET], **options})


# Spans -------------------------------------------------------------------------------


def test_without_a_provider_nothing_is_recorded_and_a_later_one_is_found(monkeypatch):
    api = telemetry._api()
    assert api is not None
    before = telemetry._instruments()

    monkeypatch.setattr(api.trace, "get_tracer_provider", TracerProvider)

    assert before is None
    assert telemetry._instruments() is not None


def test_a_span_tells_who_was_asked_for_what(recorded):
    begin().end()

    span = recorded.span
    assert (span.name, span.kind) == ("chat gpt-6-luna", SpanKind.CLIENT)
    told = {name: value for name, value in span.attributes.items() if "response" not in name}
    assert told == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-6-luna",
        "gen_ai.request.temperature": 0.0,
        "gen_ai.request.max_tokens": 50,
        "gen_ai.request.choice.count": 2,
        "gen_ai.request.stream": False,
        "openai.api.type": "chat_completions",
        "server.address": "models.example",
        "server.port": 8443,
        "django_services.alias": "default",
    }


def test_a_span_tells_the_answer_and_its_usage(recorded):
    usage = Usage(input_tokens=7, cached_tokens=2, output_tokens=3)

    begin().end(status=200, usage=usage, answer=ANSWER)

    told = recorded.span.attributes
    assert told["gen_ai.response.id"] == "chatcmpl-1"
    assert told["gen_ai.response.model"] == "gpt-6-luna-2026-08-01"
    assert told["gen_ai.response.finish_reasons"] == ("stop", "length")
    assert told["gen_ai.usage.input_tokens"] == 7
    assert told["gen_ai.usage.cache_read.input_tokens"] == 2
    assert told["gen_ai.usage.output_tokens"] == 3
    assert told["http.response.status_code"] == 200
    assert recorded.span.status.status_code is StatusCode.UNSET


def test_an_embedding_tells_its_dimensions_and_encoding(recorded):
    embedding(dimensions=256, encoding_format="base64").end()

    told = recorded.span.attributes
    assert recorded.span.name == "embeddings m"
    assert told["gen_ai.embeddings.dimension.count"] == 256
    assert told["gen_ai.request.encoding_formats"] == ("base64",)


def test_an_error_is_the_status_and_the_type_without_its_words(recorded):
    begin().end(outcome="RateLimited", status=429)

    span = recorded.span
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, None)
    assert span.attributes["error.type"] == "RateLimited"


def test_a_stream_that_its_reader_left_is_no_error(recorded):
    begin().end(outcome="closed", status=200)

    assert recorded.span.status.status_code is StatusCode.UNSET
    assert "error.type" not in recorded.span.attributes


def test_estimated_tokens_are_not_told(recorded):
    begin().end(usage=Usage(input_tokens=7, output_tokens=3, is_estimated=True))

    assert not any("usage" in name for name in recorded.span.attributes)
    assert recorded.points("gen_ai.client.token.usage") == []


def test_retries_are_events_and_counted(recorded):
    span = begin()
    span.retried("HTTP 503", 0.5)
    span.end(attempts=2)

    (event,) = recorded.span.events
    assert (event.name, dict(event.attributes)) == ("retry", {"reason": "HTTP 503", "delay": 0.5})
    assert recorded.span.attributes["http.request.resend_count"] == 1


def test_only_the_first_end_counts(recorded):
    span = begin()
    span.end()
    span.end(outcome="RateLimited")

    assert recorded.span.status.status_code is StatusCode.UNSET
    assert len(recorded.points("gen_ai.client.operation.duration")) == 1


def test_what_is_recorded_during_the_call_stands_below_it(recorded):
    with begin() as span:
        recorded.tracer.start_span("POST").end()
    recorded.tracer.start_span("after").end()
    span.end()

    below, after, call = recorded.spans
    assert below.parent.span_id == call.context.span_id
    assert after.parent is None


def test_a_stream_goes_on_after_the_block(recorded):
    with begin() as span:
        pass
    assert recorded.spans == []

    span.end()

    assert len(recorded.spans) == 1


def test_an_exception_that_leaves_the_block_ends_the_span(recorded):
    with pytest.raises(KeyboardInterrupt), begin():
        raise KeyboardInterrupt

    assert recorded.span.attributes["error.type"] == "KeyboardInterrupt"
    assert recorded.span.events == ()


def test_attribution_is_told_where_it_was_said(recorded):
    with context.attributed(tenant="acme", user=7, feature="search"):
        begin().end()

    told = recorded.span.attributes
    assert told["django_services.tenant"] == "acme"
    assert told["django_services.feature"] == "search"
    assert told["user.id"] == "7"


def test_the_embedded_model_is_internal_and_has_no_server(recorded):
    begin("/embeddings", {"model": "m"}, EMBEDDED).end()

    assert recorded.span.kind is SpanKind.INTERNAL
    assert "server.address" not in recorded.span.attributes


def test_azure_is_named(recorded):
    begin(settings=conf.OpenAISettings(api_key="k", api_version="2026-01-01")).end()

    assert recorded.span.attributes["gen_ai.provider.name"] == "azure.ai.openai"


def test_an_endpoint_that_is_no_operation_has_no_span(recorded):
    begin("/files", {"purpose": "batch"}).end()

    assert recorded.spans == []


# Metrics -----------------------------------------------------------------------------


def test_the_duration_is_measured_by_what_is_common(recorded):
    begin().end(outcome="RateLimited", answer=ANSWER)

    (point,) = recorded.points("gen_ai.client.operation.duration")
    assert point.count == 1
    assert tuple(point.explicit_bounds) == tuple(telemetry.SECONDS)
    assert dict(point.attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-6-luna",
        "gen_ai.response.model": "gpt-6-luna-2026-08-01",
        "server.address": "models.example",
        "server.port": 8443,
        "error.type": "RateLimited",
    }


def test_tokens_are_measured_by_type(recorded):
    begin().end(usage=Usage(input_tokens=7, output_tokens=3))

    points = recorded.points("gen_ai.client.token.usage")
    assert {point.attributes["gen_ai.token.type"]: point.sum for point in points} == {
        "input": 7,
        "output": 3,
    }
    # As the conventions advise: 1, 4, 16 … 67,108,864.
    assert tuple(points[0].explicit_bounds) == tuple(4**power for power in range(14))


def test_the_first_piece_of_a_stream_is_measured_once(recorded):
    span = begin(asked={**CHAT, "stream": True})
    span.received_first()
    span.received_first()
    span.end()

    (point,) = recorded.points("gen_ai.client.operation.time_to_first_chunk")
    assert point.count == 1
    assert recorded.span.attributes["gen_ai.response.time_to_first_chunk"] == point.sum


def test_a_span_that_is_not_sampled_is_measured_all_the_same(recorded, monkeypatch):
    unsampled = telemetry.Instruments(NoOpTracerProvider().get_tracer("tests"), recorded.meter)
    monkeypatch.setattr(telemetry, "_instruments", lambda: unsampled)

    begin().end(usage=Usage(input_tokens=7), answer=ANSWER)

    assert len(recorded.points("gen_ai.client.operation.duration")) == 1


# Content -----------------------------------------------------------------------------


def test_no_text_is_told_unless_asked_for(recorded):
    begin().end(status=200, answer=ANSWER)
    embedding().end()
    begin("/responses", {"model": "m", "input": SECRET, "instructions": SECRET}).end()

    assert SECRET not in "".join(span.to_json() for span in recorded.spans)


def test_content_is_told_where_the_setting_says_so(recorded):
    settings = conf.OpenAISettings(api_key="k", capture_content=True)

    begin(settings=settings).end(answer=ANSWER)

    told = recorded.span.attributes
    assert json.loads(told["gen_ai.input.messages"]) == [
        {"role": "user", "parts": [{"type": "text", "content": SECRET}]}
    ]
    assert [each["finish_reason"] for each in json.loads(told["gen_ai.output.messages"])] == [
        "stop",
        "length",
    ]


# Never in the way --------------------------------------------------------------------


def test_without_opentelemetry_all_calls_share_a_span_that_does_nothing(monkeypatch):
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    telemetry._api.cache_clear()
    try:
        with begin() as span:
            span.retried("HTTP 503", 0.5)
            span.received_first()
        span.end(usage=Usage(input_tokens=1))
        assert span is begin("/embeddings", {"model": "m"})
    finally:
        telemetry._api.cache_clear()


def test_with_the_api_alone_nothing_is_recorded_nor_raised():
    with begin() as span:
        assert not trace.get_current_span().is_recording()
    span.end(usage=Usage(input_tokens=1), answer=ANSWER)


class BrokenTracer(trace.NoOpTracer):
    """Its spans raise whenever they are touched."""

    def __init__(self, *, at_start: bool) -> None:
        self._at_start = at_start

    def start_span(self, *args: Any, **kwargs: Any) -> Any:
        if self._at_start:
            raise RuntimeError(SECRET)
        return BrokenSpan(trace.INVALID_SPAN_CONTEXT)


class BrokenSpan(trace.NonRecordingSpan):
    def end(self, *args: Any) -> None:
        raise RuntimeError(SECRET)

    add_event = set_attribute = end


@pytest.mark.parametrize("at_start", [True, False])
def test_what_opentelemetry_raises_reaches_neither_call_nor_log(
    at_start, recorded, monkeypatch, caplog
):
    broken = telemetry.Instruments(BrokenTracer(at_start=at_start), recorded.meter)
    monkeypatch.setattr(telemetry, "_instruments", lambda: broken)

    with begin(asked={**CHAT, "stream": True}) as span:
        span.retried("HTTP 503", 0.5)
        span.received_first()
    span.end()

    assert "OpenTelemetry failed: RuntimeError" in caplog.text
    assert SECRET not in caplog.text
