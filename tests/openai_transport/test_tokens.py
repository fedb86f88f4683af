"""django_services.openai_transport.tokens: counted as the model does, and never above the bound."""

from __future__ import annotations

import json
import traceback
from decimal import Decimal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from django_services.exceptions import InvalidInput
from django_services.openai_transport import tokens

LUNA = "gpt-6-luna"
SMALL = "text-embedding-3-small"
CONTEXT = 1_050_000  # of gpt-6-luna

ASK = {"role": "user", "content": "What is the capital of France?"}


def chat(*content: object, **more) -> dict:
    return {"model": LUNA, "messages": [{"role": "user", "content": list(content)}], **more}


def text(text: str) -> dict:
    return {"type": "text", "text": text}


# Counting


@pytest.mark.parametrize(
    ("given", "model", "number"),
    [
        ("", None, 0),
        ("Hello, world!", None, 4),
        ("tiktoken is great!", "gpt-4o", 6),  # both of OpenAI's cookbook
        ("tiktoken is great!", SMALL, 6),
        ("antidisestablishmentarianism", SMALL, 6),
        ("お誕生日おめでとう", SMALL, 9),
        ("お誕生日おめでとう", LUNA, 8),
        ("お誕生日おめでとう", "a model of another server", 8),
        ("<|endoftext|>", LUNA, 7),
        ("\ud800", LUNA, 2),
    ],
)
def test_count(given, model, number):
    assert tokens.count(given, model) == number


def test_count_many_keeps_the_order():
    assert tokens.count_many(["a b c", "", "a"]) == [3, 0, 1]
    assert tokens.count_many([]) == []


@pytest.mark.parametrize("given", [None, 3, b"bytes", ["a"]])
def test_what_is_no_text_is_refused(given):
    with pytest.raises(InvalidInput, match=r"texts\[0\] is of type \w+, not a string"):
        tokens.count(given)


@pytest.mark.parametrize("given", ["abc", None, (item for item in "ab")])
def test_what_is_no_list_is_refused(given):
    with pytest.raises(InvalidInput, match="texts must be a list or tuple"):
        tokens.count_many(given)


@pytest.mark.parametrize(
    "call",
    [
        lambda secret: tokens.count_many([secret, None]),
        lambda secret: tokens.count_messages([{"role": "user", "content": secret}, None]),
    ],
)
def test_no_frame_of_an_error_shows_a_text(call):
    with pytest.raises(InvalidInput) as caught:
        call("CANARY")

    frames = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    ours = [frame for frame in frames.stack if frame.filename == tokens.__file__]
    assert ours
    assert "CANARY" not in str([frame.locals for frame in ours])


@pytest.mark.parametrize(
    ("messages", "number"),
    [
        ([], 3),
        # 3 to begin the answer, 3 to frame each message, the role 1, the text 7
        ([ASK], 14),
        ([{"role": "user", "content": [text(ASK["content"])]}], 14),
        ([{"role": "system", "content": "You are helpful."}, ASK], 22),
        ([ASK | {"name": "Ann"}], 16),
        ([{"role": "assistant", "content": None}], 7),
    ],
)
def test_count_messages(messages, number):
    assert tokens.count_messages(messages, LUNA) == number


def test_calls_of_tools_and_images_count():
    call = {"type": "function", "function": {"name": "look", "arguments": '{"city": "Paris"}'}}
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 9_000}}

    called = tokens.count_messages([{"role": "assistant", "tool_calls": [call]}])
    shown = tokens.count_messages([{"role": "user", "content": [picture]}])

    assert 12 < called < 30
    assert shown == 3 + 3 + 1 + 1_024


def test_a_message_that_is_no_dict_is_refused():
    with pytest.raises(InvalidInput, match=r"messages\[1\] is of type str"):
        tokens.count_messages([ASK, "and then?"])


# Bounding


@settings(max_examples=100, deadline=None)
@given(contents=st.lists(st.text(alphabet=st.characters(), max_size=80), max_size=4))
@example(["", "\ud800"])
@example(["ༀ" * 40])
def test_the_bound_is_never_below_the_count(contents):
    messages = [{"role": "user", "name": "x", "content": content} for content in contents]

    bound = tokens.upper_bound({"model": LUNA, "messages": messages})

    assert bound >= tokens.count_messages(messages, LUNA)


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(st.text(max_size=80), min_size=1, max_size=5))
def test_the_bound_of_embeddings_is_never_below_the_count(texts):
    assert tokens.upper_bound({"model": SMALL, "input": texts}) >= sum(
        tokens.count_many(texts, SMALL)
    )


@pytest.mark.parametrize(
    ("given", "length"), [("", 0), ("abc", 3), ("é", 2), ("字", 3), ("🦊", 4), ("\ud800", 3)]
)
def test_utf8_length(given, length):
    assert tokens.utf8_length(given) == length


