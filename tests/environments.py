"""Environments as an installation registers them."""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest

from app.environments.installed import GROUP

# In CI it is installed, or its tests fail.
needs_textworld = pytest.mark.skipif(
    find_spec("textworld") is None and os.environ.get("CI") != "true",
    reason="textworld is not installed: pip install -e '.[agents]' builds it with a C compiler",
)


def register(folder: Path, environments: Mapping[str, str]) -> Path:
    """Write what pip writes of a distribution with these, for a folder on the path of modules."""
    about = folder / "basin_environments_of_a_test-1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: of-a-test\nVersion: 1\n")
    lines = [f"{name} = {target}" for name, target in environments.items()]
    (about / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines, ""]))
    return folder
