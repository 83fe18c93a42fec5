"""Sends a batch of metrics to MLflow: `python -m app.integrations.to_mlflow`, a process a batch.

The server is named by MLFLOW_TRACKING_URI, as everywhere.
"""

import json
import time

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run
from mlflow.exceptions import MlflowException

from app.integrations import batch
from app.integrations.batch import Batch

MOST_AT_ONCE = 1000  # values in a request, by MLflow's rule
MOST_CHARACTERS = 500  # of a parameter
JOB_TAG = "basin.job_id"
ENDS = {"succeeded": "FINISHED", "failed": "FAILED", "cancelled": "KILLED"}


def main() -> None:
    """Add to the job's run, which is made when it is not there."""
    given = batch.read()
    client = MlflowClient()
    experiment_id = _experiment(client, f"basin/{given.organization}")
    run_id = _run(client, experiment_id, given).info.run_id
    now_ms = int(time.time() * 1000)
    values = [
        Metric(name, value, now_ms, step)
        for step, metrics in given.steps
        for name, value in metrics.items()
    ]
    for start in range(0, len(values), MOST_AT_ONCE):
        client.log_batch(run_id, metrics=values[start : start + MOST_AT_ONCE])
    if given.status is not None:
        client.set_terminated(run_id, ENDS[given.status])
    batch.answer(None)


def _experiment(client: MlflowClient, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            made: str = client.create_experiment(name)
        except MlflowException:  # another process made it this moment, or it fails again below
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
        else:
            return made
    experiment_id: str = found.experiment_id
    return experiment_id


def _run(client: MlflowClient, experiment_id: str, given: Batch) -> Run:
    ours = f"tags.`{JOB_TAG}` = '{given.job_id}'"
    found = client.search_runs([experiment_id], filter_string=ours, max_results=1)
    if found:
        return found[0]
    run = client.create_run(experiment_id, run_name=given.job_id, tags={JOB_TAG: given.job_id})
    client.log_batch(run.info.run_id, params=_params(given))
    return run


def _params(given: Batch) -> list[Param]:
    flat = {
        f"{part}.{name}" if name else part: value
        for part, values in given.config.items()
        for name, value in (values if isinstance(values, dict) else {"": values}).items()
    }
    return [
        Param(name, (value if isinstance(value, str) else json.dumps(value))[:MOST_CHARACTERS])
        for name, value in flat.items()
    ]


if __name__ == "__main__":
    main()
