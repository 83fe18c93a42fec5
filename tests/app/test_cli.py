"""The `basin` command as an operator uses it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.settings import ApiSettings
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


@pytest.mark.parametrize("command", [[], ["up"], ["worker"], ["keys"], ["keys", "create"]])
def test_help_says_what_a_command_does(command: list[str]):
    answer = basin(*command, "--help")

    assert answer.returncode == 0 and "Usage: " in answer.stdout


def test_sweep_says_how_many_jobs_wait_again(settings: ApiSettings):
    assert "0 requeued" in basin("sweep", env=environment(settings)).stdout
