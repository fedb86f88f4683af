from __future__ import annotations

import asyncio
import gc
import inspect
import json
import math
import pickle
from typing import Literal

import pytest
from django.utils.safestring import mark_safe
from django.utils.translation import gettext_lazy
from pydantic import BaseModel

from django_services.exceptions import (
    AuthenticationFailed,
    InvalidInput,
    InvalidRequest,
    InvalidResponse,
    RateLimited,
    ServiceError,
    ServiceUnavailable,
)
from django_services.openai_service import (
    acomplete,
    astream,
    attributed,
    complete,
    get_openai_client,
    stream,
)
from django_services.openai_transport.completions import (
    Assembly,
    Completion,
    ToolCall,
    read_answer,
)
from django_services.openai_transport.prompts import Asked, Target, request_of
from django_services.openai_transport.usage import Usage

from ..fake_openai import KEY, SAID, chunk

EMOJI = "a\x00b 😀 مرحبا\u2028"


class City(BaseModel):
    name: str
    climate: Literal["dry", "wet"]


PARIS = '{"name": "Paris", "climate": "wet"}'
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
CALL = {"id": "call-1", "type": "function", "function": {"name": "look_up", "arguments": '{"x":1}'}}


class Sync:
    """Asks with the sync verbs."""

    @staticmethod
    def complete(*given, **options):
        return complete(*given, **options)

    @staticmethod
    def stream(*given, **options):
        pieces = stream(*given, **options)
        return list(pieces), pieces.completion


class Async:
    """Asks with the async verbs, each time in a loop of its own."""

    @staticmethod
    def complete(*given, **options):
        return asyncio.run(acomplete(*given, **options))

    @staticmethod
    def stream(*given, **options):
        async def call():
            pieces = astream(*given, **options)
            return [piece async for piece in pieces], pieces.completion

        return asyncio.run(call())


class SyncStream(Sync):
    """Asks for a stream where a whole answer would do."""

    @staticmethod
    def complete(*given, **options):
        return Sync.stream(*given, **options)[1]


class AsyncStream(Async):
    """Asks for a stream where a whole answer would do."""

    @staticmethod
    def complete(*given, **options):
        return Async.stream(*given, **options)[1]


@pytest.fixture(params=[Sync, Async], ids=["sync", "async"])
def asker(request, fake_openai):
    return request.param


@pytest.fixture(
    params=[Sync, Async, SyncStream, AsyncStream],
    ids=["sync", "async", "sync stream", "async stream"],
)
def any_asker(request, fake_openai):
    return request.param


def messages_of(prompt, **options):
    """Return the messages that are sent for a prompt."""
    instructions = options.pop("instructions", None)
    target = Target("default", "gpt-6-luna", None, None, None)
    request = request_of(Asked(prompt, instructions, None, options), target)
    return request.body.reveal()["messages"]


# What is sent


def test_a_text_is_sent_as_the_users_message(any_asker, fake_openai):
    any_asker.complete("What is bread?", instructions="Be short.")

    assert fake_openai.calls[0].path == "/v1/chat/completions"
    assert fake_openai.calls[0].body["messages"] == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "What is bread?"},
    ]


def test_the_model_is_the_aliass_unless_it_is_named(asker, fake_openai, settings):
    settings.DJANGO_SERVICES = fake_openai.settings(MODEL="the-aliass")

    asker.complete("hello")
    asker.complete("hello", model="another")

    assert [call.body["model"] for call in fake_openai.calls] == ["the-aliass", "another"]


def test_options_reach_the_service_as_they_are(any_asker, fake_openai):
    any_asker.complete(
        "hello",
        max_output_tokens=9,
        temperature=0,
        tools=[TOOL],
        seed=7,
        metadata={"a": "b"},
        max_tokens=5,
        top_p=None,
        extra_body={"own": [1]},
        extra_headers={"x-own": "yes"},
        extra_query={"q": "1"},
        timeout=5,
    )

    call = fake_openai.calls[0]
    assert (
        call.body
        | {
            "max_completion_tokens": 9,
            "temperature": 0,
            "tools": [TOOL],
            "seed": 7,
            "metadata": {"a": "b"},
            "max_tokens": 5,
            "own": [1],
        }
        == call.body
    )
    assert "top_p" not in call.body
    assert call.headers["x-own"] == "yes"
    assert call.path.endswith("?q=1")


def test_what_is_not_asked_for_is_not_sent(asker, fake_openai):
    asker.complete("hello")

    assert set(fake_openai.calls[0].body) == {"model", "messages"}


