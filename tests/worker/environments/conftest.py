"""What is registered for the tests of environments, and where their games are."""

import tempfile
from pathlib import Path

import pytest

from app.settings import GAMES_DIR
from app.tars import unpack
from tests.conftest import SHARED
from tests.environments import register
from worker.environments import alfworld, text_world

MISBEHAVING = "tests.worker.environments.misbehaving"
ARCHIVE = SHARED / "data" / "alfworld" / "valid_seen_140.tar.xz"


@pytest.fixture(autouse=True)
def own_tmpdir(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A TMPDIR of its own, as a run has one: in that of the machine lie other users' locks."""
    monkeypatch.setenv("TMPDIR", str(tmp_path_factory.mktemp("run")))
    monkeypatch.setattr(tempfile, "tempdir", None)


@pytest.fixture(autouse=True)
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    ours = {
        "misbehaving": f"{MISBEHAVING}:Misbehaving",
        "not-a-number": f"{MISBEHAVING}:NotANumber",
        "missing": "not_installed_here:Environment",
    }
    folder = register(tmp_path / "registered", ours)
    monkeypatch.syspath_prepend(folder)
    return folder


@pytest.fixture(scope="session")
def games(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the games of TextWorld, and ALFWorld's if they are there."""
    folder = tmp_path_factory.mktemp("games")
    (folder / text_world.FOLDER).mkdir()
    if ARCHIVE.is_file():
        unpack(ARCHIVE, folder / alfworld.FOLDER)
    return folder


@pytest.fixture
def games_dir(games: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(GAMES_DIR, str(games))
    return games
