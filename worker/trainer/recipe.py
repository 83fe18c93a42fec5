"""One run, from the run folder to the proven adapter."""

import gc
import json
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from app.jobs.spec import Finished, Started, Stopped, TrainSpec, Warned
from worker.rundir import Placement, RunDir
from worker.trainer import model as models
from worker.trainer.card import write_card
from worker.trainer.data import Encoded, encode_file
from worker.trainer.model import Precision
from worker.trainer.report import Reporter, replace_folder
from worker.trainer.trainers import CausalTrainer, latest_checkpoint, training_arguments


@dataclass(frozen=True)
class Inputs:
    """What a run works with, loaded."""

    spec: TrainSpec
    placement: Placement
    precision: Precision
    tokenizer: Any
    train: Encoded
    valid: Encoded | None


def train(run: RunDir, stop: threading.Event) -> None:
    """Train what the run folder asks for, and leave adapter/ in it.

    A run that was asked to stop leaves a checkpoint instead, and resumes from it next time.
    """
    spec, placement = run.read_spec(), run.read_placement()
    precision = models.resolve_precision(spec.training.precision)
    base = models.load_base(placement, precision)
    inputs = _load(run, spec, placement, precision, context=models.context_length(base))

    set_seed(spec.seed)
    adapted = models.attach(base, spec.peft)

    resume = latest_checkpoint(run)
    trainer, reporter = _trainer(run, inputs, adapted, stop, resumes=resume is not None)
    _say_started(run, inputs, adapted, resume=resume, total=_total_steps(trainer, inputs))
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)

    step = int(trainer.state.global_step)
    if stop.is_set() and step < trainer.state.max_steps:
        run.append_event(Stopped(at=time.time(), step=step))
        return
    if inputs.valid is not None and reporter.evaluated_step != step:
        trainer.evaluate()
    if reporter.saved_step != step:
        trainer._save_checkpoint(adapted, trial=None)
        reporter.on_save(trainer.args, trainer.state, trainer.control)

    temporary = run.path / "adapter.tmp"
    export(temporary, adapted, inputs, reporter.metrics, step=step)
    sample = inputs.train.dataset[0]["input_ids"]
    expected = models.sample_logits(adapted, sample)
    tokens = int(trainer.state.num_input_tokens_seen)
    metrics = reporter.metrics
    del base, adapted, trainer, reporter
    gc.collect()
    difference = models.prove(temporary, placement, precision, ids=sample, expected=expected)
    replace_folder(temporary, run.adapter)
    metrics |= {"verification_max_logit_difference": difference}
    run.append_event(Finished(at=time.time(), step=step, trained_tokens=tokens, metrics=metrics))


def export(
    folder: Path, adapted: Any, inputs: Inputs, metrics: dict[str, float], *, step: int
) -> None:
    """Write an adapter folder: weights, config, tokenizer with its chat template, card."""
    adapted.save_pretrained(folder)
    config = folder / "adapter_config.json"
    told = json.loads(config.read_bytes()) | {"base_model_name_or_path": inputs.spec.base_model}
    config.write_text(json.dumps(told, indent=2, sort_keys=True))
    inputs.tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(write_card(inputs.spec, metrics, step=step))


def _load(
    run: RunDir, spec: TrainSpec, placement: Placement, precision: Precision, *, context: int | None
) -> Inputs:
    tokenizer = models.load_tokenizer(placement)
    limit = min(spec.training.max_length, context or spec.training.max_length)
    train_data = encode_file(run.train, tokenizer, max_length=limit)
    _warn(run, "training", train_data, limit=limit)
    valid = None
    if run.valid.exists():
        valid = encode_file(run.valid, tokenizer, max_length=limit)
        _warn(run, "validation", valid, limit=limit)
    return Inputs(spec, placement, precision, tokenizer, train_data, valid)


def _warn(run: RunDir, which: str, data: Encoded, *, limit: int) -> None:
    if data.truncated:
        message = (
            f"{data.truncated} {which} rows are longer than {limit} tokens and were cut at the end"
        )
        run.append_event(Warned(at=time.time(), code="rows_truncated", message=message))
    if data.dropped:
        message = f"{data.dropped} {which} rows keep no answer within {limit} tokens: left out"
        run.append_event(Warned(at=time.time(), code="rows_dropped", message=message))


def _trainer(
    run: RunDir, inputs: Inputs, adapted: Any, stop: threading.Event, *, resumes: bool
) -> tuple[CausalTrainer, Reporter]:
    def export_step(folder: Path, metrics: dict[str, float]) -> None:
        temporary = folder.with_name(folder.name + ".tmp")
        export(temporary, adapted, inputs, metrics, step=int(folder.name.rpartition("-")[2]))
        replace_folder(temporary, folder)

    reporter = Reporter(run, stop, export=export_step, perturbation=lambda: trainer.perturbation)
    trainer = CausalTrainer(
        model=adapted,
        args=training_arguments(
            inputs.spec,
            run,
            bf16=inputs.precision == "bf16",
            evaluate=inputs.valid is not None,
            resumes=resumes,
        ),
        train_dataset=inputs.train.dataset,
        eval_dataset=inputs.valid.dataset if inputs.valid else None,
        processing_class=inputs.tokenizer,
        data_collator=DataCollatorForLanguageModeling(inputs.tokenizer.pad_token_id),
        callbacks=[reporter],
        perturbation=inputs.spec.perturbation,
        total_steps=inputs.spec.total_steps,
    )
    return trainer, reporter


def _total_steps(trainer: CausalTrainer, inputs: Inputs) -> int:
    asked = inputs.spec.training
    per_epoch = -(-inputs.train.rows // asked.batch_size)
    return asked.max_steps or per_epoch * asked.n_epochs


def _say_started(
    run: RunDir, inputs: Inputs, adapted: Any, *, resume: Path | None, total: int
) -> None:
    trainable, all_parameters = adapted.get_nb_trainable_parameters()
    run.append_event(
        Started(
            at=time.time(),
            total_steps=total,
            first_step=int(resume.name.rpartition("-")[2]) + 1 if resume else 1,
            trainable_parameters=trainable,
            total_parameters=all_parameters,
            train_rows=inputs.train.rows,
            device=torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            precision=inputs.precision,
        )
    )
