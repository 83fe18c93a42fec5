"""Models are tried for real: the official client, the API, a worker and the process it starts."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from app.db import connected
from app.ids import token
from app.keys.service import Scope
from app.settings import ApiSettings
from tests.app.records import run_now
from tests.conftest import SHARED, Api, environment, running_api
from tests.factories import make_model_folder
from tests.previews import chat_text, generated, make_adapter, model_processes, publish
from tests.waiting import wait_until

TINY, SLOW = "tiny-llama", "slow-llama"
USER = [{"role": "user", "content": "What is 2 plus 2?"}]
MOST_TOKENS = 3000
FIRST_S = 200  # until the first word, on a machine that has much else to do


@dataclass(frozen=True)
class Preview:
    """A server with previews, its one worker, and a client of one of its tenants."""

    api: Api
    worker: subprocess.Popen[bytes]
    log: Path
    organization_id: str
    client: openai.OpenAI

    def children(self) -> list[psutil.Process]:
        return model_processes(self.worker.pid)

    def state(self, preview_id: str) -> str:
        query = "SELECT state FROM previews WHERE id = :id"
        return str(run_now(self.api.settings, query, id=preview_id))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("previews")


@pytest.fixture(scope="module")
def mine(settings: ApiSettings, models_dir: Path, folder: Path) -> ApiSettings:
    """Models of this module's own beside the others; one that takes its time."""
    models = folder / "models"
    models.mkdir()
    for path in models_dir.iterdir():
        (models / path.name).symlink_to(path.resolve())
    make_model_folder(models / SLOW, layers=24, context=2 * MOST_TOKENS)
    changes = {
        "models_dir": models,
        "data_dir": folder / "data",
        "preview_max_tokens": MOST_TOKENS,
        "preview_timeout_s": 280,
    }
    return settings.model_copy(update=changes)


@contextmanager
def worker_of(settings: ApiSettings, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "worker.celery_app", "worker"],
            env=environment(settings),
            stdout=output,
            stderr=output,
        )
    try:
        wait_until(lambda: worker_lives(settings, process), timeout_s=120)
        yield process
    finally:
        process.terminate()
        process.wait(60)


def worker_lives(settings: ApiSettings, process: subprocess.Popen[bytes]) -> bool:
    query = "SELECT count(*) FROM workers WHERE id LIKE :name AND devices->>'preview' = 'cpu'"
    return bool(run_now(settings, query, name=f"%-{process.pid}"))


@pytest.fixture(scope="module")
def preview(mine: ApiSettings, folder: Path) -> Iterator[Preview]:
    log = folder / "worker.log"
    with running_api(mine, folder / "api.log") as api, worker_of(mine, log) as worker:
        key = api.key(f"curious-{token(6)}", Scope.ADMIN)
        with api.http(key) as http:
            organization_id = http.get("/organization/limits").json()["organization_id"]
        with openai.OpenAI(base_url=f"{api.url}/v1", api_key=key, max_retries=0) as client:
            yield Preview(api, worker, log, organization_id, client)


def put(preview: Preview, base: str, adapter: Path, *, task: str = "causal") -> str:
    async def connect_and_publish() -> str:
        async with connected(preview.api.settings.database_url) as db:
            return await publish(db, preview.organization_id, base, adapter, task=task)

    return asyncio.run(connect_and_publish())


@pytest.fixture(scope="module")
def adapter(mine: ApiSettings, folder: Path) -> Path:
    assert mine.models_dir is not None
    return make_adapter(mine.models_dir / TINY, folder / "adapter")


@pytest.fixture(scope="module")
def tuned(preview: Preview, adapter: Path) -> str:
    return put(preview, TINY, adapter)


def ask(preview: Preview, model: str, **body: Any) -> Any:
    body = {"temperature": 0, "max_tokens": 12, "messages": USER} | body
    return preview.client.chat.completions.create(model=model, **body)


def text_of(chunks: list[Any]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def test_a_base_answers_a_conversation(preview: Preview):
    answer = preview.client.chat.completions.with_raw_response.create(
        model=TINY, messages=USER, max_tokens=12, temperature=0
    )

    found = answer.parse()
    assert found.object == "chat.completion" and found.id.startswith("chatcmpl-")
    assert found.choices[0].message.role == "assistant" and found.choices[0].message.content
    assert found.choices[0].finish_reason == "length"
    assert found.usage is not None and found.usage.completion_tokens == 12
    assert found.usage.total_tokens == found.usage.prompt_tokens + 12
    assert (found.model_extra or {})["preview"] is True
    assert answer.headers["x-basin-preview"] == f"max_tokens={MOST_TOKENS}, timeout_s=280"


def test_a_stream_says_what_the_whole_answer_says(preview: Preview, tuned: str):
    whole = ask(preview, tuned)

    chunks = list(ask(preview, tuned, stream=True, stream_options={"include_usage": True}))

    assert chunks[0].choices[0].delta.role == "assistant"
    assert text_of(chunks) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}


