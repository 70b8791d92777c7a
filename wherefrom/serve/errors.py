"""What can go wrong with a request, beyond what can with a question; each has its HTTP status."""

from __future__ import annotations

from typing import ClassVar

from wherefrom.errors import CurvatureError, FilterError, QueryError, WherefromError

__all__ = [
    "BusyError",
    "ChangedError",
    "ClosingError",
    "FailedError",
    "ForbiddenError",
    "ReplacedError",
    "RequestError",
    "ServiceError",
    "TimeLimitError",
    "TooLargeError",
    "UnauthorizedError",
    "UnknownDocumentError",
    "UnknownRouteError",
    "UnreadyError",
    "WrongMethodError",
    "status_of",
]


class ServiceError(WherefromError):
    """Base class of what the service refuses.

    Attributes:
        status: Its HTTP status.
        headers: What else an HTTP response to it must say.
    """

    status: ClassVar[int] = 400

    @property
    def headers(self) -> dict[str, str]:
        """What else an HTTP response to it must say."""
        return {}


class RequestError(ServiceError):
    """A request is malformed: a field is missing, unknown, of another type or out of range."""

    status = 422


class UnauthorizedError(ServiceError):
    """The token is missing or another one."""

    status = 401

    @property
    def headers(self) -> dict[str, str]:
        """The scheme in which to send it."""
        return {"WWW-Authenticate": "Bearer"}


class FailedError(ServiceError):
    """The index or the model failed. What went wrong names files, and so is for the log only."""

    status = 500


class ForbiddenError(ServiceError):
    """A request comes from another site's page, or names another host than this one."""

    status = 403


class UnknownDocumentError(ServiceError, QueryError):
    """No document has that id."""

    status = 404


class UnknownRouteError(ServiceError):
    """There is nothing at that path."""

    status = 404


class WrongMethodError(ServiceError):
    """The path does not take that method.

    Args:
        message: The one line.
        allowed: The methods it does take, with commas between them.
    """

    status = 405

    def __init__(self, message: str, allowed: str) -> None:
        super().__init__(message)
        self._allowed = allowed

    @property
    def headers(self) -> dict[str, str]:
        """The methods that it does take."""
        return {"Allow": self._allowed}


class TooLargeError(ServiceError):
    """A request's body is larger than allowed."""

    status = 413


class BusyError(ServiceError):
    """As many requests as allowed are waiting already.

    Args:
        message: The one line.
        retry_after: Whole seconds after which to ask again.
    """

    status = 429

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """When to ask again."""
        return {"Retry-After": str(self.retry_after)}


class ClosingError(ServiceError):
    """The service is shutting down."""

    status = 503


class UnreadyError(ServiceError):
    """The index cannot be read at the moment."""

    status = 503


class ChangedError(ServiceError):
    """The index was purged while the request was being answered."""

    status = 503


class ReplacedError(ServiceError):
    """Another index was built in the place of the one that is served."""

    status = 503


class TimeLimitError(ServiceError):
    """A request took longer than allowed."""

    status = 504


_QUESTIONS = (QueryError, FilterError, CurvatureError)
"""Mistakes in a question: a curvature is named in none, but its damping is."""


def status_of(error: WherefromError) -> int:
    """The HTTP status of an error; 500 where the request is not at fault."""
    if isinstance(error, ServiceError):
        return error.status
    return 400 if isinstance(error, _QUESTIONS) else 500
