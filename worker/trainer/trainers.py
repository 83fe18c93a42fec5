"""The libraries' trainers with the perturbation mixed in, and exact checkpoints."""

from contextlib import AbstractContextManager, ExitStack, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from transformers import Seq2SeqTrainer, Trainer, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from app.jobs.spec import PerturbationSpec, SharpnessSpec, TrainSpec
from worker.optim.mgpo import Momentum
from worker.optim.sharpness import Sharpness, sharpness
from worker.rundir import CHECKPOINT, RunDir
from worker.trainer import distributed, policies, scores, versions
from worker.trainer.agent import AgentTrainer
from worker.trainer.best import Best
from worker.trainer.causal import UnpaddedTrainer
from worker.trainer.data import IGNORED
from worker.trainer.heads import Head, Learning
from worker.trainer.methods import Attached, own_loss
from worker.trainer.perturbations import Perturbation, build
from worker.trainer.policy import GradedTrainer
from worker.trainer.preference import PairTrainer
from worker.trainer.sharded import WholeSteps, ZeroOptimizer, deepspeed_config
from worker.trainer.tasks import KINDS

PERTURBATION_FILE = "perturbation.safetensors"
SCHEDULERS = {"constant": "constant_with_warmup"}  # where the Trainer's name is another
SHARPNESS_SEED = 0  # not the run's: runs of other seeds are measured alike


