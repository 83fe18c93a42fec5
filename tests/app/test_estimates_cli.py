"""`basin estimate`, against a real server."""

import json
import subprocess
from pathlib import Path

import httpx

from app.estimates import shown
from tests.app.test_cli import basin
from tests.conftest import Api, environment
from tests.factories import jsonl


def asked(api: Api, key: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = environment(api.settings) | {"BASIN_URL": api.url, "BASIN_API_KEY": key, "COLUMNS": "160"}
    return basin("estimate", *arguments, env=env)


def test_a_file_of_this_machine_is_uploaded_and_the_estimate_shown(
    api: Api, organization: str, http: httpx.Client, tmp_path: Path
):
    data = tmp_path / "rows.jsonl"
    data.write_bytes(jsonl(20))

    done = asked(api, api.key(organization), "-m", "tiny-llama", "-f", str(data))

    assert done.returncode == 1, done.stderr  # no worker is alive
    assert "No worker is alive" in done.stdout
    assert all(word in done.stdout for word in ("steps", "tokens", "memory", "time", "wait"))
    file_id = done.stderr.split()[-1]
    assert http.get(f"/files/{file_id}").json()["filename"] == "rows.jsonl"


def test_options_lie_over_a_body_and_assignments_over_both(
    api: Api, organization: str, training_file: str, tmp_path: Path
):
    body = tmp_path / "body.json"
    body.write_text(json.dumps({"model": "none", "peft": {"r": 4}, "training": {"max_steps": 9}}))
    options = ["-m", "tiny-llama", "-f", training_file, "--method", "dora", "--from", str(body)]

    done = asked(api, api.key(organization), *options, "--set", "training.max_steps=7", "--json")

    found = json.loads(done.stdout)
    assert found["steps"] == 7 and found["spec"]["model"] == "tiny-llama"
    assert (found["spec"]["peft"]["method"], found["spec"]["peft"]["r"]) == ("dora", 4)


def test_what_the_server_refuses_is_told_and_exits_2(
    api: Api, organization: str, training_file: str
):
    done = asked(api, api.key(organization), "-m", "none", "-f", training_file)

    assert done.returncode == 2
    assert "The model 'none' is not offered here" in done.stderr


def test_a_server_that_is_not_there_is_told(api: Api, training_file: str):
    done = asked(api, "sk-x", "-m", "x", "-f", training_file, "--url", "http://127.0.0.1:9")

    assert done.returncode == 2
    assert "cannot be reached" in done.stderr and "--url" in done.stderr


def test_durations_are_told_in_their_two_largest_units():
    told = [shown.duration(seconds) for seconds in (7.4, 125, 7260, 180_000)]

    assert told == ["7 s", "2 min 5 s", "2 h 1 min", "2 d 2 h"]
