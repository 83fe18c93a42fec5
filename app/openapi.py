"""What /openapi.json says beyond what FastAPI finds out: the errors there are."""

from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

Json = dict[str, Any]

OPEN = (408, 413, 431, 500, 503)
WITH_A_KEY = (400, 401, 403, 404, 429)
UNCHECKED = "422"  # FastAPI's own; here such a request is a 400

WHEN = {
    400: "The request is not understood, or the thing is in no state for it; the message says why.",
    401: "No API key, or not a good one.",
    403: "The key may not do this.",
    404: "No such thing, or another organization's.",
    408: "The request came too slowly.",
    413: "The body or the file is too large.",
    416: "The range is outside of the bytes.",
    429: "Too many requests, streams or jobs; `retry-after` says when asking again is of use.",
    431: "The headers are too long, or too many.",
    500: "A fault of the server.",
    503: "The database is away for a moment; ask again.",
}


class Problem(BaseModel):
    """What went wrong; `param` names what of the request it was, `code` is for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(BaseModel):
    """What every error comes in."""

    error: Problem


def install(app: FastAPI) -> None:
    """Have an app describe the errors of every operation, once its document is asked for."""
    found_out = app.openapi

    def described() -> Json:
        if app.openapi_schema is None:
            document = found_out()
            document["components"]["schemas"] |= _schemas()
            for operation in _operations(document):
                _describe(operation)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]  # FastAPI's documented way


def _operations(document: Json) -> Iterator[Json]:
    for path in document["paths"].values():
        yield from path.values()


def _describe(operation: Json) -> None:
    responses: Json = operation["responses"]
    responses.pop(UNCHECKED, None)
    for status in _statuses(operation):
        responses.setdefault(str(status), {"description": WHEN[status]})
    for answered, response in responses.items():
        if int(answered) >= HTTPStatus.BAD_REQUEST and "content" not in response:
            response["content"] = {"application/json": {"schema": _reference(ErrorEnvelope)}}


def _statuses(operation: Json) -> Iterator[int]:
    yield from OPEN
    if operation.get("security"):
        yield from WITH_A_KEY


def _reference(model: type[BaseModel]) -> Mapping[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _schemas() -> Json:
    schema = ErrorEnvelope.model_json_schema(ref_template="#/components/schemas/{model}")
    return {**schema.pop("$defs"), ErrorEnvelope.__name__: schema}
