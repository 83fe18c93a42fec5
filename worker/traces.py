"""Puts a run's steps into the trace of the request that asked for it: the run has no network."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from app import tracing
from app.jobs.spec import EvalDone, Started, StepDone, TrainEvent

STEPS_A_SPAN = 50


@dataclass
class StepSpans:
    """Sums up so many steps in a span, from the end of the one before to the end of the last."""

    _since: float | None = None
    _steps: list[StepDone] = field(default_factory=list)

    def take(self, said: Iterable[TrainEvent]) -> None:
        """Note what a run said."""
        for event in said:
            match event:
                case Started():
                    self._since = event.at
                case StepDone():
                    self._since = self._since or event.at
                    self._steps.append(event)
                    if len(self._steps) == STEPS_A_SPAN:
                        self.flush()
                case EvalDone():
                    self.flush()
                    self._evaluated(event)

    def flush(self) -> None:
        """Send what is left over."""
        if not self._steps or self._since is None:
            return
        first, last = self._steps[0], self._steps[-1]
        told: dict[str, tracing.Value] = {
            "basin.first_step": first.step,
            "basin.last_step": last.step,
        }
        if "train_loss" in last.metrics:
            told["basin.train_loss"] = last.metrics["train_loss"]
        tracing.past_span("training steps", begin=self._since, end=last.at, attributes=told)
        self._since = last.at
        self._steps.clear()

    def _evaluated(self, event: EvalDone) -> None:
        told = {"basin.step": event.step} | {f"basin.{k}": v for k, v in event.metrics.items()}
        tracing.past_span(
            "evaluation", begin=self._since or event.at, end=event.at, attributes=told
        )
        self._since = event.at