@pytest.mark.parametrize(
    ("body", "least", "most"),
    [
        ({}, 0, 32),
        ({"model": LUNA, "messages": [ASK]}, 30, 120),
        ({"model": LUNA, "input": "a" * 1_000}, 1_000, 1_032),
        ({"model": LUNA, "input": "a", "instructions": "b" * 1_000}, 1_001, 1_033),
        ({"model": LUNA, "input": [{"role": "user", "content": "a" * 1_000}]}, 1_000, 1_080),
        ({"model": SMALL, "input": "字" * 100}, 300, 332),
        ({"model": SMALL, "input": ["a" * 10, "b" * 10]}, 20, 52),
        ({"model": SMALL, "input": [100_000] * 50}, 50, 82),
        ({"model": SMALL, "input": [[1, 2, 3], [4]]}, 4, 36),
        ({"model": "omni-moderation-latest", "input": [text("a" * 100)]}, 100, 150),
        ({"model": "gpt-3.5-turbo-instruct", "prompt": ["a" * 10, "b"], "suffix": "c"}, 12, 44),
        ({"model": LUNA, "messages": [], "user": "x" * 1_000, "metadata": {"a": "b" * 100}}, 0, 32),
        (chat({"type": "image_url", "image_url": {"url": "x" * 99_999}}), 30_000, 30_100),
        (chat({"type": "image_url", "image_url": {"url": "x", "detail": "low"}}), 630, 730),
        (chat({"type": "input_image", "image_url": "x", "detail": "high"}), 3_780, 3_880),
        (chat({"type": "input_image", "file_id": "file-1"}), 30_000, 30_100),
        (
            chat({"type": "image_url", "image_url": {"url": "x"}}, model="gpt-4o-mini"),
            48_169,
            48_269,
        ),
    ],
)
def test_upper_bound(body, least, most):
    assert least <= tokens.upper_bound(body) <= most


def test_tools_and_schemas_count_as_long_as_their_json():
    parameters = {"type": "object", "properties": {"city": {"type": "string", "enum": [1, 2.5]}}}
    function = {"name": "weather", "description": "Tells it.", "parameters": parameters}
    tool = {"type": "function", "function": function}
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": parameters}}

    for key, value in (("tools", [tool]), ("functions", [function]), ("response_format", schema)):
        found = tokens.upper_bound({"model": LUNA, "messages": [], key: value})

        assert found >= tokens.count(json.dumps(value), LUNA)


@pytest.mark.parametrize(
    "body",
    [
        {"input": "and?", "previous_response_id": "resp_1"},
        {"input": "and?", "conversation": "conv_1"},
        {"prompt": {"id": "pmpt_1"}},
        {"input": [{"type": "item_reference", "id": "msg_1"}]},
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "file-1"}]}]},
        {"input": "and?", "tools": [{"type": "web_search"}]},
        {"messages": [], "web_search_options": {}},
        chat({"type": "file", "file": {"file_data": "JVBERi0="}}),
        chat({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "mp3"}}),
    ],
)
def test_what_nobody_here_can_see_is_bounded_by_the_models_context(body):
    assert tokens.upper_bound({"model": "gpt-4o"} | body | {"model": "gpt-4o"}) == 128_000
    assert tokens.upper_bound(body | {"model": "unknown"}) == CONTEXT
    assert tokens.upper_bound(body | {"model": "deployment"}, model="gpt-4o") == 128_000


@pytest.mark.parametrize(
    "tool", [{"type": "function", "name": "f"}, {"type": "custom", "name": "f"}]
)
def test_tools_of_the_caller_are_no_unknown(tool):
    assert tokens.upper_bound({"model": LUNA, "input": "a", "tools": [tool]}) < 200


def test_absent_conversations_are_no_unknown():
    body = {"model": LUNA, "input": "a", "conversation": None, "previous_response_id": None}

    assert tokens.upper_bound(body) < 100


@pytest.mark.parametrize(
    "schema",
    [
        {"type": {"type": "string"}},
        {"properties": {"type": {"const": "text"}, "text": {"type": "string"}}},
        {"type": "text", "description": "x" * 500},
    ],
)
def test_a_schema_that_looks_like_a_part_counts_as_json(schema):
    found = tokens.upper_bound({"model": LUNA, "input": "", "text": {"format": schema}})

    assert found >= tokens.count(json.dumps(schema))


