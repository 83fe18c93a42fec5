"""The `basin` command as an operator uses it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.db import Database
from app.jobs.states import JobStatus
from app.settings import ApiSettings
from tests.app.records import make_file, make_job, make_organization, make_resume_state, run
from tests.conftest import Api, environment
from tests.factories import PEPPER

REPOSITORY = Path(__file__).parents[2]


def basin(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    plain = {key: value for key, value in os.environ.items() if not key.startswith("BASIN_")}
    return subprocess.run(
        [sys.executable, "-m", "app.cli", *arguments],
        capture_output=True,
        text=True,
        env=plain if env is None else env,
        cwd=REPOSITORY,
        check=False,
    )


def test_a_key_is_made_works_is_listed_and_revoked(api: Api, settings: ApiSettings):
    env = environment(settings)

    key = basin("keys", "create", "--org", "cli", "--name", "laptop", env=env).stdout.strip()
    listed = basin("keys", "list", env=env | {"COLUMNS": "200"}).stdout
    with api.http(key) as http:
        before = http.get("/models").status_code
        revoked = basin("keys", "revoke", key[3:15], env=env)
        after = http.get("/models").status_code

    assert (before, revoked.returncode, after) == (200, 0, 401)
    assert "laptop" in listed and key[3:15] in listed and key[15:] not in listed


def test_only_a_key_that_was_made_for_it_is_an_admins(api: Api, settings: ApiSettings):
    env = environment(settings)
    path = "/fine_tuning/checkpoints/ft:none/permissions"

    plain = basin("keys", "create", "--org", "cli", env=env).stdout.strip()
    admin = basin("keys", "create", "--org", "cli", "--scope", "admin", env=env).stdout.strip()
    listed = basin("keys", "list", env=env | {"COLUMNS": "200"}).stdout

    with api.http(plain) as mine, api.http(admin) as theirs:
        assert (mine.get(path).status_code, theirs.get(path).status_code) == (403, 404)
    kinds = {
        key: "admin" in line
        for line in listed.splitlines()
        for key in (plain, admin)
        if key[3:15] in line
    }
    assert kinds == {plain: False, admin: True}


def test_an_embedded_servers_folder_is_enough(api: Api, service_data: Path):
    (service_data / "pepper").write_text(PEPPER)

    key = basin("keys", "create", "--data", str(service_data)).stdout.strip()

    with api.http(key) as http:
        assert http.get("/models").status_code == 200


def test_a_setting_that_is_missing_is_named():
    answer = basin("sweep", env=dict(os.environ) | {"BASIN_DATABASE_URL": "postgresql://x/y"})

    assert answer.returncode == 1
    assert "BASIN_REDIS_URL" in answer.stderr and "Traceback" not in answer.stderr


def test_without_a_server_the_commands_say_how_to_get_one(tmp_path: Path):
    answer = basin("keys", "list", "--data", str(tmp_path))

    assert answer.returncode == 1
    assert "basin up" in answer.stderr and "Traceback" not in answer.stderr


@pytest.mark.parametrize(
    "command", [[], ["up"], ["worker"], ["sweep"], ["fsck"], ["keys"], ["keys", "create"], ["demo"]]
)
def test_help_says_what_a_command_does(command: list[str]):
    answer = basin(*command, "--help")

    assert answer.returncode == 0 and "Usage: " in answer.stdout


def test_sweep_says_how_many_jobs_wait_again(settings: ApiSettings):
    basin("sweep", env=environment(settings))  # what other tests have left
    assert "0 requeued" in basin("sweep", env=environment(settings)).stdout


async def test_sweep_deletes_what_the_settings_say_and_counts_it(
    settings: ApiSettings, own_url: str, own: Database
):
    organization = await make_organization(own)
    old = await make_file(own, organization)
    job_id = await make_job(own, organization, old.id, JobStatus.FAILED)
    await make_resume_state(own, organization, job_id, 5)
    await run(own, "UPDATE files SET created_at = now() - interval '8 days'")
    env = environment(settings) | {"BASIN_DATABASE_URL": own_url, "COLUMNS": "200"}

    kept = basin("sweep", env=env).stdout
    swept = basin("sweep", env=env | {"BASIN_FILE_RETENTION_DAYS": "7"}).stdout

    assert "deleted: 0 files, 1 resume states, 1 blobs, 0 silent workers" in kept
    assert "deleted: 1 files, 0 resume states, 1 blobs, 0 silent workers" in swept


def test_a_retention_of_no_days_is_refused(settings: ApiSettings):
    answer = basin("sweep", env=environment(settings) | {"BASIN_FILE_RETENTION_DAYS": "0"})

    assert answer.returncode == 1 and "BASIN_FILE_RETENTION_DAYS" in answer.stderr


def test_the_settings_count_beside_an_embedded_servers_folder(api: Api, service_data: Path):
    (service_data / "pepper").write_text(PEPPER)
    plain = {key: value for key, value in os.environ.items() if not key.startswith("BASIN_")}

    answer = basin(
        "sweep",
        *("--data", str(service_data)),
        env=plain | {"BASIN_RESUME_RETENTION_DAYS": "no number"},
    )

    assert answer.returncode == 1 and "BASIN_RESUME_RETENTION_DAYS" in answer.stderr


async def test_fsck_says_that_nothing_is_wrong_or_what_is(
    settings: ApiSettings, own_url: str, own: Database
):
    organization = await make_organization(own)
    await make_file(own, organization, bytes(3 << 20))
    env = environment(settings) | {"BASIN_DATABASE_URL": own_url, "COLUMNS": "300"}
    looked_at = "1 blobs, 0.00 GiB, "
    await make_job(own, organization, "file-gone", JobStatus.FAILED)

    clean = [basin("fsck", *how, env=env) for how in ([], ["--deep"])]
    await run(own, "UPDATE blob_chunks SET data = set_byte(data, 9, 1) WHERE seq = 2")
    shallow, deep = (basin("fsck", *how, env=env) for how in ([], ["--deep"]))
    await run(own, "UPDATE blobs SET state = 'deleting'")
    broken = basin("fsck", env=env)

    for answer in [*clean, shallow]:
        assert answer.returncode == 0 and f"nothing is wrong: {looked_at}" in answer.stdout
    assert deep.returncode == 1 and "corrupt blob" in deep.stdout
    assert broken.returncode == 1 and "not ready" in broken.stdout


def test_fsck_help_says_what_it_exits_with_and_what_deep_costs():
    told = " ".join(basin("fsck", "--help").stdout.split())

    assert "--deep" in told and "Exits 0" in told and "changes nothing" in told
