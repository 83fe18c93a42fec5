"""What a user does: upload, submit, watch, cancel, compare, take away."""

import asyncio
import csv
import hashlib
import json
import re
import struct
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.fine_tuning import FineTuningJob
from playwright.async_api import FilePayload, Page, Route, expect

from app.ids import token
from app.keys.service import Scope
from tests.app.test_reinforcement_api import ASKED, EPISODES, GRADER
from tests.browser.conftest import PATIENCE_MS, PHONE, Opened, Tenant
from tests.browser.drawings import drawn
from tests.browser.rows import put_jobs
from tests.browser.test_access import grave_faults, sideways
from tests.conftest import Api
from tests.e2e.jobs import create
from tests.factories import chat_row, jsonl, preference_row, to_jsonl

pytestmark = pytest.mark.browser
Trained = dict[str, FineTuningJob]


async def test_a_file_is_uploaded_trained_on_watched_and_the_job_cancelled(
    opened: Opened, tenant: Tenant, http: httpx.Client, working: Path
):
    page = await opened(tenant.admin, route="#/new")
    rows = {"name": "rows.jsonl", "mimeType": "application/jsonl", "buffer": jsonl(30)}

    await page.get_by_label("Upload a training file").set_input_files(rows)
    await expect(page.get_by_text("30 rows of the format chat")).to_be_visible()
    await page.get_by_label("Base model").select_option("tiny-llama")
    await page.get_by_label("Name", exact=True).fill("watched")
    await page.get_by_label("Epochs").fill("500")
    await page.get_by_role("button", name="Start training").click()
    await expect(page.get_by_role("heading", name="watched")).to_be_visible()
    first = await first_step(page)
    await expect(page.get_by_text("live", exact=True)).to_be_visible()  # it need not ask

    later = await step_after(page, first)
    await page.get_by_role("button", name="Cancel", exact=True).click()
    await page.get_by_role("button", name="Cancel the job").click()

    await expect(page.locator(".status.cancelled")).to_be_visible(timeout=60_000)
    job = http.get("/fine_tuning/jobs", params={"limit": 1}).json()["data"][0]
    assert (job["suffix"], job["status"]) == ("watched", "cancelled")
    assert job["progress"]["step"] >= later > first


async def test_a_curve_goes_on_where_its_connection_broke(
    opened: Opened, tenant: Tenant, http: httpx.Client, client: openai.OpenAI, working: Path
):
    rows = client.files.create(file=("rows.jsonl", jsonl(24)), purpose="fine-tune").id
    job = create(client, rows, hyperparameters={"n_epochs": 1000, "batch_size": 4})
    said = await asyncio.to_thread(beginning, http, job.id, steps=3)
    page = await opened(tenant.admin)
    asked: list[str | None] = []

    async def break_once(route: Route) -> None:
        asked.append(route.request.headers.get("last-event-id"))
        if len(asked) > 1:
            return await route.continue_()
        return await route.fulfill(content_type="text/event-stream", body=said)

    await page.route("**/stream", break_once)
    await page.evaluate(f"location.hash = '#/jobs/{job.id}'")
    await step_after(page, 6, timeout_ms=60_000)
    async with page.expect_download() as saving:
        await page.get_by_role("button", name="Save Loss as CSV").click()
    rows_saved = csv.DictReader(Path(await (await saving.value).path()).read_text().splitlines())
    client.fine_tuning.jobs.cancel(job.id)

    steps = [int(row["step"]) for row in rows_saved]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) > 6
    assert asked[:2] == [None, re.findall(r"^id: (.+)$", said, re.MULTILINE)[-1]]


async def test_a_file_that_is_no_training_data_is_refused_with_the_line(
    opened: Opened, tenant: Tenant
):
    page = await opened(tenant.admin, route="#/files")
    bad = {"name": "bad.jsonl", "mimeType": "application/jsonl", "buffer": jsonl(11) + b"{oops\n"}

    await page.get_by_label("Upload a training file").set_input_files(bad)

    await expect(page.get_by_role("alert")).to_contain_text("line 12")


