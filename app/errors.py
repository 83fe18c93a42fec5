"""What can go wrong, by name: an HTTP status and OpenAI's error code stand on each class."""

from typing import ClassVar


class ApiError(Exception):
    """An answer other than 2xx; the message says which thing and what to do next."""

    status: ClassVar[int] = 400
    code: ClassVar[str | None] = None
    type: ClassVar[str] = "invalid_request_error"

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


class InvalidApiKey(ApiError):
    status = 401
    code = "invalid_api_key"
    type = "authentication_error"


class AdminKeyNeeded(ApiError):
    status = 403
    code = "insufficient_permissions"


class NotFound(ApiError):
    status = 404
    code = "not_found"


class MethodNotAllowed(ApiError):
    status = 405
    code = "method_not_allowed"


class BodyTooLarge(ApiError):
    status = 413
    code = "request_too_large"


class FileTooLarge(ApiError):
    status = 413
    code = "file_too_large"


class RangeNotSatisfiable(ApiError):
    status = 416
    code = "range_not_satisfiable"


class Unavailable(ApiError):
    status = 503
    code = "service_unavailable"
    type = "server_error"
