"""One run, from the run folder to the proven adapter."""

import gc
import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from app.jobs.spec import (
    GRADIENT_BATCHES,
    Finished,
    Started,
    Stopped,
    TrainSpec,
    Warned,
    planned_steps,
)
from worker.rundir import Placement, RunDir, step_of
from worker.trainer import distributed, kernels, methods, policies, tasks, versions
from worker.trainer import model as models
from worker.trainer.best import Best
from worker.trainer.card import write_card
from worker.trainer.data import Encoded
from worker.trainer.doubts import doubts
from worker.trainer.heads import Head
from worker.trainer.labels import check_same, write_labels
from worker.trainer.methods import Attached
from worker.trainer.model import Precision
from worker.trainer.report import Reporter, replace_folder
from worker.trainer.tasks import Collate
from worker.trainer.trainers import TRAINERS, training_arguments


@dataclass(frozen=True)
class Inputs:
    """What a run works with, loaded."""

    spec: TrainSpec
    placement: Placement
    precision: Precision
    head: Head
    fresh: tuple[str, ...]
    tokenizer: Any
    collate: Collate
    train: Encoded
    valid: Encoded | None
    limit: int


def train(run: RunDir, stop: threading.Event) -> None:
    """Train what the run folder asks for, and leave adapter/ in it.

    A run that was asked to stop leaves a checkpoint instead, and resumes from it next time.
    """
    with ExitStack() as opened:
        _train(run, stop, opened)


def _train(run: RunDir, stop: threading.Event, opened: ExitStack) -> None:
    spec, placement = run.read_spec(), run.read_placement()
    precision = models.resolve_precision(spec.training.precision)
    set_seed(spec.seed)
    head = tasks.head_of(spec, run)
    stored = _storage(spec, precision)
    base, fresh = models.load_base(placement, stored, head)
    computing = opened.enter_context(ExitStack())
    _use_kernels(run, base, head, computing)
    inputs = _load(run, spec, placement, precision, head=head, base=base, fresh=fresh)

    resume = run.latest_checkpoint()
    if resume is not None:
        _warn_if_not_exact(run, resume)
    set_seed(spec.seed)
    attached = _attach(run, inputs, base, resume)
    adapted = attached.model
    policy = policies.options(run, inputs.spec, opened, limit=inputs.limit)
    trainer, reporter = _trainer(run, inputs, attached, stop, policy, resumes=resume is not None)
    _say_started(run, inputs, adapted, resume=resume)
    if resume is not None and _nothing_left(inputs, trainer, resume):
        trainer.load_end(resume)
        reporter.recall(trainer.state)
    else:
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)

    step = int(trainer.state.global_step)
    if reporter.stopped and step < trainer.state.max_steps:
        run.append_event(Stopped(at=time.time(), step=step))
        return
    if inputs.valid is not None and reporter.evaluated_step != step:
        trainer.evaluate()
    if reporter.saved_step != step:
        trainer._save_checkpoint(adapted, trial=None)
        reporter.on_save(trainer.args, trainer.state, trainer.control)
    first = distributed.is_first()
    distributed.leave()
    if not first:
        return

    if trainer.best is not None:
        _take_best(run, trainer.best, attached, reporter)
    temporary = run.path / "adapter.tmp"
    export(temporary, attached, inputs, reporter.metrics, step=step)
    computing.close()  # what is proved is the adapter, on the base as anybody computes it
    sample = inputs.collate([inputs.train.dataset[0]])
    # Without the autocast of the training: a fresh base has none either.
    plain = trainer.accelerator.unwrap_model(adapted, keep_fp32_wrapper=False)
    expected = models.sample_logits(plain, sample)
    tokens = int(trainer.state.num_input_tokens_seen)
    metrics = reporter.metrics
    del base, attached, adapted, plain, trainer, reporter
    gc.collect()
    difference = models.prove(
        temporary, placement, stored, head=head, batch=sample, expected=expected
    )
    replace_folder(temporary, run.adapter)
    metrics |= {"verification_max_logit_difference": difference}
    run.append_event(Finished(at=time.time(), step=step, trained_tokens=tokens, metrics=metrics))


