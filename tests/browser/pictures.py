"""Takes the pictures of docs/images: `python -m tests.browser.pictures`, some minutes long.

A service of its own trains LoRA and LoRA-MGPO on the shared model and data; --url and --key take
one that has done so already.
"""

import argparse
import asyncio
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
from playwright.async_api import Browser, ViewportSize, async_playwright

from demo.service import Served, running
from tests.browser.conftest import QUIET, sign_in
from tests.conftest import CHROMIUM, SHARED
from tests.e2e.jobs import wait

IMAGES = Path(__file__).parents[2] / "docs" / "images"
METHODS = {"arithmetic-lora": {"type": "none"}, "arithmetic-mgpo": {"type": "mgpo"}}
TRAINING = {"learning_rate": 5e-3, "eval_steps": 15, "checkpoint_steps": 60, "max_length": 256}
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
        asyncio.run(take(service))


@contextmanager
def served() -> Iterator[Served]:
    with (
        tempfile.TemporaryDirectory() as folder,
        running(Path(folder) / "data", models=SHARED / "models", hub_models=[]) as service,
    ):
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


async def take(service: Served) -> None:
    """Look at the two jobs in every way that the documents show."""
    jobs = {job.to_dict()["suffix"]: job for job in client_of(service).fine_tuning.jobs.list()}
    plain, mgpo = (jobs[name] for name in METHODS)
    clone = f"new?clone={mgpo.id}"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        await shoot(browser, service, f"jobs/{mgpo.id}", "job", WIDE)
        await shoot(browser, service, f"jobs/{mgpo.id}", "dark", WIDE, dark=True)
        await shoot(browser, service, f"compare?jobs={plain.id},{mgpo.id}", "compare", WIDE)
        await shoot(browser, service, clone, "new", WIDE)
        await shoot(browser, service, f"jobs/{mgpo.id}", "phone", NARROW)
        await browser.close()


async def shoot(
    browser: Browser,
    service: Served,
    route: str,
    name: str,
    viewport: ViewportSize,
    *,
    dark: bool = False,
) -> None:
    scheme = "dark" if dark else "light"
    page = await browser.new_page(viewport=viewport, color_scheme=scheme)
    await page.goto(f"{service.url}/#/{route}")
    await sign_in(page, service.api_key)
    await page.wait_for_load_state("networkidle")
    await page.wait_for_timeout(1500)  # an estimate waits until nobody types
    await page.screenshot(path=IMAGES / f"dashboard-{name}.png")
    await page.close()


def client_of(service: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key=service.api_key)


if __name__ == "__main__":
    main()