def test_a_stream_asks_for_its_usage_unless_told_otherwise(asker, fake_openai):
    asker.stream("hello")
    asker.stream("hello", stream_options=None)

    told = [call.body.get("stream_options") for call in fake_openai.calls]
    assert told == [{"include_usage": True}, None]


def test_unusual_texts_arrive_as_they_are(any_asker, fake_openai):
    any_asker.complete(EMOJI)

    assert fake_openai.calls[0].body["messages"][0]["content"] == EMOJI


@pytest.mark.parametrize("text", [mark_safe("<b>"), gettext_lazy("Yes")])
def test_djangos_own_texts_are_texts(text):
    sent = messages_of(text, instructions=text)

    assert [type(message["content"]) for message in sent] == [str, str]


def test_messages_are_sent_as_they_are():
    given = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "Look:"}, {"type": "image_url"}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call-1", "content": ""},
        {"role": "assistant", "content": ""},
    ]

    assert messages_of(given) == given
    assert messages_of(tuple(given)) == given


def test_a_message_of_the_sdk_is_a_message(fake_openai):
    client = get_openai_client()
    answer = client.chat.completions.create(
        model="gpt-6-luna", messages=[{"role": "user", "content": "hello"}]
    )

    sent = messages_of([answer.choices[0].message])

    assert sent == [{"role": "assistant", "content": SAID}]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (None, "prompt is None"),
        (7, "prompt is of type int"),
        (b"bytes", "prompt is of type bytes"),
        ({"role": "user"}, "prompt is of type dict"),
        ((word for word in "ab"), "prompt is of type generator"),
        ("", "prompt is blank"),
        (" \n", "prompt is blank"),
        ("\ud800", "prompt holds a lone surrogate"),
        ("x" * 10_000_000, "prompt has 10,000,000 bytes"),
        ([], "prompt is an empty list"),
        (["hello"], r"messages\[0\] is of type str"),
        ([{"role": "user", "content": "hi"}, None], r"messages\[1\] is of type NoneType"),
        ([{"content": "hi"}], r'messages\[0\]\["role"\]'),
        ([{"role": "user"}], r'messages\[0\]\["content"\] is None'),
        ([{"role": "user", "content": ""}], r'messages\[0\]\["content"\] is blank'),
        ([{"role": "user", "content": b"x"}], r'messages\[0\]\["content"\] is of type bytes'),
        ([{"role": "user", "content": []}], r'messages\[0\]\["content"\] is an empty list'),
        (
            [{"role": "user", "content": [{"type": "text", "text": "\ud800"}]}],
            r'messages\[0\]\["content"\]\[0\]\[.text.\] holds a lone surrogate',
        ),
        (
            [{"role": "user", "content": [{"type": "text", "text": " "}]}],
            r'messages\[0\]\["content"\]\[0\]\["text"\] is blank',
        ),
        ([{"role": "user", "content": ["text"]}], r'messages\[0\]\["content"\]\[0\] is of type'),
        ([{"role": "user", "content": "hi", "name": {1}}], r"\['name'\] holds a set"),
        ([{"role": "user", "content": "hi", "name": "\ud800"}], r"\['name'\] holds a lone"),
    ],
)
def test_a_bad_prompt_is_named_by_position(prompt, words):
    with pytest.raises(InvalidInput, match=words):
        messages_of(prompt)


def test_a_message_that_holds_itself_is_refused():
    message = {"role": "user", "content": "hi"}
    message["name"] = message

    with pytest.raises(InvalidInput, match="holds itself"):
        messages_of([message])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"instructions": ""}, "instructions is blank"),
        ({"instructions": b"x"}, "instructions is of type bytes"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": True}, "max_output_tokens"),
        ({"max_output_tokens": "9"}, "max_output_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"n": 2}, "n is not an option"),
        ({"stream": True}, r"stream\(\)"),
        ({"messages": []}, "first argument"),
        ({"top_p": math.inf}, r"options\['top_p'\] is not finite"),
        ({"user": object()}, r"options\['user'\] holds a object"),
        ({"tools": [{"type": b"x"}]}, r"tools\[0\]\['type'\] holds a bytes"),
        ({"extra_body": {"x": {1}}}, r"extra_body\['x'\] holds a set"),
        ({"response_model": dict}, "pydantic.BaseModel"),
        ({"response_model": City, "response_format": {"type": "text"}}, "not both"),
        ({"extra_headers": {"x": object()}}, "extra_headers"),
        ({"extra_headers": {"x": "\ud800"}}, "extra_headers"),
    ],
)
def test_a_bad_option_is_named_before_any_call(any_asker, fake_openai, options, words):
    with pytest.raises(InvalidInput, match=words):
        any_asker.complete("hello", **options)

    assert not fake_openai.calls


