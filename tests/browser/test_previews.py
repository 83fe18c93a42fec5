"""What a user asks both models: the base, and what a job made of it."""

import asyncio
import re

import openai
import pytest
from openai.types.fine_tuning import FineTuningJob
from playwright.async_api import Route, expect

from app.ids import token
from app.keys.service import Scope
from tests.browser.conftest import Opened, Tenant
from tests.browser.rows import put_jobs
from tests.conftest import Api

pytestmark = pytest.mark.browser
Trained = dict[str, FineTuningJob]


async def test_the_base_and_the_fine_tuned_model_are_asked_the_same(
    opened: Opened, tenant: Tenant, trained: Trained, client: openai.OpenAI
):
    job = trained["plain"]
    page = await opened(tenant.admin, route=f"#/jobs/{job.id}")
    box = page.get_by_role("region", name="Before and after")

    await box.get_by_label("Ask both models").fill("What is 3 plus 3?")
    await box.get_by_role("button", name="Ask").click()
    await expect(box.get_by_role("button", name="Stop")).to_be_visible()
    await expect(box.get_by_role("button", name="Stop")).to_be_hidden(timeout=200_000)

    for title, model in (("Before", job.model), ("After", job.fine_tuned_model or "")):
        said = await asyncio.to_thread(ask, client, model, "What is 3 plus 3?")
        shown = await box.get_by_role("group", name=title).locator("pre").text_content()
        assert said and shown == said
        how = box.get_by_role("group", name=title).get_by_role("status")
        await expect(how).to_contain_text(
            re.compile("^The whole answer|ends at 256 tokens or 2 min")
        )


def ask(client: openai.OpenAI, model: str, question: str) -> str | None:
    message = {"role": "user", "content": question}
    answer = client.chat.completions.create(model=model, messages=[message], temperature=0)
    return answer.choices[0].message.content


async def test_what_the_models_are_refused_for_is_said_below_the_question(
    opened: Opened, tenant: Tenant, trained: Trained
):
    page = await opened(tenant.admin, route=f"#/jobs/{trained['plain'].id}")
    box = page.get_by_role("region", name="Before and after")

    await box.get_by_label("Ask both models").fill("Too long. " * 100)
    await box.get_by_role("button", name="Ask").click()

    await expect(box.get_by_role("alert")).to_contain_text("shorten it", timeout=200_000)
    await expect(box.get_by_role("button", name="Ask")).to_be_enabled()


async def test_an_answer_that_is_waited_for_is_stopped(
    opened: Opened, tenant: Tenant, trained: Trained
):
    page = await opened(tenant.admin, route=f"#/jobs/{trained['plain'].id}")
    box = page.get_by_role("region", name="Before and after")
    held: list[Route] = []
    await page.route("**/chat/completions", lambda route: held.append(route))

    await box.get_by_label("Ask both models").fill("Hello?")
    await box.get_by_role("button", name="Ask").click()
    await box.get_by_role("button", name="Stop").click()

    before = box.get_by_role("group", name="Before")
    await expect(before).to_contain_text("Stopped before its end.")
    await expect(box.get_by_role("group", name="After")).to_have_count(0)
    assert len(held) == 1


async def test_a_classifier_is_not_asked_and_the_page_says_why(
    opened: Opened, api: Api, trained: Trained
):
    name = f"labels-{token(6)}"
    key = await asyncio.to_thread(api.key, name, Scope.WRITE)
    await put_jobs(api, name, like=trained["mgpo"].id, newer=0, task="classification")
    page = await opened(key)

    await page.get_by_role("link", name="needle").click()

    box = page.get_by_role("region", name="Before and after")
    await expect(box).to_contain_text("chooses a label and writes no text")
    await expect(box.get_by_role("button")).to_have_count(0)


async def test_a_key_that_only_looks_asks_no_model(
    opened: Opened, tenant: Tenant, trained: Trained
):
    page = await opened(tenant.reader, route=f"#/jobs/{trained['plain'].id}")
    box = page.get_by_role("region", name="Before and after")

    await box.get_by_label("Ask both models").fill("Hello?")

    await expect(box.get_by_role("button", name="Ask")).to_be_disabled()
