"""How good estimates are: each job is estimated, then run, and what it took is set beside.

`python -m bench.estimate --model FOLDER --data FILE` starts a whole Basin of its own and runs a
dozen small jobs that differ in what costs: rows, lengths, micro-batches, ranks, methods and the
base. Each is asked about by a dry run just before it is submitted, so that it is held out; what it
then took calibrates those after it. Time is from the start of an attempt to its end, memory the
peak that the run tells of.
"""

import json
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from tests.chaos.cluster import JOBS, Cluster, running
from tests.waiting import wait_until

SHORT = 420  # bytes of a row, so that small machines are done soon
ROWS = 240
VALID_ROWS = 40
LONG_S = 900.0
WIDER = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 6}
GIVEN, WIDE = "given", "wider"  # the base that was named, and a random one of more weights
JOBS_ASKED: list[tuple[str, str, dict[str, Any]]] = [
    ("first", GIVEN, {"training": {"max_steps": 20}}),
    ("rank 32", GIVEN, {"training": {"max_steps": 20}, "peft": {"r": 32}}),
    ("batch 16", GIVEN, {"training": {"max_steps": 10}, "hyperparameters": {"batch_size": 16}}),
    ("length 128", GIVEN, {"training": {"max_steps": 30, "max_length": 128}}),
    ("micro-batch 1", GIVEN, {"training": {"max_steps": 20, "micro_batch_size": 1}}),
    ("one epoch", GIVEN, {"hyperparameters": {"n_epochs": 1, "batch_size": 8}}),
    ("validated", GIVEN, {"training": {"max_steps": 20, "eval_steps": 10}, "validation": True}),
    ("checkpointing", GIVEN, {"training": {"max_steps": 20, "gradient_checkpointing": True}}),
    ("full", GIVEN, {"training": {"max_steps": 20}, "peft": {"method": "full"}}),
    ("noise", GIVEN, {"training": {"max_steps": 20}, "perturbation": {"type": "random"}}),
    ("many saves", GIVEN, {"training": {"max_steps": 20, "checkpoint_steps": 2}}),
    ("wider", WIDE, {"training": {"max_steps": 10}}),
    ("wider, 16", WIDE, {"training": {"max_steps": 5}, "hyperparameters": {"batch_size": 16}}),
    ("wider, length 128", WIDE, {"training": {"max_steps": 15, "max_length": 128}}),
]  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """A job: what was estimated, (low, expected, high), and what was measured."""

    name: str
    jobs: int
    steps: tuple[int, int]
    seconds: tuple[float, float, float]
    took_s: float
    bytes: tuple[float, float, float]
    peak_bytes: float

    @property
    def time_ratio(self) -> float:
        return self.seconds[1] / self.took_s

    @property
    def memory_ratio(self) -> float:
        return self.bytes[1] / self.peak_bytes


def main(
    model: Annotated[Path, typer.Option(help="Folder of a small causal base.")],
    data: Annotated[Path, typer.Option(help="Rows in JSON Lines; the first few hundred serve.")],
    out: Annotated[Path | None, typer.Option(help="Where the numbers go, as JSON.")] = None,
) -> None:
    """Estimate and run each job in turn, and print estimated against measured."""
    with tempfile.TemporaryDirectory() as folder, running(bases(Path(folder), model)) as cluster:
        cluster.start_worker()
        wait_until(lambda: bool(ask(cluster, "GET", "/workers")["data"]), timeout_s=60)
        lines = [line for line in data.read_bytes().splitlines(keepends=True) if len(line) < SHORT]
        files = {
            "training_file": cluster.upload(b"".join(lines[:ROWS])),
            "validation_file": cluster.upload(b"".join(lines[ROWS : ROWS + VALID_ROWS])),
        }
        outcomes = []
        for name, base, body in JOBS_ASKED:
            outcomes.append(outcome(cluster, name, request(files, base, body)))
            show(outcomes)
    if out is not None:
        out.write_text(json.dumps([asdict(each) for each in outcomes], indent=1))


