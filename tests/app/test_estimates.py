"""What a run takes, by arithmetic: counted by hand for a LLaMA of two layers, 32 wide."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from app.estimates import calibration, costs, memory, pace, rows, shapes, verdict
from app.estimates.calibration import Band, Finished, Kind
from app.estimates.estimate import Estimate, Surroundings
from app.estimates.history import Ended
from app.estimates.memory import CPU
from app.estimates.pace import Pace
from app.estimates.schemas import EstimateOut
from app.estimates.shapes import Shape
from app.estimates.verdict import changed
from app.files.report import sketch
from app.jobs.queue import Place
from app.jobs.schemas import CreateJob
from app.jobs.spec import DpoSpec, Started, TrainSpec
from app.models import catalog
from app.workers.service import Hardware, Node
from worker.devices import gpus

GPU = "NVIDIA H100 80GB HBM3"
GIB = 1 << 30
NOW = datetime(2026, 1, 1, tzinfo=UTC)
# q and o 32 × 32, k and v 16 × 32, gate and up 64 × 32, down 32 × 64: 512 in and out of a layer.
FACTORS_OF_RANK_1 = 2 * 512
WEIGHTS = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32)
PARAMETERS = WEIGHTS + 2 * 2 * 32 + 32 + 2 * 259 * 32  # norms, and two embeddings
LENGTH = 50
SCORES = 2 * 4 * LENGTH  # of a token, in 2 layers of 4 heads: a CPU keeps them


@pytest.fixture(scope="module")
def llama(models_dir: Path) -> Shape:
    found = shapes.read(catalog.of_folder(models_dir / "tiny-llama"))
    assert found is not None
    return found


def spec(**changes: Any) -> TrainSpec:
    plain = TrainSpec.model_validate(
        {
            "version": 1,
            "job_id": "ftjob-x",
            "base_model": "tiny-llama",
            "task": "causal",
            "method": "supervised",
            "seed": 0,
            "peft": {
                "method": "lora",
                "r": 8,
                "alpha": 16.0,
                "dropout": 0.0,
                "target_modules": "all-linear",
                "lr_ratio": None,
                "from": None,
            },
            "perturbation": {"type": "mgpo", "rho": 0.05, "beta": 0.9},
            "training": {
                "n_epochs": 3,
                "max_steps": None,
                "batch_size": 8,
                "micro_batch_size": 4,
                "learning_rate": 1e-4,
                "warmup_ratio": 0.0,
                "scheduler": "cosine",
                "weight_decay": 0.0,
                "max_grad_norm": 1.0,
                "max_length": 256,
                "precision": "auto",
                "gradient_checkpointing": False,
                "eval_steps": 4,
                "checkpoint_steps": 5,
                "early_stopping": None,
            },
            "evaluation": {"sharpness": None},
            "resources": {"gpus": 1, "zero_stage": None},
            "budget": {"max_duration_s": None, "max_steps": None},
            "data": {
                "train_sha256": "0",
                "train_rows": 20,
                "valid_sha256": None,
                "valid_rows": 0,
            },
            "total_steps": 9,
        }
    )
    return changed(plain, changes)


def held(llama: Shape, device: str = CPU, **changes: Any) -> memory.Memory:
    return memory.modelled(llama, spec(**changes), device=device, length=LENGTH)


# shapes


def test_a_shape_is_read_off_the_headers_of_the_weights(llama: Shape):
    assert llama.parameters == PARAMETERS
    assert len(llama.linears) == 14 and llama.linear_weights == WEIGHTS
    assert llama.linears["model.layers.1.mlp.down_proj"] == (32, 64)
    assert (llama.hidden, llama.layers, llama.vocabulary) == (32, 2, 259)


def test_a_folder_without_weights_has_no_shape(models_dir: Path):
    assert shapes.read(catalog.of_folder(models_dir / "broken-llama")) is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 8 * FACTORS_OF_RANK_1),
        ({"peft.r": 32}, 32 * FACTORS_OF_RANK_1),
        ({"peft.method": "pissa"}, 8 * FACTORS_OF_RANK_1),
        ({"peft.method": "dora"}, 8 * FACTORS_OF_RANK_1 + 2 * 256),
        ({"peft.method": "adalora"}, 12 * FACTORS_OF_RANK_1 + 12 * 14),
        ({"peft.method": "full"}, PARAMETERS),
        ({"peft.target_modules": ("q_proj",)}, 2 * 8 * (32 + 32)),
        ({"peft.target_modules": ("self_attn.k_proj", "down_proj")}, 2 * 8 * (48 + 96)),
    ],
)
def test_what_is_trained_is_counted_by_method(llama: Shape, changes: dict[str, Any], expected: int):
    assert shapes.trainable(llama, spec(**changes)) == expected


def test_a_model_of_billions_is_guessed_near_its_size():
    found = shapes.guessed(7_000_000_000)

    assert found.linear_weights == pytest.approx(7e9, rel=0.05)
    assert found.hidden == pytest.approx(4096, rel=0.05)


# memory


def test_the_terms_of_memory_are_those_of_the_hand(llama: Shape):
    numbers = 8 * FACTORS_OF_RANK_1

    found = held(llama)

    assert found.weights == 4 * PARAMETERS
    assert found.trained == found.gradients == found.perturbation == 4 * numbers
    assert found.optimizer == 8 * numbers
    assert found.activations == 4 * LENGTH * (2 * 512 + 2 * 32 + SCORES) * 4
    assert found.logits == 2 * 4 * LENGTH * 259 * 4
    assert found.total == sum(
        (found.weights, 5 * 4 * numbers, found.activations, found.logits, found.libraries)
    )


def test_a_gpu_keeps_the_base_in_half_the_bytes_and_a_full_model_in_all(llama: Shape):
    adapted, full = held(llama, GPU), held(llama, GPU, **{"peft.method": "full"})

    assert adapted.weights == 2 * PARAMETERS
    assert (full.weights, full.trained, full.gradients) == (4 * PARAMETERS, 0, 4 * PARAMETERS)
    assert full.perturbation == 4 * WEIGHTS


@pytest.mark.parametrize(
    ("changes", "copies"),
    [
        ({}, 1),
        ({"perturbation.mu": 0.9}, 2),
        ({"perturbation.type": "none"}, 0),
    ],
)
def test_the_look_ahead_costs_a_copy_and_an_own_momentum_another(
    llama: Shape, changes: dict[str, Any], copies: int
):
    assert held(llama, **changes).perturbation == copies * 4 * 8 * FACTORS_OF_RANK_1


def test_noise_costs_the_largest_matrix_whatever_the_rank(llama: Shape):
    found = held(llama, **{"perturbation.type": "random", "peft.r": 64})

    assert found.perturbation == 2 * 64 * 32 * 4


@pytest.mark.parametrize(
    ("stage", "offload", "gradients", "optimizer"),
    [(0, None, 1, 3), (1, None, 1, 3 / 4), (2, None, 1 / 4, 3 / 4), (2, "optimizer", 1 / 4, 0)],
)
def test_the_stages_of_zero_share_out_what_they_say(
    llama: Shape, stage: int, offload: str | None, gradients: float, optimizer: float
):
    resources = {"resources.gpus": 4, "resources.zero_stage": stage, "resources.offload": offload}
    numbers = 4 * 8 * FACTORS_OF_RANK_1

    found = held(llama, GPU, **resources)

    assert found.gradients - 2 * memory.BUCKET * 4 == gradients * numbers
    assert found.optimizer == optimizer * numbers


def test_a_gpu_keeps_no_attention_scores(llama: Shape):
    assert held(llama, GPU).activations == 4 * LENGTH * (2 * 512 + 2 * 32) * 2


def test_gradient_checkpointing_keeps_the_inputs_of_layers_and_one_layer(llama: Shape):
    tokens = 4 * LENGTH

    found = held(llama, **{"training.gradient_checkpointing": True})

    assert found.activations == tokens * (2 * 32 + (2 * 512 + 2 * 32 + SCORES) // 2) * 4


def test_activations_grow_with_the_micro_batch_not_with_the_batch(llama: Shape):
    whole = held(llama, **{"training.micro_batch_size": 8}).activations
    larger = held(llama, **{"training.batch_size": 64}).activations

    assert whole == 2 * held(llama).activations
    assert larger == held(llama).activations


# rows


def report_of(lengths: list[int], learned_from: list[int] | None = None) -> dict[str, Any]:
    """What a report holds on rows of these lengths."""
    starts = learned_from or [0] * len(lengths)
    spread = sketch(lengths)
    return {
        "counted_rows": len(lengths),
        "max_length": 256,
        "lengths": spread,
        "read": spread,
        "learned_from": sketch(starts),
    }


def test_rows_are_cut_where_the_run_cuts_them():
    found = rows.counted(report_of([10, 20, 30, 100]), rows=4, limit=25)

    assert (found.rows, found.longest, found.cut, found.dropped) == (4, 25, 2, 0)
    assert found.mean == (10 + 20 + 25 + 25) / 4


def test_rows_without_an_answer_are_left_out():
    found = rows.counted(report_of([10, 40, 40], [5, 15, 30]), rows=3, limit=20)

    assert (found.rows, found.dropped) == (2, 1)
    assert found.mean == (10 + 20) / 2


def test_a_share_of_the_rows_stands_for_all():
    found = rows.counted(report_of([10, 40], [5, 30]), rows=1000, limit=20)

    assert (found.rows, found.dropped, found.cut) == (500, 500, 500)


def test_a_micro_batch_is_as_long_as_its_longest_row():
    found = rows.counted(report_of([10, 20]), rows=2, limit=50)

    assert found.padded(1) == 15
    assert found.padded(2) == 10 / 4 + 20 * 3 / 4


def test_many_different_lengths_are_kept_in_few_numbers():
    lengths = list(range(10_000))

    kept = sketch(lengths)

    assert len(kept) == 512 and sum(count for _, count in kept) == len(lengths)
    assert sum(length * count for length, count in kept) == pytest.approx(sum(lengths), rel=1e-3)


# steps and pace


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (9, 0, 2)),
        ({"training.max_steps": 100}, (100, 0, 20)),
        ({"budget.max_steps": 5}, (5, 0, 1)),
        ({"data.valid_sha256": "1"}, (9, 4, 2)),
    ],
)
def test_steps_evaluations_and_checkpoints_are_counted(
    changes: dict[str, Any], expected: tuple[int, int, int]
):
    found = pace.counts(spec(**changes), rows=20)

    assert (found.steps, found.evaluations, found.checkpoints) == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"training.batch_size": 16},
        {"training.micro_batch_size": 1},
        {"training.gradient_checkpointing": True},
        {"peft.method": "full"},
        {"perturbation.type": "random"},
    ],
)
def test_what_costs_more_takes_longer(llama: Shape, changes: dict[str, Any]):
    train = rows.counted(report_of([100] * 10), rows=10, limit=256)

    plain, dear = (
        pace.modelled(llama, each, train, None, device=CPU).step_s
        for each in (spec(), spec(**changes))
    )

    assert dear > plain


def test_a_pair_takes_what_two_rows_take_and_is_read_for_the_reference(llama: Shape):
    pairs = spec().model_copy(update={"method": "dpo", "dpo": DpoSpec(beta=0.1)})
    train = rows.counted(report_of([LENGTH] * 20), rows=20, limit=256)
    twice = spec(**{"training.batch_size": 16, "training.micro_batch_size": 8})

    one, two = (
        memory.modelled(llama, each, device=GPU, length=LENGTH).activations
        for each in (pairs, twice)
    )
    paired, plain, doubled = (
        pace.modelled(llama, each, train, None, device=CPU) for each in (pairs, spec(), twice)
    )
    assert one == two
    assert paired.step_s == pytest.approx(doubled.step_s)
    assert paired.rest_s > plain.rest_s


# calibration


def finished(kind: Kind, *, step_s: float, size: float = 1.0, peak: float = 100.0) -> Finished:
    modelled = Pace(step_s=size, evaluation_s=1.0, checkpoint_s=1.0, rest_s=10.0)
    return Finished(kind, modelled, 100, step_s, None, None, 20.0, peak)


ALIKE = Kind("tiny-llama", CPU, "adapter")
ASKED = Pace(step_s=2.0, evaluation_s=1.0, checkpoint_s=1.0, rest_s=10.0)


def test_the_nearest_tier_that_has_jobs_is_the_basis():
    other_base = finished(Kind("big", CPU, "adapter"), step_s=9.0)
    other_device = finished(Kind("tiny-llama", GPU, "adapter"), step_s=9.0)
    other_method = finished(Kind("tiny-llama", CPU, "full"), step_s=9.0)
    alike = finished(ALIKE, step_s=3.0)
    jobs = [other_device, other_base, other_method, alike]

    chosen = [calibration.basis(ALIKE, ASKED, jobs[:count]) for count in (1, 2, 3, 4)]

    assert [list(basis.jobs) for basis in chosen] == [[], [other_base], [other_method], [alike]]
    assert "no finished job on cpu yet" in chosen[0].words
    assert "1 finished job with other base models" in chosen[1].words
    assert "other methods" in chosen[2].words and "trained alike" in chosen[3].words


def test_of_many_jobs_those_of_like_size_are_taken():
    small = [finished(ALIKE, step_s=1.0, size=0.01) for _ in range(8)]
    alike = [finished(ALIKE, step_s=1.0, size=2.5) for _ in range(8)]

    assert list(calibration.basis(ALIKE, ASKED, small + alike).jobs) == alike


def test_time_is_the_median_of_measured_over_modelled_and_its_range():
    jobs = [finished(ALIKE, step_s=ratio) for ratio in (2.0, 3.0, 4.0)]
    found = calibration.basis(ALIKE, ASKED, jobs)

    calibrated = calibration.calibrate(ASKED, found)

    assert calibrated.step_s.expected == 3.0 * ASKED.step_s
    assert calibrated.rest_s.expected == 20.0
    assert calibrated.step_s.low < 2.0 * ASKED.step_s
    assert calibrated.step_s.high > 4.0 * ASKED.step_s


def test_the_first_estimate_is_a_guess_with_a_wide_range():
    calibrated = calibration.calibrate(ASKED, calibration.basis(ALIKE, ASKED, []))

    assert calibrated.step_s == Band(0.5, 2.0, 8.0)


def test_more_jobs_that_agree_make_the_range_narrower():
    def width(jobs: int) -> float:
        found = calibration.basis(ALIKE, ASKED, [finished(ALIKE, step_s=3.0)] * jobs)
        band = calibration.calibrate(ASKED, found).step_s
        return band.high / band.low

    assert width(1) > width(4) > width(8) > 1


# a base of which nothing is known


def hub_job(shape: Shape | None) -> EstimateOut:
    around = Surroundings([], Place(1, full=False), None, [], [])
    tokens = report_of([10] * 20) | {"estimated": True}
    asked = spec(**{"training.max_steps": 4})
    estimate = Estimate(asked, shape, 2048, tokens, None, around)
    return estimate.shown(CreateJob(model="org/hub", training_file="file-x"), [])


def test_without_a_size_steps_are_told_and_memory_and_time_are_not(llama: Shape):
    known, unknown = hub_job(llama), hub_job(None)

    assert known.memory is not None and known.time is not None
    assert (unknown.memory, unknown.time) == (None, None)
    assert (unknown.steps, unknown.tokens.per_epoch) == (4, 200)
    assert "not known here before its first run" in unknown.basis.words


def test_a_run_tells_the_size_of_a_base_that_is_no_folder():
    told = {"at": 0.0, "total_steps": 1, "first_step": 1, "train_rows": 20, "device": GPU}
    sizes = {"trainable_parameters": 1_000_000, "total_parameters": 1_001_000_000}
    started = Started(**told, **sizes, precision="bf16")
    adapted = Ended("a", spec(), 1, 1, started, 1.0)
    whole = Ended("b", spec(**{"peft.method": "full"}), 1, 1, started, 1.0)

    assert costs.guessed_of(adapted).parameters == 1_000_000_000
    assert costs.guessed_of(whole).parameters == 1_001_000_000


# workers


def node(name: str, *devices: str, memory_bytes: int | None = None, kind: str = GPU) -> Node:
    described = (Hardware(kind, memory_bytes),) * len(devices)
    return Node(name, name, devices, NOW, NOW, (), described)


def need(asked: TrainSpec, _: str) -> Band:
    """A GiB for each row at 256 tokens, and half of that with checkpointing."""
    training = asked.training
    size = GIB * training.micro_batch_size * training.max_length / 256
    size /= 2 if training.gradient_checkpointing else 1
    return Band(size, size, 1.5 * size)


@pytest.mark.parametrize(
    ("nodes", "gpus_asked", "fits", "said"),
    [
        ([], 1, False, "No worker is alive"),
        ([node("box", "0", memory_bytes=80 * GIB)], 2, False, "2 devices of one worker, and box"),
        ([node("box", "0", memory_bytes=80 * GIB)], 1, True, "It fits: it needs about 4.0 GiB"),
        ([node("box", "0", memory_bytes=6 * GIB)], 1, True, "probably"),
        ([node("box", "0", memory_bytes=4 * GIB)], 1, False, "It does not fit"),
        ([node("box", "0")], 1, True, "not known"),
        ([node("box", "cpu", memory_bytes=8 * GIB, kind=CPU)], 1, True, "It fits"),
        ([node("box", "cpu", "cpu", memory_bytes=8 * GIB, kind=CPU)], 2, False, "8.0 GiB"),
    ],
)
def test_a_worker_fits_with_devices_and_memory_enough(
    nodes: list[Node], gpus_asked: int, fits: bool, said: str
):
    found = verdict.judge(nodes, spec(**{"resources.gpus": gpus_asked}), need)

    assert any(each.fits for each in found) == fits
    assert said in verdict.words(found)


def test_the_worker_that_fits_comes_first():
    small, large = node("a", "0", memory_bytes=2 * GIB), node("b", "0", memory_bytes=80 * GIB)

    found = verdict.judge([small, large], spec(), need)

    assert [(each.node.id, each.fits) for each in found] == [("b", True), ("a", False)]


def test_advice_names_each_knob_with_what_it_would_need():
    found = verdict.judge([node("box", "0", memory_bytes=3 * GIB)], spec(), need)

    advised = verdict.advice(found, spec(), need)

    assert [(each.change, each.expected_bytes / GIB, each.fits) for each in advised] == [
        ({"training.micro_batch_size": 2}, 2.0, True),
        ({"training.gradient_checkpointing": True}, 2.0, True),
        ({"training.max_length": 128}, 2.0, True),
    ]


def test_where_no_knob_is_enough_all_are_tried_together():
    found = verdict.judge([node("box", "0", memory_bytes=GIB)], spec(), need)

    *alone, together = verdict.advice(found, spec(), need)

    assert not any(each.fits for each in alone)
    assert together.fits and together.change == {
        "training.micro_batch_size": 1,
        "training.gradient_checkpointing": True,
        "training.max_length": 64,
    }


def test_nothing_is_advised_where_the_job_fits():
    found = verdict.judge([node("box", "0", memory_bytes=80 * GIB)], spec(), need)

    assert verdict.advice(found, spec(), need) == []


def test_what_the_driver_tells_of_gpus_is_read():
    told = f"0, {GPU}, 81559\n1, NVIDIA A100-SXM4-40GB, 40960\n2, GRID, [N/A]\nnonsense\n"

    assert gpus(told) == {
        "0": Hardware(GPU, 81559 << 20),
        "1": Hardware("NVIDIA A100-SXM4-40GB", 40960 << 20),
        "2": Hardware("GRID", None),
    }