class PerturbationMixin:
    """Runs forward and backward at the perturbed weights; everything else sees the clean ones."""

    optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        *args: Any,
        attached: Attached,
        perturbation: PerturbationSpec,
        total_steps: int,
        best: Best | None,
        sharpness: SharpnessSpec | None,
        bf16_base: bool = False,
        **kwargs: Any,
    ) -> None:
        self.attached = attached
        self.best = best
        self.sharpness = sharpness
        self._asked = perturbation
        self._total_steps = total_steps
        self.perturbation: Perturbation | None = None
        self.bf16_base = bf16_base
        self._micro_step = ExitStack()
        super().__init__(*args, **kwargs)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        fresh = self.optimizer is None
        if fresh:
            kind, options = self.get_optimizer_cls_and_kwargs(self.args)  # type: ignore[attr-defined]  # of the Trainer
            self.optimizer = self.attached.optimizer(kind, options)
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)  # type: ignore[misc]  # of the Trainer
        if fresh:
            self.attached.follow(optimizer)
        if self.perturbation is None:
            steps, momentum = self._steps(optimizer)
            self.perturbation = build(
                self._asked,
                self.attached.model,
                steps,
                total_steps=self._total_steps,
                seed=self.args.seed,  # type: ignore[attr-defined]  # of the Trainer
                modules=self.attached.modules(),
                momentum=momentum,
            )
        return optimizer

    def _steps(
        self, optimizer: torch.optim.Optimizer
    ) -> tuple[torch.optim.Optimizer, Momentum | None]:
        """Return whose steps the perturbation follows, and where it finds the momentum.

        DeepSpeed steps inside the backward: there the weights are put back right before.
        """
        if not self.args.deepspeed:  # type: ignore[attr-defined]  # of the Trainer
            return optimizer, None
        optimizer.register_step_pre_hook(lambda *_: self._micro_step.close())
        if self.args.deepspeed["zero_optimization"]["stage"] == 0:  # type: ignore[attr-defined]  # of the Trainer
            return optimizer, None
        whole = WholeSteps(optimizer, lambda: cast(ZeroOptimizer, self.deepspeed.optimizer))  # type: ignore[attr-defined]  # of the Trainer
        return cast(torch.optim.Optimizer, whole), whole.momentum  # all that MGPO asks of one

    def autocast_smart_context_manager(self, *_: Any, **__: Any) -> AbstractContextManager[Any]:
        """Return autocast where DeepSpeed trains; elsewhere accelerate puts it around forward."""
        if not (self.args.deepspeed and self.bf16_base):  # type: ignore[attr-defined]  # of the Trainer
            return nullcontext()
        return torch.autocast(self.args.device.type, dtype=torch.bfloat16)  # type: ignore[attr-defined]  # of the Trainer

    def compute_loss(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        """Perturb while training; `training_step` takes it back after the backward."""
        if self.perturbation is not None and model.training:
            self._micro_step.enter_context(self.perturbation.perturbed())
        loss = super().compute_loss(model, *args, **kwargs)  # type: ignore[misc]  # of the Trainer
        penalty = self.attached.penalty() if model.training else None
        if penalty is None:
            return loss
        return loss + penalty / self.current_gradient_accumulation_steps  # type: ignore[attr-defined]  # of the Trainer

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        with self._micro_step:
            return super().training_step(*args, **kwargs)  # type: ignore[misc]  # of the Trainer

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """Evaluate at the clean weights, and measure around them when asked to."""
        output = super().evaluation_loop(dataloader, *args, **kwargs)  # type: ignore[misc]  # of the Trainer
        if self.sharpness is not None:
            found = self._sharpness_on(list(islice(dataloader, self.sharpness.batches)))
            output.metrics["eval_sharpness_worst"] = found.worst
            output.metrics["eval_sharpness_mean"] = found.mean
        return output

    def _sharpness_on(self, batches: list[Any]) -> Sharpness:
        assert self.sharpness is not None
        model = self.attached.model
        inputs = [self._prepare_inputs(batch) for batch in batches]  # type: ignore[attr-defined]  # of the Trainer

        def loss() -> torch.Tensor:
            return torch.stack([self.loss_on(model, each).float() for each in inputs]).mean()

        model.eval()
        return sharpness(
            [parameter for parameter in model.parameters() if parameter.requires_grad],
            loss,
            rho=self.sharpness.rho,
            ascent_steps=self.sharpness.ascent_steps,
            directions=self.sharpness.directions,
            seed=SHARPNESS_SEED,
        )

    def loss_on(self, model: Any, inputs: Any) -> torch.Tensor:
        """Return the mean loss on a batch, and note nothing of it."""
        return own_loss(model, inputs)

    def _save(self, output_dir: str | None = None, **_: Any) -> None:
        """Leave the weights to `Attached.save_state`: as they are, in no artifact's form."""
        assert output_dir is not None
        Path(output_dir).mkdir(parents=True, exist_ok=True)

    def _load_from_checkpoint(self, checkpoint: str, model: Any = None) -> None:
        self.attached.load_state(Path(checkpoint))

    def load_end(self, checkpoint: Path) -> None:
        """Become what the trainer was that left a checkpoint after its last step."""
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        # DeepSpeed prepares a model for training, or for stage 3; what is left is to evaluate.
        self.is_deepspeed_enabled = False
        if self.best is not None:
            self.best.load_state(checkpoint)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint(*args, **kwargs)  # type: ignore[misc]  # of the Trainer
        step = self.state.global_step
        folder = Path(self.args.output_dir) / f"{CHECKPOINT}{step}"  # type: ignore[attr-defined]  # of the Trainer
        if distributed.is_first():
            self.attached.save_state(folder)
            if self.best is not None:
                self.best.save_state(folder)
            if self.perturbation is not None:
                save_file(self.perturbation.state_dict(), folder / PERTURBATION_FILE)
            versions.write(folder)
        distributed.wait_for_all()  # each rank saves its own part; the Reporter says it is whole
        if distributed.is_first():
            RunDir(folder.parents[1]).remove_old_checkpoints()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]  # of the Trainer
        if checkpoint and self.best is not None:
            self.best.load_state(Path(checkpoint))
        if checkpoint and self.perturbation is not None:
            self.perturbation.load_state_dict(load_file(Path(checkpoint) / PERTURBATION_FILE))


class CausalTrainer(PerturbationMixin, UnpaddedTrainer):
    """Supervised fine-tuning of a causal language model."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write no card of TRL's: the adapter gets our own."""


class PreferenceTrainer(PerturbationMixin, PairTrainer):
    """Direct preference optimization of a causal language model."""

    def loss_on(self, model: Any, inputs: Any) -> torch.Tensor:
        return self.score(model, inputs).loss.mean()

    def load_end(self, checkpoint: Path) -> None:
        self.recall_reference(checkpoint)
        super().load_end(checkpoint)