def bases(folder: Path, model: Path) -> Path:
    """Lay out a models folder: the base that was named, and a wider one of random weights."""
    import torch  # noqa: PLC0415  the help is said without it
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415

    shutil.copytree(model, folder / GIVEN)
    shutil.copytree(model, folder / WIDE, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(folder / WIDE, head_dim=24, **WIDER)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / WIDE)
    return folder


def request(files: dict[str, str], base: str, body: dict[str, Any]) -> dict[str, Any]:
    """Return the body of a job."""
    asked = {"model": base, "training_file": files["training_file"], "seed": 7} | body
    if asked.pop("validation", False):
        asked["validation_file"] = files["validation_file"]
    return asked


def outcome(cluster: Cluster, name: str, body: dict[str, Any]) -> Outcome:
    """Estimate a job, run it, and measure."""
    told = ask(cluster, "POST", JOBS, params={"dry_run": "true"}, json=body)
    job_id = ask(cluster, "POST", JOBS, json=body)["id"]
    job = cluster.wait(job_id, timeout_s=LONG_S)
    assert job["status"] == "succeeded", job["error"]
    ((since, until),) = cluster.sql(
        "SELECT extract(epoch FROM started_at)::float, extract(epoch FROM ended_at)::float"
        " FROM attempts WHERE job_id = %s",
        job_id,
    )
    series = ask(cluster, "GET", f"{JOBS}/{job_id}/metrics", params={"name": "memory_bytes"})
    return Outcome(
        name=name,
        jobs=told["basis"]["finished_jobs"],
        steps=(told["steps"], job["progress"]["step"]),
        seconds=band(told["time"], "{}_s"),
        took_s=until - since,
        bytes=band(told["memory"], "{}_bytes"),
        peak_bytes=max(value for _, value in series["data"][0]["points"]),
    )


def band(group: dict[str, Any], name: str) -> tuple[float, float, float]:
    low, expected, high = (float(group[name.format(each)]) for each in ("low", "expected", "high"))
    return low, expected, high


def ask(cluster: Cluster, method: str, path: str, **options: Any) -> Any:
    with cluster.http as http:
        answer = http.request(method, path, **options)
    assert answer.is_success, answer.text
    return answer.json()


def show(outcomes: Sequence[Outcome]) -> None:
    """Print each job, and how far off estimates were: the median factor, and the share in range."""
    table = Table("job", "basis", "steps", "time, s", "took", "ratio", "peak, MiB", "was", "ratio")
    for each in outcomes:
        low, expected, high = each.seconds
        small, likely, large = (size / 2**20 for size in each.bytes)
        table.add_row(
            each.name,
            str(each.jobs),
            f"{each.steps[0]}" + ("" if each.steps[0] == each.steps[1] else f" ({each.steps[1]})"),
            f"{expected:.1f} ({low:.0f}–{high:.0f})",
            f"{each.took_s:.1f}{mark(each.seconds, each.took_s)}",
            f"{each.time_ratio:.2f}",
            f"{likely:.0f} ({small:.0f}–{large:.0f})",
            f"{each.peak_bytes / 2**20:.0f}{mark(each.bytes, each.peak_bytes)}",
            f"{each.memory_ratio:.2f}",
        )
    console = Console(width=120)
    console.print(table)
    known = [each for each in outcomes if each.jobs]
    if known:
        off = [max(each.time_ratio, 1 / each.time_ratio) for each in known]
        within = sum(each.seconds[0] <= each.took_s <= each.seconds[2] for each in known)
        fits = sum(each.bytes[0] <= each.peak_bytes <= each.bytes[2] for each in known)
        console.print(
            f"calibrated: {len(known)}; time off by a factor of {statistics.median(off):.2f}"
            f" (median), {max(off):.2f} (most); in range: time {within}, memory {fits}"
        )


def mark(found: tuple[float, float, float], measured: float) -> str:
    return "" if found[0] <= measured <= found[2] else " !"


if __name__ == "__main__":
    typer.run(main)
