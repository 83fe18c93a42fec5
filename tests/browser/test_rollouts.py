"""What a policy sampled is seen at a glance, and read turn by turn."""

from typing import Any

import httpx
import openai
import pytest
from playwright.async_api import Page, expect

from app.jobs.spec import EvalDone
from tests.browser.conftest import Opened, Tenant
from tests.browser.rows import put_rollouts
from tests.browser.test_access import LOOKS, grave_faults, sideways
from tests.conftest import Api
from tests.e2e.jobs import create
from tests.factories import jsonl, rollout, to_jsonl, turn

pytestmark = pytest.mark.browser
START: dict[str, Any] = {"state": "start", "shared": 4}
EPISODES = [
    rollout(20, 0, reward=0.0),
    rollout(20, 1, reward=0.25),
    rollout(
        40,
        0,
        reward=0.9,
        turns=(
            turn(1, **START, episode_advantage=0.7, step_advantage=0.5, returned=0.86),
            turn(2, episode_advantage=0.7, step_advantage=0.0, returned=0.9, reward=0.9),
        ),
    ),
    rollout(
        40,
        1,
        reward=-0.1,
        success=False,
        turns=(
            turn(1, **START, action="dance", valid=False, reward=-0.1, step_advantage=-0.25),
            turn(1, **START, step_advantage=-0.2),
        ),
    ),
    rollout(
        40, 2, reward=0.0, success=False, failure="It hung.",
        turns=(turn(1, **START, step_advantage=-0.1),),
    ),
]  # fmt: skip
ANSWER: dict[str, Any] = {"state": None, "shared": None, "step_advantage": None, "returned": None}
ANSWERS = [
    rollout(
        3,
        index,
        success=None,
        reward=float(index),
        turns=(
            turn(
                **ANSWER,
                observation="How many are 3 and 4?",
                action=f"#### {6 + index}",
                reward=float(index),
                episode_advantage=2.0 * index - 1,
            ),
        ),
    )
    for index in (0, 1)
]


@pytest.fixture(scope="module")
def like(client: openai.OpenAI) -> str:
    """A job whose spec others have."""
    rows = client.files.create(file=("rows.jsonl", jsonl(12)), purpose="fine-tune").id
    job = create(client, rows)
    client.fine_tuning.jobs.cancel(job.id)
    return job.id


@pytest.fixture
async def episodes(api: Api, client: openai.OpenAI, like: str) -> str:
    return await put_rollouts(api, of(client), like=like, name="doors", said=EPISODES)


@pytest.fixture
async def answers(api: Api, client: openai.OpenAI, like: str) -> str:
    return await put_rollouts(api, of(client), like=like, name="sums", said=ANSWERS)


def of(client: openai.OpenAI) -> str:
    """The id of the organization that a client speaks for."""
    return next(iter(client.fine_tuning.jobs.list())).organization_id


def shown(page: Page) -> Any:
    return page.get_by_role("region", name="Rollouts", exact=True)


async def test_a_policy_is_judged_by_its_rewards_for_it_has_no_loss_to_tell(
    api: Api, opened: Opened, tenant: Tenant, client: openai.OpenAI, like: str
):
    rewards = {0: 0.25, 8: 0.75, 16: 0.5}
    said = [
        EvalDone(at=1.0 + step, step=step, metrics={"valid_reward_mean": reward})
        for step, reward in rewards.items()
    ]
    job = await put_rollouts(api, of(client), like=like, name="judged", said=said)

    page = await opened(tenant.reader, route=f"#/jobs/{job}")

    summary = page.get_by_role("region", name="Summary")
    await expect(summary).to_contain_text("Validation reward0.5best 0.75 at step 8")
    await expect(summary).not_to_contain_text("Validation loss")


async def test_the_newest_group_is_seen_at_a_glance_and_older_ones_are_chosen(
    opened: Opened, tenant: Tenant, episodes: str
):
    page = await opened(tenant.reader, route=f"#/jobs/{episodes}")
    rollouts = shown(page)
    heads = rollouts.get_by_role("button", name="reward")

    await expect(rollouts).to_contain_text("step 40: mean reward 0.267 of 3 rollouts")
    await expect(heads).to_contain_text(["#0reward 0.9", "#1reward −0.1", "#2reward 0"])
    await expect(heads).to_contain_text(["success", "no success", "broken off"])
    await expect(rollouts.locator(".cells li")).to_contain_text(["+4", "0", "×4", "−4", "−4"])

    await rollouts.get_by_label("Step").press("ArrowLeft")

    await expect(rollouts).to_contain_text("step 20: mean reward 0.125 of 2 rollouts")
    await expect(heads).to_contain_text(["#0reward 0", "#1reward 0.25"])


