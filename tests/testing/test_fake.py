"""What the fake says, through the official client and our transport."""

from __future__ import annotations

import asyncio

import numpy as np
import openai
import pydantic
import pytest

from django_services.exceptions import (
    AuthenticationFailed,
    BudgetExceeded,
    InvalidResponse,
    QuotaExhausted,
    RateLimited,
    ServiceUnavailable,
)
from django_services.openai_service import (
    aembed,
    embed,
    get_async_openai_client,
    get_openai_client,
    is_embedded,
    ping,
)
from django_services.testing import fake_openai
from django_services.testing.replies import DEFAULT_TEXT

MESSAGES = [{"role": "user", "content": "What is it?"}]
CHAT = {"model": "gpt-6-luna", "messages": MESSAGES}
RESPONSE = {"model": "gpt-6-luna", "input": "What is it?"}
EMBEDDING = "text-embedding-3-small"


class Weather(pydantic.BaseModel):
    city: str
    degrees: int


def chat(**options):
    return get_openai_client().chat.completions.create(**CHAT, **options)


def respond(**options):
    return get_openai_client().responses.create(**RESPONSE, **options)


def chat_pieces(**options):
    chunks = chat(stream=True, **options)
    return [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]


def said(completion):
    return completion.choices[0].message.content


# What the model says


def test_it_answers_without_being_told(fake):
    assert said(chat()) == DEFAULT_TEXT
    assert respond().output_text == DEFAULT_TEXT


def test_replies_are_said_in_their_order(fake):
    fake.replies("one", "two")

    assert [said(chat()), respond().output_text, said(chat())] == ["one", "two", DEFAULT_TEXT]


def test_a_reply_may_stay(fake):
    fake.reply("always", times=None)

    assert {said(chat()) for _ in range(3)} == {"always"}


def test_a_reply_may_be_made_from_the_request(fake):
    fake.reply(lambda call: call.texts[0].upper())

    assert said(chat()) == "WHAT IS IT?"


@pytest.mark.parametrize(
    "content", [Weather(city="Oslo", degrees=-3), {"city": "Oslo", "degrees": -3}]
)
def test_structured_output_is_parsed(fake, content):
    fake.reply(content, times=2)
    client = get_openai_client()

    completion = client.chat.completions.parse(**CHAT, response_format=Weather)
    response = client.responses.parse(**RESPONSE, text_format=Weather)

    assert completion.choices[0].message.parsed == Weather(city="Oslo", degrees=-3)
    assert response.output_parsed == Weather(city="Oslo", degrees=-3)


def test_structured_output_is_valid_without_being_told(fake):
    client = get_openai_client()

    completion = client.chat.completions.parse(**CHAT, response_format=Weather)
    response = client.responses.parse(**RESPONSE, text_format=Weather)

    assert completion.choices[0].message.parsed == response.output_parsed


def test_tools_are_called(fake):
    fake.reply(tool_calls=[("weather", {"city": "Oslo"}), ("news", "{}")], times=2)

    first, second = chat().choices[0].message.tool_calls
    outputs = respond().output

    assert (first.function.name, first.function.arguments) == ("weather", '{"city": "Oslo"}')
    assert [each.call_id for each in outputs] == [first.id, second.id]


def test_a_refusal_is_no_content(fake):
    fake.reply(refusal="No.", times=2)

    message = chat().choices[0].message
    (part,) = respond().output[0].content

    assert (message.content, message.refusal, part.refusal) == (None, "No.", "No.")


def test_an_answer_may_be_cut_by_the_models_limit(fake):
    fake.reply("half an", finish_reason="length", times=2)

    assert chat().choices[0].finish_reason == "length"
    assert respond().incomplete_details.reason == "max_output_tokens"


def test_usage_counts_words(fake):
    fake.reply("one two", times=2)

    completion, response = chat(n=2).usage, respond().usage

    assert (completion.prompt_tokens, completion.completion_tokens) == (3, 4)
    assert (response.input_tokens, response.output_tokens) == (3, 2)


# Streams


def test_a_completion_is_streamed_by_words(fake):
    fake.reply("one two three")

    assert chat_pieces() == ["one", " two", " three", None]