def _use_kernels(run: RunDir, base: Any, head: Head, computing: ExitStack) -> None:
    fault = kernels.use(base, computing) if head.task == "causal" else None
    if fault is not None:
        message = f"The run does without liger-kernel, whose kernels do not work here: {fault}"
        run.append_event(Warned(at=time.time(), code="kernels_unavailable", message=message))


def _nothing_left(inputs: Inputs, trainer: Any, checkpoint: Path) -> bool:
    """Return whether the run that left a checkpoint had taken its last step.

    The Trainer looks for the end after a step only: resumed at the end of a run it would take one
    too many.
    """
    ends = [_total_steps(inputs), inputs.spec.budget.max_steps]
    if step_of(checkpoint) >= min(end for end in ends if end is not None):
        return True
    if trainer.best is None:
        return False
    trainer.best.load_state(checkpoint)
    return bool(trainer.best.out_of_patience)


def _warn_if_not_exact(run: RunDir, checkpoint: Path) -> None:
    if found := versions.differences(checkpoint):
        message = (
            "The run resumes with other versions or on another device than before, so it is not"
            f" bit for bit the one it would have been: {', '.join(found)}"
        )
        run.append_event(Warned(at=time.time(), code="resume_not_exact", message=message))


def _take_best(run: RunDir, best: Best, attached: Attached, reporter: Reporter) -> None:
    """Go back to the weights of the best evaluation, and say so."""
    attached.load_trainable(best.folder)
    reporter.metrics |= {"valid_loss": best.loss, "best_step": float(best.step)}
    ended = "stopped early" if best.stopped else "ended"
    message = (
        f"The run {ended}; the adapter is that of step {best.step},"
        f" whose valid_loss {best.loss:.4f} is the lowest"
    )
    run.append_event(Warned(at=time.time(), code="best_evaluation", message=message))


def export(
    folder: Path, attached: Attached, inputs: Inputs, metrics: dict[str, float], *, step: int
) -> None:
    """Write an adapter folder: weights, config, tokenizer with its chat template, card."""
    attached.save(folder)
    config = folder / "adapter_config.json"
    if config.exists():
        told = json.loads(config.read_bytes()) | {"base_model_name_or_path": inputs.spec.base_model}
        config.write_text(json.dumps(told, indent=2, sort_keys=True))
    inputs.tokenizer.save_pretrained(folder)
    labels = inputs.head.labels if inputs.head.task == "classification" else ()
    if labels:
        write_labels(folder, labels)
    (folder / "README.md").write_text(write_card(inputs.spec, metrics, step=step, labels=labels))


