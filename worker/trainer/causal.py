"""TRL's trainer on batches without padding, where the model is known to bear them."""

from collections.abc import Callable
from typing import Any

import torch
from trl import SFTTrainer

from worker.trainer import unpadded


class UnpaddedTrainer(SFTTrainer):  # type: ignore[misc]  # TRL is untyped
    """Trains without padding; evaluates on padded batches, as TRL does.

    The loss of a step is the mean over all its answers' tokens, however it is cut into
    micro-batches and shared among ranks. Nothing here waits for the device within a step.
    """

    data_collator: Callable[..., Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        model = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        self.unpadded = unpadded.fits(model)
        self._right: list[tuple[torch.Tensor, int]] = []  # and scored tokens, by micro-batch
        if self.unpadded:
            unpadded.score_answers(model)

    def get_train_dataloader(self) -> Any:
        """Return the rows in the order of the seed, in batches of this trainer's kind."""
        if not self.unpadded:
            return super().get_train_dataloader()
        padding, self.data_collator = self.data_collator, unpadded.collate
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = padding

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        if not self.unpadded:
            return super().training_step(*args, **kwargs)
        with unpadded.each_row_alone(self.model):
            return super().training_step(*args, **kwargs)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        if "scored" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        scores = model(**inputs)
        scored = inputs["scored"].numel()
        self._right.append((scores.right, scored))
        if num_items_in_batch is None:
            return scores.cost / scored
        loss = scores.cost / num_items_in_batch
        if self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # whose gradients are averaged
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the share of answer tokens that the step got right."""
        if self._right:
            right = torch.stack([found for found, _ in self._right]).sum()
            counts = torch.stack([right, right.new_tensor(sum(all_ for _, all_ in self._right))])
            found, scored = self.accelerator.gather(counts).view(-1, 2).sum(0).tolist()
            self._metrics["train"]["mean_token_accuracy"].append(found / scored)
            self._right.clear()
        super().log(logs, start_time)

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        """Count tokens on the host: without padding there are as many as the batch is long."""
        if "scored" not in inputs:
            super()._track_num_input_tokens(inputs)
        elif self.accelerator.num_processes == 1:
            self.state.num_input_tokens_seen += sum(inputs["lengths"])
        else:
            here = torch.tensor(sum(inputs["lengths"]), device=self.args.device)
            self.state.num_input_tokens_seen += int(self.accelerator.gather(here).sum())
