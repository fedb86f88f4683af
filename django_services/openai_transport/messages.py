"""Prompts and answers in the shape of OpenTelemetry's conventions for generative AI.

Pure. The texts are the caller's own: they are taken only where the alias's
``CAPTURE_CONTENT`` is on. Images and sounds are named and left out, since one may
be megabytes; texts to embed or to moderate have no place in the conventions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

#: Where an endpoint's request holds the prompt.
PROMPTS = {"/chat/completions": "messages", "/responses": "input", "/completions": "prompt"}

#: The conventions' words for how an answer of the Responses API ended.
_REASONS = {"completed": "stop", "failed": "error", "max_output_tokens": "length"}

Part = dict[str, Any]


def finish_reasons(answer: Mapping[str, Any]) -> list[str]:
    """Return why the model stopped, for each choice; [] where the answer does not tell."""
    if answer.get("object") == "response":
        found = [_reason(answer)]
    else:
        found = [choice.get("finish_reason") for choice in _dicts(answer.get("choices"))]
    return [reason for reason in found if isinstance(reason, str)]


def asked_content(endpoint: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes that hold what a model was asked."""
    given = asked.get(PROMPTS.get(endpoint, ""))
    items = [{"role": "user", "content": given}] if isinstance(given, str) else _dicts(given)
    content: dict[str, Any] = {}
    if found := [_message(item) for item in items]:
        content["gen_ai.input.messages"] = found
    if isinstance(instructions := asked.get("instructions"), str):
        content["gen_ai.system_instructions"] = [_text(instructions)]
    return content


def answered_content(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attribute that holds what the model answered."""
    if answer.get("object") == "response":
        parts = [part for item in _dicts(answer.get("output")) for part in _parts(item)]
        found = [{"role": "assistant", "parts": parts, "finish_reason": _reason(answer)}]
    else:
        found = [_choice(choice) for choice in _dicts(answer.get("choices"))]
    return {"gen_ai.output.messages": found} if found else {}


def _reason(response: Mapping[str, Any]) -> Any:
    details = response.get("incomplete_details")
    told = details.get("reason") if isinstance(details, dict) else response.get("status")
    return _REASONS.get(told, told) if isinstance(told, str) else None


def _choice(choice: Mapping[str, Any]) -> dict[str, Any]:
    # A plain completion's choice has its text where a chat's has a message.
    said = choice.get("message", {"content": choice.get("text")})
    message = _message(said if isinstance(said, dict) else {}, role="assistant")
    return {**message, "finish_reason": choice.get("finish_reason")}


def _message(item: Mapping[str, Any], role: str = "user") -> dict[str, Any]:
    told = item.get("role")
    return {"role": told if isinstance(told, str) else role, "parts": list(_parts(item))}


def _parts(item: Mapping[str, Any]) -> Iterator[Part]:
    if item.get("type") == "function_call":
        yield _tool_call(item.get("call_id"), item)
    elif item.get("type") == "function_call_output":
        yield _tool_response(item.get("call_id"), item.get("output"))
    elif item.get("role") == "tool":
        yield _tool_response(item.get("tool_call_id"), item.get("content"))
    else:
        yield from _spoken(item.get("content"))
    for call in _dicts(item.get("tool_calls")):
        function = call.get("function")
        yield _tool_call(call.get("id"), function if isinstance(function, dict) else {})


def _spoken(content: Any) -> Iterator[Part]:
    if isinstance(content, str):
        yield _text(content)
    for piece in _dicts(content):
        said = piece.get("text", piece.get("refusal"))
        yield _text(said) if isinstance(said, str) else {"type": str(piece.get("type"))}


def _text(text: str) -> Part:
    return {"type": "text", "content": text}


def _tool_call(call_id: Any, function: Mapping[str, Any]) -> Part:
    return {
        "type": "tool_call",
        "id": call_id,
        "name": function.get("name"),
        "arguments": function.get("arguments"),
    }


def _tool_response(call_id: Any, result: Any) -> Part:
    return {"type": "tool_call_response", "id": call_id, "response": result}


def _dicts(given: Any) -> list[dict[str, Any]]:
    return [item for item in given if isinstance(item, dict)] if isinstance(given, list) else []
