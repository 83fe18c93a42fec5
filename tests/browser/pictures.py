"""Takes the pictures of docs/images: `python -m tests.browser.pictures`, some minutes long.

A service of its own trains LoRA and LoRA-MGPO on the shared model and data, and an agent in
frozen-lake, from the one that `bench.gigpo` clones (and keeps); --url and --key take a service that
has done so already.
"""

import argparse
import asyncio
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
from openai.types.fine_tuning import FineTuningJob
from playwright.async_api import Browser, Page, ViewportSize, async_playwright

from bench.agents import FIRST_HELD_OUT, episodes, worlds
from bench.gigpo import Setting, cloned
from demo.service import Served, running
from tests.browser.conftest import QUIET, sign_in
from tests.conftest import CHROMIUM, SHARED
from tests.e2e.jobs import wait
from tests.factories import to_jsonl

IMAGES = Path(__file__).parents[2] / "docs" / "images"
METHODS = {"arithmetic-lora": {"type": "none"}, "arithmetic-mgpo": {"type": "mgpo"}}
TRAINING = {"learning_rate": 5e-3, "eval_steps": 15, "checkpoint_steps": 60, "max_length": 256}
COMPARED = {
    "name": "does MGPO help here?",
    "model": "stories260K",
    "methods": [
        {"name": "LoRA", "perturbation": {"type": "none"}},
        {"name": "LoRA-MGPO", "perturbation": {"type": "mgpo"}},
    ],
    "seeds": 3,
    "budget": {"equal": "steps", "max_steps": 40},
    "hyperparameters": {"batch_size": 4},
    "training": {"learning_rate": 5e-3, "eval_steps": 8, "max_length": 256},
}
WORLD = worlds()["frozen-lake"]
AGENT = f"{WORLD.name}-agent"
CLONED = Setting(
    updates=40, rate=3e-3, rho=0.05, expert_share=0.7, results=Path(".basin/bench/gigpo")
)
REINFORCEMENT = {
    "algorithm": "gigpo",
    "environment": WORLD.asked,
    "group_size": 8,
    "max_completion_tokens": 4,
    "hyperparameters": {"batch_size": 4},
}
ACTING = {
    "max_steps": 40, "learning_rate": 3e-3, "scheduler": "constant", "micro_batch_size": 32,
    "eval_steps": 8, "checkpoint_steps": 40,
}  # fmt: skip
HOST = "gpu-box-1"  # what the machine is called in the pictures
TALL = ViewportSize(width=1280, height=2300)
WIDE, NARROW = ViewportSize(width=1280, height=1100), ViewportSize(width=400, height=860)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--url")
    arguments.add_argument("--key")
    given = arguments.parse_args()
    if given.url:
        asyncio.run(take(Served(given.url, given.key)))
        return
    with served() as service:
        train(client_of(service))
        compare(service)
        act(client_of(service))
        asyncio.run(take(service))


@contextmanager
def served() -> Iterator[Served]:
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        shutil.copytree(SHARED / "models" / "stories260K", models / "stories260K")
        shutil.copytree(cloned(WORLD, CLONED), models / AGENT)
        with running(Path(folder) / "data", models=models, hub_models=[]) as service:
            yield service


def train(client: openai.OpenAI) -> None:
    """Train with both methods, from the same seed, on short problems of arithmetic."""
    lines = (SHARED / "data" / "gsm8k" / "train.chat.jsonl").read_bytes().splitlines(keepends=True)
    short = sorted(lines, key=len)[:700]
    random.Random(7).shuffle(short)
    train, valid = (
        client.files.create(file=(name, b"".join(rows)), purpose="fine-tune").id
        for name, rows in (("train.jsonl", short[:600]), ("valid.jsonl", short[600:624]))
    )
    jobs = [
        client.fine_tuning.jobs.create(
            model="stories260K",
            training_file=train,
            validation_file=valid,
            suffix=name,
            seed=7,
            hyperparameters={"n_epochs": 1, "batch_size": 4},
            extra_body={"perturbation": perturbation, "training": TRAINING},
        )
        for name, perturbation in METHODS.items()
    ]
    assert {wait(client, job.id, timeout_s=1800).status for job in jobs} == {"succeeded"}


def compare(service: Served) -> None:
    """Train with both methods from three seeds."""
    plain = trained(service)["arithmetic-lora"]
    files = {"training_file": plain.training_file, "validation_file": plain.validation_file}
    with http_of(service) as http:
        made = http.post("/comparisons", json=COMPARED | files).raise_for_status().json()
        while made["status"] == "running":
            time.sleep(2)
            made = http.get(f"/comparisons/{made['id']}").raise_for_status().json()
    assert made["status"] == "succeeded"


