"""Which of our errors an answer of the API means. One table for the whole package."""

from __future__ import annotations

import email.utils
import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ..exceptions import (
    AuthenticationFailed,
    BudgetExceeded,
    ConfigurationError,
    InvalidRequest,
    InvalidResponse,
    QuotaExhausted,
    RateLimited,
    ServiceError,
    ServiceUnavailable,
)

if TYPE_CHECKING:
    import openai

#: In ``response.extensions``: the message of an answer that was made in this process.
MESSAGE = "django_services.message"

#: Our own codes, in the error bodies of answers that the transport makes itself.
REDIRECTED = "redirect_not_followed"
HOST_NOT_ALLOWED = "host_not_allowed"
UNUSABLE = "invalid_response"
LIMITED = "limit_reached"
BUDGET = "budget_exceeded"
PRICE_UNKNOWN = "price_unknown"
CIRCUIT_OPEN = "circuit_open"

ERRORS_BY_CODE: dict[str, type[ServiceError]] = {
    "insufficient_quota": QuotaExhausted,  # a 429 that no waiting helps
    "billing_hard_limit_reached": QuotaExhausted,
    REDIRECTED: ConfigurationError,
    HOST_NOT_ALLOWED: ConfigurationError,
    UNUSABLE: InvalidResponse,
    LIMITED: RateLimited,
    BUDGET: BudgetExceeded,
    PRICE_UNKNOWN: ConfigurationError,
    CIRCUIT_OPEN: ServiceUnavailable,
}

ERRORS_BY_STATUS: dict[int, type[ServiceError]] = {
    401: AuthenticationFailed,
    402: QuotaExhausted,
    403: AuthenticationFailed,
    408: ServiceUnavailable,
    409: ServiceUnavailable,
    429: RateLimited,
}

ADVICE: dict[type[ServiceError], str] = {
    AuthenticationFailed: (
        "The key was refused. Check OPENAI_API_KEY, that is "
        'DJANGO_SERVICES["OPENAI"]["{alias}"]["API_KEY"], and what the key may do.'
    ),
    QuotaExhausted: "The account has no credit left. Add credit or raise its limit.",
    BudgetExceeded: "A budget is spent. Raise it, or wait until it renews.",
    RateLimited: "The rate limit is reached. Try again later, or send from fewer workers.",
    ServiceUnavailable: "The service cannot answer now. Try again later.",
    InvalidRequest: "The request was refused as it stands. Check the model and the text's length.",
    InvalidResponse: "Its answer cannot be used. Try again; if it stays, check OPENAI_BASE_URL.",
    ConfigurationError: "Check OPENAI_BASE_URL.",
}

#: Statuses by which a request may be refused for the content of one of its texts.
CONTENT_STATUSES = frozenset({400, 413, 422})

#: Parameters of a request that all of its texts share.
COMMON_PARAMETERS = frozenset({"model", "dimensions", "encoding_format", "user"})

#: A Retry-After beyond this is no number to plan with.
LONGEST_RETRY_AFTER = 24 * 60 * 60.0  # seconds


class Fault(NamedTuple):
    """The error body of an API answer, as far as it can be read."""

    code: str | None
    param: str | None


def error_class(status: int, code: str | None = None) -> type[ServiceError]:
    """Return which error an answer with this HTTP status, 300 or above, means."""
    if code in ERRORS_BY_CODE:
        return ERRORS_BY_CODE[code]
    return ERRORS_BY_STATUS.get(status, ServiceUnavailable if status >= 500 else InvalidRequest)


def fault_in(body: Any) -> Fault:
    """Return what the error body says, of a decoded JSON answer of any shape."""
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return Fault(None, None)
    # The quota's word stands in "code" or, with some servers, in "type" alone.
    kind = error.get("type")
    code = kind if kind in ERRORS_BY_CODE else error.get("code")
    return Fault(_short(code), _short(error.get("param")))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that the answer asks to wait: in ms, seconds or as a date."""
    for header, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers[header]) * unit
        except (KeyError, ValueError):
            continue
        return None if math.isnan(seconds) else min(max(0.0, seconds), LONGEST_RETRY_AFTER)
    try:
        date = email.utils.parsedate_to_datetime(headers["retry-after"])
    except (KeyError, ValueError):
        return None
    return min(max(0.0, date.timestamp() - time.time()), LONGEST_RETRY_AFTER)


def error_of(error: openai.OpenAIError, alias: str) -> ServiceError:
    """Return our error for the SDK's, without the texts and the key that the SDK's holds."""
    import openai

    if isinstance(error, openai.APIStatusError):
        return _error_of_status(error, alias)
    if isinstance(error, openai.APITimeoutError):
        return ServiceUnavailable(
            f"OpenAI ({alias}) did not answer in time. Try again, or raise "
            f'DJANGO_SERVICES["OPENAI"]["{alias}"]["DEADLINE"].'
        )
    if isinstance(error, openai.APIConnectionError):
        return ServiceUnavailable(
            f"OpenAI ({alias}) could not be reached. Check the network and OPENAI_BASE_URL."
        )
    return ServiceUnavailable(f"OpenAI ({alias}) failed with {type(error).__name__}. Try again.")


def is_about_one_text(error: openai.OpenAIError) -> bool:
    """Tell whether the request may have been refused for one of its texts only."""
    import openai

    return (
        isinstance(error, openai.APIStatusError)
        and error.status_code in CONTENT_STATUSES
        and fault_in({"error": error.body}).param not in COMMON_PARAMETERS
    )


def _error_of_status(error: openai.APIStatusError, alias: str) -> ServiceError:
    code, param = fault_in({"error": error.body})
    kind = error_class(error.status_code, code)
    # The service's own words may quote the text or the key; those said in this process do not.
    words = error.response.extensions.get(MESSAGE) or ADVICE[kind].format(alias=alias)
    answer = ", ".join(filter(None, (f"HTTP {error.status_code}", code, param)))
    return kind(
        f"OpenAI ({alias}): {answer}. {words}",
        status=error.status_code,
        code=code,
        request_id=error.request_id,
        retry_after=retry_after(error.response.headers),
    )


def _short(value: object) -> str | None:
    # A server may put anything here, the prompt included: only a plain word passes.
    text = str(value) if isinstance(value, (str, int)) else ""
    is_word = 0 < len(text) <= 40 and text.isascii() and text.replace("_", "").isalnum()
    return text if is_word else None
