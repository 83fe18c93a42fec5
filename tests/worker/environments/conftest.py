"""What is registered for the tests of environments."""

from pathlib import Path

import pytest

from tests.environments import of_basin, register

MISBEHAVING = "tests.worker.environments.misbehaving"


@pytest.fixture(autouse=True)
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    ours = {
        "misbehaving": f"{MISBEHAVING}:Misbehaving",
        "not-a-number": f"{MISBEHAVING}:NotANumber",
        "missing": "not_installed_here:Environment",
    }
    folder = register(tmp_path / "registered", of_basin() | ours)
    monkeypatch.syspath_prepend(folder)
    return folder