def test_the_usage_of_a_stream_is_told_where_it_was_asked_for(fake):
    *_, with_usage = chat(stream=True, stream_options={"include_usage": True})
    *_, without = chat(stream=True)

    assert with_usage.usage.completion_tokens == 5
    assert without.usage is None


def test_the_sdk_puts_a_streamed_completion_together(fake):
    fake.reply("It rains.", tool_calls=[("weather", {"city": "Oslo"})])

    with get_openai_client().chat.completions.stream(**CHAT) as stream:
        message = stream.get_final_completion().choices[0].message

    assert message.content == "It rains."
    assert message.tool_calls[0].function.arguments == '{"city": "Oslo"}'


def test_the_sdk_puts_a_streamed_response_together(fake):
    fake.reply("It rains.", tool_calls=[("weather", {"city": "Oslo"})])

    with get_openai_client().responses.stream(**RESPONSE) as stream:
        pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
        response = stream.get_final_response()

    assert (pieces, response.output_text) == (["It", " rains."], "It rains.")
    assert response.output[1].arguments == '{"city": "Oslo"}'


@pytest.mark.parametrize(
    "reply", [{"refusal": "Never ever."}, {"content": "a", "finish_reason": "length"}]
)
def test_every_kind_of_reply_is_streamed(fake, reply):
    fake.reply(**reply, times=4)
    whole = respond()

    events = list(respond(stream=True))

    assert events[-1].response == whole
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_a_stream_may_be_cut(fake):
    fake.reply("one two three", cut_after=2, times=2)

    kinds = [event.type for event in respond(stream=True)]

    assert chat_pieces() == ["one", " two"]
    assert kinds.count("response.output_text.delta") == 2
    assert kinds[-1] == "response.output_text.delta"


def test_a_stream_may_break(fake):
    fake.reply("one two three", cut_after=2, disconnects=True)
    stream = chat(stream=True)
    pieces = []

    with pytest.raises(openai.APIConnectionError):
        pieces.extend(chunk.choices[0].delta.content for chunk in stream)


def test_async_clients_are_answered_too(fake):
    fake.replies("one two", "one two")

    async def call():
        client = get_async_openai_client()
        stream = await client.chat.completions.create(**CHAT, stream=True)
        pieces = [chunk.choices[0].delta.content async for chunk in stream]
        return pieces, said(await client.chat.completions.create(**CHAT)), await aembed(["a"])

    pieces, text, vectors = asyncio.run(call())

    assert (pieces, text, vectors.shape) == (["one", " two", None], "one two", (1, 1_536))


# Vectors and verdicts


def test_vectors_are_near_by_meaning(fake):
    bread, loaf, engine = embed(["knead the dough", "bake the bread", "repair the engine"])

    assert bread @ loaf > bread @ engine


def test_vectors_are_as_long_as_asked(fake):
    short = embed(["text"], dimensions=64)
    large = embed(["text"], model="text-embedding-3-large")

    assert (short.shape, large.shape) == ((1, 64), (1, 3_072))
    np.testing.assert_allclose(np.linalg.norm(short, axis=1), 1, rtol=1e-5)


def test_another_servers_vectors_are_as_long_as_the_alias_says(fake, settings):
    settings.DJANGO_SERVICES = {
        "OPENAI": {"default": {"EMBEDDING_MODEL": "nomic", "DIMENSIONS": 700}}
    }

    assert embed(["text"]).shape == (1, 700)


def test_both_encodings_hold_the_same_numbers(fake):
    create = get_openai_client().embeddings.create

    floats = create(model=EMBEDDING, input="text", encoding_format="float").data[0].embedding
    base64 = create(model=EMBEDDING, input="text").data[0].embedding

    np.testing.assert_allclose(floats, base64, rtol=1e-6)


def test_a_function_may_make_the_vectors(fake):
    fake.embed_with(lambda text: [3, 4] if text == "a" else [1])

    first, second = embed(["a", "b"])

    assert (first[:3].tolist(), second[:2].tolist()) == (
        [pytest.approx(0.6), pytest.approx(0.8), 0],
        [1, 0],
    )


