"""Sends a batch of metrics to Weights & Biases: `python -m app.integrations.to_wandb`.

A process a batch, which takes up the job's run where the last one left it. The key is in
WANDB_API_KEY, as everywhere.
"""

import wandb

from app.integrations import batch

INIT_TIMEOUT_S = 60


def main() -> None:
    """Add to the job's run, which is made when it is not there."""
    given = batch.read()
    run = wandb.init(
        id=given.job_id,
        resume="allow",
        project=given.run["project"],
        entity=given.run.get("entity"),
        name=given.run.get("name") or given.job_id,
        tags=given.run.get("tags"),
        config=given.config,
        settings=wandb.Settings(
            init_timeout=INIT_TIMEOUT_S,
            console="off",
            silent=True,
            disable_git=True,
            disable_code=True,
            # Of this process: it is not the one that trains.
            x_disable_stats=True,
            x_disable_meta=True,
            x_save_requirements=False,
            # Between two batches the run goes on.
            x_update_finish_state=given.status is not None,
        ),
    )
    for step, metrics in given.steps:
        run.log(metrics, step=step)
    url = run.url
    run.finish(exit_code=0 if given.status in (None, "succeeded") else 1)
    batch.answer(url)


if __name__ == "__main__":
    main()
