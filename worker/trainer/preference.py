"""Direct preference optimization (Rafailov et al. 2023): its loss, and its trainer.

The reference is the model that the run starts from, whatever the method made of the base: its
log-probabilities are measured once, before the first step, and travel with the checkpoints.
"""

# Legend: P pairs; a batch holds 2P rows, the preferred answers first; T tokens.

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from torch.utils.data import DataLoader
from trl import DPOTrainer

from worker.rundir import CHECKPOINT
from worker.trainer import distributed
from worker.trainer.data import IGNORED
from worker.trainer.pairs import REFERENCE

REFERENCE_FILE = "reference.safetensors"
MEASURED = ("loss", "rewards_chosen", "rewards_rejected", "rewards_margin", "rewards_accuracy")


@dataclass(frozen=True)
class Scored:
    """What a pair is worth: its loss and the rewards of its two answers, each of shape (P,)."""

    loss: Tensor
    chosen: Tensor
    rejected: Tensor

    def columns(self) -> Tensor:
        """Return what is told of each pair, shape (P, 5), by the names of MEASURED.

        Where both rewards are the same, as all are at the start, it is a toss-up: half right.
        """
        margin = self.chosen - self.rejected
        right = (margin.sign() + 1) / 2
        found = [self.loss, self.chosen, self.rejected, margin, right]
        return torch.stack([each.detach().float() for each in found], dim=1)


def score(logps_2P: Tensor, reference_2P: Tensor, beta: float) -> Scored:
    """Return the loss −log σ(r_w − r_l) with the rewards r = β (log π − log π_ref) (DPO, eq. 7).

    Args:
        logps_2P: log π of each whole answer: the preferred ones, then the others.
        reference_2P: the same of the reference.
    """
    chosen, rejected = (beta * (logps_2P - reference_2P)).chunk(2)
    return Scored(-logsigmoid(chosen - rejected), chosen, rejected)


class NoModel(nn.Module):
    """Stands where TRL looks for a reference model, which it would otherwise make a second of."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config


class PairTrainer(DPOTrainer):  # type: ignore[misc]  # TRL is untyped
    """TRL's trainer on rows that are encoded already, with what it measures counted by pairs.

    TRL's own average counts a last, smaller batch like a whole one and a tie as wrong.
    """

    loss_is_scaled_for_ga = True  # by the pairs of the whole step
    train_dataset: Dataset
    eval_dataset: Dataset | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, ref_model=NoModel(kwargs["model"].config), **kwargs)
        self.ref_model = None
        self.reference: dict[str, Tensor] = {}
        self._measured: list[Tensor] = []

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write no card of TRL's: the adapter gets our own."""

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:
        """Know the reference first: as the checkpoint has it, else from the weights as they are."""
        if resume_from_checkpoint is None:
            self.learn_reference()
        else:
            self.recall_reference(Path(resume_from_checkpoint))
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def learn_reference(self) -> None:
        """Measure both files with the weights that the run starts from."""
        files = {"train": self.train_dataset, "valid": self.eval_dataset}
        self._give({name: self._measure(rows) for name, rows in files.items() if rows is not None})

    def recall_reference(self, checkpoint: Path) -> None:
        self._give(load_file(checkpoint / REFERENCE_FILE))

    def _give(self, reference: dict[str, Tensor]) -> None:
        self.reference = reference
        self.train_dataset = _with_reference(self.train_dataset, reference["train"])
        if self.eval_dataset is not None:
            self.eval_dataset = _with_reference(self.eval_dataset, reference["valid"])

    @torch.no_grad()
    def _measure(self, rows: Dataset) -> Tensor:
        """Return log π of both answers of every row, shape (rows, 2)."""
        size = self.args.per_device_eval_batch_size
        loader = self.accelerator.prepare_data_loader(
            DataLoader(rows, batch_size=size, collate_fn=self.data_collator)
        )
        self.model.eval()
        found = []
        for batch in loader:
            with self.accelerator.autocast(), self.compute_loss_context_manager():
                logps_2P = self._log_probabilities(self.model, batch)
            both_P2 = torch.stack(logps_2P.chunk(2), dim=1)
            found.append(self.accelerator.gather_for_metrics(both_P2).cpu())
        return torch.cat(found)

    def _log_probabilities(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return log π of each answer, shape (2P,): the sum over its tokens, in fp32."""
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, IGNORED)
        found = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            labels=labels,
            use_cache=False,
            fused_lm_head=True,
        )
        logps: Tensor = found.log_probs.float().sum(dim=1)
        return logps

    def score(self, model: Any, inputs: Mapping[str, Tensor]) -> Scored:
        """Return what each pair of a batch is worth to the model."""
        return score(self._log_probabilities(model, inputs), inputs[REFERENCE], self.beta)

    def compute_loss(
        self,
        model: Any,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: int | None = None,
    ) -> Tensor:
        """Return the loss over all pairs of an optimizer step, however it is cut."""
        assert not return_outputs, "TRL makes no outputs beside the loss"
        scored = self.score(model, inputs)
        # In training the end of the file is near while its last batches are still to come.
        gather = self.accelerator.gather if model.training else self.accelerator.gather_for_metrics
        self._measured.append(gather(scored.columns()))
        return scored.loss.sum() / (num_items_in_batch or len(scored.loss))

    def _get_num_items_in_batch(self, batches: Sequence[Mapping[str, Tensor]], _: Any) -> int:
        return sum(len(batch["input_ids"]) // 2 for batch in batches)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= {name: value for name, value in self._means().items() if name != "loss"}
        super().log(logs, start_time)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        output = super().evaluation_loop(*args, **kwargs)
        output.metrics.update({f"eval_{name}": mean for name, mean in self._means().items()})
        return output

    def _means(self) -> dict[str, float]:
        """Return the means over the pairs since the last call."""
        means = torch.cat(self._measured).mean(dim=0)
        self._measured.clear()
        return dict(zip(MEASURED, means.tolist(), strict=True))

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint(*args, **kwargs)
        if distributed.is_first():
            folder = Path(self.args.output_dir) / f"{CHECKPOINT}{self.state.global_step}"
            save_file(self.reference, folder / REFERENCE_FILE)


def _with_reference(rows: Dataset, reference: Tensor) -> Dataset:
    return rows.add_column(REFERENCE, reference.tolist())