async def test_two_jobs_are_compared_by_their_curves_and_their_numbers(
    opened: Opened, tenant: Tenant, trained: Trained, http: httpx.Client
):
    page = await opened(tenant.admin)
    for name in ("plain", "mgpo"):
        await page.get_by_label(f"Compare {name} {trained[name].id}").check()

    await page.get_by_role("link", name="Compare 2").click()

    table = page.get_by_role("region", name="Table of differences")
    plain, mgpo = (
        min(value for _, value in points(http, trained[name])) for name in ("plain", "mgpo")
    )
    against = table.get_by_role("row", name="Best, against the first").get_by_role("cell")
    await expect(against).to_contain_text(["the first", "%"])
    assert numbers(await against.nth(1).inner_text()) == pytest.approx(
        [mgpo - plain, 100 * (mgpo - plain) / plain], rel=1e-3
    )
    await expect(table.get_by_role("row", name="perturbation.type")).to_contain_text("mgpo")
    await expect(page.locator(".legend li")).to_have_count(3)
    for hue in (1, 2):
        assert await drawn(page, f"--series-{hue}") > 100
    assert await drawn(page, "--series-3") == 0


async def test_the_adapter_that_is_saved_is_the_one_that_was_trained(
    opened: Opened, tenant: Tenant, trained: Trained, http: httpx.Client
):
    page = await opened(tenant.admin, route=f"#/jobs/{trained['mgpo'].id}")

    async with page.expect_download() as saving:
        await page.get_by_role("button", name="Download adapter").click()
    archive = Path(await (await saving.value).path()).read_bytes()

    head = http.head(f"/fine_tuning/jobs/{trained['mgpo'].id}/adapter")
    assert head.headers["etag"] == f'"{hashlib.sha256(archive).hexdigest()}"'


async def test_a_chart_is_saved_as_the_numbers_that_the_api_tells(
    opened: Opened, tenant: Tenant, trained: Trained, http: httpx.Client
):
    page = await opened(tenant.admin, route=f"#/jobs/{trained['mgpo'].id}")

    async with page.expect_download() as saving:
        await page.get_by_role("button", name="Save Loss as CSV").click()
    rows = list(csv.DictReader(Path(await (await saving.value).path()).read_text().splitlines()))

    valid = {int(row["step"]): row["clean validation loss"] for row in rows}
    assert [[step, float(loss)] for step, loss in valid.items() if loss] == points(
        http, trained["mgpo"]
    )


async def test_a_chart_is_saved_as_a_picture(opened: Opened, tenant: Tenant, trained: Trained):
    page = await opened(tenant.admin, route=f"#/jobs/{trained['mgpo'].id}")

    async with page.expect_download() as saving:
        await page.get_by_role("button", name="Save Loss as PNG").click()
    picture = Path(await (await saving.value).path()).read_bytes()

    assert picture.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", picture[16:24])
    assert width > 600 and height > 300


async def test_a_failed_job_says_why_and_what_to_do(
    opened: Opened, tenant: Tenant, trained: Trained
):
    page = await opened(tenant.admin, route=f"#/jobs/{trained['broken'].id}")

    diagnosis = page.get_by_role("alert")
    await expect(diagnosis).to_contain_text("base_model_unreadable")
    await expect(diagnosis).to_contain_text("config.json")


async def test_a_clone_is_submitted_as_the_job_was(
    opened: Opened, tenant: Tenant, trained: Trained, http: httpx.Client
):
    page = await opened(tenant.admin, route=f"#/jobs/{trained['mgpo'].id}")

    await page.get_by_role("link", name="Clone").click()
    await expect(page.get_by_label("Base model")).to_have_value("tiny-llama")
    await page.get_by_label("Name", exact=True).fill("again")
    await page.get_by_role("button", name="Start training").click()

    await expect(page.get_by_role("heading", name="again")).to_be_visible()
    asked = ("peft", "perturbation", "training", "seed", "training_file", "validation_file")
    again, first = (
        http.get(f"/fine_tuning/jobs/{job_id}").json()
        for job_id in (page.url.rpartition("/")[2], trained["mgpo"].id)
    )
    assert {name: again[name] for name in asked} == {name: first[name] for name in asked}


