"""Does MGPO smooth the second rise of the loss? LoRA and its relatives on two small problems.

`python -m bench.double_descent` runs (a) a small LLaMA pre-trained on addition and tuned to
subtraction and, with --model and --rows, (b) a pretrained model tuned on text; then it writes
docs/double_descent.md with tables and curves. Trials run before are kept in --results: the command
can be interrupted, and goes on.
"""

import itertools
import platform
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from bench.study import METHODS, VARIANTS, Batch, Material, Result, Trial, run
from bench.tables import curves, table, wins
from worker.rundir import Placement
from worker.trainer.data import encode_file
from worker.trainer.model import load_tokenizer

PIECES = "0123456789+-= "
PAD = PIECES.index(" ")
IGNORED = -100
OPERANDS = 1000
WIDTH = 12  # of "123-456=-333", padded
PRETRAIN_STEPS, PRETRAIN_BATCH, PRETRAIN_RATE = 1500, 128, 2e-3
TOY_STEPS, TOY_BATCH, TOY_EVALUATE = 300, 32, 10
TEXT_ROWS, TEXT_HELD_OUT = 816, 16
TEXT_STEPS, TEXT_BATCH, TEXT_EVALUATE, TEXT_LENGTH = 40, 8, 4, 192
TOY_RATES = (2e-3, 1e-2, 2e-2)
TEXT_RATES = (2e-3, 1e-2, 2e-2)
FULL_RATES = (3e-4, 1e-3, 3e-3)
VARIED = ((8, 1e-2), (64, 2e-3))
HEADER = """\
# Double descent at small scale

The question: does LoRA's loss rise again after its first descent, and does MGPO smooth that? Small
problems, {seeds} seeds each, clean held-out loss throughout. `bump` is the largest rise of the
smoothed loss over its lowest point before, max_t (L_t − min_{{s<t}} L_s); sharpness is how much
the loss rises in a ball of 0.05 times the norm of what is trained, at worst and on average; passes
are forward-backward passes; time is the processor's, the median against plain LoRA of the same
setting; memory is how far the process grew from the first step on, in MiB.

The sums take {toy_steps} steps in batches of {toy_batch}, the text {text_steps} in batches of
{text_batch}; AdamW with a cosine schedule, α = r, no dropout. Too high a learning rate shows in
every method: compare where plain LoRA is at its best.

Made by `python -m bench.double_descent` ({machine}; torch {torch}).
"""


