"""What a user would write without Basin: TRL's SFTTrainer and PEFT, at their defaults.

`python -m bench.plain_trl FOLDER MODEL` trains on FOLDER/train.jsonl, chat rows whose last turn is
the answer, and writes FOLDER/moments.jsonl: what happened when, for `bench.throughput` to read.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

from bench.noted import note


class Moments(TrainerCallback):
    """Writes down when training began, when steps ended and what evaluations found."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        note(self.folder, type="began")

    def on_step_end(self, _args: Any, state: Any, *_: Any, **__: Any) -> None:
        note(self.folder, type="step", step=state.global_step)

    def on_evaluate(self, _args: Any, state: Any, *_: Any, metrics: Any, **__: Any) -> None:
        note(self.folder, type="evaluated", step=state.global_step, loss=metrics["eval_loss"])


def main(
    folder: Path,
    model: Path,
    packing: Annotated[bool, typer.Option(help="TRL's packing, in rows of --max-length.")] = False,
    bf16: Annotated[bool | None, typer.Option(help="Left out, it is TRL's: yes.")] = None,
    rows: Annotated[int, typer.Option(help="(Packed) rows of a step.")] = 8,
    eval_rows: int = 8,
    max_length: int = 1024,
    rank: int = 16,
    epochs: int = 1,
    learning_rate: float = 2e-4,
    evaluate_every: Annotated[int, typer.Option(help="Steps; 0: never.")] = 0,
) -> None:
    """Train an adapter."""
    trainer = SFTTrainer(
        str(model),
        args=SFTConfig(
            output_dir=str(folder / "out"),
            per_device_train_batch_size=rows,
            per_device_eval_batch_size=eval_rows,
            num_train_epochs=epochs,
            learning_rate=learning_rate,
            max_length=max_length,
            packing=packing,
            eval_packing=False,
            eval_strategy="steps" if evaluate_every else "no",
            eval_steps=evaluate_every or None,
            eval_on_start=evaluate_every > 0,
            bf16=bf16,
            use_cpu=not torch.cuda.is_available(),
            report_to="none",
        ),
        train_dataset=read(folder / "train.jsonl"),
        eval_dataset=read(folder / "valid.jsonl"),
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=LoraConfig(
            r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        callbacks=[Moments(folder)],
    )
    trainer.train()


def read(file: Path) -> Dataset:
    """Return chat rows as TRL's conversational prompt and completion: loss on the answer."""
    with file.open() as lines:
        rows = [json.loads(line)["messages"] for line in lines]
    return Dataset.from_list([{"prompt": each[:-1], "completion": each[-1:]} for each in rows])


if __name__ == "__main__":
    typer.run(main)