class PolicyMixin(PerturbationMixin):
    """What both kinds of policies resume with: what they started from."""

    def load_end(self, checkpoint: Path) -> None:
        self.recall(checkpoint)  # type: ignore[attr-defined]  # of the PolicyTrainer
        super().load_end(checkpoint)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Tell no loss of an evaluation: that of rollouts by the policy itself says nothing."""
        output = super().evaluation_loop(*args, **kwargs)
        output.metrics.pop("eval_loss")
        return output


class PolicyByGrader(PolicyMixin, GradedTrainer):
    """Reinforcement of a causal language model by a grader."""


class PolicyInEnvironment(PolicyMixin, AgentTrainer):
    """Reinforcement of a causal language model in an environment."""


class ClassificationTrainer(PerturbationMixin, Trainer):  # type: ignore[misc]  # untyped
    """Fine-tuning of an encoder with a classifying head."""


class Text2TextTrainer(PerturbationMixin, Seq2SeqTrainer):  # type: ignore[misc]  # untyped
    """Fine-tuning of an encoder-decoder; few and repeated completions are scored as labels."""

    def __init__(self, *args: Any, label_tokens: list[torch.Tensor], **kwargs: Any) -> None:
        self.label_tokens = label_tokens
        super().__init__(*args, **kwargs)

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """Score each row once: the library counts again those that fill the last batch up."""
        self.gather_function = self.accelerator.gather_for_metrics
        output = super().evaluation_loop(dataloader, *args, **kwargs)
        if self.label_tokens:
            true, predicted = self._choose_labels(dataloader)
            found = scores.classification_scores(true, predicted)
            output.metrics.update({f"eval_{name}": value for name, value in found.items()})
        return output

    def _choose_labels(self, dataloader: Any) -> tuple[list[int], list[int]]:
        """Return each row's label and the one whose whole string is most likely."""
        model = self.accelerator.unwrap_model(self.model)
        model = model.get_base_model() if hasattr(model, "get_base_model") else model
        places = {tuple(tokens.tolist()): place for place, tokens in enumerate(self.label_tokens)}
        true: list[int] = []
        predicted: list[int] = []
        for batch in dataloader:
            inputs = self._prepare_inputs(batch)
            best = scores.label_log_likelihoods(model, inputs, self.label_tokens).argmax(dim=1)
            rows = [row[row != IGNORED].tolist() for row in inputs["labels"]]
            here = torch.tensor([places.get(tuple(row), -1) for row in rows], device=best.device)
            here, best = self.accelerator.gather_for_metrics((here, best))
            true += here.tolist()
            predicted += best.tolist()
        return true, predicted


TRAINERS: dict[Learning, type[PerturbationMixin]] = {
    "causal": CausalTrainer,
    "preference": PreferenceTrainer,
    "graded": PolicyByGrader,
    "agent": PolicyInEnvironment,
    "seq2seq": Text2TextTrainer,
    "classification": ClassificationTrainer,
}


def training_arguments(
    spec: TrainSpec, run: RunDir, head: Head, *, bf16: bool, evaluate: bool, resumes: bool
) -> TrainingArguments:
    """Return the spec in the Trainer's words."""
    asked = spec.training
    share = asked.batch_size // spec.resources.gpus
    sharded = deepspeed_config(spec.resources, asked)
    on_gpu = torch.cuda.is_available()
    kind = KINDS[head.learning]
    common = {
        "output_dir": str(run.checkpoints),
        "per_device_train_batch_size": asked.micro_batch_size,
        "per_device_eval_batch_size": asked.micro_batch_size,
        "gradient_accumulation_steps": share * spec.rollouts // asked.micro_batch_size,
        "num_train_epochs": asked.n_epochs,
        "max_steps": asked.max_steps or -1,
        "learning_rate": asked.learning_rate,
        "lr_scheduler_type": SCHEDULERS.get(asked.scheduler, asked.scheduler),
        "warmup_steps": asked.warmup_ratio,
        "weight_decay": asked.weight_decay,
        "max_grad_norm": asked.max_grad_norm,
        "optim": "adamw_torch",
        "seed": spec.seed,
        "data_seed": spec.seed,
        "bf16": bf16 and sharded is None,
        "deepspeed": sharded,
        "use_cpu": not on_gpu,  # without it accelerate sees no other ranks
        "ddp_find_unused_parameters": False,
        "ddp_broadcast_buffers": False,
        "gradient_checkpointing": asked.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "eval_strategy": "steps" if evaluate else "no",
        "eval_steps": asked.eval_steps if evaluate else None,
        "eval_on_start": evaluate and not resumes,  # what the base knows, to compare with
        "save_strategy": "steps",
        "save_steps": asked.checkpoint_steps,
        "save_total_limit": None,  # it would delete those that are being copied
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "logging_first_step": True,
        "include_num_input_tokens_seen": "non_padding",
        "dataloader_pin_memory": on_gpu,
        "report_to": "none",
        "disable_tqdm": True,
    }
    dpo = {} if spec.dpo is None else {"beta": spec.dpo.beta}
    return kind.arguments(**common | kind.own_arguments | dpo | policies.arguments(spec))