def test_vectors_of_a_function_are_sent_at_length_one(fake):
    fake.embed_with(lambda text: [3, 4])
    create = get_openai_client().embeddings.create

    response = create(model=EMBEDDING, input="a", encoding_format="float")

    assert response.data[0].embedding[:2] == pytest.approx([0.6, 0.8])


def test_a_vector_that_is_too_long_is_told(fake):
    fake.embed_with(lambda text: [1] * 9)

    with pytest.raises(AssertionError, match="asks for 8 numbers at most"):
        embed(["a"], dimensions=8)


def test_the_error_of_a_tests_own_function_reaches_the_test(fake):
    fake.reply(lambda call: call.body["missing"])

    with pytest.raises(AssertionError, match="KeyError") as caught:
        chat()

    assert isinstance(caught.value.__cause__, KeyError)


def test_a_function_may_make_bad_vectors(fake):
    fake.embed_with(lambda text: [float("nan")])

    with pytest.raises(InvalidResponse):
        embed(["a"])


def test_an_empty_text_is_refused_as_by_the_api(fake):
    with pytest.raises(openai.BadRequestError, match="input"):
        get_openai_client().embeddings.create(model=EMBEDDING, input=["a", ""])


def test_tokens_are_embedded_too(fake):
    create = get_openai_client().embeddings.create

    response = create(model=EMBEDDING, input=[[1, 2], [3]])

    assert len(response.data) == 2
    assert len(create(model=EMBEDDING, input=[1, 2]).data) == 1


def test_moderation_flags_what_it_is_told(fake):
    fake.flag("violence", when="knife")
    create = get_openai_client().moderations.create

    bread, knife = create(input=["a bread", "a knife"]).results

    assert (bread.flagged, knife.flagged) == (False, True)
    assert (knife.categories.violence, knife.categories.hate) == (True, False)


def test_models_are_listed_and_the_service_is_there(fake):
    ping()

    assert get_openai_client().models.retrieve("gpt-6-luna").id == "gpt-6-luna"


# Other endpoints


def test_any_endpoint_can_be_given_an_answer(fake):
    fake.answer("/images/generations", {"created": 0, "data": [{"url": "http://x/"}]})

    response = get_openai_client().images.generate(prompt="a cat")

    assert response.data[0].url == "http://x/"


def test_an_endpoint_without_an_answer_says_how_to_give_it_one(fake):
    with pytest.raises(openai.NotFoundError, match=r'fake\.answer\("/images/generations", …\)'):
        get_openai_client().images.generate(prompt="a cat")


# Failures


@pytest.mark.parametrize(("status", "calls"), [(500, 2), (429, 2), (503, 2)])
def test_a_failure_that_passes_is_tried_again(fake, status, calls):
    fake.fail(status)

    chat()

    fake.assert_called("/chat/completions", times=calls)


def test_a_failure_that_stays_reaches_the_caller_without_a_wait(fake):
    fake.fail(429, retry_after=7, times=None)

    with pytest.raises(RateLimited) as caught:
        embed(["text"])

    assert caught.value.retry_after == 7
    assert fake.waits
    assert all(seconds >= 7 for seconds in fake.waits)


def test_a_wait_beyond_the_deadline_is_not_begun(fake):
    fake.fail(429, retry_after=3_600, times=None)

    with pytest.raises(RateLimited):
        embed(["text"])

    fake.assert_called(times=1)


def test_the_code_decides(fake):
    fake.fail(429, "insufficient_quota")

    with pytest.raises(QuotaExhausted):
        embed(["text"])

    fake.assert_called(times=1)


def test_failures_are_of_one_endpoint_if_told(fake):
    fake.fail(400, endpoint="/embeddings")

    chat()

    with pytest.raises(openai.BadRequestError, match="told to fail"):
        get_openai_client().embeddings.create(model=EMBEDDING, input="text")


@pytest.mark.parametrize("how", ["timeout", "disconnect"])
def test_a_request_may_get_no_answer(fake, how):
    getattr(fake, how)(times=None)

    with pytest.raises(ServiceUnavailable):
        embed(["text"])


