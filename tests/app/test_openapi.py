"""The document that the API gives of itself names every answer there is."""

from typing import Any

import httpx
import pytest

from tests.conftest import Api


@pytest.fixture(scope="module")
def operations(api: Api) -> dict[str, Any]:
    document = httpx.get(f"{api.url}/openapi.json")
    assert document.status_code == 200
    return {
        f"{method.upper()} {path}": operation
        for path, methods in document.json()["paths"].items()
        for method, operation in methods.items()
    }


def test_every_operation_with_a_key_names_its_refusals(operations: dict[str, Any]):
    closed = {name: each for name, each in operations.items() if each.get("security")}

    assert len(closed) > 40
    for name, operation in closed.items():
        missing = {"400", "401", "403", "413", "429", "503"} - set(operation["responses"])
        assert not missing, name


def test_no_operation_names_an_answer_that_is_never_given(operations: dict[str, Any]):
    assert not [name for name, each in operations.items() if "422" in each["responses"]]


def test_every_error_is_in_the_envelope(operations: dict[str, Any]):
    envelope = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorEnvelope"}}}

    for name, operation in operations.items():
        for status, response in operation["responses"].items():
            if int(status) >= 400 and (name, status) != ("GET /readyz", "503"):
                assert response["content"] == envelope, (name, status)


def test_operations_have_names_of_their_own(operations: dict[str, Any]):
    names = [operation["operationId"] for operation in operations.values()]

    assert len(names) == len(set(names))
