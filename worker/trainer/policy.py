"""Group relative policy optimization (GRPO, arXiv 2402.03300): TRL's trainer, made to resume.

Its reference is the model that the run starts from, whatever the method made of the base, and its
rollouts are what the perturbation is not: sampled, and scored for the ratio, at the clean weights.
"""

# Legend: B rollouts, those of one group beside each other; G rollouts of a group.

import inspect
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Sampler
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from app.errors import InvalidRequest
from app.graders.schemas import Grader
from app.graders.service import grade
from app.jobs.spec import ReinforcementSpec, RolloutSampled, Turn, Warned
from worker.rundir import CHECKPOINT, step_of
from worker.trainer import distributed
from worker.trainer.faults import RunError
from worker.trainer.methods import trainable

REFERENCE_FILE, ROLLOUTS_FILE = "reference.safetensors", "rollouts.safetensors"
SHOWN_STEPS = 50  # of a run, about, of which a group of rollouts is kept to look at
SHOWN_CHARACTERS = (4_000, 500, 50)  # of a text in them: as many as leave one a short line
SHOWN_BYTES = 1 << 16  # of one that is shown
SHOWN_OF_A_GROUP = 16

Tell = Callable[[RolloutSampled | Warned], None]


class StartingPoint:
    """The policy with the weights that it started from, for as long as a call takes."""

    def __init__(self, model: Any, start: Mapping[str, Tensor]) -> None:
        self._model = model
        self._start = dict(start)

    def __call__(self, **inputs: Any) -> Any:
        with self._put_back():
            return self._model(**inputs)

    @contextmanager
    def _put_back(self) -> Iterator[None]:
        trained = [(each, name) for name, each in self._model.named_parameters()]
        trained = [(each, name) for each, name in trained if name in self._start]
        now = [each.data for each, _ in trained]
        for each, name in trained:
            each.data = self._start[name]
        try:
            yield
        finally:
            for (each, _), data in zip(trained, now, strict=True):
                each.data = data

    def weights(self) -> dict[str, Tensor]:
        return self._start


