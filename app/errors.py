"""What can go wrong, by name: an HTTP status and OpenAI's error code stand on each class."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar


class ApiError(Exception):
    """An answer other than 2xx; the message says which thing and what to do next."""

    status: ClassVar[int] = 400
    code: ClassVar[str | None] = None
    type: ClassVar[str] = "invalid_request_error"
    headers: Mapping[str, str] = MappingProxyType({})

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidRequest(ApiError):
    code = "invalid_value"


class InvalidFile(ApiError):
    code = "invalid_file"


class InvalidJobState(ApiError):
    """A 400, not a 409: OpenAI's client retries a 409."""

    code = "invalid_job_state"


class InvalidUploadState(ApiError):
    code = "invalid_upload_state"


class ModelInUse(ApiError):
    code = "model_in_use"


class IdempotencyKeyReused(ApiError):
    code = "idempotency_key_reused"


class NotReady(ApiError):
    code = "not_ready"


class FileInUse(ApiError):
    code = "file_in_use"


class ModelNotFound(ApiError):
    code = "model_not_found"


class PreviewsOff(ApiError):
    """A 400, not a 503: OpenAI's client would ask again."""

    code = "previews_off"


class ContextTooLong(ApiError):
    code = "context_length_exceeded"


class InvalidApiKey(ApiError):
    status = 401
    code = "invalid_api_key"
    type = "authentication_error"


class InsufficientPermissions(ApiError):
    status = 403
    code = "insufficient_permissions"


class NotFound(ApiError):
    status = 404
    code = "not_found"


class UnknownModel(NotFound):
    """As OpenAI answers whoever asks a model; a job that names one is told ModelNotFound."""

    code = "model_not_found"


class MethodNotAllowed(ApiError):
    status = 405
    code = "method_not_allowed"


class ClientTooSlow(ApiError):
    """What the client was to send did not come; the connection is closed."""

    status = 408
    code = "request_timeout"
    headers = MappingProxyType({"Connection": "close"})


class HeadTooLarge(ApiError):
    status = 431
    code = "headers_too_large"


class BodyTooLarge(ApiError):
    status = 413
    code = "request_too_large"


class FileTooLarge(ApiError):
    status = 413
    code = "file_too_large"


class RangeNotSatisfiable(ApiError):
    status = 416
    code = "range_not_satisfiable"


class QuotaExceeded(ApiError):
    """The organization has used up what its operator gives it: asking again soon is no use.

    `retry_after_s` says when it may be; a client that asks again by itself is told not to.
    """

    status = 429
    code = "quota_exceeded"
    type = "insufficient_quota"

    def __init__(self, message: str, *, retry_after_s: int, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.headers = {"Retry-After": str(retry_after_s), "x-should-retry": "false"}


class RateLimited(ApiError):
    """Too many requests for the moment; `retry_after_s` says when to ask again."""

    status = 429
    code = "rate_limit_exceeded"
    type = "requests"

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.headers = {"Retry-After": str(retry_after_s)}


class TooManyStreams(ApiError):
    """As many uploads, downloads and event streams are under way as may be."""

    status = 429
    code = "too_many_streams"
    type = "requests"
    headers = MappingProxyType({"Retry-After": "5"})


class Unavailable(ApiError):
    status = 503
    code = "service_unavailable"
    type = "server_error"
    headers = MappingProxyType({"Retry-After": "2", "x-should-retry": "true"})


class PreviewFailed(ApiError):
    """The model could not answer, and would not the next time."""

    status = 500
    code = "preview_failed"
    type = "server_error"
    headers = MappingProxyType({"x-should-retry": "false"})