@pytest.mark.parametrize("verb", [stream, astream])
def test_a_stream_refuses_bad_input_before_it_is_read(fake_openai, verb):
    with pytest.raises(InvalidInput, match="prompt is blank"):
        verb("")


def test_the_twins_have_the_same_arguments():
    names = [
        list(inspect.signature(verb).parameters) for verb in (complete, acomplete, stream, astream)
    ]

    assert names == [names[0]] * 4


# What comes back


def test_a_completion_tells_all_of_its_answer(any_asker):
    completion = any_asker.complete("hello")

    assert completion == Completion(
        text=SAID,
        finish_reason="stop",
        model="gpt-6-luna",
        usage=Usage(input_tokens=11, output_tokens=5),
        request_id="req-1",
    )


def test_a_completion_shows_none_of_its_answer(fake_openai):
    fake_openai.say("secret", tool_calls=[CALL | {"function": {"name": "f", "arguments": "{}"}}])

    completion = complete("hello", tools=[TOOL])

    assert "secret" not in repr(completion)
    assert "arguments" not in repr(completion.tool_calls)


def test_a_completion_survives_a_pickle(fake_openai):
    fake_openai.say(PARIS)
    completion = complete("hello", response_model=City)

    assert pickle.loads(pickle.dumps(completion)) == completion


def test_an_answer_is_parsed_as_the_model_that_was_asked_for(any_asker, fake_openai):
    fake_openai.say(PARIS)

    completion = any_asker.complete("Where?", response_model=City)

    assert completion.parsed == City(name="Paris", climate="wet")
    wanted = fake_openai.calls[0].body["response_format"]
    assert wanted["type"] == "json_schema"
    assert wanted["json_schema"]["name"] == "City"
    assert wanted["json_schema"]["strict"] is True
    assert wanted["json_schema"]["schema"]["additionalProperties"] is False


@pytest.mark.parametrize("text", ["", "no json", "{}", '{"name": "Paris", "climate": "odd"}'])
def test_an_answer_of_another_shape_may_come_right_later(any_asker, fake_openai, text):
    fake_openai.say(text)

    with pytest.raises(InvalidResponse, match="City") as caught:
        any_asker.complete("Where?", response_model=City)

    assert caught.value.code == "invalid_output"
    assert caught.value.retryable


def test_the_fields_that_do_not_fit_are_named_and_not_their_content(fake_openai):
    fake_openai.say('{"name": "Paris", "climate": "secret"}')

    with pytest.raises(InvalidResponse, match="at 'climate'") as caught:
        complete("Where?", response_model=City)

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("choice", "options", "code"),
    [
        ({"text": "", "refusal": "No."}, {}, "refusal"),
        ({"text": "So", "finish_reason": "content_filter"}, {}, "content_filter"),
        ({"text": '{"na', "finish_reason": "length"}, {"response_model": City}, "length"),
    ],
)
def test_an_answer_that_is_none_is_not_to_be_asked_for_again(
    any_asker, fake_openai, choice, options, code
):
    fake_openai.say(**choice)

    with pytest.raises(InvalidRequest) as caught:
        any_asker.complete("hello", **options)

    assert caught.value.code == code
    assert caught.value.request_id == "req-1"
    assert not caught.value.retryable


def test_a_text_that_is_cut_off_at_the_limit_is_given_and_marked(any_asker, fake_openai):
    fake_openai.say("Half an", finish_reason="length")

    completion = any_asker.complete("hello", max_output_tokens=2)

    assert (completion.text, completion.is_cut_off) == ("Half an", True)


def test_calls_of_tools_are_returned(any_asker, fake_openai):
    custom = {"id": "call-2", "type": "custom", "custom": {"name": "run", "input": "1 + 1"}}
    whole = any_asker in (Sync, Async)
    fake_openai.say("", tool_calls=[CALL, custom][: 1 + whole], finish_reason="tool_calls")

    completion = any_asker.complete("hello", tools=[TOOL], response_model=City)

    assert completion.parsed is None
    assert completion.tool_calls[0] == ToolCall(
        id="call-1", name="look_up", arguments='{"x":1}', kind="function"
    )
    assert completion.tool_calls[0].parsed_arguments() == {"x": 1}
    if whole:
        assert completion.tool_calls[1].arguments == "1 + 1"


