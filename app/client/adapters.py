"""`basin pull` and `basin export`: what a job made, on this machine, and ready to serve."""

import shutil
import tarfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from app.client import merging, serving
from app.client.downloads import save
from app.client.errors import ClientError, Corrupt
from app.client.serving import Lines
from app.client.session import Session, takes, talks
from app.console import DEFAULT_DATA
from app.jobs.commands import JobId
from app.models.catalog import CONFIG
from app.tars import unpack
from app.up import MODELS

Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="A folder that is made; ./JOB when left out."),
]
CheckpointId = Annotated[
    str | None,
    typer.Option(help="Of a checkpoint instead: its id, ftckpt_…, or its step."),
]
Kept = Literal["base", "fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Plan:
    """How an adapter is exported."""

    merge: bool
    output: Path | None
    checkpoint: str | None
    base: Path | None
    models: Path
    dtype: Kept
    name: str | None

    def target(self, job: str) -> Path:
        """Return the folder to make."""
        return self.output or Path(
            f"{self.checkpoint or job}{'-merged' if self.merge else '-adapter'}"
        )


def plan(
    *,
    merge: Annotated[
        bool, typer.Option("--merge", help="Put the adapter into its base: one whole model.")
    ] = False,
    output: Output = None,
    checkpoint: CheckpointId = None,
    base: Annotated[
        Path | None,
        typer.Option(help="Folder of the base model; looked for by the job's model name."),
    ] = None,
    models: Annotated[
        Path | None,
        typer.Option(
            envvar="BASIN_MODELS_DIR", help="Folder of base models; that of `basin up` here."
        ),
    ] = None,
    dtype: Annotated[
        Kept, typer.Option(help="What merged weights are kept in; base is the base model's own.")
    ] = "base",
    name: Annotated[str | None, typer.Option(help="What vLLM shall call it.")] = None,
) -> Plan:
    """Take the options of `basin export` together."""
    models = models or DEFAULT_DATA / MODELS
    return Plan(merge, output, checkpoint, base, models, dtype, name)


@talks
def pull(
    *, session: Session, job: JobId, checkpoint: CheckpointId = None, output: Output = None
) -> None:
    """Download what a job made and unpack it; a download that was cut short goes on.

    The bytes are compared with the server's sha256 before anything of them is used.
    """
    target = _fresh(output or Path(checkpoint or job))
    folder, sha256 = _pulled(session, job, checkpoint, target)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    document = {"job_id": job, "path": str(folder), "sha256": sha256, "files": files}
    session.show(document, Text(f"{folder}: {', '.join(files)}\nsha256 {sha256}"))


@talks
@takes(plan=plan)
def export(*, session: Session, job: JobId, plan: Plan) -> None:
    """Write a folder that is ready to serve, and print the lines that serve it.

    Without --merge it is the adapter, as PEFT and vLLM load it. With --merge it is a whole model in
    safetensors: merged in fp32 on this machine's CPU, loaded again from disk, and compared with the
    base under the adapter; a model that answers otherwise is not kept, and the exit code is 6.
    """
    found = session.server.get(f"fine_tuning/jobs/{job}")
    target = _fresh(plan.target(job))
    base = _base(plan, found["model"])
    proof = None
    if plan.merge:
        proof = _merged(session, plan, job=found, base=Path(base), target=target)
    else:
        _pulled(session, job, plan.checkpoint, target)
    folder, name = target.resolve(), plan.name or found["suffix"] or job
    lines = _lines(folder, base=str(base), name=name, task=found["task"])
    document = {"job_id": job, "path": str(folder), "merged": proof, "serve": asdict(lines)}
    session.show(document, lambda: _told(folder, lines, proof))


def _merged(
    session: Session, plan: Plan, *, job: dict[str, Any], base: Path, target: Path
) -> dict[str, Any]:
    """Download the adapter beside the target, for as long as it takes to merge it."""
    beside = target.with_name(f".{target.name}.adapter")
    shutil.rmtree(beside, ignore_errors=True)
    adapter, _ = _pulled(session, job["id"], plan.checkpoint, beside)
    try:
        return merging.merge(
            session, adapter, base=base, target=target, task=job["task"], dtype=plan.dtype
        )
    finally:
        shutil.rmtree(adapter)


def _fresh(target: Path) -> Path:
    """Return a folder that is not there yet."""
    if target.exists():
        raise typer.BadParameter(f"{target} is there already.", param_hint="--output")
    return target


def _pulled(session: Session, job: str, checkpoint: str | None, target: Path) -> tuple[Path, str]:
    """Download an archive and unpack it to appear whole; return the folder, and the sha256."""
    path = f"fine_tuning/jobs/{job}"
    if checkpoint:
        path += f"/checkpoints/{_checkpoint(session, job, checkpoint)}"
    packed = target.with_name(f"{target.name}.tar")
    sha256 = save(session, f"{path}/adapter", packed)
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        unpack(packed, temporary)
    except (ValueError, tarfile.TarError, FileExistsError, NotADirectoryError) as error:
        shutil.rmtree(temporary)
        raise Corrupt(f"The archive is not as it should be: {error}.") from error
    finally:
        packed.unlink()
    temporary.rename(target)
    return target, sha256


def _checkpoint(session: Session, job: str, asked: str) -> str:
    """Return the id of a checkpoint that may be named by its step."""
    if not asked.isdecimal():
        return asked
    steps = {}
    for found in session.server.pages(f"fine_tuning/jobs/{job}/checkpoints", limit=None):
        steps[found["step_number"]] = str(found["id"])
        if found["step_number"] == int(asked):
            return steps[int(asked)]
    known = ", ".join(map(str, sorted(steps))) or "none"
    raise ClientError(f"{job} has no checkpoint of step {asked}; there are: {known}.")


def _base(plan: Plan, name: str) -> Path | str:
    """Return the base's folder; its bare name where it is not here and nothing is read of it."""
    folder = plan.base or plan.models / name
    if (folder / CONFIG).is_file():
        return folder.resolve()
    if plan.base is None and not plan.merge:
        return name
    raise ClientError(
        f"There is no base model in {folder}.",
        hint=f"Name the folder of {name} with --base, or that of all base models with --models.",
    )


def _lines(folder: Path, *, base: str, name: str, task: Any) -> Lines:
    if (folder / serving.CONFIG).exists():
        return serving.of_adapter(folder, base=base, name=name, task=task)
    return serving.of_model(folder, name=name, task=task)


def _told(folder: Path, lines: Lines, proof: dict[str, Any] | None) -> RenderableType:
    parts = [Text(str(folder), style="bold")]
    if proof:
        parts.append(Text(proof["words"]))
    parts += [
        Text("\nvLLM", style="bold"),
        Text(lines.vllm or str(lines.why_not)),
        Text("\nPython", style="bold"),
        Text(lines.python),
    ]
    return Group(*parts)