async def test_a_file_of_preferences_brings_dpo_with_it(
    opened: Opened, tenant: Tenant, http: httpx.Client
):
    page = await opened(tenant.admin, route="#/new")
    pairs = to_jsonl([preference_row(number) for number in range(20)])
    rows = {"name": "pairs.jsonl", "mimeType": "application/jsonl", "buffer": pairs}

    await page.get_by_label("Upload a training file").set_input_files(rows)
    await page.get_by_label("β of DPO").fill("0.3")
    await page.get_by_label("Base model").select_option("tiny-llama")
    await expect(page.locator(".estimate")).to_contain_text("Steps15")
    await page.get_by_label("Name", exact=True).fill("preferring")
    await page.get_by_role("button", name="Start training").click()

    await expect(page.get_by_role("heading", name="preferring")).to_be_visible()
    await expect(page.get_by_text("LoRA-MGPO by DPO")).to_be_visible()
    job = http.get("/fine_tuning/jobs", params={"limit": 1}).json()["data"][0]
    http.post(f"/fine_tuning/jobs/{job['id']}/cancel")
    assert job["method"]["dpo"]["hyperparameters"]["beta"] == 0.3


async def test_a_file_of_prompts_is_learned_from_by_a_grader(
    opened: Opened, tenant: Tenant, http: httpx.Client
):
    page = await opened(tenant.admin, route="#/new")

    await page.get_by_label("Upload a training file").set_input_files(uploadable(ASKED))
    await page.get_by_label("Base model").select_option("tiny-llama")
    await expect(page.locator(".estimate")).to_contain_text("Steps")
    await page.get_by_label("Grader").select_option("number_match")
    await page.get_by_label("Tolerance").fill("-1")
    await expect(page.get_by_label("Tolerance")).to_have_attribute("aria-invalid", "true")
    await page.get_by_label("Grader").select_option("string_check")
    await page.get_by_label("Rewarded when it").select_option("like")
    await expect(page.get_by_label("Reference")).to_have_value("{{ item.reference_answer }}")
    await page.get_by_label("Reference").fill("so {{ item.reference_answer }}")
    await page.get_by_label("Group size").fill("4")
    await page.get_by_text("More about rewards").click()
    await page.get_by_label("KL").fill("0.5")
    assert await grave_faults(page) == await sideways(page) == []
    await page.get_by_label("Name", exact=True).fill("graded")
    await page.get_by_role("button", name="Start training").click()

    await expect(page.get_by_role("heading", name="graded")).to_be_visible()
    await expect(page.get_by_text("LoRA-MGPO by GRPO")).to_be_visible()
    told = cancelled(http, page)["method"]["reinforcement"]
    assert told["grader"] == {
        "type": "string_check",
        "name": "string_check",
        "input": "{{ sample.output_text }}",
        "operation": "like",
        "reference": "so {{ item.reference_answer }}",
    }
    assert (told["environment"], told["group_size"], told["kl"]) == (None, 4, 0.5)


async def test_a_file_of_episodes_is_learned_from_in_an_environment(
    opened: Opened, tenant: Tenant, http: httpx.Client
):
    page = await opened(tenant.admin, route="#/new")

    await page.get_by_label("Upload a training file").set_input_files(uploadable(EPISODES))
    await page.get_by_label("Base model").select_option("tiny-llama")
    await expect(page.locator(".estimate")).to_contain_text("Choose an environment first.")
    await page.get_by_label("Environment").select_option("key-door")
    await page.get_by_label("Width").fill("99")
    await expect(page.locator(".estimate").get_by_role("alert")).to_contain_text("args.width")
    await expect(page.get_by_label("Width")).to_have_attribute("aria-invalid", "true")
    await page.get_by_label("Width").fill("4")
    await page.get_by_label("Algorithm").select_option("gigpo")
    await page.get_by_label("Step weight").fill("0.5")
    await expect(page.locator(".estimate")).to_contain_text("Steps")
    assert await grave_faults(page) == await sideways(page) == []
    await page.get_by_label("Name", exact=True).fill("acting")
    await page.get_by_role("button", name="Start training").click()

    await expect(page.get_by_role("heading", name="acting")).to_be_visible()
    await expect(page.get_by_text("LoRA-MGPO by GiGPO")).to_be_visible()
    told = cancelled(http, page)["method"]["reinforcement"]
    assert told["environment"]["name"] == "key-door" and told["grader"] is None
    assert told["environment"]["args"] == {"width": 4, "height": 3, "max_steps": 40}
    assert (told["algorithm"], told["step_weight"], told["step_discount"]) == ("gigpo", 0.5, 0.95)