async def test_a_rollout_is_read_turn_by_turn_beside_others_from_the_same_state(
    opened: Opened, tenant: Tenant, episodes: str
):
    page = await opened(tenant.reader, route=f"#/jobs/{episodes}")
    rollouts = shown(page)

    await rollouts.get_by_role("button", name="#1").press("Enter")
    read = rollouts.get_by_role("region", name="Rollout 1 of step 40")
    first, second = read.locator("ol > li").nth(0), read.locator("ol > li").nth(1)
    await expect(first).to_contain_text("You stand at door 1.")
    await expect(first).to_contain_text("Invalid action")
    await expect(first).to_contain_text("step advantage −0.25")
    await expect(second).to_contain_text("episode advantage +0.5")
    await first.get_by_role("button", name="4 turns of the group began in this state").click()

    await expect(rollouts.locator(".cells .same")).to_have_count(4)
    await expect(read.locator("li.same")).to_have_count(2)
    await first.get_by_role("button", name="#2, turn 1").click()
    await expect(rollouts.get_by_role("region", name="Rollout 2")).to_contain_text("It hung.")


async def test_single_answers_show_prompt_completion_and_reward(
    opened: Opened, tenant: Tenant, answers: str
):
    page = await opened(tenant.reader, route=f"#/jobs/{answers}")
    rollouts = shown(page)

    await rollouts.get_by_role("button", name="#1").click()

    read = rollouts.get_by_role("region", name="Rollout 1 of step 3")
    await expect(read).to_contain_text("Answer #1: reward 1")
    await expect(read).to_contain_text("PromptHow many are 3 and 4?")
    await expect(read).to_contain_text("Completion#### 7")
    await expect(read).to_contain_text("episode advantage +1")
    await expect(rollouts.locator(".cells")).to_have_count(0)
    await expect(rollouts.get_by_text("step advantage")).to_have_count(0)


@pytest.mark.parametrize("look", LOOKS)
async def test_axe_finds_no_grave_fault_in_rollouts_and_nothing_scrolls_sideways(
    opened: Opened, tenant: Tenant, episodes: str, answers: str, look: str
):
    faults = {}
    page = await opened(tenant.reader, **LOOKS[look])

    for job_id in (episodes, answers):
        await page.evaluate(f"location.hash = '#/jobs/{job_id}'")
        await shown(page).get_by_role("button", name="#1").click()
        for marked in await shown(page).get_by_role("button", name="began in this state").all():
            await marked.click()
        faults[job_id] = [*await grave_faults(page), *await sideways(page)]

    assert {job_id: found for job_id, found in faults.items() if found} == {}


async def test_a_job_of_another_method_shows_no_rollouts(opened: Opened, tenant: Tenant, like: str):
    page = await opened(tenant.reader, route=f"#/jobs/{like}")

    await expect(page.get_by_role("heading", name="Events")).to_be_visible()

    await expect(shown(page)).to_have_count(0)


async def test_a_job_by_reinforcement_is_cloned_with_how_it_learns(
    opened: Opened, tenant: Tenant, http: httpx.Client
):
    rows = to_jsonl([{"episode": {"seed": number}} for number in range(12)])
    upload = {"file": ("rows.jsonl", rows)}
    file_id = http.post("/files", files=upload, data={"purpose": "fine-tune"}).json()["id"]
    asked = {"environment": {"name": "key-door", "max_turns": 7}, "algorithm": "gigpo"}
    body = {"model": "tiny-llama", "training_file": file_id, "suffix": "doors"}
    method = {"type": "reinforcement", "reinforcement": asked | {"group_size": 3}}
    first = http.post("/fine_tuning/jobs", json=body | {"method": method}).json()
    http.post(f"/fine_tuning/jobs/{first['id']}/cancel")
    page = await opened(tenant.admin, route=f"#/new?clone={first['id']}")

    await page.get_by_label("Name", exact=True).fill("again")
    await page.get_by_role("button", name="Start training").click()

    await expect(page.get_by_role("heading", name="again")).to_be_visible()
    await expect(page.get_by_text("LoRA-MGPO by GiGPO")).to_be_visible()
    again = http.get(f"/fine_tuning/jobs/{page.url.rpartition('/')[2]}").json()
    http.post(f"/fine_tuning/jobs/{again['id']}/cancel")
    assert again["method"] == first["method"]
