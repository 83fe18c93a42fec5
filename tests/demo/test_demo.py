"""`python -m demo` for real: two jobs, what came out of them, and nothing left behind."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.factories import jsonl

REPOSITORY = Path(__file__).parents[2]
# One thread is the fastest for such small models where other tests want the cores too.
ENVIRONMENT = {"BASIN_DATABASE_URL": "postgresql://not.to.be/touched", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A folder to be, outside pytest's own closed folders."""
    root = Path("/tmp") / f"basin-demo-{os.getpid()}-{time.monotonic_ns()}"
    root.mkdir(mode=0o755)
    yield root / "home"
    shutil.rmtree(root)


def demo(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "demo", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, **ENVIRONMENT},
    )


def ended(process: subprocess.Popen[str], *, code: int) -> str:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    return output


def processes_of(folder: Path) -> list[psutil.Process]:
    """Whatever names the folder, works in it, or was told of it."""
    found = psutil.process_iter(["cmdline", "cwd", "environ"])
    return [p for p in found if str(folder) in f"{list(p.info.values())}"]


def test_both_jobs_are_shown_side_by_side_with_their_adapters(home, tmp_path):
    data = tmp_path / "sums.jsonl"
    rows = [{"prompt": f"{n} plus {n} is", "completion": f" {2 * n}."} for n in range(40)]
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    output = ended(demo("--quick", "--data", data, "--home", home), code=0)

    [base] = (home / "models").iterdir()
    archives = [Path(path) for path in re.findall(rf"{home}/adapters/ftjob-\w+\.tar", output)]
    losses = re.findall(r"(?m)^  (base|LoRA|LoRA-MGPO) +(\d\.\d{4}) ", output)
    assert [label for label, _ in losses] == ["base", "LoRA", "LoRA-MGPO"]
    assert all(float(loss) < float(losses[0][1]) for _, loss in losses[1:])
    assert "30 rows of yours; 10 more are held out" in output
    assert re.search(r"LoRA-MGPO +queued", output)
    assert len(archives) == 2
    assert all(archive.is_file() for archive in archives)
    assert f'from_pretrained("{base}")' in output
    assert "stand-in" in output
    assert "One seed" in output
    assert processes_of(home) == []


def test_the_stand_in_is_found_again_and_has_a_million_parameters(home):
    from transformers import AutoModelForCausalLM

    [base] = (home / "models").iterdir()

    assert 900_000 < AutoModelForCausalLM.from_pretrained(base).num_parameters() < 1_200_000


def test_ctrl_c_leaves_no_process(home):
    process = demo("--quick", "--steps", "5000", "--home", home)
    seen: list[str] = []
    while not seen or not re.search(r"LoRA +running", seen[-1]):
        seen.append(process.stdout.readline())
        assert seen[-1], process.communicate()

    process.send_signal(signal.SIGINT)
    output = ended(process, code=130)

    assert "there from before" in "".join(seen)
    assert "Stopped" in output
    assert processes_of(home) == []


def test_a_job_that_fails_says_why_and_shows_the_logs(home, models_dir):
    output = ended(demo("--model", models_dir / "broken-llama", "--quick", "--home", home), code=1)

    assert "LoRA failed: " in output
    assert f"── {home}/service/logs/worker.log" in output
    assert processes_of(home) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "/no/such/folder"], "There is no folder /no/such/folder"),
        (["--data", "/no/such/rows.jsonl"], "Cannot read DATA /no/such/rows.jsonl"),
    ],
)
def test_a_wrong_argument_is_told_in_a_sentence(home, arguments, sentence):
    output = ended(demo(*arguments, "--home", home), code=1)

    assert output.startswith(sentence)
    assert len(output.splitlines()) == 1


def test_too_few_rows_are_told_before_anything_starts(home, tmp_path):
    data = tmp_path / "few.jsonl"
    data.write_bytes(jsonl(12))

    assert "has 12 rows; 20 are needed" in ended(demo("--data", data, "--home", home), code=1)


def test_help_does_not_wait_for_pytorch():
    imported = (
        "import sys, demo.__main__; print(*{'torch', 'transformers', 'openai'} & set(sys.modules))"
    )

    done = subprocess.run([sys.executable, "-c", imported], capture_output=True, text=True)

    assert done.stdout == "\n"
