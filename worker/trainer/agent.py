"""Policies that act: rollouts in an environment, learned from by GRPO or GiGPO (2505.10978)."""

# Legend: B rollouts, those of one group beside each other; T tokens after the prompt; S actions of
# all rollouts.

import json
import time
import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from app.jobs.spec import ReinforcementSpec, Turn, Warned
from worker.trainer.advantages import Advantages, group_in_group
from worker.trainer.episodes import Arena, Episode, play
from worker.trainer.faults import RunError
from worker.trainer.policy import SHOWN_OF_A_GROUP, PolicyTrainer
from worker.trainer.prompts import Script
from worker.trainer.sampling import Sampler


class AgentTrainer(PolicyTrainer):
    """Learns from episodes that it plays.

    TRL's own advantages stand for a whole sequence. Here each token has that of its action: the
    loss takes (B, T) as it takes (B,).
    """

    def __init__(
        self,
        *args: Any,
        arena: Arena,
        instructions: str,
        max_length: int,
        **kwargs: Any,
    ) -> None:
        self.arena = arena
        self.max_length = max_length
        self._played: list[Episode] = []
        self._has_played = self._told_of_broken = False
        with warnings.catch_warnings():
            # That it may change is why TRL's version is bounded.
            warnings.filterwarnings("ignore", message=".*rollout_func.*experimental")
            super().__init__(*args, rollout_func=self._roll_out, **kwargs)
        self.script = Script(self._tokenizer, instructions, self.eos_token_ids)

    def _roll_out(self, prompts: Sequence[str], _: Any) -> dict[str, Any]:
        """Play an episode for each prompt, which says what to begin."""
        began = time.perf_counter()
        environment = self.asked.environment
        assert environment is not None
        self._played = play(
            self.arena,
            [json.loads(prompt) for prompt in prompts],
            self.script,
            self._sampler(),
            max_turns=environment.max_turns,
            room=self.max_length - self.asked.max_completion_tokens,
        )
        self._metrics[self._mode]["rollout_seconds"].append(time.perf_counter() - began)
        self._note_played()
        self._warn_of_failures()
        nothing = [self._tokenizer.eos_token_id]  # TRL takes no empty sequence
        return {
            "prompt_ids": [e.prompt if e.actions else e.prompt[:1] for e in self._played],
            "completion_ids": [episode.ids or nothing for episode in self._played],
            "logprobs": None,
            "env_mask": [_learned(episode) for episode in self._played],
        }

    def recall(self, checkpoint: Path) -> None:
        super().recall(checkpoint)
        self._has_played = True

    def _sampler(self) -> Sampler:
        return Sampler(
            self.accelerator.unwrap_model(self.model),
            temperature=self.asked.temperature,
            max_tokens=self.asked.max_completion_tokens,
            ends=self.eos_token_ids,
            autocast=self.accelerator.autocast,
        )

    def _note_played(self) -> None:
        whole = [episode for episode in self._played if episode.failure is None]
        actions = [action for episode in self._played for action in episode.actions]
        self.note(
            reward_mean=[episode.reward for episode in whole],
            success_rate=[float(episode.success) for episode in whole],
            episode_turns=[len(episode.actions) for episode in whole],
            completion_length=[episode.length for episode in self._played],
            failed_episodes=[float(episode.failure is not None) for episode in self._played],
            invalid_actions=[float(not action.valid) for action in actions],
        )

    def _warn_of_failures(self) -> None:
        """Tell once that an episode was broken off; end a run in which none ever was not.

        Raises:
            RunError: none of the first batch could be played: its environment broke all off, or no
                action fits after what it says first.
        """
        broken = [episode for episode in self._played if episode.failure is not None]
        self._has_played = self._has_played or len(broken) < len(self._played)
        if not self._has_played and self._mode == "train":
            if all(episode.too_long for episode in broken):
                raise RunError(
                    "context_too_short",
                    f"No episode leaves room for an action: {broken[0].failure}. Raise"
                    " training.max_length, as far as the model's context goes, or lower"
                    " max_completion_tokens.",
                    param="training.max_length",
                )
            raise RunError(
                "environment_failed",
                f"The environment broke off every episode, the first because: {broken[0].failure}",
                param="method.reinforcement.environment",
            )
        if broken and not self._told_of_broken:
            message = f"An episode was broken off; nothing is learned from it: {broken[0].failure}"
            self._tell(Warned(at=time.time(), code="episode_failed", message=message))
            self._told_of_broken = True

    def rewards(
        self, prompts: Sequence[str], completions: Sequence[str], **rows: Any
    ) -> list[float | None]:
        return [None if each.failure is not None else each.reward for each in self._played]

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        size = self.num_generations if self._mode == "train" else 1
        began = time.perf_counter()
        found = advantages(self._played, size, self.asked)
        total = found.total(**weights(self.asked)) if found is not None else torch.zeros(0)
        spread = spread_out(total, self._played, output["completion_ids"].shape[1])
        output["advantages"] = spread.to(output["advantages"])
        self._metrics[self._mode]["advantage_seconds"].append(time.perf_counter() - began)
        if found is not None:
            self.note(shared_states=(found.shared > 1).double().tolist())
            if self.shows:
                self._show_group(self._played[: min(size, SHOWN_OF_A_GROUP)], found)
        return output

    def _show_group(self, episodes: Sequence[Episode], found: Advantages) -> None:
        steps = self.asked.algorithm == "gigpo"
        place = 0
        for index, episode in enumerate(episodes):
            turns = []
            for action in episode.actions:
                turns.append(
                    Turn(
                        observation=action.observation,
                        action=action.text,
                        reward=action.reward,
                        valid=action.valid,
                        episode_advantage=float(found.episode[place]),
                        step_advantage=float(found.step[place]) if steps else None,
                        returned=float(found.returned[place]) if steps else None,
                        state=action.state,
                        shared=int(found.shared[place]),
                    )
                )
                place += 1
            told = {"success": episode.success, "failure": episode.failure}
            self.show(index, turns=turns, reward=episode.reward, **told)


