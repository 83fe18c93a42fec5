"""TRL's trainer with the perturbation mixed in, and checkpoints that resume bit for bit."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import SFTConfig, SFTTrainer

from app.jobs.spec import PerturbationSpec, TrainSpec
from worker.rundir import RunDir
from worker.trainer.perturbations import Perturbation, build

PERTURBATION_FILE = "perturbation.safetensors"
COMPLETE = "complete"  # written last: a checkpoint without it was cut short


class PerturbationMixin:
    """Runs forward and backward at the perturbed weights; everything else sees the clean ones."""

    def __init__(
        self, *args: Any, perturbation: PerturbationSpec, total_steps: int, **kwargs: Any
    ) -> None:
        self._asked = perturbation
        self._total_steps = total_steps
        self.perturbation: Perturbation | None = None
        self._micro_step = ExitStack()
        super().__init__(*args, **kwargs)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)  # type: ignore[misc]  # of the Trainer
        if self.perturbation is None:
            self.perturbation = build(
                self._asked,
                self.model,  # type: ignore[attr-defined]  # of the Trainer
                optimizer,
                total_steps=self._total_steps,
                seed=self.args.seed,  # type: ignore[attr-defined]  # of the Trainer
            )
        return optimizer

    def compute_loss(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        """Perturb while training; `training_step` takes it back after the backward."""
        if self.perturbation is not None and model.training:
            self._micro_step.enter_context(self.perturbation.perturbed())
        return super().compute_loss(model, *args, **kwargs)  # type: ignore[misc]  # of the Trainer

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        with self._micro_step:
            return super().training_step(*args, **kwargs)  # type: ignore[misc]  # of the Trainer

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint(*args, **kwargs)  # type: ignore[misc]  # of the Trainer
        step = self.state.global_step  # type: ignore[attr-defined]  # of the Trainer
        folder = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{step}"  # type: ignore[attr-defined]  # of the Trainer
        if self.perturbation is not None:
            save_file(self.perturbation.state_dict(), folder / PERTURBATION_FILE)
        (folder / COMPLETE).touch()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]  # of the Trainer
        if checkpoint and self.perturbation is not None:
            self.perturbation.load_state_dict(load_file(Path(checkpoint) / PERTURBATION_FILE))


class CausalTrainer(PerturbationMixin, SFTTrainer):  # type: ignore[misc]  # TRL is untyped
    """Supervised fine-tuning of a causal language model."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write no card of TRL's: the adapter gets our own."""


def training_arguments(
    spec: TrainSpec, run: RunDir, *, bf16: bool, evaluate: bool, resumes: bool
) -> SFTConfig:
    """Return the spec in the Trainer's words."""
    asked = spec.training
    return SFTConfig(
        output_dir=str(run.checkpoints),
        per_device_train_batch_size=asked.micro_batch_size,
        per_device_eval_batch_size=asked.micro_batch_size,
        gradient_accumulation_steps=asked.batch_size // asked.micro_batch_size,
        num_train_epochs=asked.n_epochs,
        max_steps=asked.max_steps or -1,
        learning_rate=asked.learning_rate,
        lr_scheduler_type=asked.scheduler
        if asked.scheduler != "constant"
        else "constant_with_warmup",
        warmup_steps=asked.warmup_ratio,
        weight_decay=asked.weight_decay,
        max_grad_norm=asked.max_grad_norm,
        optim="adamw_torch",
        seed=spec.seed,
        data_seed=spec.seed,
        bf16=bf16,
        gradient_checkpointing=asked.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        eval_strategy="steps" if evaluate else "no",
        eval_steps=asked.eval_steps if evaluate else None,
        eval_on_start=evaluate and not resumes,  # what the base knows, to compare with
        save_strategy="steps",
        save_steps=asked.checkpoint_steps,
        save_total_limit=2,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        logging_first_step=True,
        include_num_input_tokens_seen="non_padding",
        prediction_loss_only=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        report_to="none",
        disable_tqdm=True,
    )


def latest_checkpoint(run: RunDir) -> Path | None:
    """Return the newest checkpoint that is complete."""
    complete = run.checkpoints.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{COMPLETE}")
    return max((found.parent for found in complete), key=_step_of, default=None)


def _step_of(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])
