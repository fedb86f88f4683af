"""Prompts and answers in the conventions' shape, from each endpoint's own."""

from __future__ import annotations

import pytest

from django_services.openai_transport import messages

CHAT, RESPONSES = "/chat/completions", "/responses"


def asked(endpoint, **body):
    return messages.asked_content(endpoint, body).get("gen_ai.input.messages")


def said(content):
    return {"type": "text", "content": content}


@pytest.mark.parametrize(("endpoint", "key"), [(RESPONSES, "input"), ("/completions", "prompt")])
def test_a_prompt_that_is_a_text_is_the_users_message(endpoint, key):
    assert asked(endpoint, **{key: "hi"}) == [{"role": "user", "parts": [said("hi")]}]


def test_texts_to_embed_and_moderate_are_no_prompt():
    for endpoint in ("/embeddings", "/moderations"):
        assert messages.asked_content(endpoint, {"input": "text", "model": "m"}) == {}


def test_instructions_are_the_systems():
    content = messages.asked_content(RESPONSES, {"input": "hi", "instructions": "be brief"})

    assert content["gen_ai.system_instructions"] == [said("be brief")]


def test_pieces_are_parts_and_media_are_named_only():
    content = [
        {"type": "text", "text": "what is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
    ]

    assert asked(CHAT, messages=[{"role": "user", "content": content}]) == [
        {"role": "user", "parts": [said("what is this?"), {"type": "image_url"}]}
    ]


def test_tool_calls_and_their_results_are_parts_of_both_apis():
    function = {"name": "weather", "arguments": "{}"}
    of_chat = asked(
        CHAT,
        messages=[
            {"role": "assistant", "tool_calls": [{"id": "1", "function": function}]},
            {"role": "tool", "tool_call_id": "1", "content": "rain"},
        ],
    )
    of_responses = asked(
        RESPONSES,
        input=[
            {"type": "function_call", "call_id": "1", **function},
            {"type": "function_call_output", "call_id": "1", "output": "rain"},
        ],
    )

    call = {"type": "tool_call", "id": "1", **function}
    result = {"type": "tool_call_response", "id": "1", "response": "rain"}
    for found in (of_chat, of_responses):
        assert [message["parts"] for message in found] == [[call], [result]]


def test_an_answer_of_each_api_is_a_message_with_its_reason():
    chat = {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}
    plain = {"choices": [{"text": "yes", "finish_reason": "stop"}]}
    output = [{"type": "message", "content": [{"type": "output_text", "text": "yes"}]}]
    response = {"object": "response", "status": "completed", "output": output}

    for answer in (chat, plain, response):
        assert messages.answered_content(answer) == {
            "gen_ai.output.messages": [
                {"role": "assistant", "parts": [said("yes")], "finish_reason": "stop"}
            ]
        }


@pytest.mark.parametrize(
    ("answer", "reasons"),
    [
        ({"choices": [{"finish_reason": "stop"}, {"finish_reason": None}]}, ["stop"]),
        ({"object": "response", "status": "completed"}, ["stop"]),
        (
            {
                "object": "response",
                "status": "incomplete",
                "incomplete_details": {"reason": "max_output_tokens"},
            },
            ["length"],
        ),
        ({"object": "list", "data": []}, []),
        ({}, []),
    ],
)
def test_finish_reasons_are_the_conventions_words(answer, reasons):
    assert messages.finish_reasons(answer) == reasons


@pytest.mark.parametrize("odd", [None, 5, "text", [1, None], [{"role": 5, "content": 7}], {}])
def test_bodies_of_any_shape_are_survived(odd):
    messages.asked_content(CHAT, {"messages": odd, "instructions": odd})
    messages.answered_content({"choices": odd, "output": odd})
    messages.answered_content({"object": "response", "output": odd, "incomplete_details": odd})