def act(client: openai.OpenAI) -> None:
    """Train an agent that finds its way now and then, until it does more often."""
    played = {"train": episodes(256), "valid": episodes(64, first=FIRST_HELD_OUT)}
    train, valid = (
        client.files.create(file=(f"{name}.jsonl", to_jsonl(rows)), purpose="fine-tune").id
        for name, rows in played.items()
    )
    job = client.fine_tuning.jobs.create(
        model=AGENT,
        training_file=train,
        validation_file=valid,
        suffix=AGENT,
        seed=1,
        extra_body={
            "method": {"type": "reinforcement", "reinforcement": REINFORCEMENT},
            "perturbation": {"type": "mgpo"},
            "training": ACTING,
        },
    )
    assert wait(client, job.id, timeout_s=1800).status == "succeeded"


async def take(service: Served) -> None:
    """Look at the jobs and the comparison in every way that the documents show."""
    jobs = trained(service)
    plain, mgpo = (jobs[name] for name in METHODS)
    clone = f"new?clone={mgpo.id}"
    with http_of(service) as http:
        comparison = http.get("/comparisons").raise_for_status().json()["data"][0]["id"]
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        await shoot(browser, service, f"jobs/{mgpo.id}", "job", TALL)
        await shoot(browser, service, f"jobs/{mgpo.id}", "dark", WIDE, dark=True)
        await shoot(browser, service, f"compare?jobs={plain.id},{mgpo.id}", "compare", WIDE)
        await shoot(browser, service, f"compare/{comparison}", "comparison", WIDE)
        await shoot(browser, service, clone, "new", WIDE)
        await shoot(browser, service, f"new?clone={jobs[AGENT].id}", "new-agent", WIDE)
        agent = f"jobs/{jobs[AGENT].id}"
        await shoot(browser, service, agent, "agent", WIDE)
        await shoot(browser, service, agent, "rollouts", WIDE, only="section.rollouts")
        await shoot(browser, service, f"jobs/{mgpo.id}", "phone", NARROW)
        with live(service, mgpo) as job_id:
            await shoot(browser, service, f"jobs/{job_id}", "live", WIDE)
            await shoot(browser, service, "jobs", "jobs", WIDE)
        await browser.close()


@contextmanager
def live(service: Served, like: FineTuningJob) -> Iterator[str]:
    """A job that trains for as long as it is looked at."""
    jobs = client_of(service).fine_tuning.jobs
    job = jobs.create(
        model=like.model,
        training_file=like.training_file,
        validation_file=like.validation_file,
        suffix="arithmetic-live",
        hyperparameters={"n_epochs": 20, "batch_size": 4},
        extra_body={"perturbation": METHODS["arithmetic-mgpo"], "training": TRAINING},
    )
    while jobs.retrieve(job.id).to_dict()["progress"]["step"] < 60:
        time.sleep(1)
    yield job.id
    jobs.cancel(job.id)


async def shoot(
    browser: Browser,
    service: Served,
    route: str,
    name: str,
    viewport: ViewportSize,
    *,
    dark: bool = False,
    only: str | None = None,
) -> None:
    scheme = "dark" if dark else "light"
    page = await browser.new_page(viewport=viewport, color_scheme=scheme)
    await page.goto(f"{service.url}/#/{route}")
    await sign_in(page, service.api_key)
    await page.wait_for_timeout(4000)  # an estimate waits until nobody types
    await rename_host(page, service)
    path = IMAGES / f"dashboard-{name}.png"
    if only is None:
        await page.screenshot(path=path)
    else:
        await page.locator(only).screenshot(path=path)
    await page.close()


async def rename_host(page: Page, service: Served) -> None:
    """Let no picture tell what the machine is really called."""
    with http_of(service) as http:
        workers = http.get("/workers").raise_for_status().json()["data"]
    for name in {worker["hostname"] for worker in workers}:
        await page.evaluate(
            """([name, neutral]) => {
                const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
                while (texts.nextNode()) {
                    const text = texts.currentNode;
                    text.data = text.data.replaceAll(new RegExp(`\\\\b${name}\\\\b`, 'g'), neutral);
                }
            }""",
            [name, HOST],
        )


def trained(service: Served) -> dict[str, FineTuningJob]:
    """The jobs by the names that they were given."""
    jobs = client_of(service).fine_tuning.jobs.list()
    return {job.to_dict()["suffix"]: job for job in jobs}


def http_of(service: Served) -> httpx.Client:
    headers = {"Authorization": f"Bearer {service.api_key}"}
    return httpx.Client(base_url=f"{service.url}/v1", headers=headers, timeout=60)


def client_of(service: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key=service.api_key)


if __name__ == "__main__":
    main()
