"""The soak runs, and says that nothing was lost."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_short_soak_loses_nothing():
    few = ["--jobs", "4", "--workers", "2", "--kill-every", "6"]

    done = subprocess.run(
        [sys.executable, "-m", "bench.soak", *few],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=850,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split("\u2502")[1:3] for line in done.stdout.splitlines() if "\u2502" in line]
    told = {name.strip(): count.strip() for name, count in rows}
    assert (told["submitted"], told["lost"], told["duplicated"]) == ("4", "0", "0")