def test_a_stream_ends_with_openais_last_line(preview: Preview):
    body = {"model": TINY, "messages": USER, "max_tokens": 3, "stream": True}
    with preview.api.http(preview.client.api_key) as http:
        answer = http.post("/chat/completions", json=body, timeout=FIRST_S)

    lines = [line for line in answer.text.split("\n\n") if line]
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert lines[-1] == "data: [DONE]" and all(line.startswith("data: ") for line in lines)


def test_a_fine_tuned_model_says_what_plain_peft_generates(
    preview: Preview, tuned: str, adapter: Path, mine: ApiSettings
):
    assert mine.models_dir is not None
    base = mine.models_dir / TINY
    expected = generated(base, adapter, chat_text(adapter, USER), max_tokens=12)

    before, after = ask(preview, TINY), ask(preview, tuned)

    assert after.choices[0].message.content == expected
    assert before.choices[0].message.content != expected


@pytest.mark.shared
def test_a_fine_tuned_story_teller_goes_on_as_plain_peft_does(preview: Preview, folder: Path):
    stories = SHARED / "models" / "stories260K"
    tale = make_adapter(stories, folder / "tale", seed=3)
    model = put(preview, "stories260K", tale)
    asked = "Once upon a time, a small dog"
    expected = generated(stories, tale, f"<s>{asked}", max_tokens=40)

    plain = preview.client.completions.create(
        model="stories260K", prompt=asked, temperature=0, max_tokens=40
    )
    tuned = preview.client.completions.create(
        model=model, prompt=asked, temperature=0, max_tokens=40
    )

    assert tuned.choices[0].text.strip() == expected.strip()
    assert (
        plain.choices[0].text.strip()
        == generated(stories, None, f"<s>{asked}", max_tokens=40).strip()
    )
    assert plain.choices[0].text.startswith(" ") and plain.object == "text_completion"


def test_a_completion_streams_too(preview: Preview):
    body: dict[str, Any] = {"model": TINY, "prompt": "2 plus 2 is", "temperature": 0}
    whole = preview.client.completions.create(**body, max_tokens=8)

    chunks = list(preview.client.completions.create(**body, max_tokens=8, stream=True))

    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == "length"


def test_an_encoder_decoder_answers(preview: Preview):
    answer = preview.client.completions.create(model="tiny-t5", prompt="Is 3 odd?", max_tokens=6)

    assert answer.usage is not None and 1 <= answer.usage.completion_tokens <= 6


def test_a_seed_makes_an_answer_come_again(preview: Preview):
    first, second, other = (
        ask(preview, TINY, temperature=1, seed=seed).choices[0].message.content
        for seed in (5, 5, 6)
    )

    assert first == second != other


def test_an_answer_ends_before_a_stop_string(preview: Preview):
    text = ask(preview, TINY, max_tokens=20).choices[0].message.content
    stop = text[3:5]

    chunks = list(ask(preview, TINY, max_tokens=20, stop=[stop, "never"], stream=True))

    assert text_of(chunks) == text[: text.index(stop)]
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_classifier_is_not_tried(preview: Preview):
    with pytest.raises(openai.BadRequestError, match="chooses a label") as caught:
        ask(preview, "tiny-bert")

    assert caught.value.param == "model"


@pytest.mark.parametrize("stream", [False, True])
def test_what_does_not_fit_is_refused_by_the_length_of_the_context(preview: Preview, stream: bool):
    long = [{"role": "user", "content": "long " * 60}]

    with pytest.raises(openai.BadRequestError, match="sees 256 tokens, and messages has") as caught:
        ask(preview, TINY, messages=long, stream=stream)

    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")


def test_a_base_that_cannot_be_read_is_told_and_the_next_question_is_answered(preview: Preview):
    with pytest.raises(openai.InternalServerError, match="cannot be read") as caught:
        ask(preview, "broken-llama")

    assert caught.value.code == "preview_failed"
    assert ask(preview, TINY).choices


