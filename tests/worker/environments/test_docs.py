"""The environment that the documentation shows works as it says."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from app.environments import catalog
from app.environments.arguments import check_arguments
from tests.environments import register

PAGE = Path(__file__).parents[3] / "docs" / "environments.md"


def test_the_documentations_own_environment_is_found_and_played(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    module = ModuleType("guess_of_the_page")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(code, module.__dict__)
    monkeypatch.syspath_prepend(register(tmp_path / "docs", {"guess": "guess_of_the_page:Guess"}))
    catalog.known.cache_clear()

    arguments = check_arguments("guess", {"highest": 20})
    game = module.Guess(module.GuessArguments(**arguments))
    said = game.reset({"seed": 7})
    while not said.done:
        low, high = map(int, re.findall(r"\d+", said.observation))
        said = game.step(f"{(low + high) // 2}")

    catalog.known.cache_clear()
    assert said.success and said.reward == 1 and not game.step("seven").valid
