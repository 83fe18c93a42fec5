"""The report on a file: over HTTP, and against what training does with the same rows."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console
from sqlalchemy import func, select

from app.db import Database
from app.errors import Unavailable
from app.files import local, reports
from app.files.formats import check_row
from app.files.report import MOST_COUNTED, Survey, report
from app.files.tokens import TokenCounter
from app.models import catalog
from app.tables import FileReport, Json
from tests.app.test_cli import basin
from tests.app.test_files_api import upload
from tests.app.test_reinforcement_api import ASKED, EPISODES
from tests.conftest import SHARED
from tests.factories import chat_row, jsonl, preference_row, to_jsonl


def labelled(**counts: int) -> bytes:
    rows = [
        {"text": f"{label} {number}", "label": label}
        for label, count in counts.items()
        for number in range(count)
    ]
    return to_jsonl(rows)


async def test_an_organization_makes_one_report_at_a_time_and_keeps_no_other_from_it(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(reports, "WAIT_S", 0.05)
    monkeypatch.setattr(reports, "AT_ONCE", asyncio.Semaphore(2))
    async with reports.turn("org-a"):
        with pytest.raises(Unavailable, match="in a moment"):
            async with reports.turn("org-a"):
                pass
        async with reports.turn("org-b"):
            with pytest.raises(Unavailable):
                async with reports.turn("org-c"):
                    pass

    async with reports.turn("org-c"), reports.turn("org-a"):
        pass


def look(data: bytes, *, model: Path | None = None, validation: bytes | None = None) -> Json:
    base = catalog.of_folder(model) if model else None
    beside = None
    if validation is not None:
        beside = Survey(base, rows=0)
        beside.feed(validation)
        beside.finish()
    survey = Survey(base, rows=data.count(b"\n"), validation=beside)
    survey.feed(data)
    survey.finish()
    return report(survey)


def found(looked: Json) -> dict[str, Any]:
    return {finding["code"]: finding for finding in looked["findings"]}


def uploaded(http: httpx.Client, data: bytes) -> str:
    file_id: str = upload(http, data).json()["id"]
    return file_id


def test_a_report_says_what_a_file_is_like(http: httpx.Client):
    file_id = uploaded(http, jsonl(20) + jsonl(3) + to_jsonl([LONG]))

    answer = http.get(f"/files/{file_id}/report", params={"model": "tiny-llama"}).json()

    assert answer["object"] == "file.report" and answer["model"] == "tiny-llama"
    assert (answer["file_id"], answer["rows"], answer["format"]) == (file_id, 24, "chat")
    assert answer["tokens"]["estimated"] is False
    assert answer["tokens"]["counted_rows"] == 24
    assert answer["tokens"]["max_length"] == answer["tokens"]["context_length"] == 256
    assert [finding["code"] for finding in answer["findings"]] == [
        "rows_dropped",
        "rows_truncated",
        "duplicate_rows",
    ]
    assert found(answer)["duplicate_rows"]["pairs"] == [[1, 21], [2, 22], [3, 23]]
    assert found(answer)["rows_dropped"]["lines"] == [24]


LONG = {
    "messages": [
        {"role": "user", "content": "x" * 300},
        {"role": "assistant", "content": "never seen"},
    ]
}


def test_without_a_model_tokens_are_estimated(http: httpx.Client):
    file_id = uploaded(http, jsonl(20))

    answer = http.get(f"/files/{file_id}/report").json()

    assert answer["tokens"]["estimated"] is True
    assert answer["tokens"]["max_length"] is None and answer["findings"] == []


def test_rows_that_are_in_both_files_are_counted(http: httpx.Client):
    train, valid = uploaded(http, jsonl(20)), uploaded(http, jsonl(12))

    answer = http.get(f"/files/{train}/report", params={"validation_file": valid}).json()

    overlap = found(answer)["validation_overlap"]
    assert (overlap["count"], overlap["lines"]) == (12, [1, 2, 3, 4, 5])


async def test_a_report_is_kept_and_ends_with_its_file(http: httpx.Client, db: Database):
    file_id = uploaded(http, jsonl(20))
    asked = f"/files/{file_id}/report"

    first = http.get(asked, params={"model": "tiny-llama"}).json()
    again = http.get(asked, params={"model": "tiny-llama"}).json()
    http.get(asked)

    assert first == again
    assert await kept(db, file_id) == 2
    assert http.delete(f"/files/{file_id}").status_code == 200
    assert await kept(db, file_id) == 0
    assert http.get(asked).status_code == 404


async def kept(db: Database, file_id: str) -> int:
    count = select(func.count()).where(FileReport.file_id == file_id)
    async with db.transaction() as tx:
        return await tx.scalar(count) or 0


def test_a_report_needs_a_file_of_ones_own_with_rows(
    http: httpx.Client, stranger: httpx.Client, training_file: str
):
    other = upload(http, b"anything", "assistants").json()["id"]
    asked = f"/files/{training_file}/report"

    assert stranger.get(asked).status_code == 404
    assert http.get("/files/file-none/report").status_code == 404
    assert http.get(asked, params={"validation_file": "file-none"}).status_code == 404
    assert http.get(asked, params={"model": "gpt-9"}).json()["error"]["code"] == "model_not_found"
    assert (
        "uploaded as 'fine-tune'" in http.get(f"/files/{other}/report").json()["error"]["message"]
    )


def test_what_was_doubtful_at_the_upload_is_told_when_a_job_is_submitted(http: httpx.Client):
    file_id = uploaded(http, jsonl(20) + jsonl(1))
    job = http.post("/fine_tuning/jobs", json={"model": "tiny-llama", "training_file": file_id})

    events = http.get(f"/fine_tuning/jobs/{job.json()['id']}/events").json()["data"]
    http.post(f"/fine_tuning/jobs/{job.json()['id']}/cancel")

    (warning,) = [event for event in events if event["level"] == "warn"]
    assert warning["data"] == {"code": "duplicate_rows", "file": file_id, "lines": [21]}
    assert warning["message"].startswith("The training file, 1 times: Rows that repeat")


def test_a_pair_is_as_long_as_the_longer_of_its_conversations(http: httpx.Client):
    rows = [preference_row(number) for number in range(10)]
    rows[0]["non_preferred_output"][0]["content"] = "NO " * 10
    file = upload(http, to_jsonl(rows)).json()

    found = http.get(f"/files/{file['id']}/report", params={"model": "tiny-llama"}).json()

    whole = "<s>User: 0?\nAssistant: " + "NO " * 10 + "</s>\n"
    assert found["tokens"]["max"] == len(whole) - len("<s>" + "</s>") + 2
    assert found["findings"] == []


def test_a_prompt_is_measured_with_the_turn_that_is_to_be_written(http: httpx.Client):
    rows = [
        {"messages": [{"role": "user", "content": f"{number}?"}], "answer": number}
        for number in range(10)
    ]
    rows.append({"messages": [{"role": "user", "content": "x" * 300}], "answer": 0})
    file_id = uploaded(http, to_jsonl(rows))

    answer = http.get(f"/files/{file_id}/report", params={"model": "tiny-llama"}).json()

    assert answer["format"] == "prompt_only"
    assert answer["tokens"]["min"] == len("User: 0?\nAssistant: ") + 1
    assert (answer["tokens"]["truncated"], answer["tokens"]["dropped"]) == (1, 1)


def test_a_prompt_that_leaves_no_room_for_an_answer_is_told_once(models_dir: Path):
    survey = Survey(catalog.of_folder(models_dir / "tiny-llama"), rows=11)
    survey.feed(to_jsonl([{"messages": LONG["messages"][:1], "answer": 0}] * 11))
    survey.finish()

    assert (survey.truncated.count, survey.dropped.count) == (11, 11)
    assert "rows_truncated" not in found(report(survey))


def test_episodes_are_counted_and_not_measured(http: httpx.Client):
    rows = [{"episode": {"seed": number}} for number in [*range(12), 3]]
    file_id = uploaded(http, to_jsonl(rows))

    answer = http.get(f"/files/{file_id}/report").json()

    assert (answer["rows"], answer["format"], answer["tokens"]) == (13, "episode", None)
    assert found(answer)["duplicate_rows"]["pairs"] == [[4, 13]]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "1+1?"}], "answer": 2},
        {"episode": {"seed": 7}},
    ],
)
@pytest.mark.parametrize("method", ["supervised", "dpo"])
def test_rows_without_answers_are_refused_where_answers_are_learned(
    http: httpx.Client, row: dict[str, Any], method: str
):
    file_id = uploaded(http, to_jsonl([row] * 10))
    body = {"model": "tiny-llama", "training_file": file_id, "method": {"type": method}}

    refused = http.post("/fine_tuning/jobs", json=body)

    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "training_file")
    assert f"the file holds {check_row(row)} rows" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("data", "validation", "code", "severity"),
    [
        (labelled(good=10), None, "one_label", "error"),
        (labelled(good=100, bad=10), None, "label_imbalance", "warn"),
        (labelled(good=10, bad=10), labelled(good=9, odd=1), "unknown_labels", "error"),
        (labelled(good=10, bad=10), jsonl(10), "formats_differ", "error"),
        (jsonl(10) + b"nonsense\n", None, "invalid_rows", "error"),
    ],
)
def test_what_a_job_would_stumble_over_is_found(
    data: bytes, validation: bytes | None, code: str, severity: str
):
    assert found(look(data, validation=validation))[code]["severity"] == severity


def test_labels_are_counted():
    looked = look(labelled(good=11, bad=10))

    assert looked["labels"] == [{"label": "good", "rows": 11}, {"label": "bad", "rows": 10}]
    assert looked["findings"] == []


def test_rows_that_do_not_suit_the_base_are_an_error(models_dir: Path):
    looked = look(jsonl(10), model=models_dir / "tiny-bert")

    assert list(found(looked)) == ["format_unsuited"]


@pytest.mark.parametrize("rows", [ASKED, EPISODES])
def test_rows_that_rewards_are_learned_from_suit_a_base_that_writes(
    models_dir: Path, rows: list[dict[str, Any]]
):
    written, told = (look(to_jsonl(rows), model=models_dir / n) for n in ("tiny-llama", "tiny-t5"))

    assert written["findings"] == []
    assert list(found(told)) == ["format_unsuited"]


def test_of_many_rows_some_are_measured():
    survey = Survey(None, rows=3 * MOST_COUNTED)
    survey.feed(jsonl(30))
    survey.finish()

    assert len(survey.lengths) == 10


def test_a_base_without_a_readable_tokenizer_is_estimated(models_dir: Path, tmp_path: Path):
    config = (models_dir / "tiny-llama" / "config.json").read_text()
    (tmp_path / "config.json").write_text(config)
    assert TokenCounter(catalog.of_folder(tmp_path)).estimates("text")

    (tmp_path / "tokenizer.json").write_text("{}")
    assert TokenCounter(catalog.of_folder(tmp_path)).estimates("text")


TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"é": [1]}'}}
EDGES = [
    chat_row(1),
    LONG,
    {"text": "Once upon a time. " * 30},
    {"prompt": "2+2=", "completion": "4", "text": "not this"},
    {"prompt": "not this", "text": "2+2=4"},
    {"prompt": "p" * 254, "completion": "c"},
    {"prompt": "p" * 255, "completion": "c"},
    {"prompt": "p" * 256, "completion": "c"},
    {"messages": [chat_row(2)["messages"][1] | {"weight": 0}, *chat_row(3)["messages"]]},
    {
        "tools": TOOLS,
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "Hi"}]},
            {"role": "user", "content": "1 + 1?"},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "1", "content": "2"},
            {"role": "assistant", "content": "2"},
        ],
    },
]


@pytest.mark.parametrize("row", EDGES)
def test_tokens_are_counted_as_training_counts_them(row: dict[str, Any], models_dir: Path):
    from worker.rundir import Placement
    from worker.trainer.data import IGNORED, encode_row
    from worker.trainer.model import load_tokenizer

    folder = models_dir / "tiny-llama"
    counter = TokenCounter(catalog.of_folder(folder))
    tokenizer = load_tokenizer(Placement(source="folder", location=str(folder), revision=None))

    length = counter.measure(row, check_row(row))

    ids, labels = encode_row(row, tokenizer)
    assert length.tokens == len(ids)
    assert length.answered == any(label != IGNORED for label in labels[1 : counter.max_length])


@pytest.mark.parametrize(
    ("model", "row"),
    [
        ("tiny-bert", {"text": "It rains.", "text_pair": "It is wet.", "label": 1}),
        ("tiny-bert", {"text": "It rains.", "label": 1}),
        ("tiny-t5", {"prompt": "a b c", "completion": "d"}),
    ],
)
def test_special_tokens_count(model: str, row: dict[str, Any], models_dir: Path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models_dir / model)
    sides = (row["text"], row.get("text_pair")) if "text" in row else (row["prompt"],)

    length = TokenCounter(catalog.of_folder(models_dir / model)).measure(row, check_row(row))

    assert length.tokens == len(tokenizer(*sides)["input_ids"])


def test_a_long_text_is_counted_in_proportion(models_dir: Path):
    counter = TokenCounter(catalog.of_folder(models_dir / "tiny-llama"))

    tokens = counter.measure({"text": "x" * 500_000}, "text").tokens

    assert tokens == pytest.approx(500_000, rel=0.001)


@pytest.mark.shared
def test_published_rows_are_counted_as_training_counts_them(tmp_path: Path):
    from worker.rundir import Placement
    from worker.trainer.data import encode_file
    from worker.trainer.model import load_tokenizer

    data = SHARED / "data" / "tool_calls" / "train_200.chat.jsonl"
    folder = SHARED / "models" / "stories260K"
    tokenizer = load_tokenizer(Placement(source="folder", location=str(folder), revision=None))

    tokens = look(data.read_bytes(), model=folder)["tokens"]
    encoded = encode_file(data, tokenizer, max_length=tokens["max_length"])

    assert (tokens["truncated"], tokens["dropped"]) == (encoded.truncated, encoded.dropped)


def test_the_command_checks_a_file_without_a_server(tmp_path: Path, models_dir: Path):
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_bytes(jsonl(10) + jsonl(1))
    bad.write_bytes(jsonl(10) + b"nonsense\n")

    done = basin("files", "check", str(good), "--model", str(models_dir / "tiny-llama"))
    refused = basin("files", "check", str(bad))

    assert done.returncode == 0, done.stderr
    assert "11 chat rows" in done.stdout and "duplicate_rows" in done.stdout
    assert refused.returncode == 1
    assert "line 11: not JSON" in refused.stdout


def test_the_command_fails_on_what_a_job_would_fail_on(tmp_path: Path, models_dir: Path):
    train, valid = tmp_path / "train.jsonl", tmp_path / "valid.jsonl"
    train.write_bytes(labelled(good=10, bad=10))
    valid.write_bytes(labelled(odd=10))
    out = Console(quiet=True)

    assert local.check(train, out, model=models_dir / "tiny-bert", validation=None)
    assert not local.check(train, out, model=models_dir / "tiny-llama", validation=None)
    assert not local.check(train, out, model=None, validation=valid)


def test_the_command_names_a_folder_that_is_no_model(tmp_path: Path):
    file = tmp_path / "train.jsonl"
    file.write_bytes(jsonl(10))

    done = basin("files", "check", str(file), "--model", str(tmp_path))

    assert done.returncode == 2 and "config.json" in done.stderr


def test_a_report_is_json(models_dir: Path):
    assert json.loads(json.dumps(look(jsonl(10), model=models_dir / "tiny-llama")))
