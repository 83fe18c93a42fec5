"""The stand-in base: trained in steps, found again, and a model like any other."""

from dataclasses import replace
from pathlib import Path

import pytest

from demo.base import NAME, Recipe, Step, folder_name, train_base

TINY = Recipe(vocabulary=300, hidden=32, intermediate=64, layers=1, sequence=64, batch=4, steps=12)
TEXT = ["Return the name of the thing.", "Raise an error when the name is not there."] * 80


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("models") / "base"


@pytest.fixture(scope="module")
def steps(folder) -> list[Step]:
    return list(train_base(TEXT, folder, TINY))


def test_every_step_is_told_and_the_loss_falls(steps):
    assert [step.step for step in steps] == list(range(1, 13))
    assert [step.done for step in steps] == sorted(step.done for step in steps)
    assert steps[-1].done == 1
    assert steps[-1].loss < steps[0].loss


@pytest.mark.usefixtures("steps")
def test_the_base_loads_as_any_model_does(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("Return the name.", return_tensors="pt")["input_ids"]

    assert tokenizer.decode(ids[0]) == "Return the name."
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert model(input_ids=ids).logits.shape == (*ids.shape, len(tokenizer))


def test_an_interrupted_training_leaves_no_folder(tmp_path):
    training = train_base(TEXT, tmp_path / "base", TINY)

    next(training)
    training.close()

    assert list(tmp_path.iterdir()) == []


def test_training_ends_with_its_time(tmp_path):
    hurried = replace(TINY, steps=10_000, limit_s=0.2)

    steps = list(train_base(TEXT, tmp_path / "base", hurried))

    assert len(steps) < 10_000
    assert (tmp_path / "base" / "config.json").is_file()


def test_the_folder_is_named_for_the_recipe():
    assert folder_name(Recipe()) == folder_name(Recipe())
    assert folder_name(Recipe(steps=7)) != folder_name(Recipe())
    assert folder_name(Recipe()).startswith(NAME)
