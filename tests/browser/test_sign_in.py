"""Who may come in, for how long, and what they are told."""

import httpx
import pytest
from playwright.async_api import expect

from tests.browser.conftest import Opened, Tenant, sign_in
from tests.conftest import Api

pytestmark = pytest.mark.browser


async def test_a_key_that_is_none_is_refused_with_the_reason(opened: Opened):
    page = await opened()

    await page.get_by_label("API key").fill("sk-nobody")
    await page.get_by_role("button", name="Sign in").click()

    await expect(page.get_by_role("alert")).to_contain_text("API key")
    await expect(page.get_by_role("heading", name="Sign in to Basin")).to_be_visible()


async def test_a_key_stays_in_its_tab_unless_it_is_to_be_remembered(opened: Opened, tenant: Tenant):
    page = await opened(tenant.admin)
    await page.reload()
    await expect(page.get_by_role("heading", name="Jobs")).to_be_visible()

    other = await page.context.new_page()
    await other.goto(page.url)
    await other.get_by_label("Remember on this device").check()
    await sign_in(other, tenant.admin)
    third = await page.context.new_page()
    await third.goto(page.url)

    await expect(third.get_by_role("heading", name="Jobs")).to_be_visible()
    await third.get_by_role("button", name="Sign out").click()
    await third.reload()
    await expect(third.get_by_role("heading", name="Sign in to Basin")).to_be_visible()


async def test_a_key_that_is_revoked_meanwhile_signs_out_with_the_reason(
    opened: Opened, http: httpx.Client
):
    made = http.post("/organization/keys", json={"name": "short-lived"}).json()
    page = await opened(made["key"])

    http.delete(f"/organization/keys/{made['id']}")

    await expect(page.get_by_role("alert")).to_contain_text("Incorrect API key")


async def test_a_key_that_may_only_look_is_told_why_it_cannot_submit(
    opened: Opened, tenant: Tenant
):
    page = await opened(tenant.reader)

    await expect(page.get_by_text("this needs the scope “write”")).to_be_visible()
    await expect(page.get_by_role("link", name="New job")).to_have_count(0)


async def test_an_address_with_a_route_leads_there_after_the_sign_in(
    opened: Opened, tenant: Tenant, api: Api
):
    page = await opened(tenant.admin, route="#/workers")

    await expect(page.get_by_role("heading", name="Workers", level=1)).to_be_visible()
