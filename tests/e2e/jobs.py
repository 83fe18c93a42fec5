"""Submits jobs through the official client and waits for their end."""

import time
from typing import Any

import openai
from openai.types.fine_tuning import FineTuningJob

OVER = ("succeeded", "failed", "cancelled")


def create(client: openai.OpenAI, training_file: str, **body: Any) -> FineTuningJob:
    """Submit; fields that are Basin's own go into extra_body."""
    ours = {
        key: body.pop(key)
        for key in ("peft", "perturbation", "training", "evaluation", "resources")
        if key in body
    }
    return client.fine_tuning.jobs.create(
        **({"model": "tiny-llama", "training_file": training_file, "seed": 7} | body),
        extra_body=ours,
    )


def wait(
    client: openai.OpenAI, job_id: str, *, until: tuple[str, ...] = OVER, timeout_s: float = 120
) -> FineTuningJob:
    """Poll until the job has one of the states."""
    deadline = time.monotonic() + timeout_s
    while (job := client.fine_tuning.jobs.retrieve(job_id)).status not in until:
        assert time.monotonic() < deadline, f"{job.status} after {timeout_s} s"
        time.sleep(0.2)
    return job


def steps_done(client: openai.OpenAI, job_id: str) -> int:
    job = client.fine_tuning.jobs.retrieve(job_id)
    return int((job.model_extra or {})["progress"]["step"])
