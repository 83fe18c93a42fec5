"""Does MGPO help on GLUE? A small encoder on samples of five tasks, every method, several seeds.

`python -m bench.glue --model FOLDER --data FOLDER` takes an encoder in Hugging Face's format and a
folder with sst2/, rte/, qnli/, cola/ and mnli/ of JSONL rows, and writes docs/glue.md. Trials run
before are kept in --results: the command can be interrupted, and goes on.
"""

import json
import platform
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from sklearn.metrics import accuracy_score, matthews_corrcoef
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bench.study import METHODS, Batch, Material, Result, Trial, device, run
from bench.tables import PLAIN, spread

TASKS: dict[str, tuple[str, ...]] = {
    "mnli": ("premise", "hypothesis"),
    "sst2": ("sentence",),
    "cola": ("sentence",),
    "qnli": ("question", "sentence"),
    "rte": ("sentence1", "sentence2"),
}
TRAIN, HELD_OUT = 1000, 400
BATCH, LENGTH, RANK = 8, 48, 8
RATE, FULL_RATE = 2e-3, 1e-4  # of adapters, of whole models
SPLIT_SEED = 0
MEASURES = {"cola": matthews_corrcoef}  # the others: accuracy
HEADER = """\
# GLUE at small scale

{model} on samples of five tasks of GLUE: {train} rows each (RTE has fewer), one pass in batches
of {batch}, r = {rank}, α = {alpha}, learning rate {rate:g} (full {full:g}), AdamW with a cosine
schedule, {seeds} seeds. GLUE's own measures on {held_out} held-out rows, times 100: Matthews
correlation for CoLA, accuracy for the others; mean ± standard deviation over seeds.

Made by `python -m bench.glue` ({machine}; torch {torch}).
"""


def main(
    model: Annotated[Path, typer.Option(help="Folder of an encoder.")],
    data: Annotated[Path, typer.Option(help="Folder of the tasks' folders.")],
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    task: Annotated[list[str] | None, typer.Option(help="May be repeated; all five.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Trials at once, a core each.")] = 2,
    results: Annotated[Path, typer.Option()] = Path(".basin/bench"),
    docs: Annotated[Path, typer.Option()] = Path("docs"),
) -> None:
    """Run every method on every task and write docs/glue.md."""
    done = {
        name: run(
            list(plan(seeds)),
            partial(material, name, model.resolve(), data.resolve()),
            results / f"glue-{name}.jsonl",
            processes=processes,
        )
        for name in task or TASKS
    }
    head = HEADER.format(
        model=model.name, train=TRAIN, batch=BATCH, rank=RANK, alpha=2 * RANK, rate=RATE,
        full=FULL_RATE, seeds=seeds, held_out=HELD_OUT, torch=torch.__version__,
        machine=platform.processor() or platform.machine(),
    )  # fmt: skip
    report = "\n".join([head, table(done)])
    (docs / "glue.md").write_text(report)
    Console().print(report, markup=False)


def plan(seeds: int) -> Iterator[Trial]:
    """Yield every trial, seed by seed."""
    for seed in range(1, seeds + 1):
        for method in METHODS:
            full = method.peft == "full"
            yield Trial(method.title, 0 if full else RANK, FULL_RATE if full else RATE, seed)


def material(task: str, model: Path, data: Path) -> Material:
    """Return one task, its rows split the same way every time."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    train, held_out = rows(data / task)
    fields = TASKS[task]
    classes = len({row["label"] for row in train})
    valid = [
        encode(tokenizer, held_out[start : start + BATCH], fields)
        for start in range(0, len(held_out), BATCH)
    ]
    return Material(
        base=partial(AutoModelForSequenceClassification.from_pretrained, model, num_labels=classes),
        train=partial(_epoch, tokenizer, train, fields),
        valid=valid,
        task_type="SEQ_CLS",
        steps=len(train) // BATCH,
        evaluate_every=len(train) // BATCH,
        alpha_per_rank=2.0,
        accuracy=partial(score, batches=valid, measure=MEASURES.get(task, accuracy_score)),
        sharpness=False,
    )


def rows(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return rows to learn from and rows to judge by, from whatever files the folder has."""
    found = {path.stem: path for path in sorted(folder.glob("*.jsonl")) if "chat" not in path.stem}
    train = _read(next(path for stem, path in found.items() if stem.startswith("train")))
    random.Random(SPLIT_SEED).shuffle(train)
    own = [path for stem, path in found.items() if not stem.startswith("train")]
    if own:
        return train[:TRAIN], _read(own[0])[:HELD_OUT]
    return train[HELD_OUT : HELD_OUT + TRAIN], train[:HELD_OUT]


def encode(tokenizer: Any, chosen: Sequence[dict[str, Any]], fields: Sequence[str]) -> Batch:
    """Return a padded batch."""
    texts = [[row[field] for row in chosen] for field in fields]
    batch: Batch = dict(
        tokenizer(*texts, truncation=True, max_length=LENGTH, padding=True, return_tensors="pt")
    )
    return batch | {"labels": torch.tensor([row["label"] for row in chosen])}


@torch.no_grad()
def score(model: Any, batches: Sequence[Batch], measure: Callable[[Any, Any], float]) -> float:
    """Return how well the classes of a task's held-out rows are told."""
    told = [
        model(**{key: value.to(device()) for key, value in batch.items()}).logits.argmax(dim=-1)
        for batch in batches
    ]
    right = torch.cat([batch["labels"] for batch in batches])
    return float(measure(right, torch.cat(told).cpu()))


def table(done: dict[str, list[Result]]) -> str:
    """Return scores by method and task, their mean, and the difference to plain LoRA."""
    lines = [
        f"| method | {' | '.join(done)} | mean | against LoRA |",
        f"|{' --- |' * (len(done) + 3)}",
    ]
    plain = _by_seed(done, PLAIN)
    for method in METHODS:
        cells = [
            spread([100 * (r.accuracy or 0) for r in found if r.trial.method == method.title],
                   digits=1)
            for found in done.values()
        ]  # fmt: skip
        means = _by_seed(done, method.title)
        difference = [means[seed] - plain[seed] for seed in means]
        mean, against = (spread(each, digits=1) for each in (list(means.values()), difference))
        lines.append(f"| {method.title} | {' | '.join(cells)} | {mean} | {against} |")
    return "\n".join(lines) + "\n"


def _by_seed(done: dict[str, list[Result]], method: str) -> dict[int, float]:
    """Return the mean score over the tasks, times 100, of each seed."""
    seeds = sorted({r.trial.seed for found in done.values() for r in found})
    return {
        seed: statistics.fmean(
            100 * (r.accuracy or 0)
            for found in done.values()
            for r in found
            if r.trial.method == method and r.trial.seed == seed
        )
        for seed in seeds
    }


def _epoch(
    tokenizer: Any, train: Sequence[dict[str, Any]], fields: Sequence[str], seed: int
) -> Iterator[Batch]:
    order = list(train)
    random.Random(seed).shuffle(order)
    for start in range(0, len(order) - BATCH + 1, BATCH):
        yield encode(tokenizer, order[start : start + BATCH], fields)


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


if __name__ == "__main__":
    typer.run(main)
