"""FrozenLake, TextWorld and ALFWorld: what each has of its own."""

import json
import re
import subprocess
import sys
import tempfile
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.settings import GAMES_DIR, inherited_environment
from tests.environments import needs_textworld
from worker.environments import alfworld, text_world
from worker.environments.alfworld import AlfWorld, AlfWorldArguments
from worker.environments.base import EnvironmentUnavailable
from worker.environments.frozen_lake import ACTIONS, FrozenLake, FrozenLakeArguments
from worker.environments.hosts import Hosts
from worker.environments.text_world import TextWorld, TextWorldArguments

pytestmark = [
    # textworld leaves files open, and its interpreter knows other games better.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:Game .* is not fully supported"),
]
STEP = {"left": (0, -1), "down": (1, 0), "right": (0, 1), "up": (-1, 0)}


def way(lake: str) -> list[str]:
    """A shortest way over a lake as it is drawn."""
    fields = {
        (row, column): field
        for row, line in enumerate(lake.splitlines())
        for column, field in enumerate(line.split())
    }
    start = next(at for at, field in fields.items() if field == "P")
    ways: dict[tuple[int, int], list[str]] = {start: []}
    waiting = deque([start])
    while fields[at := waiting.popleft()] != "G":
        for action in ACTIONS:
            to = (at[0] + STEP[action][0], at[1] + STEP[action][1])
            if fields.get(to, "O") != "O" and to not in ways:
                ways[to] = [*ways[at], action]
                waiting.append(to)
    return ways[at]


def test_every_lake_can_be_crossed_by_what_is_seen_of_it():
    lake = FrozenLake(FrozenLakeArguments())
    for seed in range(50):
        seen = lake.reset({"seed": seed}).observation

        *before, last = map(lake.step, way(seen))

        assert all(each.reward == 0 and not each.done for each in before)
        assert (last.reward, last.done, last.success) == (1, True, True)


def test_a_hole_ends_the_episode_without_a_reward():
    lake = FrozenLake(FrozenLakeArguments())
    seeds = iter(range(100))
    while not lake.reset({"seed": next(seeds)}).observation.startswith("P O"):
        pass

    fallen = lake.step("right")

    assert (fallen.reward, fallen.done, fallen.success) == (0, True, False)


def test_slippery_ice_leads_astray():
    strayed = 0
    for seed in range(30):
        lake = FrozenLake(FrozenLakeArguments(is_slippery=True))
        lake.reset({"seed": seed})
        strayed += not lake.step("left").observation.startswith("P")

    assert 0 < strayed < 30


