"""A job trained for real is pulled, exported and merged, and what the lines say works."""

from pathlib import Path

import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.client.errors import Code
from tests.app.basin import Basin, basin_of
from tests.conftest import Api
from tests.e2e.jobs import create, wait

TOKENS = torch.tensor([[1, 40, 5, 77]])


@pytest.fixture(scope="module")
def basin(api: Api, organization: str) -> Basin:
    return basin_of(api, api.key(organization))


@pytest.fixture(scope="module")
def job(worker: Path, client: openai.OpenAI) -> str:
    from tests.factories import jsonl

    file = client.files.create(file=("train.jsonl", jsonl(20)), purpose="fine-tune").id
    training = {"max_steps": 4, "checkpoint_steps": 2, "learning_rate": 1e-2}
    asked = create(client, file, suffix="bot", training=training)
    ended = wait(client, asked.id)
    assert ended.status == "succeeded", worker.read_text()[-3000:]
    return asked.id


def test_following_a_job_to_its_end_tells_every_step(basin: Basin, job: str):
    updates = basin.lines("jobs", "follow", job)

    steps = {each["data"]["step"] for each in updates if each["event"] == "metrics"}
    assert steps >= {1, 2, 3, 4} and updates[-1]["data"]["status"] == "succeeded"


def test_a_job_is_merged_and_answers_as_the_adapter_on_its_base(
    basin: Basin, job: str, models_dir: Path, tmp_path: Path
):
    where = ("--models", str(models_dir))

    merged = basin.json("export", job, "--merge", "-o", str(tmp_path / "merged"), *where)
    adapter = basin.json("export", job, "-o", str(tmp_path / "adapter"), *where)

    scope: dict[str, object] = {}
    exec(adapter["serve"]["python"], scope)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        expected = scope["model"](TOKENS).logits  # type: ignore[operator]  # what the lines made
        found = whole(TOKENS).logits
    assert torch.allclose(found, expected, atol=1e-5)
    assert merged["merged"]["rounded"] <= 1e-5 * merged["merged"]["scale"]
    assert merged["merged"]["moved"] > 1e-3
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template
    folder = tmp_path / "merged"
    assert merged["serve"]["vllm"] == f"vllm serve {folder} --served-model-name bot"
    assert adapter["serve"]["vllm"] == (
        f"vllm serve {models_dir / 'tiny-llama'} --enable-lora"
        f" --lora-modules bot={tmp_path / 'adapter'}"
    )
    assert {path.name for path in tmp_path.iterdir()} == {"merged", "adapter"}


def test_a_checkpoint_is_pulled_by_its_step(basin: Basin, job: str, tmp_path: Path):
    basin("pull", job, "--checkpoint", "2", "-o", str(tmp_path / "two"))

    assert (tmp_path / "two" / "adapter_config.json").exists()
    answer = basin("pull", job, "--checkpoint", "3", "-o", str(tmp_path / "x"), code=Code.FAILED)
    assert "there are: 2, 4" in answer.stderr


def test_an_adapter_of_another_base_is_not_merged_into_it(
    basin: Basin, job: str, models_dir: Path, tmp_path: Path
):
    arguments = ("export", job, "--merge", "-o", str(tmp_path / "merged"))

    answer = basin(*arguments, "--base", str(models_dir / "tiny-t5"), code=Code.FAILED)

    assert "base model cannot be read" in answer.stderr and not list(tmp_path.iterdir())
