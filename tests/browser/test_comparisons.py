"""What a user does to learn whether one method is better than another."""

import re

import httpx
import pytest
from openai.types.fine_tuning import FineTuningJob
from playwright.async_api import Locator, Page, expect

from tests.browser.conftest import Opened, Tenant

pytestmark = pytest.mark.browser
Trained = dict[str, FineTuningJob]
UNTIL_OVER_MS = 300_000  # four runs, one after the other, on a busy machine


async def test_a_comparison_is_started_and_its_bands_and_its_verdict_appear(
    opened: Opened, tenant: Tenant, trained: Trained, http: httpx.Client
):
    page = await opened(tenant.admin, route="#/compare")
    await page.get_by_role("link", name="New comparison", exact=True).click()

    await filled(page, trained["mgpo"])
    await page.get_by_label("Name", exact=True).fill("from the form")
    await page.get_by_label("Seeds").fill("2")
    await page.get_by_label("Steps of each run").fill("4")
    await page.get_by_label("Evaluate every").fill("2")
    await page.get_by_label("Measure sharpness").uncheck()
    await method(page, 2).get_by_label("ρ (rho)").fill("0.1")
    await page.get_by_role("button", name="Start the comparison").click()

    await expect(page.get_by_role("heading", name="from the form")).to_be_visible()
    await expect(page.get_by_text("LoRA-MGPO ends")).to_be_visible(timeout=UNTIL_OVER_MS)
    made = http.get(f"/comparisons/{page.url.rpartition('/')[2]}").json()
    await expect(page.get_by_text(made["verdict"])).to_be_visible()
    await expect(page.get_by_role("group", name="Chart of Validation loss")).to_be_visible()
    asked = {(job["method"], job["seed"]): job["id"] for job in made["jobs"]}
    assert set(asked) == {(name, seed) for name in ("LoRA", "LoRA-MGPO") for seed in (1, 2)}
    run = http.get(f"/fine_tuning/jobs/{asked['LoRA-MGPO', 2]}").json()
    assert (run["perturbation"]["rho"], run["training"]["max_steps"]) == (0.1, 4)


async def test_what_a_comparison_is_refused_for_is_said_at_its_field(
    opened: Opened, tenant: Tenant, trained: Trained
):
    page = await opened(tenant.admin, route="#/compare/new")
    await filled(page, trained["mgpo"])
    rho = method(page, 2).get_by_label("ρ (rho)")
    await rho.fill("11")

    await page.get_by_role("button", name="Start the comparison").click()

    await expect(rho).to_be_focused()
    await expect(rho).to_have_attribute("aria-invalid", "true")
    await expect(rho).to_have_accessible_description(re.compile("less than or equal to 10"))


async def test_methods_are_added_and_removed_by_keyboard(
    opened: Opened, tenant: Tenant, trained: Trained
):
    page = await opened(tenant.admin, route="#/compare/new")
    await expect(page.get_by_role("button", name="Remove method 1")).to_be_disabled()

    await page.get_by_role("button", name="Add a method").press("Enter")
    await expect(method(page, 3).get_by_label("Method’s name")).to_be_focused()
    await page.get_by_role("button", name="Remove method 1").press("Enter")

    await expect(page.get_by_role("button", name="Add a method")).to_be_focused()
    names = [method(page, place).get_by_label("Method’s name") for place in (1, 2)]
    assert [await each.input_value() for each in names] == ["LoRA-MGPO", "LoRA-MGPO 2"]


async def filled(page: Page, job: FineTuningJob) -> None:
    """Choose the model and the files of a job."""
    await page.get_by_label("Training file", exact=True).select_option(job.training_file)
    await page.get_by_label("Validation file", exact=True).select_option(job.validation_file)
    await page.get_by_label("Base model").select_option("tiny-llama")


def method(page: Page, place: int) -> Locator:
    return page.get_by_role("group", name=f"Method {place}")