def test_a_field_is_one_state_whichever_way_one_comes():
    lake = FrozenLake(FrozenLakeArguments(frozen=1, max_steps=1000))
    start = lake.reset({"seed": 1}).state

    there = [lake.step(to).state for to in ("right", "right", "down", "left", "left")]
    back = [lake.step(to).state for to in ("right", "right", "up", "left", "left")]

    assert len({start, *there}) == 6
    assert back == [*there[-2::-1], start]


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for games of TextWorld."""
    monkeypatch.setenv(GAMES_DIR, str(tmp_path))
    folder = tmp_path / text_world.FOLDER
    folder.mkdir()
    return folder


@needs_textworld
def test_a_game_is_made_once_and_kept(kept: Path):
    arguments = TextWorldArguments(rooms=1, objects=2, quest_length=1)
    first = TextWorld(arguments).reset({"seed": 1})
    (made,) = kept.iterdir()
    made_at = made.stat().st_ctime_ns

    again = TextWorld(arguments).reset({"seed": 1})

    assert first == again and [each.stat().st_ctime_ns for each in kept.iterdir()] == [made_at]


@needs_textworld
def test_of_agents_that_begin_at_once_one_makes_the_game(
    kept: Path, monkeypatch: pytest.MonkeyPatch
):
    made: list[Path] = []

    def slowly(arguments: TextWorldArguments, seed: int, file: Path) -> None:
        made.append(file)
        time.sleep(0.2)
        file.parent.mkdir()
        file.touch()

    monkeypatch.setattr(text_world, "make", slowly)
    monkeypatch.setattr(tempfile, "tempdir", str(kept.parent))

    def begin(_: int) -> Path:
        with text_world.game_file(TextWorldArguments(), 1, folder=kept) as file:
            return file

    with ThreadPoolExecutor(4) as agents:
        (file,) = set(agents.map(begin, range(4)))

    assert len(made) == 1 and list(kept.iterdir()) == [file.parent]


@needs_textworld
def test_a_full_folder_is_left_as_it_is(kept: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(text_world, "KEPT", 0)
    game = TextWorld(TextWorldArguments(rooms=1, objects=2, quest_length=1))

    game.reset({"seed": 1})

    assert game.step("look").valid and not list(kept.iterdir())


@needs_textworld
def test_a_game_is_the_same_wherever_it_is_made(tmp_path: Path):
    code = (
        "import sys, pathlib\n"
        "from worker.environments.text_world import TextWorldArguments, make\n"
        "make(TextWorldArguments(), 5, pathlib.Path(sys.argv[1]) / 'game.z8')"
    )
    for hash_seed in ("1", "2"):
        folder = tmp_path / hash_seed
        subprocess.run(
            [sys.executable, "-c", code, str(folder)],
            env=inherited_environment() | {"PYTHONHASHSEED": hash_seed},
            check=True,
        )

    one, two = (json.loads((tmp_path / each / "game.json").read_text()) for each in ("1", "2"))
    assert one["quests"] == two["quests"] and one["objective"] == two["objective"]


@needs_textworld
def test_slots_share_the_games_that_one_of_them_made():
    arguments = {"rooms": 1, "objects": 2, "quest_length": 1}
    with Hosts("text-world", arguments, slots=3, timeout_s=60) as hosts:
        begun = hosts.reset([{"seed": 1}] * 3)

    assert begun[0] == begun[1] == begun[2]


@pytest.mark.parametrize(
    ("said", "cleaned"),
    [
        ("\nTaken.\n\n\n>          -= Attic =-0/1", "Taken."),
        ("-= Attic =-\nDark.\n\n\n\nA door.\n\n>", "-= Attic =-\nDark.\nA door."),
        ("Done.\n\n\n     *** The End ***\n\nYou scored 1.\n\n> -= A =-0/3", "Done."),
    ],
)
def test_what_an_interpreter_adds_is_left_out(said: str, cleaned: str):
    assert text_world.clean(said) == cleaned


@needs_textworld
@pytest.mark.shared
@pytest.mark.parametrize("kind", ["look_at_obj_in_light", "pick_two_obj_and_place"])
def test_alfworlds_own_walkthrough_solves_its_game(games_dir: Path, kind: alfworld.Kind):
    arguments = AlfWorldArguments(split="valid_seen", kind=kind)
    file = alfworld.games(games_dir, arguments)[1]
    game = AlfWorld(arguments)
    begun = game.reset({"seed": 1})

    *before, last = map(game.step, json.loads(file.read_text())["walkthrough"])

    assert "Task: " in begun.observation and "_bar_" not in begun.observation
    assert all(each.valid and each.reward == 0 and not each.done for each in before)
    assert (last.reward, last.done, last.success) == (1, True, True)


@needs_textworld
@pytest.mark.shared
def test_a_household_is_in_the_same_state_whatever_was_only_looked_at(games_dir: Path):
    game = AlfWorld(AlfWorldArguments(split="valid_seen", kind="pick_and_place_simple"))
    begun = game.reset({"seed": 0}).observation
    here, there = re.findall(r"go to \w+ \d+", begun.partition("Commands:")[2])[:2]
    at_here, at_there = game.step(here).state, game.step(there).state

    again = [game.step(action).state for action in (here, "look", "inventory", there, here)]

    assert at_here != at_there
    assert again == [at_here, at_here, at_here, at_there, at_here]


@needs_textworld
def test_a_text_world_is_in_the_same_state_once_all_is_put_back(games_dir: Path):
    game = TextWorld(TextWorldArguments(rooms=2))
    begun = game.reset({"seed": 3})
    carried = re.findall(r"drop ([^,]+)", begun.observation)[0]

    dropped = game.step(f"drop {carried}")
    taken = game.step(f"take {carried}")
    looked = [game.step(word).state for word in ("look", "inventory", f"examine {carried}")]

    assert dropped.valid and taken.valid
    assert dropped.state != begun.state == taken.state and set(looked) == {begun.state}


def test_alfworlds_things_are_numbered_as_in_its_walkthroughs():
    identifiers = ["pot_bar__plus_02", "agent1", "pot_bar__plus_01", "sink_bar__plus_01_bar_basin"]

    assert alfworld.names(identifiers) == ["pot 1", "agent1", "pot 2", "sinkbasin 1"]


def test_games_are_those_of_a_split_and_kind_and_the_last_is_followed_by_the_first(
    tmp_path: Path,
):
    folder = tmp_path / alfworld.FOLDER / "json_2.1.1"
    for place in (
        "train/look_at_obj_in_light-Mug/trial_2",
        "train/look_at_obj_in_light-Mug/trial_1",
        "train/pick_and_place_simple-movable-Mug/trial_1",
        "train/pick_and_place_simple-Mug/trial_1",
        "valid_seen/look_at_obj_in_light-Mug/trial_1",
    ):
        (folder / place).mkdir(parents=True)
        (folder / place / alfworld.GAME).touch()

    found = alfworld.games(tmp_path, AlfWorldArguments())
    lamps = alfworld.games(tmp_path, AlfWorldArguments(kind="look_at_obj_in_light"))

    assert [each.parent.parent.name[:4] for each in found] == ["look", "look", "pick"]
    assert [each.parent.name for each in lamps] == ["trial_1", "trial_2"]


@needs_textworld
def test_without_games_alfworld_says_where_to_put_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv(GAMES_DIR, raising=False)
    with pytest.raises(EnvironmentUnavailable, match=r"put json_2\.1\.1 into BASIN_GAMES_DIR"):
        AlfWorld(AlfWorldArguments())

    (tmp_path / alfworld.FOLDER).mkdir()
    monkeypatch.setenv(GAMES_DIR, str(tmp_path))
    with pytest.raises(EnvironmentUnavailable, match="has no game in a folder valid_unseen"):
        Hosts("alfworld", {"split": "valid_unseen"}, slots=1, timeout_s=1)
