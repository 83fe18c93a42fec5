"""What must be true of a job whatever was done to it."""

from tests.chaos.cluster import Cluster
from tests.held import processes_of
from tests.waiting import within

STEPS = 160
CHECKPOINT_STEPS = 20
BODY = {
    "training": {"max_steps": STEPS, "checkpoint_steps": CHECKPOINT_STEPS},
    "hyperparameters": {"batch_size": 4},
    "peft": {"method": "lora", "r": 4, "dropout": 0.1},
}


def assert_all_is_well(
    cluster: Cluster,
    job_id: str,
    undisturbed: str,
    *,
    steps: int = STEPS,
    checkpoint_steps: int = CHECKPOINT_STEPS,
) -> None:
    """One accepted attempt, no stale row, the undisturbed run's bits, nothing left behind."""
    job = cluster.job(job_id)
    outcomes = [attempt["outcome"] for attempt in cluster.attempts(job_id)]
    assert job["status"] == "succeeded", job["error"]
    assert outcomes.count("succeeded") == 1 and outcomes[-1] == "succeeded", outcomes
    assert None not in outcomes
    assert cluster.weights(job_id) == undisturbed
    assert_every_step_is_told_once(cluster, job_id, steps)
    assert_every_checkpoint_is_shown(cluster, job_id, steps, every=checkpoint_steps)
    assert within(10, lambda: not processes_of(job_id)), processes_of(job_id)
    assert_nothing_is_left(cluster, job_id)


def assert_every_step_is_told_once(cluster: Cluster, job_id: str, steps: int = STEPS) -> None:
    """A value a step, and of two attempts that took a step the later one's."""
    rows = cluster.sql(
        "SELECT step, attempt FROM metrics WHERE job_id = %s AND name = 'train_loss' ORDER BY step",
        job_id,
    )
    assert [step for step, _ in rows] == list(range(1, steps + 1))
    attempts = [attempt for _, attempt in rows]
    assert attempts == sorted(attempts)


def assert_every_checkpoint_is_shown(
    cluster: Cluster, job_id: str, steps: int, *, every: int
) -> None:
    """An adapter of each step that was to leave one, beside those of where a run was stopped."""
    assert not missing_checkpoints(cluster, job_id, steps, every=every)


def missing_checkpoints(cluster: Cluster, job_id: str, steps: int, *, every: int) -> set[int]:
    rows = cluster.sql("SELECT step FROM checkpoints WHERE job_id = %s", job_id)
    return {*range(every, steps + 1, every)} - {step for (step,) in rows}


def assert_nothing_is_left(cluster: Cluster, job_id: str) -> None:
    """No half-written blob of the job, no resume state, no run folder of a live worker."""
    open_blobs = cluster.sql(
        "SELECT id FROM blobs WHERE state = 'writing' AND writer LIKE %s", f"{job_id}/%"
    )
    states = cluster.sql("SELECT step FROM resume_states WHERE job_id = %s", job_id)
    assert not open_blobs and not states
