"""Direct preference optimization: what a pair teaches, by which loss, against which reference."""

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from trl import DPOTrainer

from app.jobs.spec import EvalDone, Finished, Started, StepDone, Warned
from tests.conftest import SHARED
from tests.factories import preference_row, to_jsonl
from tests.worker.trainer.runs import events, make_run, of_type, train_here
from tests.worker.trainer.test_exact_resume import KILLED, sha256
from tests.worker.trainer.warm import Warm, warm
from worker.rundir import Placement, RunDir
from worker.trainer.faults import RunError
from worker.trainer.pairs import PairCollator, encode_pair, encode_preferences
from worker.trainer.preference import MEASURED, PairTrainer, score

PAIRS = [preference_row(number) for number in range(24)]
VALID = [preference_row(number) for number in range(100, 107)]
NONE = {"type": "none", "rho": None, "beta": None, "norm": None, "apn": None}
METHODS = ["lora", "adalora", "pissa", "lora_ga", "full"]


@pytest.fixture(scope="module")
def trainer() -> Iterator[Warm]:
    with warm() as running:
        yield running


@pytest.fixture(scope="module")
def tokenizer(models_dir: Path) -> Any:
    from worker.trainer.model import load_tokenizer

    where = str(models_dir / "tiny-llama")
    return load_tokenizer(Placement(source="folder", location=where, revision=None))


def make(path: Path, models_dir: Path, method: str = "lora", **changes: Any) -> RunDir:
    changes = {"rows": PAIRS, "valid": VALID, "dpo": {"beta": 0.5}} | changes
    peft = {"method": method} | changes.pop("peft", {})
    return make_run(path, models_dir / "tiny-llama", method="dpo", peft=peft, **changes)


def masked(pair: dict[str, list[int]], side: str, tokenizer: Any) -> str:
    ids, mask = pair[f"{side}_ids"], pair[f"{side}_mask"]
    return str(tokenizer.decode([token for token, yes in zip(ids, mask, strict=True) if yes]))


def test_the_answers_alone_are_scored_with_the_end_of_their_turns(tokenizer: Any):
    asked = [
        {"role": "user", "content": "1?"},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "2?"},
    ]
    row = preference_row(2) | {"input": {"messages": asked}}

    pair, cut = encode_pair(row, tokenizer, max_length=128)

    assert not cut
    assert masked(pair, "chosen", tokenizer) == "so 2</s>"
    assert masked(pair, "rejected", tokenizer) == "NO 2</s>"
    assert "one" in tokenizer.decode(pair["chosen_ids"])


def test_a_call_between_two_answers_is_not_scored(tokenizer: Any):
    output = [
        {"role": "assistant", "content": "look"},
        {"role": "tool", "content": "42", "tool_call_id": "x"},
        {"role": "assistant", "content": "so"},
    ]

    pair, _ = encode_pair(
        preference_row(1) | {"preferred_output": output}, tokenizer, max_length=128
    )

    assert masked(pair, "chosen", tokenizer) == "look</s>so</s>"


def test_a_pair_that_loses_an_answer_is_left_out(tokenizer: Any, tmp_path: Path):
    long = preference_row(1)
    long["input"] = {"messages": [{"role": "user", "content": "?" * 60}]}
    path = tmp_path / "train.jsonl"
    path.write_bytes(to_jsonl([preference_row(0), long]))

    encoded = encode_preferences(path, tokenizer, max_length=48)

    assert (encoded.rows, encoded.truncated, encoded.dropped) == (1, 1, 1)
    with pytest.raises(RunError, match="No row keeps an answer"):
        encode_preferences(path, tokenizer, max_length=8)


def test_a_batch_holds_the_preferred_answers_first(tokenizer: Any):
    rows = [encode_pair(row, tokenizer, max_length=128)[0] for row in PAIRS[8:12]]
    known = [row | {"reference": [-float(place), -10.0]} for place, row in enumerate(rows)]

    batch = PairCollator(tokenizer.pad_token_id)(known)

    said = [tokenizer.decode(ids[mask.bool()]) for ids, mask in
            zip(batch["input_ids"], batch["completion_mask"], strict=True)]  # fmt: skip
    assert said[:2] == ["so 8</s>", "so 9</s>"] and said[4:6] == ["NO 8</s>", "NO 9</s>"]
    assert batch["reference"].tolist() == [-0.0, -1.0, -2.0, -3.0, -10.0, -10.0, -10.0, -10.0]
    assert batch["attention_mask"].sum() == sum(
        len(row[side]) for row in rows for side in ("chosen_ids", "rejected_ids")
    )