def positioned(model: Any) -> None:
    """Have the model count the positions of a padded row's own tokens, wherever the padding is.

    TRL pads prompts on the left and tells no positions; those that are learned, as GPT-2's, would
    be counted from the first padding on.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if "position_ids" not in inspect.signature(base.forward).parameters:
        return

    def count(_: Any, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        mask = given.get("attention_mask")
        known = given.get("position_ids") is not None or given.get("past_key_values") is not None
        if mask is not None and mask.dim() == 2 and not known:
            given = given | {"position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0)}
        return args, given

    base.register_forward_pre_hook(count, with_kwargs=True)


class EpochSampler(RepeatSampler):  # type: ignore[misc]  # TRL is untyped
    """TRL's order of prompts, which an epoch's number alone decides: so that a run can resume."""

    def set_epoch(self, epoch: int) -> None:
        self.generator.manual_seed(self.seed + epoch)


class PolicyTrainer(GRPOTrainer):  # type: ignore[misc]  # TRL is untyped
    """Learns from the rewards of answers that it samples."""

    def __init__(
        self, *args: Any, asked: ReinforcementSpec, tell: Tell, data_collator: Any, **kwargs: Any
    ) -> None:
        if kwargs["processing_class"].eos_token_id is None:
            raise RunError(
                "no_end_of_sequence",
                "The base model's tokenizer has no end-of-sequence token, so an answer would never"
                " end: name one in its tokenizer_config.json.",
                param="model",
            )
        self.asked = asked
        self._tell = tell
        self._of_rollouts: dict[str, dict[str, list[float]]] = defaultdict(dict)
        super().__init__(*args, reward_funcs=[self.rewards], **kwargs)
        positioned(self.model)
        # Told to TRL, it would make a second adapter of the first one, which the artifact carries.
        self.beta = asked.kl

    def rewards(
        self, prompts: Sequence[str], completions: Sequence[str], **rows: Any
    ) -> list[float | None]:
        """Return a reward for each answer, None where there is none to be had."""
        raise NotImplementedError

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write no card of TRL's: the adapter gets our own."""

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:
        """Know what the run starts from first: as the checkpoint has it, else as it is."""
        if resume_from_checkpoint is not None:
            self.recall(Path(resume_from_checkpoint))
        elif self.beta:
            now = {name: weight.clone() for name, weight in trainable(self.model).items()}
            self.ref_model = StartingPoint(self.model, now)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def recall(self, checkpoint: Path) -> None:
        """Take up the reference, and rollouts that are not used up."""
        device = str(self.accelerator.device)
        if self.beta:
            start = load_file(checkpoint / REFERENCE_FILE, device=device)
            self.ref_model = StartingPoint(self.model, start)
        self._step = step_of(checkpoint) * self.args.gradient_accumulation_steps
        if (checkpoint / ROLLOUTS_FILE).exists():
            batches: dict[int, dict[str, Tensor]] = defaultdict(dict)
            for key, tensor in load_file(checkpoint / ROLLOUTS_FILE, device=device).items():
                place, _, name = key.partition(".")
                batches[int(place)][name] = tensor
            self._buffered_inputs = [batches[place] for place in sorted(batches)]

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint(*args, **kwargs)
        if not distributed.is_first():
            return
        folder = Path(self.args.output_dir) / f"{CHECKPOINT}{self.state.global_step}"
        if self.ref_model is not None:
            save_file(self.ref_model.weights(), folder / REFERENCE_FILE)
        if self._step % (self.args.steps_per_generation * self.num_iterations):
            tensors = {
                f"{place}.{name}": tensor.clone()  # some are one tensor for all batches
                for place, batch in enumerate(self._buffered_inputs)
                for name, tensor in batch.items()
            }
            save_file(tensors, folder / ROLLOUTS_FILE)

    def _get_train_sampler(self, dataset: Any = None) -> Sampler[int]:
        sampler: Sampler[int] = EpochSampler(
            data_source=self.train_dataset if dataset is None else dataset,
            mini_repeat_count=self.num_generations,
            batch_size=self.args.generation_batch_size // self.num_generations,
            repeat_count=self.num_iterations * self.args.steps_per_generation,
            shuffle=self.shuffle_dataset,
            seed=self.args.seed,
        )
        return sampler

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """Tokenize prompts that the template has written already, special tokens and all."""
        ids = self.processing_class(prompts, add_special_tokens=False)["input_ids"]
        return ids, None, {}

    def prediction_step(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
        """Sample and judge: an evaluation compares nothing, so that there is no loss to tell."""
        beta, self.beta = self.beta, 0.0  # nor a reference
        try:
            self._prepare_inputs(inputs)
        finally:
            self.beta = beta
        return torch.zeros((), device=self.accelerator.device), None, None

    def note(self, **columns: Sequence[float]) -> None:
        """Note something of each rollout; its mean is told with the next step or evaluation."""
        noted = self._of_rollouts[self._mode]
        for name, values in columns.items():
            noted.setdefault(name, []).extend(values)

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        prefix = "" if self.model.training else "eval_"
        noted = self._of_rollouts.pop(self._mode, {})
        logs |= {
            f"{prefix}{name}": sum(values) / len(values) for name, values in noted.items() if values
        }
        super().log(logs, start_time)

    @property
    def shows(self) -> bool:
        """Whether the rollouts of the step that is computed now are kept to look at."""
        every = math.ceil(self.state.max_steps / SHOWN_STEPS)
        # As many steps are between rollouts as there are updates on them.
        return self._mode == "train" and self.state.global_step % every < self.num_iterations

    def show(self, index: int, *, turns: Sequence[Turn], **told: Any) -> None:
        """Tell of a rollout of the first group, its texts cut to what a line may hold."""
        step = self.state.global_step + 1
        for most in SHOWN_CHARACTERS:
            short = tuple(_cut(turn, most) for turn in turns)
            event = RolloutSampled(at=time.time(), step=step, index=index, turns=short, **told)
            if len(event.model_dump_json().encode()) <= SHOWN_BYTES:
                break
        self._tell(event)


def _cut(turn: Turn, most: int) -> Turn:
    texts = {name: getattr(turn, name) for name in ("observation", "action")}
    cut = {name: f"{text[: most - 1]}\u2026" for name, text in texts.items() if len(text) > most}
    return turn.model_copy(update=cut) if cut else turn


class GradedTrainer(PolicyTrainer):
    """Learns from what a grader says of single answers."""

    def __init__(self, *args: Any, grader: Grader, **kwargs: Any) -> None:
        self.grader = grader
        self._told_of_ungraded = False
        super().__init__(*args, **kwargs)

    def rewards(
        self, prompts: Sequence[str], completions: Sequence[str], **rows: Any
    ) -> list[float | None]:
        found = [
            self._reward(answer, json.loads(row))
            for answer, row in zip(completions, rows["item"], strict=True)
        ]
        lengths = [len(ids) for ids in rows["completion_ids"]]
        graded = [reward for reward in found if reward is not None]
        self.note(reward_mean=graded, completion_length=lengths)
        return found

    def _reward(self, answer: str, row: Any) -> float | None:
        try:
            return grade(self.grader, sample=answer, item=row).reward
        except InvalidRequest as error:
            if not self._told_of_ungraded:
                message = f"An answer cannot be graded, and nothing is learned from it: {error}"
                self._tell(Warned(at=time.time(), code="not_graded", message=message))
                self._told_of_ungraded = True
            return None

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if self.shows:
            self._show_group(output["advantages"])
        return output

    def _show_group(self, advantages: Tensor) -> None:
        """Show the answers to the first prompt, of which TRL keeps the last batch."""
        (rewards,) = self._logs["rewards"].values()
        columns = (self._logs["prompt"], self._logs["completion"], rewards, advantages.tolist())
        group = islice(zip(*columns, strict=True), min(self.num_generations, SHOWN_OF_A_GROUP))
        for index, (prompt, answer, reward, advantage) in enumerate(group):
            turn = Turn(
                observation=prompt,
                action=answer,
                reward=reward,
                valid=True,
                episode_advantage=advantage,
                step_advantage=None,
                returned=None,
                state=None,
                shared=None,
            )
            self.show(index, reward=reward, turns=[turn], success=None, failure=None)