def test_arguments_that_are_no_json_are_an_error_without_them():
    call = ToolCall(id="1", name="look_up", arguments="secret")

    with pytest.raises(InvalidResponse, match="look_up") as caught:
        call.parsed_arguments()

    assert "secret" not in str(caught.value)


def test_a_conversation_goes_on_with_the_answers_message(fake_openai):
    fake_openai.say("", tool_calls=[CALL], finish_reason="tool_calls")
    messages = [{"role": "user", "content": "hello"}]

    messages.append(complete(messages, tools=[TOOL]).message)
    messages.append({"role": "tool", "tool_call_id": "call-1", "content": "42"})
    messages.append(complete(messages, tools=[TOOL]).message)

    assert messages_of(messages)[1] == {"role": "assistant", "content": None, "tool_calls": [CALL]}
    assert messages[3] == {"role": "assistant", "content": SAID}


# Answers that are none, FO5


NO_ANSWERS = [
    "null",
    "<html>busy</html>",
    '{"choices": [',
    "{}",
    '{"choices": []}',
    '{"choices": null}',
    '{"choices": [null]}',
    '{"choices": [{"message": null}]}',
    '{"choices": [{"message": {"content": 7}}]}',
    "[" * 100_000,
]


@pytest.mark.parametrize("content", NO_ANSWERS, ids=lambda content: content[:24])
def test_what_is_no_answer_is_our_error(asker, fake_openai, content):
    fake_openai.answer(content, times=9)

    with pytest.raises(InvalidResponse) as caught:
        asker.complete("hello")

    assert caught.value.retryable


@pytest.mark.parametrize(
    "body",
    [
        {"choices": [{"message": {}}]},
        {"choices": [{"message": {"tool_calls": [None, 7, {}, {"function": 7}]}}]},
        {"choices": [{"message": {"tool_calls": "x"}, "finish_reason": 7}], "usage": "much"},
    ],
)
def test_odd_parts_of_an_answer_are_passed_over(body):
    answer = read_answer(body)

    assert (answer.text, answer.finish_reason) == ("", "")


@pytest.mark.parametrize(
    ("fault", "error"), [((401, "invalid_api_key"), AuthenticationFailed), ((400,), InvalidRequest)]
)
def test_the_services_errors_are_ours(any_asker, fake_openai, fault, error):
    fake_openai.fail(*fault)

    with pytest.raises(error) as caught:
        any_asker.complete("hello")

    assert type(caught.value) is error
    assert caught.value.__cause__ is caught.value.__context__ is None


def test_a_failing_key_function_is_told_without_the_request(any_asker, fake_openai, settings):
    settings.DJANGO_SERVICES = fake_openai.settings(API_KEY=lambda: "")

    with pytest.raises(ServiceError, match="API_KEY") as caught:
        any_asker.complete("hello")

    frames = inspect.getinnerframes(caught.value.__traceback__)
    assert not [frame for frame in frames if "/openai/" in frame.filename]


# Streams


def test_pieces_come_one_by_one(asker):
    pieces, completion = asker.stream("hello")

    assert pieces == ["Hello ", "to ", "you, ", "world."]
    assert completion.text == SAID


def test_there_is_no_completion_before_the_end(fake_openai):
    pieces = stream("hello")

    next(pieces)

    assert pieces.completion is None


def test_no_call_is_made_before_the_first_piece_is_wanted(fake_openai):
    stream("hello").close()

    assert not fake_openai.calls


def test_line_separators_in_a_text_break_no_event(asker, fake_openai):
    text = "a\u2028b\u2029c\x85d\x0ce"
    fake_openai.stream(chunk(content=text), chunk(finish_reason="stop"), "[DONE]")

    assert asker.stream("hello")[0] == [text]


def test_events_may_be_cut_anywhere():
    raw = "".join(
        f": note\r\ndata: {json.dumps(each, ensure_ascii=False)}\r\n\r\n"
        for each in (chunk(content=EMOJI), chunk(finish_reason="stop"))
    ).encode()
    assembly = Assembly(Target("default", "m", None, None, None))

    pieces = [piece for byte in raw for piece in assembly.take(bytes([byte]))]
    assembly.end(None)

    assert pieces == [EMOJI]
    assert assembly.completion.text == EMOJI


