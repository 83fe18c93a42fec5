"""`basin estimate`, against a real server."""

import json
import subprocess
from pathlib import Path

from tests.app.test_cli import basin
from tests.conftest import Api, environment
from tests.factories import jsonl


def asked(api: Api, key: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = environment(api.settings) | {"BASIN_URL": api.url, "BASIN_API_KEY": key, "COLUMNS": "160"}
    return basin("estimate", *arguments, env=env)


def test_an_estimate_is_read_aloud_and_exits_1_without_a_worker(
    api: Api, organization: str, tmp_path: Path
):
    data = tmp_path / "rows.jsonl"
    data.write_bytes(jsonl(20))

    done = asked(api, api.key(organization), "-m", "tiny-llama", "-f", str(data))

    assert done.returncode == 1, done.stderr
    assert "No worker is alive" in done.stdout
    assert all(word in done.stdout for word in ("steps", "tokens", "memory", "time", "rests on"))


def test_what_is_set_is_what_is_estimated(api: Api, organization: str, training_file: str):
    options = ["-m", "tiny-llama", "-f", training_file, "--method", "dora"]

    done = asked(api, api.key(organization), *options, "--set", "training.max_steps=7", "--json")

    found = json.loads(done.stdout)
    assert found["steps"] == 7
    assert found["spec"]["peft"]["method"] == "dora"