def test_the_loss_is_the_papers():
    logps = torch.tensor([-3.0, -8.0, -5.0, -6.0])
    reference = torch.tensor([-4.0, -7.0, -4.0, -6.0])

    found = score(logps, reference, beta=0.3)

    for pair in range(2):
        won = 0.3 * (logps[pair] - reference[pair]).item()
        lost = 0.3 * (logps[pair + 2] - reference[pair + 2]).item()
        assert found.loss[pair].item() == pytest.approx(math.log1p(math.exp(lost - won)))
        told = dict(zip(MEASURED, found.columns()[pair].tolist(), strict=True))
        assert told["rewards_margin"] == pytest.approx(won - lost)
        assert told["rewards_accuracy"] == float(won > lost)


def test_a_tie_is_half_right():
    same = score(torch.zeros(4), torch.zeros(4), beta=0.1)

    assert same.columns()[:, MEASURED.index("rewards_accuracy")].tolist() == [0.5, 0.5]


def test_a_trainer_gives_the_loss_of_plain_tensors_and_of_trl(
    models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen: list[tuple[float, float, float]] = []
    compute = PairTrainer.compute_loss

    def compare(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = compute(self, model, inputs, *args, **kwargs)
        if model.training:
            sides = ("ref_chosen_logps", "ref_rejected_logps")
            theirs = dict(zip(sides, inputs["reference"].chunk(2), strict=True))
            theirs |= {key: value for key, value in inputs.items() if key != "reference"}
            self.precompute_ref_logps = True
            trl = DPOTrainer._compute_loss(self, model, theirs, return_outputs=False)
            self._metrics["train"].clear()
            seen.append((loss.item(), plainly(model, inputs, beta=0.5), trl.item()))
        return loss

    monkeypatch.setattr(PairTrainer, "compute_loss", compare)
    train_here(make(tmp_path / "run", models_dir, perturbation=NONE))

    assert len(seen) == 6 and seen[0][0] == pytest.approx(math.log(2))
    for ours, plain, trl in seen:
        assert ours == pytest.approx(plain, rel=1e-4) == pytest.approx(trl, rel=1e-4)
    assert seen[-1][0] < 0.95 * seen[0][0]


@torch.no_grad()
def plainly(model: Any, batch: dict[str, torch.Tensor], *, beta: float) -> float:
    """DPO's loss, from logits by the book."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    each = logits[:, :-1].log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None]).squeeze(-1)
    ratios = (each * batch["completion_mask"][:, 1:]).sum(1) - batch["reference"]
    won, lost = ratios.chunk(2)
    return float(-torch.sigmoid(beta * (won - lost)).log().mean())


@pytest.mark.parametrize("method", METHODS)
def test_every_method_starts_at_its_reference_and_learns(
    models_dir: Path, tmp_path: Path, method: str
):
    run = train_here(make(tmp_path / "run", models_dir, method, training={"n_epochs": 2}))

    first, *_, last = of_type(run, EvalDone)
    assert first.metrics["valid_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first.metrics["valid_rewards_margin"] == pytest.approx(0, abs=1e-5)
    assert last.metrics["valid_loss"] < first.metrics["valid_loss"] - 0.003
    assert last.metrics["valid_rewards_accuracy"] > 0.5
    assert of_type(run, Finished)[-1].metrics["verification_max_logit_difference"] < 1e-3


def test_the_reference_is_the_adapter_that_a_run_goes_on_from(models_dir: Path, tmp_path: Path):
    earlier = train_here(make(tmp_path / "earlier", models_dir))
    run = make(tmp_path / "run", models_dir, peft={"from": "ft:earlier"})
    run.source.symlink_to(earlier.adapter)

    train_here(run)

    first, *_ = of_type(run, EvalDone)
    assert first.metrics["valid_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert reference(run, 6)["valid"][0, 0] > reference(earlier, 6)["valid"][0, 0] + 0.1


def reference(run: RunDir, step: int) -> dict[str, torch.Tensor]:
    return load_file(run.checkpoint(step) / "reference.safetensors")


def test_noise_does_not_reach_the_reference(models_dir: Path, tmp_path: Path):
    noise = NONE | {"type": "random", "rho": 0.5}
    noisy = train_here(make(tmp_path / "noisy", models_dir, perturbation=noise))
    clean = train_here(make(tmp_path / "clean", models_dir, perturbation=NONE))

    assert torch.equal(reference(noisy, 6)["train"], reference(clean, 6)["train"])


def test_a_step_is_the_same_however_it_is_cut(models_dir: Path, tmp_path: Path):
    runs = {
        micro: train_here(
            make(
                tmp_path / f"{micro}",
                models_dir,
                rows=PAIRS[:22],  # the last step has two pairs
                training={"micro_batch_size": micro},
                perturbation=NONE,
            )
        )
        for micro in (4, 1)
    }

    for name in ("train_loss", "train_rewards_margin", "train_rewards_accuracy"):
        whole, apart = (
            [step.metrics[name] for step in of_type(run, StepDone)] for run in runs.values()
        )
        assert apart == pytest.approx(whole, abs=1e-4)
    ends = [of_type(run, EvalDone)[-1].metrics for run in runs.values()]
    assert ends[0] == pytest.approx(ends[1], abs=1e-4)


def test_sharpness_is_that_of_the_preference_loss(models_dir: Path, tmp_path: Path):
    sharpness = {"rho": 0.1, "ascent_steps": 1, "directions": 1, "batches": 1}
    run = make(tmp_path / "run", models_dir, evaluation={"sharpness": sharpness})

    train_here(run)

    last = of_type(run, EvalDone)[-1].metrics
    assert last["valid_sharpness_worst"] > 0
    assert len(last) == len(MEASURED) + 2


def test_early_stopping_takes_the_best_pairs(models_dir: Path, tmp_path: Path):
    swapped = [
        row | {"preferred_output": row["non_preferred_output"],
               "non_preferred_output": row["preferred_output"]} for row in VALID
    ]  # fmt: skip
    stopping = {"patience": 1, "min_delta": 0.0}
    run = make(
        tmp_path / "run",
        models_dir,
        valid=swapped,  # learning makes it worse
        training={"eval_steps": 1, "early_stopping": stopping},
    )

    train_here(run)

    assert [event.code for event in of_type(run, Warned)] == ["best_evaluation"]
    assert of_type(run, Finished)[-1].step < 6


def test_the_card_names_the_method(models_dir: Path, tmp_path: Path):
    run = train_here(make(tmp_path / "run", models_dir))

    card = (run.adapter / "README.md").read_text()
    assert "LoRA-MGPO by direct preference optimization" in card and "\n- dpo\n" in card


@pytest.mark.parametrize(
    ("method", "perturbation", "point"),
    [
        ("lora", {}, "step_end"),
        ("pissa", NONE, "saving"),
        ("lora", NONE | {"type": "random", "rho": 0.05}, "step_end"),
    ],
)
def test_a_killed_run_resumes_exactly(
    trainer: Warm,
    models_dir: Path,
    tmp_path: Path,
    method: str,
    perturbation: dict[str, Any],
    point: str,
):
    runs = [
        make(tmp_path / name, models_dir, method, perturbation=perturbation)
        for name in ("undisturbed", "killed")
    ]
    undisturbed, killed = runs
    trainer.train(undisturbed.path)

    assert trainer.train(killed.path, kill_at=point, step=6 if point == "saving" else 5) == KILLED
    trainer.train(killed.path)

    assert of_type(killed, Started)[-1].first_step == 4
    assert sha256(killed) == sha256(undisturbed)
    assert of_type(killed, EvalDone)[-1].metrics == of_type(undisturbed, EvalDone)[-1].metrics


def test_a_run_killed_after_its_last_step_knows_its_reference(
    trainer: Warm,
    models_dir: Path,
    tmp_path: Path,
):
    undisturbed, killed = (make(tmp_path / name, models_dir) for name in ("undisturbed", "killed"))
    trainer.train(undisturbed.path)

    assert trainer.train(killed.path, kill_at="delivering") == KILLED
    trainer.train(killed.path)

    assert sha256(killed) == sha256(undisturbed)
    assert isinstance(events(killed)[-1], Finished)


@pytest.mark.shared
@pytest.mark.slow
def test_judgements_of_people_are_learned(models_dir: Path, tmp_path: Path):
    """Pairs cut to how the answers begin: whole ones are longer than the base can see."""
    lines = (SHARED / "data/preference/train_200.pref.jsonl").read_text().splitlines()
    rows = [beginning(json.loads(line)) for line in lines]
    random.Random(0).shuffle(rows)
    run = make_run(
        tmp_path / "run",
        models_dir / "stories260K",
        rows=rows[:140],
        valid=rows[140:],
        method="dpo",
        dpo={"beta": 0.1},
        peft={"r": 16, "alpha": 32.0},
        training={
            "n_epochs": 3,
            "batch_size": 14,
            "micro_batch_size": 14,
            "learning_rate": 1e-3,
            "max_length": 512,
            "eval_steps": 10,
        },
        total_steps=30,
    )

    train_here(run)

    first, *_, last = of_type(run, EvalDone)
    assert first.metrics["valid_rewards_accuracy"] == 0.5
    assert last.metrics["valid_rewards_accuracy"] > 0.58
    assert last.metrics["valid_loss"] < first.metrics["valid_loss"]


def beginning(row: dict[str, Any]) -> dict[str, Any]:
    asked = [each for each in row["input"]["messages"] if each["role"] == "user"][-1]
    return {"input": {"messages": [asked | {"content": asked["content"][-100:]}]}} | {
        side: [row[side][-1] | {"content": row[side][-1]["content"][:150]}]
        for side in ("preferred_output", "non_preferred_output")
    }
