"""A worker takes the jobs that its free devices can hold."""

import asyncio
import threading
from pathlib import Path

import httpx
import pytest

from app.db import Database, connected
from app.settings import ApiSettings
from worker.devices import DevicePool
from worker.supervisor import claim_job, run_next

pytestmark = pytest.mark.usefixtures("empty_queue")


def submit(http: httpx.Client, training_file: str, *, gpus: int) -> str:
    body = {"model": "tiny-llama", "training_file": training_file, "resources": {"gpus": gpus}}
    found: str = http.post("/fine_tuning/jobs", json=body).json()["id"]
    return found


async def test_a_job_holds_all_its_devices_or_waits(
    db: Database, http: httpx.Client, training_file: str, empty_queue: None
):
    large = submit(http, training_file, gpus=2)
    devices = DevicePool(["0", "1", "2"])
    busy = devices.take(2)

    first, held = await claim_job(db, "w1", devices, threading.Event())
    assert first is None and held == [] and devices.free == 1
    devices.give_back(busy)
    second, held = await claim_job(db, "w1", devices, threading.Event())

    assert second is not None and second.job_id == large
    assert held == ["0", "1"] and devices.free == 1


async def test_a_worker_that_shuts_down_takes_no_job(
    db: Database, http: httpx.Client, training_file: str
):
    submit(http, training_file, gpus=1)
    shutdown = threading.Event()
    shutdown.set()

    assert await claim_job(db, "w1", DevicePool(["0"]), shutdown) == (None, [])


async def test_a_smaller_job_runs_where_a_larger_one_does_not_fit(
    db: Database, http: httpx.Client, training_file: str, empty_queue: None
):
    submit(http, training_file, gpus=2)
    small = submit(http, training_file, gpus=1)

    claim, held = await claim_job(db, "w1", DevicePool(["0"]), threading.Event())

    assert claim is not None and claim.job_id == small and held == ["0"]


async def test_a_worker_with_a_fault_gives_its_job_back_at_once_and_rests(
    settings: ApiSettings, http: httpx.Client, training_file: str, tmp_path: Path
):
    job_id = submit(http, training_file, gpus=1)
    (tmp_path / "runs").write_text("no folder can be made below this")
    devices = DevicePool(["cpu"])

    takes_another = await run_on(settings.model_copy(update={"data_dir": tmp_path}), devices)

    assert not takes_another and devices.free == 1 and devices.rests
    assert http.get(f"/fine_tuning/jobs/{job_id}").json()["status"] == "queued"
    (attempt,) = http.get(f"/fine_tuning/jobs/{job_id}/attempts").json()["data"]
    assert attempt["outcome"] == "killed" and attempt["worker"] == "w1"
    assert "NotADirectoryError" in attempt["reason"] and str(tmp_path) not in attempt["reason"]


async def test_a_worker_that_rests_takes_no_job(
    db: Database, http: httpx.Client, training_file: str
):
    submit(http, training_file, gpus=1)
    devices = DevicePool(["0"])
    devices.rest(60.0)

    assert await claim_job(db, "w1", devices, threading.Event()) == (None, [])
    devices.rest(0.0)
    claim, _ = await claim_job(db, "w1", devices, threading.Event())
    assert claim is not None


async def test_a_base_model_that_is_gone_is_the_jobs_failure_and_no_fault_of_the_worker(
    settings: ApiSettings, http: httpx.Client, training_file: str, tmp_path: Path
):
    job_id = submit(http, training_file, gpus=1)
    devices = DevicePool(["cpu"])
    empty = {"models_dir": tmp_path, "data_dir": tmp_path / "data"}

    takes_another = await run_on(settings.model_copy(update=empty), devices)

    job = http.get(f"/fine_tuning/jobs/{job_id}").json()
    assert (job["status"], job["error"]["code"]) == ("failed", "base_model_unreadable")
    assert takes_another and not devices.rests


async def run_on(settings: ApiSettings, devices: DevicePool) -> bool:
    return await run_next(
        settings, {}, worker="w1", devices=devices, warm=None, shutdown=threading.Event()
    )


async def test_threads_that_claim_at_once_never_share_a_device(
    settings: ApiSettings, http: httpx.Client, training_file: str, empty_queue: None
):
    for gpus in (2, 1, 2, 1, 1):
        submit(http, training_file, gpus=gpus)
    devices = DevicePool(["0", "1", "2", "3"])

    def claim() -> list[str]:
        async def one() -> list[str]:
            async with connected(settings.database_url) as db:
                return (await claim_job(db, "w1", devices, threading.Event()))[1]

        return asyncio.run(one())

    held = await asyncio.gather(*(asyncio.to_thread(claim) for _ in range(6)))

    taken = [device for devices in held for device in devices]
    assert sorted(taken) == ["0", "1", "2", "3"]
    assert sorted(map(len, held), reverse=True)[:3] == [2, 1, 1]
