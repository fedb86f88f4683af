"""Answers that are made in this process, in the API's shape: the SDK raises its own errors.

Imported with the transport, since it loads httpx2.
"""

from __future__ import annotations

import json
import math

import httpx2

from .faults import MESSAGE


def error(
    request: httpx2.Request,
    status: int,
    message: str,
    code: str | None,
    *,
    is_final: bool = False,
    retry_after: float | None = None,
) -> httpx2.Response:
    """Return an error that nobody's server sent.

    Args:
        request: What it answers.
        status: HTTP status; decides which exception the SDK raises.
        message: For whoever meets it; holds none of the caller's words.
        code: The service's, or one of `faults`, which the verbs turn into our own errors.
        is_final: Whether another attempt would come to the same.
        retry_after: Seconds after which another attempt may succeed.
    """
    body = {"message": message, "type": "django_services", "param": None, "code": code}
    headers = {"content-type": "application/json"}
    if is_final:
        headers["x-should-retry"] = "false"
    if retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(retry_after)))
        headers["retry-after-ms"] = str(math.ceil(retry_after * 1_000))
    return httpx2.Response(
        status,
        headers=headers,
        content=json.dumps({"error": body}).encode(),
        extensions={MESSAGE: message},
        request=request,
    )


def embeddings(request: httpx2.Request, content: bytes) -> httpx2.Response:
    """Return a good answer to a request for embeddings."""
    return httpx2.Response(
        200, headers={"content-type": "application/json"}, content=content, request=request
    )
