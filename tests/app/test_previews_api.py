"""What a preview is asked on OpenAI's wire: what it takes, ignores and refuses."""

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from app.ids import token
from app.keys.service import Scope
from tests.app.records import run_now
from tests.conftest import Api

USER = [{"role": "user", "content": "Hello"}]
CHAT, COMPLETIONS = "/chat/completions", "/completions"
# Asks for nothing; a preview may not stumble over it.
HARMLESS = {
    "n": 1,
    "user": "u",
    "store": False,
    "metadata": {"a": "b"},
    "tools": [],
    "tool_choice": "none",
    "logprobs": False,
    "frequency_penalty": 0.0,
    "presence_penalty": 0,
    "logit_bias": {},
    "response_format": {"type": "text"},
    "modalities": ["text"],
    "parallel_tool_calls": True,
    "service_tier": "auto",
    "stream_options": None,
    "reasoning_effort": None,
}


def error(answer: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return found


@pytest.fixture
def busy(api: Api) -> Iterator[httpx.Client]:
    """A tenant with as many previews as it may have, on a server whose worker is alive."""
    name = f"busy-{token(6)}"
    with api.http(api.key(name, Scope.ADMIN)) as client:
        organization_id = client.get("/organization/limits").json()["organization_id"]
        run_now(
            api.settings,
            "INSERT INTO workers (id, hostname, devices)"
            ' VALUES (:id, \'here\', \'{"all": ["cpu"], "preview": "cpu"}\')',
            id=name,
        )
        run_now(
            api.settings,
            "INSERT INTO previews (id, organization_id, model, base_model, question, deadline_at)"
            " SELECT :org || n, :org, 'm', 'm', '{}', now() + interval '1 minute'"
            " FROM generate_series(1, 4) AS n",
            org=organization_id,
        )
        yield client
        run_now(api.settings, "DELETE FROM previews WHERE organization_id = :o", o=organization_id)
        run_now(api.settings, "DELETE FROM workers WHERE id = :id", id=name)


@pytest.mark.parametrize(
    ("path", "param", "value"),
    [
        (CHAT, "n", 2),
        (CHAT, "tools", [{"type": "function", "function": {"name": "f"}}]),
        (CHAT, "tool_choice", "required"),
        (CHAT, "functions", [{"name": "f"}]),
        (CHAT, "logprobs", True),
        (CHAT, "top_logprobs", 3),
        (CHAT, "audio", {"voice": "alloy", "format": "wav"}),
        (CHAT, "modalities", ["text", "audio"]),
        (CHAT, "response_format", {"type": "json_object"}),
        (CHAT, "frequency_penalty", 0.5),
        (CHAT, "presence_penalty", -1),
        (CHAT, "logit_bias", {"50256": -100}),
        (CHAT, "web_search_options", {}),
        (CHAT, "reasoning_effort", "high"),
        (CHAT, "temperature", 2.5),
        (CHAT, "top_p", 1.1),
        (CHAT, "max_tokens", 0),
        (CHAT, "max_completion_tokens", -1),
        (CHAT, "stop", ["a", "b", "c", "d", "e"]),
        (CHAT, "stop", ""),
        (CHAT, "seed", 2**70),
        (CHAT, "messages", []),
        (CHAT, "surprise", 1),
        (COMPLETIONS, "prompt", ["one", "two"]),
        (COMPLETIONS, "prompt", [1, 2, 3]),
        (COMPLETIONS, "echo", True),
        (COMPLETIONS, "best_of", 2),
        (COMPLETIONS, "logprobs", 0),
        (COMPLETIONS, "suffix", "end"),
    ],
)
def test_what_would_change_the_answer_is_refused_by_name(
    http: httpx.Client, path: str, param: str, value: Any
):
    body = {"model": "tiny-llama"}
    body |= {"messages": USER} if path == CHAT else {"prompt": "Hello"}

    found = error(http.post(path, json=body | {param: value}))

    assert (found["param"] or "").split(".")[0] == param


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([{"role": "wizard", "content": "a"}], "role 'wizard'"),
        ([{"role": "user"}], 'needs "content"'),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "text parts"),
    ],
)
def test_messages_that_cannot_be_read_are_named(
    http: httpx.Client, messages: list[dict[str, Any]], said: str
):
    found = error(http.post(CHAT, json={"model": "tiny-llama", "messages": messages}))

    assert found["param"] == "messages" and said in found["message"]


def test_what_asks_for_nothing_is_let_pass(busy: httpx.Client):
    """As far as the last check, of how many are asked at once."""
    body = {"model": "tiny-llama", "messages": USER} | HARMLESS

    assert error(busy.post(CHAT, json=body), 429)["code"] == "rate_limit_exceeded"


def test_too_many_at_once_are_told_when_to_ask_again(busy: httpx.Client):
    answer = busy.post(COMPLETIONS, json={"model": "tiny-llama", "prompt": "Hello"})

    assert "4 previews of your organization" in error(answer, 429)["message"]
    assert answer.headers["retry-after"] == "5"


def test_a_model_that_nobody_offers_is_a_404(client: openai.OpenAI):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-9", messages=USER)

    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_a_key_that_only_looks_asks_no_model(api: Api):
    with api.http(api.key(f"looks-{token(6)}", Scope.READ)) as looking:
        found = error(looking.post(CHAT, json={"model": "tiny-llama", "messages": USER}), 403)

    assert found["code"] == "insufficient_permissions"
