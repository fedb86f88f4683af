"""Every error that django_services raises.

One tree: ``ServiceError`` at the root. Messages say what failed, with which
values, and what to do; they never hold a key, a prompt or a text. All of them
can be pickled, so a task backend may carry them between processes.
"""

from __future__ import annotations

from django.core.exceptions import ImproperlyConfigured


class ServiceError(Exception):
    """Base of every error of this package; not raised directly.

    Args:
        message: What failed, with which values, and what to do.
        status: HTTP status of the service's answer, where there was one.
        code: The service's own short code, such as ``insufficient_quota``.
        request_id: The service's id of the call, for its support.
        retry_after: Seconds after which another attempt may succeed.
    """

    #: Whether the same call may succeed later, unchanged.
    retryable = False

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.request_id = request_id
        self.retry_after = retry_after


class ConfigurationError(ServiceError, ImproperlyConfigured):
    """A setting, a variable or a declaration is wrong; names it and the fix."""


class ServiceNotConfigured(ConfigurationError):
    """A service was asked for that no setting describes; names the variable."""


class MissingExtra(ConfigurationError):
    """A feature needs a package that is not installed; names the extra."""


class InvalidInput(ServiceError, ValueError):
    """An argument cannot be used; names its position and what is accepted."""


class ServiceUnavailable(ServiceError):
    """No answer before the deadline, or the service said to come back later."""

    retryable = True


class RateLimited(ServiceUnavailable):
    """The service's rate limit was reached; ``retry_after`` says how long."""


class QuotaExhausted(ServiceError):
    """The account has no credit left: waiting does not help, paying does."""


class BudgetExceeded(QuotaExhausted):
    """A budget that the project set is spent; names it. Nothing was sent."""


class AuthenticationFailed(ServiceError):
    """The service refused the credentials; names the variable that holds them."""


class InvalidRequest(ServiceError):
    """The service refused the request as it stands (HTTP 400, 404, 413, 422)."""


class InvalidResponse(ServiceError):
    """The service answered with what cannot be used, such as vectors with NaN."""

    retryable = True


class DimensionMismatch(ServiceError):
    """A vector has another length than the vectors that it is to meet."""
