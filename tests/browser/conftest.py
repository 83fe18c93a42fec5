"""A real Chromium, signed in at a real server with a real worker."""

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.fine_tuning import FineTuningJob
from playwright.async_api import Browser, Page, ViewportSize, async_playwright, expect

from app.ids import token
from app.keys.service import Scope
from tests.conftest import CHROMIUM, Api, celery_worker
from tests.e2e.jobs import create, wait
from tests.factories import jsonl

QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE_MS = 20_000  # how long an element may be on its way, on a busy machine
LAPTOP = ViewportSize(width=1280, height=900)
expect.set_options(timeout=PATIENCE_MS)
PHONE = ViewportSize(width=400, height=800)
QUICK = {"max_steps": 12, "eval_steps": 4, "checkpoint_steps": 6, "learning_rate": 5e-3}

Opened = Callable[..., Coroutine[Any, Any, Page]]


@dataclass(frozen=True)
class Tenant:
    """An organization of the browser tests' own, and keys to it."""

    admin: str
    reader: str


@pytest.fixture(scope="session")
def tenant(api: Api) -> Tenant:
    name = f"browsers-{token(6)}"
    return Tenant(admin=api.key(name, Scope.ADMIN), reader=api.key(name, Scope.READ))


@pytest.fixture(scope="package")
def working(api: Api, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One worker for all of these tests, and for no others; yields its log."""
    with celery_worker(api.settings, tmp_path_factory.mktemp("celery") / "worker.log") as log:
        yield log


@pytest.fixture(scope="session")
def http(api: Api, tenant: Tenant) -> Iterator[httpx.Client]:
    with api.http(tenant.admin) as client:
        yield client


@pytest.fixture(scope="session")
def client(api: Api, tenant: Tenant) -> Iterator[openai.OpenAI]:
    with api.openai(tenant.admin) as openai_client:
        yield openai_client


@pytest.fixture(scope="package")
def trained(client: openai.OpenAI, working: Path) -> dict[str, FineTuningJob]:
    """Two jobs that succeeded, and one that failed, by their names."""
    train = client.files.create(file=("train.jsonl", jsonl(40)), purpose="fine-tune").id
    valid = client.files.create(file=("valid.jsonl", jsonl(12)), purpose="fine-tune").id
    asked = {
        "plain": {"perturbation": {"type": "none"}},
        "mgpo": {"perturbation": {"type": "mgpo"}},
        "broken": {"model": "broken-llama"},
    }
    jobs = [
        create(client, train, validation_file=valid, suffix=name, training=QUICK, **body)
        for name, body in asked.items()
    ]
    ended = [wait(client, job.id) for job in jobs]
    assert [job.status for job in ended] == ["succeeded", "succeeded", "failed"], (
        working.read_text()[-3000:]
    )
    return dict(zip(asked, ended, strict=True))


@pytest.fixture(scope="package")
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        running = await playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield running
        await running.close()


@pytest.fixture
async def opened(api: Api, browser: Browser) -> AsyncIterator[Opened]:
    """A function that opens the dashboard in a fresh profile; scripts that fail, fail the test."""
    contexts, faults = [], []

    async def open_page(
        key: str | None = None, route: str = "", viewport: ViewportSize = LAPTOP, **options: Any
    ) -> Page:
        context = await browser.new_context(viewport=viewport, **options)
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        page = await context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda said: faults.append(said.text) if _is_fault(said.text) else None)
        await page.goto(f"{api.url}/{route}")
        if key:
            await sign_in(page, key)
        return page

    yield open_page
    for context in contexts:
        await context.close()
    assert not faults


def _is_fault(said: str) -> bool:
    return "Content Security Policy" in said or "Uncaught" in said


async def sign_in(page: Page, key: str) -> None:
    await page.get_by_label("API key").fill(key)
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_role("button", name="Sign out").or_(menu(page))).to_be_visible()


def menu(page: Page) -> Any:
    """What stands for the links where the page is narrow."""
    return page.get_by_role("button", name="Menu")
