"""The Responses API: what it sends for a reply, whole or as a stream of events."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from .answers import CREATED, Answer, event_stream, json_answer
from .calls import Call
from .replies import Reply, ToolCall, count_tokens, pieces_of


def schema_of(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the JSON Schema that the request wants its answer in; None if none."""
    wanted = (body.get("text") or {}).get("format") or {}
    if wanted.get("type") == "json_object":
        return {"type": "object"}
    found: Mapping[str, Any] | None = wanted.get("schema")
    return found


def answer(call: Call, reply: Reply) -> Answer:
    if not call.is_stream:
        return json_answer(_response(call, reply))
    events = (
        {"type": kind, "sequence_number": number, **event}
        for number, (kind, event) in enumerate(_events(call, reply))
    )
    written = [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events]
    return event_stream(written, is_disconnected=reply.is_disconnected)


def _response(call: Call, reply: Reply) -> dict[str, Any]:
    given, made = sum(map(count_tokens, call.texts)), reply.tokens
    is_short = reply.finish_reason == "length"
    return {
        **_begun(call),
        "status": "incomplete" if is_short else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if is_short else None,
        "output": _output(reply),
        "usage": {
            "input_tokens": given,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": made,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": given + made,
        },
    }


def _begun(call: Call) -> dict[str, Any]:
    """Return the response as it stands before anything was said."""
    echoed = ("instructions", "metadata", "temperature", "top_p", "text", "reasoning")
    return {
        "id": "resp_fake",
        "object": "response",
        "created_at": CREATED,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "model": call.model,
        "output": [],
        "parallel_tool_calls": call.body.get("parallel_tool_calls", True),
        "previous_response_id": call.body.get("previous_response_id"),
        "tool_choice": call.body.get("tool_choice", "auto"),
        "tools": call.body.get("tools", []),
        "usage": None,
        **{name: call.body.get(name) for name in echoed},
    }


def _output(reply: Reply) -> list[dict[str, Any]]:
    says = bool(reply.text or reply.refusal or not reply.tool_calls)
    return [
        *([_message([_part(reply)], "completed")] if says else []),
        *(_function_call(tool, tool.arguments, "completed") for tool in reply.tool_calls),
    ]


def _message(content: list[dict[str, Any]], status: str) -> dict[str, Any]:
    return {
        "id": "msg_fake",
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": content,
    }


def _part(reply: Reply, text: str | None = None) -> dict[str, Any]:
    """Return the part of a message that holds what is said, or only that much of it."""
    if reply.refusal:
        return {"type": "refusal", "refusal": reply.refusal if text is None else text}
    said = reply.text if text is None else text
    return {"type": "output_text", "text": said, "annotations": [], "logprobs": []}


def _function_call(tool: ToolCall, arguments: str, status: str) -> dict[str, Any]:
    return {
        "id": f"fc_{tool.id}",
        "type": "function_call",
        "call_id": tool.id,
        "name": tool.name,
        "arguments": arguments,
        "status": status,
    }


# The stream

Event = tuple[str, dict[str, Any]]


def _events(call: Call, reply: Reply) -> Iterator[Event]:
    yield "response.created", {"response": _begun(call)}
    yield "response.in_progress", {"response": _begun(call)}
    if reply.cut_after is not None:
        yield from _until_cut(_output_events(reply), reply.cut_after)
        return
    yield from _output_events(reply)
    whole = _response(call, reply)
    yield f"response.{whole['status']}", {"response": whole}


def _until_cut(events: Iterator[Event], pieces: int) -> Iterator[Event]:
    """Yield the events up to so many pieces of what is said."""
    for kind, event in events:
        if kind.endswith(".delta"):
            pieces -= 1
        if pieces < 0:
            return
        yield kind, event


def _output_events(reply: Reply) -> Iterator[Event]:
    for index, item in enumerate(_output(reply)):
        place = {"output_index": index, "item_id": item["id"]}
        is_message = item["type"] == "message"
        begun: dict[str, Any] = {"content": []} if is_message else {"arguments": ""}
        added = {**item, **begun, "status": "in_progress"}
        yield "response.output_item.added", {"output_index": index, "item": added}
        yield from _message_events(reply, place) if is_message else _tool_events(item, place)
        yield "response.output_item.done", {"output_index": index, "item": item}


def _message_events(reply: Reply, place: Mapping[str, Any]) -> Iterator[Event]:
    place = {**place, "content_index": 0}
    kind, name = ("refusal", "refusal") if reply.refusal else ("output_text", "text")
    said = reply.refusal or reply.text
    extra: dict[str, Any] = {} if reply.refusal else {"logprobs": []}
    yield "response.content_part.added", {**place, "part": _part(reply, "")}
    for piece in pieces_of(said):
        yield f"response.{kind}.delta", {**place, "delta": piece, **extra}
    yield f"response.{kind}.done", {**place, name: said, **extra}
    yield "response.content_part.done", {**place, "part": _part(reply)}


def _tool_events(item: Mapping[str, Any], place: Mapping[str, Any]) -> Iterator[Event]:
    kind = "response.function_call_arguments"
    for piece in pieces_of(item["arguments"]):
        yield f"{kind}.delta", {**place, "delta": piece}
    yield f"{kind}.done", {**place, "arguments": item["arguments"], "name": item["name"]}
