"""What a comparison that is over looks like: its verdict, its numbers, its bands."""

import csv
from pathlib import Path

import pytest
from playwright.async_api import expect

from tests.browser import finished
from tests.browser.conftest import Opened, Tenant
from tests.browser.drawings import BAND, drawn

pytestmark = pytest.mark.browser
ROUTE = "#/compare/cmp-finished"
QUIET_MS = 6000  # longer than the page waits before it asks again


async def test_each_method_has_its_numbers_and_one_seed_no_interval(opened: Opened, tenant: Tenant):
    page = await opened(tenant.admin)
    await finished.answer_with(page, finished.comparison())

    await page.evaluate(f"location.hash = '{ROUTE}'")

    await expect(page.get_by_role("heading", name=finished.NAME)).to_be_visible()
    await expect(page.get_by_text(finished.VERDICT)).to_be_visible()
    table = page.get_by_role("region", name="Table of methods")
    heads = await table.get_by_role("columnheader").all_inner_texts()
    rows = {
        name: dict(
            zip(
                heads[1:],
                await table.get_by_role("row", name=name).get_by_role("cell").all_inner_texts(),
                strict=True,
            )
        )
        for name in ("LoRA-MGPO", "DoRA")
    }
    mgpo, dora = rows["LoRA-MGPO"], rows["DoRA"]
    assert mgpo["Validation loss"] == "1.58 (1.565 to 1.595)"
    assert mgpo["Against the first"] == "−0.0815 (−0.1012 to −0.0618)"
    assert mgpo["p, corrected"] == "0.0046, significant"
    assert mgpo["Sharpness, worst"] == "0.0342 (0.0302 to 0.0382)"
    assert mgpo["Time for 0.01 of loss"] == "0.84 s"
    assert (dora["Seeds"], dora["Validation loss"]) == ("1", "1.643")
    assert (dora["Against the first"], dora["p, corrected"]) == ("−0.0127", "–")


async def test_the_mean_of_several_seeds_is_drawn_within_its_band(opened: Opened, tenant: Tenant):
    page = await opened(tenant.admin)
    await finished.answer_with(page, finished.comparison())

    await page.evaluate(f"location.hash = '{ROUTE}'")
    await expect(page.locator(".plot canvas")).to_be_visible()

    lines = [await drawn(page, f"--series-{hue}") for hue in (1, 2, 3)]
    bands = [await drawn(page, f"--series-{hue}", BAND) for hue in (1, 2, 3)]
    assert min(lines) > 100
    assert min(bands[:2]) > 1000 and bands[2] < 100  # one seed has no band


async def test_a_band_is_saved_with_its_edges(opened: Opened, tenant: Tenant):
    told = finished.comparison()
    page = await opened(tenant.admin)
    await finished.answer_with(page, told)
    await page.evaluate(f"location.hash = '{ROUTE}'")

    async with page.expect_download() as saving:
        await page.get_by_role("button", name="Save Validation loss as CSV").click()
    rows = list(csv.DictReader(Path(await (await saving.value).path()).read_text().splitlines()))

    edges = ("LoRA, low", "LoRA", "LoRA, high")
    assert [[int(row["step"]), *(float(row[name]) for name in edges)] for row in rows] == [
        [point["step"], point["low"], point["mean"], point["high"]]
        for point in told["methods"][0]["curve"]
    ]
    assert {row["DoRA, low"] for row in rows} == {""}


async def test_a_comparison_that_is_over_is_not_asked_for_again(opened: Opened, tenant: Tenant):
    page = await opened(tenant.admin)
    asked = await finished.answer_with(page, finished.comparison())
    await page.evaluate(f"location.hash = '{ROUTE}'")
    await expect(page.get_by_text(finished.VERDICT)).to_be_visible()
    await page.wait_for_timeout(500)
    before = len(asked)

    await page.wait_for_timeout(QUIET_MS)

    assert len(asked) == before