BROKEN = {
    "no end": ([chunk(content="Hel")], False),
    "cut connection": ([chunk(content="Hel")], True),
    "nothing": ([b": hello\n\n"], False),
    "html": ([b"<html>busy</html>"], False),
    "no json": ([chunk(content="Hel"), "{oops"], False),
    "null": (["null"], False),
    "an error": (
        [chunk(content="Hel"), {"error": {"message": "x", "code": "server_error"}}],
        False,
    ),
    "a late error": ([chunk(finish_reason="stop"), {"error": {"message": "x"}}], False),
    "an odd error": ([{"error": "x"}], False),
}


@pytest.mark.parametrize(("events", "is_cut"), BROKEN.values(), ids=BROKEN)
def test_a_broken_stream_is_our_error(asker, fake_openai, events, is_cut):
    fake_openai.stream(*events, is_cut=is_cut)

    with pytest.raises((InvalidResponse, ServiceUnavailable)) as caught:
        asker.stream("hello")

    assert caught.value.retryable
    assert caught.value.__context__ is None


def test_the_pieces_before_a_break_were_given(fake_openai):
    fake_openai.stream(chunk(content="Hel"), is_cut=True)
    pieces = stream("hello")

    assert next(pieces) == "Hel"
    with pytest.raises(ServiceUnavailable, match="broke"):
        next(pieces)
    assert list(pieces) == []


def test_a_stream_that_breaks_after_its_answers_end_is_whole(asker, fake_openai):
    fake_openai.stream(chunk(content="Hello"), chunk(finish_reason="stop"), is_cut=True)

    assert asker.stream("hello")[1].text == "Hello"


def test_an_error_event_tells_what_the_service_could_no_longer_send(fake_openai):
    fake_openai.stream({"error": {"message": "slow down", "code": 429}})

    with pytest.raises(RateLimited) as caught:
        list(stream("hello"))

    assert (caught.value.code, caught.value.request_id) == ("429", "req-1")


def test_a_silent_stream_ends_at_its_timeout(asker, fake_openai, settings):
    settings.DJANGO_SERVICES = fake_openai.settings(TIMEOUT=0.1, DEADLINE=0.2)
    fake_openai.stream(chunk(content="Hel"), chunk(content="lo"), pause=0.5)

    with pytest.raises(ServiceUnavailable, match="in time"):
        asker.stream("hello")


@pytest.mark.parametrize(
    "leave", [lambda pieces: pieces.close(), lambda pieces: None], ids=["closed", "garbage"]
)
def test_leaving_a_stream_closes_the_call(fake_openai, leave):
    fake_openai.stream(chunk(content="more "), pause=0.005, is_endless=True)
    pieces = stream("hello")
    next(pieces)

    leave(pieces)
    del pieces
    gc.collect()

    assert fake_openai.left.wait(3)


def test_leaving_the_block_closes_the_call(fake_openai):
    fake_openai.stream(chunk(content="more "), pause=0.005, is_endless=True)

    with stream("hello") as pieces:
        next(pieces)

    assert fake_openai.left.wait(3)


@pytest.mark.parametrize("how", ["break", "block", "cancelled"])
def test_leaving_an_async_stream_closes_the_call(fake_openai, how):
    fake_openai.stream(chunk(content="more "), pause=0.005, is_endless=True)

    async def read():
        async for _ in astream("hello"):
            if how == "break":
                break

    async def leave():
        if how == "break":
            await read()
        elif how == "cancelled":
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(read(), 0.1)
        else:
            async with astream("hello") as pieces:
                await anext(pieces)
        return await asyncio.to_thread(fake_openai.left.wait, 3)

    assert asyncio.run(leave())


def test_a_stream_that_is_left_is_accounted_for_at_once(asker, fake_openai, finished):
    fake_openai.stream(chunk(content="more "), pause=0.005, is_endless=True)

    async def leave():
        pieces = astream("hello")
        await anext(pieces)
        await pieces.aclose()
        return len(finished)

    def leave_sync():
        pieces = stream("hello")
        next(pieces)
        pieces.close()
        return len(finished)

    assert (leave_sync() if asker is Sync else asyncio.run(leave())) == 1


def test_a_stream_is_attributed_to_whom_it_was_made_for(asker, fake_openai, finished):
    with attributed(tenant="t-1"):
        pieces = stream("hello") if asker is Sync else astream("hello")

    async def read():
        return [piece async for piece in pieces]

    list(pieces) if asker is Sync else asyncio.run(read())

    assert [(call["tenant"], call["output_tokens"]) for call in finished] == [("t-1", 5)]


def test_the_key_is_sent_to_nobody_else(fake_openai):
    complete("hello")

    assert fake_openai.calls[0].headers["authorization"] == f"Bearer {KEY}"