async def test_answers_are_learned_from_unless_rewards_are_chosen(
    opened: Opened, tenant: Tenant, http: httpx.Client
):
    page = await opened(tenant.admin, route="#/new")
    graders = {"right": GRADER, "long": GRADER | {"name": "long", "tolerance": 2}}
    several = {"type": "multi", "name": "both", "graders": graders}
    several["calculate_output"] = "right + long"

    await page.get_by_label("Upload a training file").set_input_files(
        uploadable([chat_row(number) for number in range(12)])
    )
    await page.get_by_label("Base model").select_option("tiny-llama")
    await expect(page.get_by_label("Learn from")).to_have_value("supervised")
    await expect(page.get_by_label("Grader")).to_have_count(0)
    await page.get_by_label("Learn from").select_option("reinforcement")
    await expect(page.get_by_label("Reference")).to_have_value("{{ item.messages[-1].content }}")
    await page.get_by_label("Grader").select_option("multi")
    await expect(page.locator(".estimate")).to_contain_text("Steps")  # what stands there is taken
    await page.get_by_label("Graders and formula").fill("{")
    await expect(page.locator(".estimate")).to_contain_text("The grader is no JSON yet.")
    await page.get_by_label("Graders and formula").fill(json.dumps(several))
    await page.get_by_label("Name", exact=True).fill("both")
    await page.get_by_role("button", name="Start training").click()
    await expect(page.get_by_role("heading", name="both")).to_be_visible()
    first = cancelled(http, page)
    await page.get_by_role("link", name="Clone").click()
    await expect(page.get_by_text("12 rows of the format chat")).to_be_visible()
    await page.get_by_label("Name", exact=True).fill("again")
    await page.get_by_role("button", name="Start training").click()

    await expect(page.get_by_role("heading", name="again")).to_be_visible()
    assert first["method"]["reinforcement"]["grader"]["calculate_output"] == "right + long"
    assert cancelled(http, page)["method"] == first["method"]


async def test_what_a_job_would_take_is_told_before_it_is_submitted(
    opened: Opened, tenant: Tenant, trained: Trained, http: httpx.Client
):
    rows = trained["mgpo"].training_file
    asked = {"model": "tiny-llama", "training_file": rows}
    before = http.get("/fine_tuning/jobs", params={"limit": 1}).json()["data"]
    page = await opened(tenant.admin, route=f"#/new?file={rows}")

    await page.get_by_label("Base model").select_option("tiny-llama")
    estimate = page.locator(".estimate")
    await expect(estimate).to_contain_text("It fits")
    steps = http.post("/fine_tuning/jobs", params={"dry_run": True}, json=asked).json()["steps"]
    await expect(estimate).to_contain_text(f"Steps{steps}")
    await page.get_by_label("Epochs").fill("0")

    await expect(estimate.get_by_role("alert")).to_contain_text("n_epochs")
    after = http.get("/fine_tuning/jobs", params={"limit": 1}).json()["data"]
    assert [job["id"] for job in after] == [job["id"] for job in before]


async def test_the_stability_of_a_run_is_judged_beside_its_curves(
    opened: Opened, tenant: Tenant, trained: Trained, http: httpx.Client
):
    report = http.get(f"/fine_tuning/jobs/{trained['mgpo'].id}/report").json()

    page = await opened(tenant.admin, route=f"#/jobs/{trained['mgpo'].id}")

    judged = page.get_by_role("region", name="Stability")
    await expect(judged).to_contain_text(report["summary"])
    await expect(judged.locator(".notice.good")).to_have_count(0)  # so few steps show nothing yet
    for finding in report["findings"]:
        await expect(judged).to_contain_text(finding["advice"])