def main(
    model: Annotated[Path | None, typer.Option(help="Folder of a small pretrained LM.")] = None,
    rows: Annotated[Path | None, typer.Option(help="Chat rows to tune it on, as JSONL.")] = None,
    seeds: Annotated[int, typer.Option(min=1)] = 5,
    rank: Annotated[list[int] | None, typer.Option(help="May be repeated; 8 and 64.")] = None,
    rate: Annotated[
        list[float] | None, typer.Option(help="Learning rate; may be repeated.")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Trials at once, a core each.")] = 2,
    results: Annotated[Path, typer.Option()] = Path(".basin/bench"),
    docs: Annotated[Path, typer.Option()] = Path("docs"),
) -> None:
    """Run both problems and write docs/double_descent.md."""
    ranks = rank or [8, 64]
    base = results / "addition.pt"
    if not base.exists():
        results.mkdir(parents=True, exist_ok=True)
        pretrain(base)
    problems = {"toy": (TOY_RATES, partial(toy, base), "Addition, tuned to subtraction")}
    if model and rows:
        title = f"{model.name}, tuned on {rows.parent.name}"
        problems["text"] = (TEXT_RATES, partial(text, model.resolve(), rows.resolve()), title)
    report = [
        HEADER.format(seeds=seeds, machine=platform.processor() or platform.machine(),
                      torch=torch.__version__, toy_steps=TOY_STEPS, toy_batch=TOY_BATCH,
                      text_steps=TEXT_STEPS, text_batch=TEXT_BATCH)
    ]  # fmt: skip
    for name, (learning_rates, material, title) in problems.items():
        trials = list(plan(ranks, tuple(rate or learning_rates), seeds))
        done = run(trials, material, results / f"double_descent-{name}.jsonl", processes=processes)
        report.append(section(name, title, done, docs))
        if name == "text":
            out = results / "double_descent-variants.jsonl"
            varied = run(list(variants(seeds)), material, out, processes=processes)
            report.append(comparison(done, varied))
    (docs / "double_descent.md").write_text("\n".join(report))
    Console().print("\n".join(report), markup=False)


def plan(ranks: list[int], learning_rates: tuple[float, ...], seeds: int) -> Iterator[Trial]:
    """Yield every trial, seed by seed, so that an interrupted study is whole for some seeds."""
    for seed in range(1, seeds + 1):
        for method in METHODS:
            full = method.peft == "full"
            settings = itertools.product(
                [0] if full else ranks, FULL_RATES if full else learning_rates
            )
            for r, rate in settings:
                yield Trial(method.title, r, rate, seed)


def variants(seeds: int) -> Iterator[Trial]:
    """Yield MGPO's other settings, where plain LoRA is at its best."""
    for seed, method, (r, rate) in itertools.product(range(1, seeds + 1), VARIANTS, VARIED):
        yield Trial(method.title, r, rate, seed)


def comparison(done: list[Result], varied: list[Result]) -> str:
    """Return the part of the report on MGPO's settings."""
    plain, chosen = (method.title for method in METHODS[:2])
    beside = [
        each
        for each in done
        if (each.trial.r, each.trial.learning_rate) in VARIED
        and each.trial.method in (plain, chosen)
    ]
    lines = [f"- {wins([*beside, *varied], method.title, against=chosen)}" for method in VARIANTS]
    head = [f"## Other settings of {chosen.partition(',')[0]}, on the same text", ""]
    told = f"`{chosen}` has ρ 0.05, a norm per module, and starts at the first step."
    return "\n".join([*head, told, "", table([*beside, *varied], cost=False), *lines, ""])


def section(name: str, title: str, results: list[Result], docs: Path) -> str:
    """Return the part of the report on one problem."""
    picture = Path("images") / f"double_descent-{name}.png"
    curves([each for each in results if each.trial.r], docs / picture, title=title)
    verdicts = [wins(results, m.title) for m in METHODS if m.title != "LoRA" and m.peft != "full"]
    lines = [f"- {verdict}" for verdict in verdicts]
    return "\n".join(
        [f"## {title}", "", f"![{title}]({picture.as_posix()})", "", table(results), *lines, ""]
    )


# (a) addition, tuned to subtraction


def toy(base: Path) -> Material:
    """Return the arithmetic problem."""
    valid = [sums(random.Random(seed), "-", 256) for seed in (-1, -2)]
    return Material(
        base=partial(_toy_base, base),
        train=partial(_endless, "-", TOY_BATCH),
        valid=valid,
        task_type="CAUSAL_LM",
        steps=TOY_STEPS,
        evaluate_every=TOY_EVALUATE,
    )


def toy_model() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(PIECES),
            hidden_size=128,
            intermediate_size=344,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=32,
            pad_token_id=PAD,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def pretrain(target: Path, steps: int = PRETRAIN_STEPS) -> None:
    """Teach a small LLaMA to add numbers of three digits."""
    torch.manual_seed(0)
    model = toy_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PRETRAIN_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    batches = _endless("+", PRETRAIN_BATCH, 0)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**next(batches)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    torch.save(model.state_dict(), target)


def sums(draw: random.Random, sign: str, count: int) -> Batch:
    """Return problems such as 123-456=-333, the loss on what follows the equals sign."""
    ids, labels = [], []
    for _ in range(count):
        a, b = draw.randrange(OPERANDS), draw.randrange(OPERANDS)
        question, answer = f"{a}{sign}{b}=", f"{a + b if sign == '+' else a - b}"
        row = [PIECES.index(piece) for piece in (question + answer).ljust(WIDTH)]
        ids.append(row)
        labels.append([IGNORED] * len(question) + row[len(question) :])
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)}


def _toy_base(path: Path) -> LlamaForCausalLM:
    model = toy_model()
    model.load_state_dict(torch.load(path, weights_only=True))
    return model


def _endless(sign: str, size: int, seed: int) -> Iterator[Batch]:
    draw = random.Random(seed)
    while True:
        yield sums(draw, sign, size)


# (b) a pretrained model, tuned on text


@dataclass(frozen=True)
class _Rows:
    """Encoded rows, padded by the batch."""

    rows: list[dict[str, list[int]]]
    pad: int

    def batch(self, indices: list[int]) -> Batch:
        longest = max(len(self.rows[index]["input_ids"]) for index in indices)
        fills: dict[str, int] = {"input_ids": self.pad, "labels": IGNORED}
        padded: dict[str, Any] = {
            key: torch.tensor(
                [self.rows[i][key] + [fill] * (longest - len(self.rows[i][key])) for i in indices]
            )
            for key, fill in fills.items()
        }
        sizes = [len(self.rows[index]["input_ids"]) for index in indices]
        mask = [[1] * size + [0] * (longest - size) for size in sizes]
        return padded | {"attention_mask": torch.tensor(mask)}

    def endless(self, seed: int) -> Iterator[Batch]:
        draw = random.Random(seed)
        while True:
            yield self.batch(draw.sample(range(len(self.rows)), TEXT_BATCH))


def text(model: Path, path: Path) -> Material:
    """Return the problem on text, some rows of it held out."""
    tokenizer = load_tokenizer(Placement(source="folder", location=str(model), revision=None))
    encoded = encode_file(path, tokenizer, max_length=TEXT_LENGTH).dataset
    columns = encoded.select(range(TEXT_ROWS)).select_columns(["input_ids", "labels"])
    rows: list[dict[str, list[int]]] = columns.to_list()
    held_out = _Rows(rows[:TEXT_HELD_OUT], tokenizer.pad_token_id)
    learned = _Rows(rows[TEXT_HELD_OUT:], tokenizer.pad_token_id)
    return Material(
        base=partial(AutoModelForCausalLM.from_pretrained, model),
        train=learned.endless,
        valid=[held_out.batch(list(range(TEXT_HELD_OUT)))],
        task_type="CAUSAL_LM",
        steps=TEXT_STEPS,
        evaluate_every=TEXT_EVALUATE,
    )


if __name__ == "__main__":
    typer.run(main)
