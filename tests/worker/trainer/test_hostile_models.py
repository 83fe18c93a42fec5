"""A base model that means harm: what it brings along is not run."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.worker.trainer.runs import make_run, train_here
from worker.rundir import Placement
from worker.trainer.faults import RunError
from worker.trainer.model import load_base, load_tokenizer


@pytest.fixture
def hostile(models_dir: Path, tmp_path: Path) -> Path:
    """A base of our own, for a test to make hostile."""
    return Path(shutil.copytree(models_dir / "tiny-llama", tmp_path / "hostile"))


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """What is there once a stranger's code has run."""
    return tmp_path / "it-ran"


def placed(folder: Path) -> Placement:
    return Placement(location=str(folder), source="folder", revision=None)


def test_code_that_comes_with_a_model_is_not_run(hostile: Path, mark: Path):
    code = f"open({str(mark)!r}, 'w')\n"
    (hostile / "modeling_evil.py").write_text(code)
    (hostile / "tokenization_evil.py").write_text(code)
    for name, classes in {
        "config.json": {"AutoModelForCausalLM": "modeling_evil.Evil"},
        "tokenizer_config.json": {"AutoTokenizer": [None, "tokenization_evil.Evil"]},
    }.items():
        path = hostile / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": classes}))

    load_tokenizer(placed(hostile))
    load_base(placed(hostile), "fp32")

    assert not mark.exists()


def test_weights_that_are_a_pickle_are_refused_unread(hostile: Path, mark: Path):
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(mark),)

    (hostile / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Evil()}, hostile / "pytorch_model.bin")

    with pytest.raises(RunError) as caught:
        load_base(placed(hostile), "fp32")

    assert caught.value.code == "base_model_unreadable" and not mark.exists()


@pytest.mark.parametrize(
    "template",
    [
        "{{ cycler.__init__.__globals__.os.mkdir('MARK') }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append({'role': 'user', 'content': 'x'}) }}",
    ],
)
def test_a_chat_template_runs_in_a_sandbox(
    hostile: Path, mark: Path, tmp_path: Path, template: str
):
    (hostile / "chat_template.jinja").write_text(template.replace("MARK", str(mark)))

    with pytest.raises(RunError):
        train_here(make_run(tmp_path / "run", hostile))

    assert not mark.exists()
