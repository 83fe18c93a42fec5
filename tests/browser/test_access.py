"""Everybody can use it: with a screen reader, by keyboard, in the dark, on a phone."""

from pathlib import Path
from typing import Any

import openai
import pytest
from axe_playwright_python.async_playwright import Axe
from openai.types.fine_tuning import FineTuningJob
from playwright.async_api import Page, expect

from tests.browser import finished
from tests.browser.conftest import LAPTOP, PHONE, Opened, Tenant
from tests.e2e.jobs import create
from tests.factories import jsonl

pytestmark = pytest.mark.browser
LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light", "viewport": LAPTOP},
    "dark": {"color_scheme": "dark", "viewport": LAPTOP},
    "phone": {"color_scheme": "light", "viewport": PHONE},
}
GRAVE = ("serious", "critical")


@pytest.mark.parametrize("look", LOOKS)
async def test_axe_finds_no_grave_fault_and_nothing_scrolls_sideways(
    opened: Opened, tenant: Tenant, trained: dict[str, FineTuningJob], look: str
):
    page = await opened(**LOOKS[look])
    faults = {"sign in": await grave_faults(page)}
    page = await opened(tenant.admin, **LOOKS[look])
    await finished.answer_with(page, finished.comparison())
    done, broken = trained["mgpo"].id, trained["broken"].id
    train = trained["mgpo"].training_file
    routes = {
        "jobs": "Jobs", f"jobs/{done}": "mgpo", f"jobs/{broken}": "broken", "new": "New job",
        f"new?clone={done}": "Clone of mgpo", f"new?file={train}": "New job",
        "files": "Files", "models": "Models",
        f"compare?jobs={done},{trained['plain'].id}": "Compare", "workers": "Workers",
        "compare/new": "New comparison",
        "compare/cmp-finished": finished.NAME,
        "organization": "Keys & usage", "nowhere": "No such page",
    }  # fmt: skip

    for route, heading in routes.items():
        await page.evaluate(f"location.hash = '#/{route}'")
        await expect(page.get_by_role("heading", name=heading, level=1, exact=True)).to_be_visible()
        await expect(page.get_by_text("Loading…")).to_have_count(0)
        if (done in route and "new" not in route) or "cmp" in route:
            await expect(page.locator(".plot canvas").first).to_be_visible()
        if route == f"jobs/{done}":
            await open_details(page)
        if train in route:
            await expect(page.get_by_text("40 rows of the format chat")).to_be_visible()
        faults[route] = [*await grave_faults(page), *await sideways(page)]

    assert {route: found for route, found in faults.items() if found} == {}


async def test_axe_finds_no_grave_fault_while_a_job_runs_and_when_it_is_to_be_cancelled(
    opened: Opened, tenant: Tenant, client: openai.OpenAI, working: Path
):
    rows = client.files.create(file=("rows.jsonl", jsonl(24)), purpose="fine-tune").id
    job = create(client, rows, hyperparameters={"n_epochs": 1000, "batch_size": 4})
    still = {"reduced_motion": "reduce"}  # axe would judge colours on their way
    page = await opened(tenant.admin, route=f"#/jobs/{job.id}", **still)
    await expect(page.locator(".plot canvas").first).to_be_visible(timeout=90_000)
    faults = {}

    for name, look in LOOKS.items():
        await page.emulate_media(color_scheme=look["color_scheme"])
        await page.set_viewport_size(look["viewport"])
        await expect(page.get_by_text("live", exact=True)).to_be_visible()
        faults[f"{name}, running"] = [*await grave_faults(page), *await sideways(page)]
        await page.get_by_role("button", name="Cancel", exact=True).click()
        await expect(page.get_by_role("dialog")).to_be_visible()
        faults[f"{name}, asking"] = await grave_faults(page)
        await page.get_by_role("button", name="No", exact=True).click()
    client.fine_tuning.jobs.cancel(job.id)

    assert {name: found for name, found in faults.items() if found} == {}


async def test_a_reader_comes_in_and_reads_a_curve_by_keyboard_alone(
    opened: Opened, tenant: Tenant, trained: dict[str, FineTuningJob]
):
    page = await opened(route=f"#/jobs/{trained['mgpo'].id}")
    await expect(page.get_by_label("API key")).to_be_focused()
    await page.keyboard.type(tenant.reader)
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="mgpo", level=1)).to_be_focused()
    plot = page.get_by_role("group", name="Chart of Loss").first
    await expect(plot).to_be_visible()

    await tab_to(page, "Chart of Loss")
    await page.keyboard.press("ArrowLeft")
    await page.keyboard.press("ArrowLeft")

    await expect(page.locator(".legend-step").first).to_have_text("step 11")


async def test_the_colours_that_are_chosen_stay_chosen(opened: Opened, tenant: Tenant):
    page = await opened(tenant.admin, color_scheme="light")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = await page.evaluate(ground)

    await page.get_by_label("Colours").select_option("dark")
    dark = await page.evaluate(ground)
    await page.reload()

    assert dark != light
    assert await page.evaluate(ground) == dark


async def open_details(page: Page) -> None:
    """Open the log and the spec, and wait for what is read then."""
    for name in ("Log", "Resolved spec"):
        await page.locator("summary", has_text=name).click()
    await expect(page.locator("pre.log")).to_be_visible()
    await expect(page.get_by_text("peft.method")).to_be_visible()


async def grave_faults(page: Page) -> list[str]:
    """What axe finds that is serious or worse, and where."""
    found = await Axe().run(page)
    return [
        f"{fault['id']}: {fault['nodes'][0]['html'][:200]}"
        for fault in found.response["violations"]
        if fault["impact"] in GRAVE
    ]


async def sideways(page: Page) -> list[str]:
    """Whether the page is wider than the window."""
    width, seen = await page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    return [f"{width} px wide in {seen}"] if width > seen else []


async def tab_to(page: Page, name: str) -> None:
    """Press Tab until something of that name has the focus."""
    for _ in range(60):
        await page.keyboard.press("Tab")
        label = await page.evaluate("document.activeElement.getAttribute('aria-label') ?? ''")
        if label.startswith(name):
            return
    raise AssertionError(f"60 tabs do not lead to {name}")