async def test_a_run_that_never_trained_is_not_praised(
    opened: Opened, tenant: Tenant, trained: Trained
):
    page = await opened(tenant.admin, route=f"#/jobs/{trained['broken'].id}")

    await expect(page.get_by_role("alert")).to_contain_text("base_model_unreadable")
    await expect(page.get_by_text("No worker").or_(page.get_by_text("failed on"))).to_be_visible()

    await expect(page.get_by_role("region", name="Stability")).to_have_count(0)
    await expect(page.locator(".notice.good")).to_have_count(0)


async def test_a_comparison_over_seeds_is_watched_and_cancelled(
    opened: Opened, tenant: Tenant, trained: Trained, http: httpx.Client
):
    job = trained["mgpo"]
    asked = {
        "name": "by the browser",
        "model": "tiny-llama",
        "training_file": job.training_file,
        "validation_file": job.validation_file,
        "methods": [
            {"name": name, "peft": {"method": "lora"}, "perturbation": {"type": name}}
            for name in ("none", "mgpo")
        ],
        "seeds": 2,
        "budget": {"equal": "steps", "max_steps": 400},
    }
    made = http.post("/comparisons", json=asked).json()
    page = await opened(tenant.admin, route="#/compare")

    await page.get_by_role("link", name="by the browser").click()
    await expect(page.get_by_text("0 of 4 jobs over")).to_be_visible()
    await page.get_by_role("button", name="Cancel", exact=True).click()
    await page.get_by_role("button", name="Cancel it").click()

    await expect(page.get_by_text("cancelled").first).to_be_visible()
    await expect(page.get_by_role("button", name="Cancel", exact=True)).to_have_count(0)
    assert http.get(f"/comparisons/{made['id']}").json()["status"] == "cancelled"


async def test_a_job_is_found_by_its_words_and_its_status(
    opened: Opened, tenant: Tenant, trained: Trained
):
    page = await opened(tenant.admin)
    rows = page.locator("tbody tr")

    await page.get_by_label("Search jobs").fill("plain tiny")
    await page.get_by_label("Status").select_option("succeeded")
    await expect(rows).to_have_count(1)
    await page.get_by_label("Status").select_option("failed")

    await expect(page.get_by_text("No job is like that")).to_be_visible()


async def test_a_filter_looks_through_older_jobs_than_those_that_are_shown(
    opened: Opened, api: Api, trained: Trained
):
    name = f"many-{token(6)}"
    key = await asyncio.to_thread(api.key, name, Scope.READ)
    await put_jobs(api, name, like=trained["mgpo"].id, newer=120)
    page = await opened(key)
    rows, said = page.locator("tbody tr"), page.locator("main").get_by_role("status")
    await expect(said).to_have_text("50 jobs shown of the newest 50; there are older ones.")

    await page.get_by_label("Search jobs").fill("needle")
    await expect(said).to_have_text("1 job shown of all 121.")
    await expect(rows).to_have_count(1)
    await expect(page.get_by_label("Search jobs")).to_be_focused()
    await page.get_by_label("Search jobs").fill("")
    await page.get_by_label("Status").select_option("succeeded")

    await expect(said).to_have_text("1 job shown of all 121.")
    await expect(rows).to_contain_text("needle")


async def test_the_loss_is_shown_on_a_log_axis_and_smoothed_when_asked(
    opened: Opened, tenant: Tenant, trained: Trained
):
    page = await opened(tenant.admin, route=f"#/jobs/{trained['mgpo'].id}")
    loss = page.locator(".legend").first.locator("li").first
    await expect(loss).to_contain_text("train loss, smoothed")
    smoothed = await loss.locator("b").inner_text()

    await page.get_by_label("Smoothing").fill("0")
    await page.get_by_label("Log axis").check()

    await expect(loss.locator(".legend-label")).to_have_text("train loss")
    await expect(loss.locator("b")).not_to_have_text(smoothed)
    raw = page.get_by_role("region", name="Summary").locator("dd").nth(1)
    await expect(loss.locator("b")).to_have_text(await raw.inner_text())
    await page.reload()
    await expect(page.get_by_label("Log axis")).to_be_checked()