def test_what_is_told_is_done_in_its_order(fake):
    fake.timeout()
    fake.reply("later")
    fake.disconnect()
    fake.reply("last")

    assert [said(chat()), said(chat())] == ["later", "last"]
    fake.assert_called(times=4)


@pytest.mark.parametrize("client", ["sync", "async"])
def test_latency_above_the_timeout_is_a_timeout(fake, client):
    fake.latency = 0.02

    async def call():
        await get_async_openai_client().with_options(timeout=0.001).models.list()

    with pytest.raises(openai.APITimeoutError):
        if client == "sync":
            get_openai_client().with_options(timeout=0.001).models.list()
        else:
            asyncio.run(call())


# What arrives


def test_calls_are_noted_without_the_key(fake, settings):
    settings.DJANGO_SERVICES = {"OPENAI": {"default": {"API_KEY": "sk-canary"}}}

    chat(extra_headers={"x-mine": "1"})
    (call,) = fake.calls

    assert (call.endpoint, call.model, call.texts) == (
        "/chat/completions",
        "gpt-6-luna",
        ["What is it?"],
    )
    assert call.headers["x-mine"] == "1"
    assert "authorization" not in call.headers


def test_a_hook_runs_while_the_request_waits(fake):
    seen = []
    fake.on_request(lambda call: seen.append((call.endpoint, len(fake.calls))))

    chat()
    chat()

    assert seen == [("/chat/completions", 1)]


@pytest.mark.django_db
def test_a_hook_may_use_the_orm_under_an_async_client(fake, django_user_model):
    fake.on_request(lambda call: django_user_model.objects.count(), times=None)

    async def call():
        return await get_async_openai_client().models.list()

    from asgiref.sync import async_to_sync

    assert async_to_sync(call)().data


def test_a_hook_may_be_async(fake):
    seen = []

    async def hook(call):
        await asyncio.sleep(0)
        seen.append(call.endpoint)

    fake.on_request(hook)
    asyncio.run(aembed(["text"]))

    assert seen == ["/embeddings"]


def test_answers_carry_headers_and_an_id(fake):
    fake.headers["x-ratelimit-limit-requests"] = "60"

    response = get_openai_client().models.with_raw_response.list()

    assert response.headers["x-ratelimit-limit-requests"] == "60"
    assert response.request_id == "req_fake_1"


def test_it_is_no_embedded_model(fake):
    assert not is_embedded()


def test_its_repr_tells_a_number_only():
    with fake_openai() as fake:
        chat()

    assert repr(fake) == "<FakeOpenAI, 1 calls>"


# What governs calls


def test_a_limit_is_kept_without_a_wait(fake, settings):
    settings.DJANGO_SERVICES = {"OPENAI": {"default": {"REQUESTS_PER_MINUTE": 2, "DEADLINE": 300}}}

    for _ in range(5):
        chat()

    fake.assert_called(times=5)
    assert sum(fake.waits) >= 120


def test_a_breaker_that_one_fake_opened_is_closed_for_the_next():
    with fake_openai() as fake:
        fake.fail(401, times=None)
        with pytest.raises(AuthenticationFailed):
            embed(["text"])
    with fake_openai() as fake:
        embed(["text"])

    fake.assert_called(times=1)


def test_a_budget_that_one_fake_spent_is_whole_for_the_next(settings):
    # Of which a text of 500 bytes may cost most, and costs a sixth.
    settings.DJANGO_SERVICES = {"OPENAI": {"default": {"DAILY_BUDGET": 0.000_012}}}

    for _ in range(2):
        with fake_openai() as fake:
            embed(["word " * 100])
            with pytest.raises(BudgetExceeded):
                embed(["term " * 100])

        fake.assert_called(times=1)


def test_limits_are_not_looked_up_in_the_projects_redis(settings):
    # Nobody listens there: asked, it would have every call refused.
    settings.DJANGO_SERVICES = {
        "REDIS": {"default": {"URL": "redis://127.0.0.1:1/0"}},
        "OPENAI": {"default": {"REQUESTS_PER_MINUTE": 60, "REFUSE_WITHOUT_REDIS": True}},
    }

    with fake_openai() as fake:
        chat()

    fake.assert_called(times=1)
