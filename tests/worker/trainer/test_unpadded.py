"""Rows one after another, without padding, learn what they learn in a padded batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from app.jobs.spec import Finished, StepDone
from tests.factories import chat_row
from tests.worker.optim.problems import Waits
from tests.worker.trainer.runs import make_run, of_type, train_here
from worker.trainer import unpadded
from worker.trainer.data import IGNORED

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "embedding_dropout": 0.0,
    "residual_dropout": 0.0,
    "initializer_range": 0.2,  # so that attention, and not the embeddings alone, decides the loss
}
WINDOWED = {
    "mistral": {"sliding_window": 5},
    "qwen2": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "starcoder2": {"sliding_window": 5},
}


def tiny(family: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SHAPE | changes)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").train()


def rows(*lengths: int) -> list[dict[str, list[int]]]:
    """Rows of which the second half is learned; the last one is learned whole."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for length in lengths:
        ids = torch.randint(3, SHAPE["vocab_size"], (length,), generator=generator).tolist()
        labels = [IGNORED] * (length // 2) + ids[length // 2 :]
        found.append({"input_ids": ids, "labels": labels})
    found[-1]["labels"] = found[-1]["input_ids"]
    return found


def padded_loss(model: Any, batch: list[dict[str, list[int]]]) -> torch.Tensor:
    """The mean over the answers, from all logits of a padded batch: as plain as can be."""
    inputs = DataCollatorForLanguageModeling(pad_token_id=0)(batch)
    labels = inputs.pop("labels")
    logits = model(**inputs, use_cache=False).logits[:, :-1]
    return functional.cross_entropy(
        logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED
    )


def unpadded_gradients(model: Any, batch: list[dict[str, list[int]]]) -> tuple[float, Any]:
    inputs = unpadded.collate(batch)
    with unpadded.each_row_alone(model):
        scores = model(**inputs)
        loss = scores.cost / len(inputs["scored"])
        return loss.item(), gradients(model, loss)


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_alike(model: Any, batch: list[dict[str, list[int]]]) -> None:
    expected = padded_loss(model, batch)
    slopes = gradients(model, expected)
    unpadded.score_answers(model)

    loss, found = unpadded_gradients(model, batch)

    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert found.keys() == slopes.keys()
    for name, slope in slopes.items():
        torch.testing.assert_close(found[name], slope, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("family", sorted(unpadded.FAMILIES))
def test_loss_and_gradients_are_those_of_the_padded_batch(family: str):
    assert_alike(tiny(family), rows(9, 17, 4, 12))


@pytest.mark.parametrize("family", sorted(WINDOWED))
def test_a_sliding_window_slides_within_each_row(family: str):
    assert_alike(tiny(family, **WINDOWED[family]), rows(9, 17, 4, 12))


def test_gradient_checkpointing_computes_them_again_alike():
    model = tiny("llama")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    assert_alike(model, rows(9, 17, 4))


def test_a_row_says_the_same_whoever_stands_beside_it():
    model = tiny("llama")
    unpadded.score_answers(model)
    first, second, other = rows(9, 9, 11)

    with unpadded.each_row_alone(model):
        alone, beside, after = (
            model(**unpadded.collate(batch)).cost.item()
            for batch in ([second], [second, other], [first, second])
        )
        first_cost, other_cost = (
            model(**unpadded.collate([row])).cost.item() for row in (first, other)
        )

    assert beside - other_cost == pytest.approx(alone, rel=1e-5)
    assert after - first_cost == pytest.approx(alone, rel=1e-5)


def test_a_row_starts_anew_and_is_not_learned_from_the_row_before():
    batch = unpadded.collate(rows(5, 3))

    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2]]
    assert batch["labels"][0, 5] == IGNORED
    assert 4 not in batch["scored"]


def test_forward_and_backward_never_wait_for_the_device():
    model = tiny("llama")
    unpadded.score_answers(model)
    batch = unpadded.collate(rows(9, 17, 4))

    with Waits() as waits, unpadded.each_row_alone(model):
        model(**batch).cost.backward()

    assert waits.seen == []


def test_the_model_attends_as_before_once_a_step_is_over():
    model = tiny("llama")

    with pytest.raises(RuntimeError), unpadded.each_row_alone(model):
        raise RuntimeError

    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("family", ["gpt2", "gpt_oss", "llama4_text", "mamba"])
def test_a_family_that_is_not_compared_here_keeps_padded_batches(family: str):
    class Model:
        config = AutoConfig.for_model(family)

    assert not unpadded.fits(Model)


@pytest.mark.parametrize("micro_batch_size", [2, 4])
def test_a_run_learns_and_tells_what_it_does_with_padding(
    models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, micro_batch_size: int
):
    training = {"micro_batch_size": micro_batch_size}
    various = [chat_row(10**number) for number in range(24)]
    model = models_dir / "tiny-llama"
    found = train_here(make_run(tmp_path / "found", model, rows=various, training=training))
    monkeypatch.setattr(unpadded, "FAMILIES", frozenset())
    padded = train_here(make_run(tmp_path / "padded", model, rows=various, training=training))

    assert told(found, "train_loss") == pytest.approx(told(padded, "train_loss"), rel=1e-4)
    assert told(found, "grad_norm") == pytest.approx(told(padded, "grad_norm"), rel=1e-3)
    assert of_type(found, Finished)[0].trained_tokens == of_type(padded, Finished)[0].trained_tokens
    if micro_batch_size == 4:  # TRL takes the mean of the micro-batches' shares
        name = "train_mean_token_accuracy"
        assert told(found, name) == pytest.approx(told(padded, name), abs=1e-6)


def told(run: Any, name: str) -> list[float]:
    return [event.metrics[name] for event in of_type(run, StepDone)]
