"""Two real ranks through the real launcher: one adapter, in any stage, whatever interrupts."""

import asyncio
import os
from asyncio.subprocess import Process
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from app.jobs.spec import EvalDone, Failed, Finished, Started, StepDone, Stopped
from tests.conftest import wait_until
from tests.factories import preference_row
from tests.worker.trainer.runs import TASKS, adapter_bytes, events, make_run, of_type, run_of
from tests.worker.trainer.warm_ranks import WarmRanks, warm_ranks
from worker import launcher
from worker.rundir import RunDir

MODES = {"ddp": None, "zero-0": 0, "zero-1": 1, "zero-2": 2}
SHORT = {"micro_batch_size": 1, "learning_rate": 1e-3}
ODD = 7  # rows that two ranks cannot share evenly
PAIRS = [preference_row(number) for number in range(24)]
KINDS: dict[str, dict[str, Any]] = {
    "random": {"perturbation": {"type": "random", "rho": 0.05}},
    "ggpo": {"perturbation": {"type": "ggpo", "rho": 0.03, "beta": 0.01}},
    "full": {"peft": {"method": "full"}},
    "lora_plus": {"peft": {"method": "lora_plus", "lr_ratio": 16.0}},
    "adalora": {"peft": {"method": "adalora"}},
    "dora": {"peft": {"method": "dora"}},
    "lora_ga": {"peft": {"method": "lora_ga"}},
    "lora_pro": {"peft": {"method": "lora_pro"}},
    "pissa": {"peft": {"method": "pissa"}},
    "dpo": {"method": "dpo", "dpo": {"beta": 0.5}, "rows": PAIRS, "valid": PAIRS[:ODD]},
}
STEPS = {"n_epochs": 4, "micro_batch_size": 1, "checkpoint_steps": 4, "learning_rate": 5e-3}


@pytest.fixture(scope="module")
def base(models_dir: Path) -> Path:
    return models_dir / "tiny-llama"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> Iterator[WarmRanks]:
    orders = folder / "orders"
    orders.mkdir()
    with warm_ranks(orders) as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(base: Path, folder: Path, ranks: WarmRanks) -> Callable[[str, str], RunDir]:
    """Runs that nothing interrupted, each made once, when it is asked for."""
    made: dict[tuple[str, str], RunDir] = {}

    def whole(mode: str, perturbation: str) -> RunDir:
        if (mode, perturbation) not in made:
            run = two_ranks(folder / f"{mode}-{perturbation}", base, mode, perturbation)
            made[mode, perturbation] = trained(ranks, run)
        return made[mode, perturbation]

    return whole


@pytest.fixture(scope="module")
def short(models_dir: Path, folder: Path, ranks: WarmRanks) -> Callable[[str, str], RunDir]:
    """Short runs of every kind, on ranks or "alone", each made once, when it is asked for."""
    made: dict[tuple[str, str], RunDir] = {}

    def whole(kind: str, mode: str) -> RunDir:
        if (kind, mode) not in made:
            made[kind, mode] = trained(
                ranks, short_run(folder / f"{kind}-{mode}", models_dir, kind, mode)
            )
        return made[kind, mode]

    return whole


def trained(ranks: WarmRanks, run: RunDir) -> RunDir:
    assert ranks.train(run) == 0, run.log.read_text()
    return run


def short_run(path: Path, models_dir: Path, kind: str, mode: str) -> RunDir:
    resources = {"gpus": 1, "zero_stage": None}
    if mode != "alone":
        resources = {"gpus": 2, "zero_stage": MODES[mode]}
    changes = {"training": SHORT, "resources": resources}
    if kind in TASKS:
        return run_of(kind, models_dir, path, valid=TASKS[kind][1][:ODD], **changes)
    return make_run(path, models_dir / "tiny-llama", **changes, **KINDS[kind])


def two_ranks(
    path: Path, base: Path, mode: str, perturbation: str = "mgpo", **changes: Any
) -> RunDir:
    return make_run(
        path,
        base,
        perturbation={"type": perturbation},
        training=STEPS,
        resources={"gpus": 2, "zero_stage": MODES[mode]},
        **changes,
    )


async def start(run: RunDir) -> Process:
    inherited = dict(os.environ) | {"OMP_NUM_THREADS": "1"}
    resources = run.read_spec().resources
    return await launcher.launch(
        launcher.train_command(run.path, resources),
        environment=launcher.train_environment(
            inherited, devices=["cpu"] * resources.gpus, offline=True
        ),
        log=run.log,
    )


def finish(run: RunDir) -> int:
    """Run to the end; return the exit code."""

    async def to_the_end() -> int:
        return await (await start(run)).wait()

    return asyncio.run(to_the_end())


def interrupt(run: RunDir, *, after_step: int, how: Callable[[Process], None]) -> list[Any]:
    """Interrupt a run once it has said a step; return its processes, all of them ended."""

    async def interrupted() -> list[Any]:
        process = await start(run)
        try:
            await asyncio.to_thread(wait_for_step, run, after_step)
            family = psutil.Process(process.pid).children(recursive=True)
            how(process)
            await process.wait()
            wait_until(lambda: not any(map(lives, family)), timeout_s=10)
        finally:
            await launcher.kill(process)
        return family

    return asyncio.run(interrupted())


def wait_for_step(run: RunDir, step: int) -> None:
    def said() -> bool:
        return any(event.step >= step for event in of_type(run, StepDone))

    wait_until(said, timeout_s=60)


def lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def kill_all(process: Process) -> None:
    for found in psutil.Process(process.pid).children(recursive=True):
        found.kill()
    process.kill()


