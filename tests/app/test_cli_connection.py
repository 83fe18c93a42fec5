"""Which server and key the commands use, and what they say when that does not work."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from typer.core import TyperGroup
from typer.testing import CliRunner

from app.cli import main
from app.client import completion
from app.client.errors import Code
from app.client.session import session
from tests.app.basin import Basin, basin_of, scripted
from tests.app.test_cli import basin as basin_program
from tests.conftest import Api
from tests.waiting import free_port

LIST = {"object": "list", "data": [], "has_more": False, "last_id": None}


@pytest.fixture
def folder(api: Api, tmp_path: Path) -> Path:
    """What `basin up` leaves in its data folder."""
    (tmp_path / "key").write_text(api.key("connected") + "\n")
    (tmp_path / "url").write_text(api.url)
    return tmp_path


def test_the_folder_of_a_server_here_is_enough(folder: Path):
    answer = basin_program("models", "list", "--json", "--data", str(folder))

    assert answer.returncode == 0 and "tiny-llama" in answer.stdout, answer.stderr


def test_the_folders_key_goes_to_no_other_machine(folder: Path):
    elsewhere = session(url="http://203.0.113.1:8000", data=folder).server
    here = session(url="http://localhost:1234/v1/", data=folder).server

    for server in (elsewhere, here):
        server.close()
    assert "authorization" not in elsewhere.http.headers
    assert here.http.headers["authorization"] == f"Bearer {(folder / 'key').read_text().strip()}"
    assert str(here.http.base_url) == "http://localhost:1234/v1/"


def test_a_server_that_is_away_is_said_with_a_code_of_its_own():
    basin = Basin(f"http://127.0.0.1:{free_port()}")

    words = basin("jobs", "list", code=Code.UNREACHABLE)
    document = basin.json("jobs", "list", code=Code.UNREACHABLE)

    assert "cannot be reached" in words.stderr and "BASIN_URL" in words.stderr
    assert document["error"]["code"] == "unreachable"


def test_what_is_no_url_is_said():
    answer = Basin("nonsense")("jobs", "list", code=Code.UNREACHABLE)

    assert "no URL" in answer.stderr


def test_a_key_that_is_not_good_says_how_to_get_one(api: Api):
    answer = basin_of(api, "sk-wrong")("jobs", "list", code=Code.REFUSED)

    assert "BASIN_API_KEY" in answer.stderr and "Traceback" not in answer.stderr


def test_a_wrong_command_line_exits_with_two(api: Api):
    basin_of(api, "sk-wrong")("jobs", "list", "--limit", "0", code=2)


def test_a_name_is_no_way_into_another_call():
    with scripted({"/v1/models/a%3Fb": [{"id": "a?b", "created": 1}]}) as (basin, _):
        assert basin.json("models", "show", "a?b")["id"] == "a?b"


def test_a_list_is_read_page_by_page():
    pages = [
        LIST | {"data": [{"id": f"ftjob-{n}", "status": "failed"}], "has_more": n < 3, "last_id": n}
        for n in (1, 2, 3)
    ]
    with scripted({"/v1/fine_tuning/jobs": list(pages)}) as (basin, script):
        found = basin.json("jobs", "list", "--status", "failed", "--limit", "3")

    assert [job["id"] for job in found["data"]] == ["ftjob-1", "ftjob-2", "ftjob-3"]
    assert ["after=1" in path for _, path, _, _ in script.asked] == [False, True, False]


def test_the_shell_completes_names_and_survives_without_a_server(api: Api):
    nowhere = SimpleNamespace(params={"url": f"http://127.0.0.1:{free_port()}"})
    there = SimpleNamespace(params={"url": api.url, "api_key": api.key("completed")})

    assert completion.jobs(nowhere, "ftjob-") == []
    assert ("tiny-llama", "causal") in completion.models(there, "tiny-")
    assert [name for name, _ in completion.environments(there, "key-")] == ["key-door"]


def test_tab_offers_what_the_server_has(api: Api):
    words = {"COMP_WORDS": "basin models show tiny-t", "COMP_CWORD": "3"}
    env = words | {"_BASIN_COMPLETE": "complete_bash", "BASIN_URL": api.url}
    env["BASIN_API_KEY"] = api.key("completed")

    answer = CliRunner().invoke(main, [], env=env, prog_name="basin")

    assert answer.stdout.split() == ["tiny-t5"]


def commands(group: TyperGroup, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from commands(command, *path, name)
        else:
            yield (*path, name), command


def test_every_command_explains_itself_and_speaks_json_where_it_has_something_to_say():
    found = dict(commands(typer.main.get_command(main)))

    silent = {
        path for path, each in found.items() if "as_json" not in {p.name for p in each.params}
    }
    rows = ("environments", "episodes")  # are JSON anyway
    assert silent == {("demo",), ("worker",), rows}
    assert all(command.help for command in found.values()) and ("jobs", "follow") in found


def test_help_names_the_exit_codes_and_completion():
    answer = Basin("http://127.0.0.1:1")("--help").stdout

    assert "Exit codes" in answer and "--install-completion" in answer
