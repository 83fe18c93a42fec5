"""What can go wrong for somebody who asks the service, and what a command exits with."""

from enum import IntEnum
from typing import ClassVar


class Code(IntEnum):
    """Exit codes, for scripts; 2 is a wrong command line, as everywhere."""

    OK = 0
    FAILED = 1
    REFUSED = 3
    UNREACHABLE = 4
    CANCELLED = 5
    CORRUPT = 6
    INTERRUPTED = 130


# How a job or a comparison that was followed ended.
OUTCOMES = {"succeeded": Code.OK, "failed": Code.FAILED, "cancelled": Code.CANCELLED}
EXIT_CODES = """\
Exit codes: 0 done, or the job succeeded; 1 the job failed, or a check found something; 2 wrong
command line; 3 the server refused; 4 the server cannot be reached or has a fault; 5 the job was
cancelled; 6 what came is not what it should be; 130 interrupted.
"""


class ClientError(Exception):
    """Ends a command: words for a person, and a code for a script."""

    exit_code: ClassVar[Code] = Code.FAILED
    code: ClassVar[str] = "failed"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def document(self) -> dict[str, object]:
        """Return the error as JSON, in the envelope of the API."""
        body = {"message": self.message, "type": "client_error", "param": None, "code": self.code}
        return {"error": body}


class Refused(ClientError):
    """The server answered 4xx; the message is its own."""

    exit_code = Code.REFUSED

    def __init__(self, status: int, error: dict[str, object], *, hint: str | None = None) -> None:
        super().__init__(str(error.get("message")), hint=hint)
        self.status = status
        self.error = error

    def document(self) -> dict[str, object]:
        """Return what the server said."""
        return {"error": self.error}


class Unreachable(ClientError):
    """No answer, or one that tells of a fault of the server."""

    exit_code = Code.UNREACHABLE
    code = "unreachable"


class Corrupt(ClientError):
    """What was downloaded or made is not what it should be; it was not kept."""

    exit_code = Code.CORRUPT
    code = "corrupt"