def _learned(episode: Episode) -> list[int]:
    """Return 1 for each token that is learned: those of actions, unless it was broken off."""
    whole = episode.failure is None
    return [int(owner >= 0 and whole) for owner in episode.owners] or [0]


def weights(asked: ReinforcementSpec) -> dict[str, float]:
    """Return the weights of both parts; without that of steps it is GRPO."""
    if asked.algorithm == "grpo":
        return {"episode_weight": 1.0, "step_weight": 0.0}
    assert asked.episode_weight is not None and asked.step_weight is not None
    return {"episode_weight": asked.episode_weight, "step_weight": asked.step_weight}


def advantages(
    episodes: Sequence[Episode], size: int, asked: ReinforcementSpec
) -> Advantages | None:
    """Return the advantages of all actions, in order; None if there are none.

    An episode that its environment broke off is compared with no other, nor with itself.
    """
    states: dict[object, int] = defaultdict(lambda: len(states))
    rewards: list[float] = []
    owners: list[tuple[int, int, int]] = []
    acted = [(place, episode) for place, episode in enumerate(episodes) if episode.actions]
    for number, (place, episode) in enumerate(acted):
        group = place // size if episode.failure is None else len(episodes) + place
        for action in episode.actions:
            rewards.append(action.reward)
            state = action.state if episode.failure is None else (number, len(rewards))
            owners.append((number, group, states[state]))
    if not rewards:
        return None
    of_episode, of_group, of_state = torch.tensor(owners).T
    return group_in_group(
        torch.tensor(rewards, dtype=torch.float64),
        of_episode,
        of_group,
        of_state,
        discount=1.0 if asked.step_discount is None else asked.step_discount,
        normalization=asked.normalization,
    )


def spread_out(total_S: Tensor, episodes: Sequence[Episode], width: int) -> Tensor:
    """Return each action's advantage at each of its tokens, 0 elsewhere, shape (B, T)."""
    spread_BT = torch.zeros(len(episodes), width, dtype=torch.float64)
    first = 0
    for row, episode in zip(spread_BT, episodes, strict=True):
        owners_T = torch.tensor(episode.owners, dtype=torch.long)
        own = owners_T >= 0
        row[: len(owners_T)][own] = total_S.double()[first + owners_T[own]]
        first += len(episode.actions)
    return spread_BT
