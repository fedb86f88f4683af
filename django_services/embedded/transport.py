"""The offline model behind the official client: answers HTTP requests in process.

`EmbeddedTransport` takes the place of the network under ``openai.OpenAI`` and
answers ``POST /embeddings`` as the API does, its limits and its errors included.
Imported when a client is built, since it loads httpx2.
"""

from __future__ import annotations

import asyncio
import binascii
import json
from collections.abc import Iterable
from typing import Any

import httpx2

from . import DIMENSIONS, MODEL
from .model import Encoding, load

#: In ``response.extensions``: the words of a refusal, which hold none of the caller's.
MESSAGE = "django_services.message"

#: Limits of OpenAI's endpoint, which hold here too so that code proves itself against them.
MAX_INPUTS = 2_048
MAX_TOKENS = 8_192  # of one input
MAX_REQUEST_TOKENS = 300_000  # of all inputs

#: A longer request is answered in a thread, so that it does not hold up the event loop.
INLINE_BYTES = 32 * 1024

_HOW_TO_SWITCH_ON = (
    "Set OPENAI_API_KEY, or OPENAI_BASE_URL to a compatible server, to reach a real model."
)


class Refusal(Exception):
    """Why a request is not answered; becomes the API's error body."""

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.status = status


class EmbeddedTransport(httpx2.BaseTransport, httpx2.AsyncBaseTransport):
    """Answers requests with the offline model; opens no connection."""

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        return answer(request)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if int(request.headers.get("content-length", 0)) > INLINE_BYTES:
            return await asyncio.to_thread(answer, request)
        return answer(request)


def answer(request: httpx2.Request) -> httpx2.Response:
    """Return what OpenAI's API would answer, from the offline model."""
    try:
        _check_endpoint(request)
        content = _embeddings(request.content)
    except Refusal as refusal:
        return _response(request, refusal.status, _error(refusal), {MESSAGE: refusal.message})
    return _response(request, 200, content, {})


def _response(
    request: httpx2.Request, status: int, content: bytes, extensions: dict[str, Any]
) -> httpx2.Response:
    # "x-should-retry" is the API's own word to the SDK; here another attempt never helps.
    headers = {"content-type": "application/json", "x-should-retry": "false"}
    return httpx2.Response(
        status, headers=headers, content=content, extensions=extensions, request=request
    )


def _error(refusal: Refusal) -> bytes:
    error = {
        "message": refusal.message,
        "type": "invalid_request_error",
        "param": refusal.param,
        "code": refusal.code,
    }
    return json.dumps({"error": error}).encode()


def _check_endpoint(request: httpx2.Request) -> None:
    if request.method != "POST" or not request.url.path.endswith("/embeddings"):
        raise Refusal(
            f"The embedded model answers POST /embeddings only, not {request.method} "
            f"{request.url.path}. {_HOW_TO_SWITCH_ON}",
            code="embedded_model_only",
            status=404,
        )


def _embeddings(content: bytes) -> bytes:
    try:
        body = json.loads(content)
    except ValueError:
        raise Refusal("The request's body is not JSON.") from None
    if not isinstance(body, dict):
        raise Refusal("The request's body is not a JSON object.")
    _check_model(body.get("model"))
    texts = _texts(body.get("input"))
    dimensions = _dimensions(body.get("dimensions"))
    formatted = _format(body.get("encoding_format"))
    encoding = load().encode(texts, dimensions)
    _check_tokens(encoding.tokens)
    return _body(formatted(encoding), sum(encoding.tokens))


def _check_model(model: object) -> None:
    if not isinstance(model, str):
        raise Refusal("You must provide a model parameter.", param="model")
    if model != MODEL and not model.startswith("text-embedding-"):
        raise Refusal(
            f"The embedded model answers for {MODEL} and text-embedding-…, not for the model "
            f"asked for. {_HOW_TO_SWITCH_ON}",
            param="model",
            code="model_not_found",
            status=404,
        )


def _texts(given: object) -> list[str]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts:
        raise Refusal("'input' must be a string or a non-empty array of strings.", param="input")
    if len(texts) > MAX_INPUTS:
        raise Refusal(
            f"'input' has {len(texts)} items; the array must hold {MAX_INPUTS} or less.",
            param="input",
        )
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise Refusal(
                f"'input[{position}]' is not a string. Token arrays are numbers of OpenAI's "
                "vocabulary; the embedded model reads texts only.",
                param="input",
            )
        if not text:
            raise Refusal(f"'input[{position}]' cannot be an empty string.", param="input")
    return texts


def _dimensions(given: object) -> int:
    if given is None:
        return DIMENSIONS
    if not isinstance(given, int) or isinstance(given, bool) or not 1 <= given <= DIMENSIONS:
        raise Refusal(
            f"'dimensions' must be a whole number from 1 to {DIMENSIONS} with the embedded model. "
            'Lower DJANGO_SERVICES["OPENAI"][alias]["DIMENSIONS"], or set OPENAI_API_KEY to '
            "reach a real model.",
            param="dimensions",
        )
    return given


def _check_tokens(tokens: list[int]) -> None:
    for position, count in enumerate(tokens):
        if count > MAX_TOKENS:
            raise Refusal(
                f"'input[{position}]' has {count} tokens; the model's maximum is {MAX_TOKENS}.",
                param="input",
                code="context_length_exceeded",
            )
    if sum(tokens) > MAX_REQUEST_TOKENS:
        raise Refusal(
            f"The request has {sum(tokens)} tokens; the maximum is {MAX_REQUEST_TOKENS} in all.",
            param="input",
            code="max_tokens_per_request",
        )


def _base64(encoding: Encoding) -> list[bytes]:
    rows = encoding.vectors.astype("<f4", copy=False)
    return [b'"%b"' % binascii.b2a_base64(row, newline=False) for row in rows]


def _floats(encoding: Encoding) -> list[bytes]:
    return [json.dumps(row).encode() for row in encoding.vectors.tolist()]


_FORMATS = {None: _floats, "float": _floats, "base64": _base64}


def _format(given: Any) -> Any:
    try:
        return _FORMATS[given]
    except (KeyError, TypeError):
        raise Refusal(
            "'encoding_format' must be 'float' or 'base64'.", param="encoding_format"
        ) from None


def _body(rows: Iterable[bytes], tokens: int) -> bytes:
    # Put together by hand: a JSON encoder would walk each row again to escape nothing.
    data = b",".join(
        b'{"object":"embedding","index":%d,"embedding":%b}' % numbered
        for numbered in enumerate(rows)
    )
    usage = b'{"prompt_tokens":%d,"total_tokens":%d}' % (tokens, tokens)
    return b'{"object":"list","data":[%b],"model":"%b","usage":%b}' % (
        data,
        MODEL.encode(),
        usage,
    )