def kill_torchrun(process: Process) -> None:
    process.kill()


def largest_difference(first: RunDir, second: RunDir) -> float:
    one, other = (
        load_file(next(run.adapter.glob("*model.safetensors"))) for run in (first, second)
    )
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def losses(run: RunDir) -> list[float]:
    return [event.metrics["train_loss"] for event in of_type(run, StepDone)]


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("random", "ddp"),
        ("ggpo", "ddp"),
        ("seq2seq", "ddp"),
        ("classification", "ddp"),
        ("lora_plus", "zero-2"),
        ("full", "zero-2"),
        ("dpo", "ddp"),
        *(
            pytest.param(kind, mode, marks=pytest.mark.slow)
            for kind, mode in [
                ("dpo", "zero-2"),
                ("random", "zero-2"),
                ("ggpo", "zero-2"),
                ("seq2seq", "zero-2"),
                ("classification", "zero-2"),
                ("lora_plus", "ddp"),
                ("full", "ddp"),
                ("adalora", "ddp"),
                ("dora", "ddp"),
                ("dora", "zero-2"),
                ("lora_ga", "ddp"),
                ("lora_ga", "zero-2"),
                ("lora_pro", "ddp"),
                ("pissa", "ddp"),
                ("pissa", "zero-2"),
            ]
        ),
    ],
)
def test_two_ranks_learn_what_one_process_learns(
    kind: str, mode: str, short: Callable[[str, str], RunDir]
):
    alone, together = short(kind, "alone"), short(kind, mode)

    assert losses(together) == pytest.approx(losses(alone), abs=1e-5)
    assert largest_difference(together, alone) <= 1e-5


@pytest.mark.parametrize("task", [*TASKS, "dpo"])
def test_two_ranks_score_each_row_once_like_one_process(
    task: str, short: Callable[[str, str], RunDir]
):
    alone, together = (of_type(short(task, mode), EvalDone) for mode in ("alone", "ddp"))

    assert len(together) == len(alone) == 3
    for ours, theirs in zip(together, alone, strict=True):
        assert ours.metrics == pytest.approx(theirs.metrics, abs=1e-5)


@pytest.mark.parametrize("mode", ["zero-0", "zero-1"])
def test_a_stage_changes_no_bit(mode: str, undisturbed: Callable[[str, str], RunDir]):
    sharded, plain = undisturbed(mode, "none"), undisturbed("ddp", "none")

    assert adapter_bytes(sharded) == adapter_bytes(plain)


@pytest.mark.parametrize("perturbation", ["none", "mgpo"])
def test_stage_2_adds_micro_batches_in_another_order_and_nothing_else(
    perturbation: str, undisturbed: Callable[[str, str], RunDir]
):
    sharded, plain = undisturbed("zero-2", perturbation), undisturbed("ddp", perturbation)

    # Fewer than two units in the last place of a weight of size one: how sums are rounded.
    assert largest_difference(sharded, plain) <= 2e-7


@pytest.mark.parametrize("mode", ["ddp", "zero-2"])
def test_the_ranks_perturb_and_only_one_speaks(
    mode: str, undisturbed: Callable[[str, str], RunDir]
):
    run = undisturbed(mode, "mgpo")

    steps = of_type(run, StepDone)
    assert [event.step for event in steps] == list(range(1, 25))
    assert steps[-1].metrics["perturbation_norm_max"] > 0
    assert len(of_type(run, Started)) == len(of_type(run, Finished)) == 1
    assert adapter_bytes(run) != adapter_bytes(undisturbed(mode, "none"))


@pytest.mark.parametrize(
    ("mode", "kill"), [("ddp", kill_torchrun), ("zero-0", kill_all), ("zero-1", kill_all)]
)
def test_killed_and_resumed_in_any_stage_ends_with_the_bits_of_plain_ranks_never_stopped(
    mode: str,
    kill: Callable[[Process], None],
    base: Path,
    tmp_path: Path,
    ranks: WarmRanks,
    undisturbed: Callable[[str, str], RunDir],
):
    run = two_ranks(tmp_path / "run", base, mode)

    interrupt(run, after_step=5, how=kill)
    killed = events(run)[-1]
    trained(ranks, run)

    assert not isinstance(killed, Finished | Stopped | Failed)
    assert of_type(run, Started)[-1].first_step > 4
    assert adapter_bytes(run) == adapter_bytes(undisturbed("ddp", "mgpo"))


def test_asked_to_stop_the_ranks_agree_on_a_step_and_go_on_from_it_also_when_killed_later(
    base: Path, tmp_path: Path, undisturbed: Callable[[str, str], RunDir]
):
    run = two_ranks(tmp_path / "run", base, "zero-2")

    interrupt(run, after_step=2, how=launcher.ask)
    (stopped,) = of_type(run, Stopped)
    interrupt(run, after_step=stopped.step + 5, how=kill_all)
    killed = events(run)[-1]
    finish(run)

    starts = [event.first_step for event in of_type(run, Started)]
    assert starts[:2] == [1, stopped.step + 1] and starts[2] > starts[1]
    assert not isinstance(killed, Finished | Stopped | Failed)
    assert adapter_bytes(run) == adapter_bytes(undisturbed("zero-2", "mgpo"))


def test_a_failure_on_all_ranks_is_told_once(base: Path, tmp_path: Path):
    run = two_ranks(tmp_path / "run", base, "ddp", peft={"target_modules": ["no_such_layer"]})

    code = finish(run)

    (failed,) = of_type(run, Failed)
    assert code != 0
    assert failed.code == "invalid_peft" and "no_such_layer" in failed.message
