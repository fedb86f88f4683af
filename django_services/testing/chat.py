"""Chat completions: what the API sends for a reply, whole or as a stream."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from .answers import CREATED, Answer, event_stream, json_answer
from .calls import Call
from .replies import Reply, count_tokens, pieces_of


def schema_of(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the JSON Schema that the request wants its answer in; None if none."""
    wanted = body.get("response_format") or {}
    if wanted.get("type") == "json_object":
        return {"type": "object"}
    found: Mapping[str, Any] | None = wanted.get("json_schema", {}).get("schema")
    return found


def answer(call: Call, reply: Reply) -> Answer:
    if not call.is_stream:
        return json_answer(_completion(call, reply))
    chunks = itertools.chain(
        _content_chunks(reply)
        if reply.cut_after is None
        else itertools.islice(_content_chunks(reply), reply.cut_after),
        () if reply.cut_after is not None else _last_chunks(call, reply),
    )
    events = [_event({**_envelope(call, "chat.completion.chunk"), **chunk}) for chunk in chunks]
    if reply.cut_after is None:
        events.append("data: [DONE]\n\n")
    return event_stream(events, is_disconnected=reply.is_disconnected)


def _completion(call: Call, reply: Reply) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": reply.text if reply.text or not reply.tool_calls else None,
        "refusal": reply.refusal or None,
    }
    if reply.refusal:
        message["content"] = None
    if reply.tool_calls:
        message["tool_calls"] = _tool_calls(reply)
    choices = [
        {"index": index, "message": message, "finish_reason": reply.reason, "logprobs": None}
        for index in range(call.body.get("n") or 1)
    ]
    return {
        **_envelope(call, "chat.completion"),
        "choices": choices,
        "usage": _usage(call, reply, len(choices)),
    }


def _envelope(call: Call, kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-fake", "object": kind, "created": CREATED, "model": call.model}


def _tool_calls(reply: Reply) -> list[dict[str, Any]]:
    return [
        {
            "id": tool.id,
            "type": "function",
            "function": {"name": tool.name, "arguments": tool.arguments},
        }
        for tool in reply.tool_calls
    ]


def _usage(call: Call, reply: Reply, choices: int = 1) -> dict[str, Any]:
    given, made = sum(map(count_tokens, call.texts)), reply.tokens * choices
    return {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}


# The stream


def _content_chunks(reply: Reply) -> Iterator[dict[str, Any]]:
    if reply.refusal:
        yield from (_delta(refusal=piece) for piece in pieces_of(reply.refusal))
        return
    for piece in pieces_of(reply.text):
        yield _delta(role="assistant", content=piece)
    for index, tool in enumerate(_tool_calls(reply)):
        pieces = pieces_of(tool["function"]["arguments"])
        tool["function"]["arguments"] = ""
        yield _delta(tool_calls=[{"index": index, **tool}])
        for piece in pieces:
            yield _delta(tool_calls=[{"index": index, "function": {"arguments": piece}}])


def _last_chunks(call: Call, reply: Reply) -> Iterator[dict[str, Any]]:
    yield {"choices": [{"index": 0, "delta": {}, "finish_reason": reply.reason}]}
    # As the API: told where it was asked for only.
    if (call.body.get("stream_options") or {}).get("include_usage"):
        yield {"choices": [], "usage": _usage(call, reply)}


def _delta(**delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}


def _event(chunk: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(chunk)}\n\n"