def _load(
    run: RunDir,
    spec: TrainSpec,
    placement: Placement,
    precision: Precision,
    *,
    head: Head,
    base: Any,
    fresh: tuple[str, ...],
) -> Inputs:
    tokenizer = models.load_tokenizer(placement)
    seen = [models.context_length(base)]
    if head.task != "causal":
        seen.append(tokenizer.model_max_length)  # RoBERTa's positions are two fewer than it says
    limit = min(spec.training.max_length, *(length for length in seen if length))
    answer = spec.reinforcement.max_completion_tokens if spec.reinforcement else 0
    train_data = tasks.encode(head, run.train, tokenizer, max_length=limit, answer=answer)
    _warn(run, "training", train_data, limit=limit)
    policies.check(spec, train_data.rows)
    valid = None
    if run.valid.exists():
        valid = tasks.encode(head, run.valid, tokenizer, max_length=limit, answer=answer)
        _warn(run, "validation", valid, limit=limit)
    for code, message in () if run.quiet else doubts(run, head):
        run.append_event(Warned(at=time.time(), code=code, message=message))
    collate = tasks.collator(head, tokenizer, base)
    if base.config.get_text_config().pad_token_id is None:
        base.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return Inputs(
        spec, placement, precision, head, fresh, tokenizer, collate, train_data, valid, limit
    )


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
    run: RunDir,
    inputs: Inputs,
    attached: Attached,
    stop: threading.Event,
    policy: dict[str, Any],
    *,
    resumes: bool,
) -> tuple[Any, Reporter]:
    def export_step(folder: Path, metrics: dict[str, float]) -> None:
        temporary = folder.with_name(folder.name + ".tmp")
        export(temporary, attached, inputs, metrics, step=step_of(folder))
        replace_folder(temporary, folder)

    best = None
    if inputs.spec.training.early_stopping is not None:
        best = Best(
            inputs.spec.training.early_stopping, run.path / "best", keep=attached.save_trainable
        )
    reporter = Reporter(
        run,
        stop,
        max_steps=inputs.spec.budget.max_steps,
        ends_at=inputs.placement.ends_at,
        out_of_patience=lambda: best is not None and best.out_of_patience,
        export=export_step,
        perturbation=lambda: trainer.perturbation,
    )
    trainer: Any = TRAINERS[inputs.head.learning](
        model=attached.model,
        attached=attached,
        best=best,
        sharpness=inputs.spec.evaluation.sharpness,
        args=training_arguments(
            inputs.spec,
            run,
            inputs.head,
            bf16=inputs.precision == "bf16",
            evaluate=inputs.valid is not None,
            resumes=resumes,
        ),
        train_dataset=inputs.train.dataset,
        eval_dataset=inputs.valid.dataset if inputs.valid else None,
        processing_class=inputs.tokenizer,
        data_collator=inputs.collate,
        callbacks=[*attached.callbacks(), *([best] if best else []), reporter],
        perturbation=inputs.spec.perturbation,
        bf16_base=inputs.precision == "bf16",
        total_steps=inputs.spec.total_steps,
        **tasks.trainer_options(inputs.head, inputs.tokenizer),
        **policy,
    )
    return trainer, reporter


def _attach(run: RunDir, inputs: Inputs, base: Any, resume: Path | None) -> Attached:
    collate = inputs.collate
    size = inputs.spec.training.micro_batch_size

    def batches() -> Iterator[dict[str, torch.Tensor]]:
        """The first rows of the file, in its order."""
        rows = inputs.train.dataset
        for start in range(0, min(len(rows), GRADIENT_BATCHES * size), size):
            yield collate([rows[index] for index in range(start, min(start + size, len(rows)))])

    source = run.source if run.source.exists() else None
    if source is not None and inputs.head.task == "classification":
        check_same(source, inputs.head.labels)
    return methods.attach(
        base,
        inputs.spec.peft,
        task_type=tasks.KINDS[inputs.head.learning].peft,
        total_steps=_total_steps(inputs),
        seed=inputs.spec.seed,
        batches=batches,
        loss=tasks.first_loss(inputs.head),
        fresh=inputs.fresh,
        checkpoint=resume,
        source=source,
    )


def _storage(spec: TrainSpec, precision: Precision) -> Precision:
    """Weights that are trained whole are kept in fp32: steps are too small for bf16 to hold."""
    whole = spec.peft.method == "full" or spec.task == "classification"
    return "fp32" if whole else precision


def _total_steps(inputs: Inputs) -> int:
    if inputs.spec.reinforcement is not None:
        return inputs.spec.total_steps  # however few prompts are left
    return planned_steps(inputs.spec.training, inputs.train.rows, None)


def _say_started(run: RunDir, inputs: Inputs, adapted: Any, *, resume: Path | None) -> None:
    sizes = [(p.numel(), p.requires_grad) for p in adapted.parameters()]
    run.append_event(
        Started(
            at=time.time(),
            total_steps=_total_steps(inputs),
            first_step=step_of(resume) + 1 if resume else 1,
            trainable_parameters=sum(size for size, trained in sizes if trained),
            total_parameters=sum(size for size, _ in sizes),
            train_rows=inputs.train.rows,
            device=torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            precision=inputs.precision,
        )
    )
