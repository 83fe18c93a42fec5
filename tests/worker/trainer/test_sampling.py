"""Dialogues that grow are gone on with as if each were read alone, and from its beginning."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
)

from worker.trainer.sampling import Sampler

GREEDY = 1e-6  # a temperature at which the likeliest token is drawn
END = 7


@pytest.fixture(scope="module", params=["llama", "mistral", "gpt2"])
def model(request: pytest.FixtureRequest, models_dir: Path) -> Any:
    torch.manual_seed(0)
    if request.param == "llama":
        return AutoModelForCausalLM.from_pretrained(models_dir / "tiny-llama").double()
    if request.param == "gpt2":  # positions are learned
        shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "bos_token_id": 1, "eos_token_id": 2}
        return GPT2LMHeadModel(GPT2Config(vocab_size=260, n_positions=256, **shape)).double().eval()
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "sliding_window": 8}
    return MistralForCausalLM(MistralConfig(vocab_size=260, **shape, **heads)).double().eval()


def sampler(model: Any, *, temperature: float = GREEDY, max_tokens: int = 4) -> Sampler:
    return Sampler(
        model, temperature=temperature, max_tokens=max_tokens, ends=[END], autocast=nullcontext
    )


def alone(model: Any, context: list[int], count: int) -> list[int]:
    """The likeliest tokens after a context that is read whole each time."""
    ids = list(context)
    with torch.no_grad():
        while len(ids) < len(context) + count and ids[-1] != END:
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(context) :]


def test_dialogues_of_other_lengths_do_not_disturb_each_other(model: Any):
    contexts = {0: [1, 50, 60], 1: [1, *range(100, 140)], 5: [1]}

    written = sampler(model)(contexts)

    assert written == {place: alone(model, ids, 4) for place, ids in contexts.items()}


def test_a_dialogue_goes_on_from_what_was_read(model: Any):
    sample = sampler(model)
    contexts = {0: [1, 50, 60], 1: [1, *range(100, 140)], 5: [1]}
    heard = [{0: [70] * 9, 1: [71], 5: [72, 73]}, {0: [80], 1: [81, 82, 83], 5: [84]}]

    for more in heard:
        for place, tokens in sample(contexts).items():
            contexts[place] = contexts[place] + tokens + more[place]
    written = sample(contexts)

    assert written == {place: alone(model, ids, 4) for place, ids in contexts.items()}


def test_a_dialogue_that_is_over_leaves_the_others_as_they_are(model: Any):
    sample = sampler(model)
    contexts = {0: [1, 50, 60], 1: [1, 90], 2: [1, 100, 101, 102]}
    for place, tokens in sample(contexts).items():
        contexts[place] = contexts[place] + tokens + [33]
    del contexts[1]
    for place, tokens in sample(contexts).items():
        contexts[place] = contexts[place] + tokens + [34, 35]
    del contexts[0]

    written = sample(contexts)

    assert written == {2: alone(model, contexts[2], 4)}


def test_a_token_that_ends_an_answer_is_the_last_one(model: Any):
    torch.manual_seed(1)
    contexts = {place: [1, place + 20] for place in range(64)}

    written = sampler(model, temperature=2.0, max_tokens=40)(contexts)

    ended = [tokens for tokens in written.values() if END in tokens]
    assert ended and all(tokens.index(END) == len(tokens) - 1 for tokens in ended)
    assert all(len(tokens) == 40 for tokens in written.values() if END not in tokens)


def test_tokens_are_drawn_as_often_as_the_temperature_has_it(model: Any):
    torch.manual_seed(2)
    contexts = {place: [1, 50] for place in range(4000)}

    written = sampler(model, temperature=0.7, max_tokens=1)(contexts)

    with torch.no_grad():
        expected = torch.softmax(model(torch.tensor([[1, 50]])).logits[0, -1].float() / 0.7, dim=-1)
    drawn = torch.tensor([tokens[0] for tokens in written.values()]).bincount(
        minlength=len(expected)
    )
    assert torch.allclose(drawn / 4000, expected, atol=0.02)


def test_the_model_trains_on_as_it_did(model: Any):
    model.train()
    sampler(model)({0: [1, 50]})
    assert model.training
    model.eval()
    sampler(model)({0: [1, 50]})
    assert not model.training