@pytest.mark.parametrize(
    ("raw", "bound"),
    [
        (b'{"model": "gpt-6-luna", "input": "abc"}', 3 + 32),
        (b"not json", 8 + 32),
        (b"[1, 2]", 6 + 32),
        (b"\xff\xfe", 4 + 32),
        (b"", 32),
    ],
)
def test_bytes_are_decoded_and_count_themselves_where_they_cannot_be(raw, bound):
    assert tokens.upper_bound(raw) == bound


def test_a_deeply_nested_body_is_bounded_too():
    nested: dict = {}
    for _ in range(5_000):
        nested = {"a": nested}

    assert tokens.upper_bound({"model": LUNA, "input": [nested]}) > 5_000


# Guessing


@pytest.mark.parametrize(
    "passage",
    [
        "The quick brown fox jumps over the lazy dog, as it has done for many years now. " * 20,
        "Быстрая коричневая лиса прыгает через ленивую собаку уже много лет подряд. " * 20,
        "敏捷的棕色狐狸跳过了那只懒狗,多年来一直如此,没有人知道这是为什么。" * 20,
        "तेज़ भूरी लोमड़ी आलसी कुत्ते के ऊपर से कूदती है और यह कई वर्षों से होता आ रहा है। " * 20,
    ],
)
@pytest.mark.parametrize("model", [LUNA, SMALL])
def test_an_estimate_is_within_a_factor_of_two_and_a_half(passage, model):
    exact = tokens.count(passage, model)

    assert 0.4 < tokens.estimate_text(passage) / exact < 2.5
    assert 0.4 < tokens.estimate({"model": model, "input": passage}) / exact < 2.5


def test_an_estimate_leaves_out_what_the_service_keeps():
    body = {"model": LUNA, "input": "a" * 40, "previous_response_id": "resp_1"}

    assert tokens.estimate(body) == 13


def test_an_estimate_of_token_arrays_is_their_length():
    assert tokens.estimate({"model": SMALL, "input": [[1] * 10, [2] * 5]}) == 15 + 3


def test_a_recording_counts_by_its_length():
    part = {"type": "input_audio", "input_audio": {"data": "A" * 100_000, "format": "mp3"}}

    assert 50 <= tokens.estimate(chat(part)) < 60


# What it costs at most


@pytest.mark.parametrize(
    ("body", "limit"),
    [
        ({}, None),
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 6, "max_tokens": 5}, 6),
        ({"max_output_tokens": 7}, 7),
        ({"max_tokens": None}, None),
        ({"max_tokens": True}, None),
        ({"max_tokens": "5"}, None),
        ({"max_tokens": -5}, None),
    ],
)
def test_output_bound(body, limit):
    assert tokens.output_bound(body) == limit


@pytest.mark.parametrize(
    ("more", "dollars"),
    [
        # 132 tokens at most x 0.125 millionths of a dollar, and 100 x 0.50
        ({"max_output_tokens": 100}, "0.0000665"),
        ({"max_output_tokens": 100, "n": 2}, "0.0001165"),
        ({"max_output_tokens": 100, "service_tier": "priority"}, "0.000133"),
        ({}, "0.0640165"),
        ({"max_output_tokens": 0, "previous_response_id": "resp_1"}, "0.2625"),
        ({"max_output_tokens": 0, "prompt_cache_options": {"ttl": "12h"}}, None),
        ({"max_output_tokens": 0, "prompt_cache_options": {"ttl": "30m"}}, "0.0000165"),
    ],
)
def test_most_expensive(more, dollars):
    body = {"model": LUNA, "input": "a" * 100} | more

    found = tokens.most_expensive(body, endpoint="/responses")

    assert found == (dollars and Decimal(dollars))
    assert tokens.most_expensive(json.dumps(body).encode(), endpoint="/responses") == found


def test_a_prompt_longer_than_the_context_costs_no_more_than_the_context():
    body = {"model": LUNA, "input": "a" * 2_000_000, "max_output_tokens": 0}

    # 1,050,000 x 0.125, twice
    assert tokens.most_expensive(body, endpoint="/responses") == Decimal("0.2625")


def test_many_texts_to_embed_are_more_than_one_context():
    body = {"model": SMALL, "input": ["a" * 8_000] * 10}

    # 80,032 x 0.02
    assert tokens.most_expensive(body, endpoint="/embeddings") == Decimal("0.00160064")


def test_the_projects_prices_count_and_need_no_output_of_embeddings():
    body = {"model": "mine", "input": "a" * 68}

    found = tokens.most_expensive(body, endpoint="/embeddings", prices={"mine": {"INPUT": 1}})

    assert found == Decimal("0.0001")
    assert tokens.most_expensive(body, endpoint="/embeddings") is None


def test_a_deployment_is_priced_by_the_model_that_is_told():
    body = {"input": "a" * 68}

    assert tokens.most_expensive(body, endpoint="/embeddings", model=SMALL) == Decimal("0.000002")