async def test_a_chart_is_zoomed_by_dragging_and_shown_whole_again(
    opened: Opened, tenant: Tenant, trained: Trained
):
    page = await opened(tenant.admin, route=f"#/jobs/{trained['mgpo'].id}")
    box = await page.locator(".u-over").first.bounding_box()
    assert box is not None
    middle = box["y"] + box["height"] / 2

    await page.mouse.move(box["x"] + box["width"] * 0.3, middle)
    await page.mouse.down()
    await page.mouse.move(box["x"] + box["width"] * 0.6, middle, steps=4)
    await page.mouse.up()
    show_all = page.get_by_role("button", name="Show all").first
    await expect(show_all).to_be_visible()
    await show_all.click()

    await expect(page.get_by_role("button", name="Show all")).to_have_count(0)


async def test_a_chart_is_zoomed_by_touch(opened: Opened, tenant: Tenant, trained: Trained):
    route = f"#/jobs/{trained['mgpo'].id}"
    page = await opened(tenant.admin, route=route, viewport=PHONE, has_touch=True)
    zoom = page.get_by_role("group", name="Zoom of Loss")
    await expect(zoom.get_by_role("button", name="Zoom out")).to_be_disabled()

    await zoom.get_by_role("button", name="Zoom in").tap()
    await expect(page.get_by_role("button", name="Show all").first).to_be_visible()
    await zoom.get_by_role("button", name="Zoom out").tap()

    await expect(page.get_by_role("button", name="Show all")).to_have_count(0)


def uploadable(rows: list[dict[str, Any]]) -> FilePayload:
    return {"name": "rows.jsonl", "mimeType": "application/jsonl", "buffer": to_jsonl(rows)}


def cancelled(http: httpx.Client, page: Page) -> dict[str, Any]:
    """Cancel the job that a page is about; return it."""
    job_id = page.url.rpartition("/")[2]
    http.post(f"/fine_tuning/jobs/{job_id}/cancel")
    job: dict[str, Any] = http.get(f"/fine_tuning/jobs/{job_id}").json()
    return job


def beginning(http: httpx.Client, job_id: str, *, steps: int) -> str:
    """What the stream says of a job until so many steps are told."""
    said = ""
    with http.stream("GET", f"/fine_tuning/jobs/{job_id}/stream", timeout=120) as stream:
        for line in stream.iter_lines():
            said += line + "\n"
            if said.count("event: metrics") >= steps and not line:
                return said
    raise AssertionError(f"the stream ended after {said!r}")


async def first_step(page: Page) -> int:
    """The step that the page shows first once the run trains."""
    return await step_after(page, 0, timeout_ms=90_000)


async def step_after(page: Page, step: int, *, timeout_ms: int = PATIENCE_MS) -> int:
    """Wait until the curve goes past a step; return where it is then."""
    chart = "document.querySelector('.plot')?.getAttribute('aria-label') ?? ''"
    read = (
        f"Number(/train loss: [^ ]+ at step ([\\d,]+)/.exec({chart})?.[1]?.replace(',', '') ?? 0)"
    )
    await page.wait_for_function(f"() => {read} > {step}", timeout=timeout_ms)
    return int(await page.evaluate(read))


def numbers(text: str) -> list[float]:
    """The numbers that are written in a cell."""
    return [
        float(each.replace("−", "-"))
        for each in re.findall(r"[+−]?\d+(?:\.\d+)?(?:e[+−]?\d+)?", text)
    ]


def points(http: httpx.Client, job: FineTuningJob) -> list[list[float]]:
    answer = http.get(f"/fine_tuning/jobs/{job.id}/metrics", params={"name": "valid_loss"})
    found: list[list[float]] = answer.json()["data"][0]["points"]
    return found