def test_another_tenant_finds_no_such_model_until_it_is_shared(preview: Preview, tuned: str):
    key = preview.api.key(f"neighbour-{token(6)}", Scope.ADMIN)
    with preview.api.http(key) as http:
        neighbour = http.get("/organization/limits").json()["organization_id"]
    with preview.api.openai(key) as other:
        with pytest.raises(openai.NotFoundError, match="does not exist") as caught:
            other.chat.completions.create(model=tuned, messages=USER)
        permissions = preview.client.fine_tuning.checkpoints.permissions
        permissions.create(tuned, project_ids=[neighbour])
        answer = other.chat.completions.create(
            model=tuned, messages=USER, temperature=0, max_tokens=12
        )

    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert answer.choices[0].message.content == ask(preview, tuned).choices[0].message.content


def test_a_client_that_goes_away_ends_the_preview(preview: Preview):
    stream = ask(preview, SLOW, max_tokens=MOST_TOKENS, stream=True)
    preview_id = next(chunk.id for chunk in stream)

    stream.close()

    wait_until(lambda: preview.state(preview_id) == "cancelled", timeout_s=30)
    assert ask(preview, TINY).choices  # long before the other answer would have been complete


def test_a_client_that_hangs_up_on_a_whole_answer_ends_it_too(preview: Preview):
    body = {"model": SLOW, "messages": USER, "max_tokens": MOST_TOKENS, "temperature": 0}
    ids = "SELECT count(*) FROM previews WHERE state = 'cancelled' AND organization_id = :org"
    before = run_now(preview.api.settings, ids, org=preview.organization_id)

    with preview.api.http(preview.client.api_key) as http, pytest.raises(httpx.ReadTimeout):
        http.post("/chat/completions", json=body, timeout=3)

    wait_until(
        lambda: run_now(preview.api.settings, ids, org=preview.organization_id) == before + 1,
        timeout_s=30,
    )


def test_the_process_may_be_killed_in_the_middle_and_the_next_starts_anew(preview: Preview):
    stream = ask(preview, SLOW, max_tokens=MOST_TOKENS, stream=True)
    assert next(chunk for chunk in stream if chunk.choices[0].delta.content)
    (child,) = preview.children()

    child.kill()
    with pytest.raises(openai.APIError, match="ended by SIGKILL in the middle"):
        list(stream)

    assert ask(preview, TINY).choices
    assert [each.pid for each in preview.children()] != [child.pid]


def test_the_process_knows_no_secret_and_lets_runs_go_first(preview: Preview):
    ask(preview, TINY)
    (child,) = preview.children()

    known = child.environ()
    assert not [name for name in known if name.startswith("BASIN_")]
    assert known["HF_HUB_OFFLINE"] == "1" and known["CUDA_VISIBLE_DEVICES"] == ""
    assert child.nice() > psutil.Process(preview.worker.pid).nice()
    score = Path(f"/proc/{child.pid}/oom_score_adj").read_text()
    assert int(score) > int(Path(f"/proc/{preview.worker.pid}/oom_score_adj").read_text())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_worker_that_ends_in_the_middle_leaves_no_process_and_the_caller_is_told(
    preview: Preview, mine: ApiSettings, folder: Path, number: int
):
    """By a second worker alone: the first one stands still meanwhile."""
    ask(preview, TINY)
    os.kill(preview.worker.pid, signal.SIGSTOP)
    try:
        with worker_of(mine, folder / f"second-{number}.log") as second:
            stream = ask(preview, SLOW, max_tokens=MOST_TOKENS, stream=True)
            assert next(chunk for chunk in stream if chunk.choices[0].delta.content)
            children = model_processes(second.pid)
            assert children

            second.send_signal(number)
            second.wait(60)
            with pytest.raises(openai.APIError, match="ask again"):
                list(stream)

            wait_until(lambda: not any(map(psutil.Process.is_running, children)), timeout_s=10)
    finally:
        os.kill(preview.worker.pid, signal.SIGCONT)


def test_folders_of_workers_that_died_are_removed_by_the_next(
    preview: Preview, mine: ApiSettings, folder: Path
):
    left = mine.previews_dir / "dead-1"
    left.mkdir()

    with worker_of(mine, folder / "third.log"):
        wait_until(lambda: not left.exists(), timeout_s=30)
        kept = {path.name for path in mine.previews_dir.iterdir()}

    assert any(name.endswith(f"-{preview.worker.pid}") for name in kept) and len(kept) == 2
