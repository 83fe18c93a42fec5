"""Base and adapters are scored alike, on chats and on prompts with completions."""

import math
from pathlib import Path

import pytest

from demo.compare import judge, prompt, question_and_answer
from demo.material import Base
from tests.factories import chat_row

PROMPT_ROW = {"prompt": "2 plus 2 is", "completion": " 4."}


@pytest.fixture(scope="module")
def tiny(models_dir) -> Base:
    return Base(name="tiny-llama", location=str(models_dir / "tiny-llama"))


@pytest.fixture(scope="module")
def adapters(tiny, tmp_path_factory) -> dict[str, Path]:
    """One adapter that changes nothing, as LoRA starts, and one that does."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from worker.trainer.chat import PLAIN_TEMPLATE

    folders = {}
    tokenizer = AutoTokenizer.from_pretrained(tiny.location)
    tokenizer.chat_template = PLAIN_TEMPLATE
    for label, fresh in (("fresh", True), ("changed", False)):
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_pretrained(tiny.location)
        config = LoraConfig(target_modules="all-linear", init_lora_weights=fresh, lora_alpha=64)
        folders[label] = tmp_path_factory.mktemp(label)
        get_peft_model(base, config).save_pretrained(folders[label])
        tokenizer.save_pretrained(folders[label])
    return folders


@pytest.mark.parametrize("row", [chat_row(2), PROMPT_ROW], ids=["chat", "prompt"])
def test_a_fresh_adapter_scores_as_the_base_and_a_changed_one_does_not(tiny, adapters, row):
    told = []

    judged = judge(
        tiny, adapters, [row, row], max_length=200, progress=lambda *done: told.append(done)
    )

    losses = {verdict.label: verdict.loss for verdict in judged}
    assert list(losses) == ["base", "fresh", "changed"]
    assert losses["fresh"] == pytest.approx(losses["base"], rel=1e-5)
    assert abs(losses["changed"] - losses["base"]) > 1e-3
    assert told == [(label, done) for label in losses for done in (1, 2)]
    assert judged[0].answer == judged[1].answer


def test_an_untrained_model_guesses_among_all_tokens(tiny, adapters):
    [base, *_] = judge(tiny, adapters, [chat_row(2)], max_length=200, progress=lambda *_: None)

    assert base.loss == pytest.approx(math.log(259), rel=0.1)


def test_the_prompt_ends_where_the_answer_begins(adapters):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(adapters["fresh"])

    asked = prompt(chat_row(2), tokenizer)

    assert "What is 2 plus 2?" in asked
    assert "is 4" not in asked
    assert asked.rstrip().endswith("Assistant:")
    assert prompt(PROMPT_ROW, tokenizer) == "<s>2 plus 2 is"


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        (chat_row(1), ("What is 1 plus 1?", "1 plus 1 is 2.")),
        (PROMPT_ROW, ("2 plus 2 is", "4.")),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
                    {"role": "assistant", "content": None, "tool_calls": ["a call"]},
                ]
            },
            ("Weather?", "['a call']"),
        ),
    ],
)
def test_people_see_the_last_question_and_its_answer(row, shown):
    assert question_and_answer(row) == shown
