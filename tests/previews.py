"""Adapters to try in tests, and what plain libraries make of them."""

import json
from pathlib import Path
from typing import Any

import psutil

from app import blobs
from app.db import Database
from app.ids import token
from app.jobs.states import JobStatus
from tests.app import records
from tests.worker.trainer.runs import SPEC
from worker import archive


def make_adapter(base: Path, folder: Path, *, seed: int = 1, **config: Any) -> Path:
    """Write an adapter as a run leaves it, with factors that change what the base says."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from worker.rundir import Placement
    from worker.trainer.model import load_tokenizer

    torch.manual_seed(seed)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", **config),
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    placement = Placement(source="folder", location=str(base), revision=None)
    load_tokenizer(placement).save_pretrained(folder)
    return folder


def generated(base: Path, adapter: Path | None, text: str, *, max_tokens: int) -> str:
    """What plain PEFT and transformers say after a text, greedily, special tokens left out."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    tokenizer = AutoTokenizer.from_pretrained(adapter or base)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        made = model.eval().generate(input_ids=ids, max_new_tokens=max_tokens, do_sample=False)
    answer: str = tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
    return answer.replace("\0", "\ufffd")


def chat_text(folder: Path, messages: list[dict[str, str]]) -> str:
    """A conversation as text, up to the answer, by the template of an adapter's tokenizer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    text: str = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return text


def model_processes(parent_pid: int) -> list[psutil.Process]:
    """The processes that hold models, of one worker."""
    return [
        each
        for each in psutil.process_iter(["ppid", "cmdline"])
        if each.info["ppid"] == parent_pid
        and "worker.trainer.preview" in (each.info["cmdline"] or ())
    ]


async def publish(
    db: Database, organization_id: str, base_model: str, folder: Path, *, task: str = "causal"
) -> str:
    """Leave what a run that succeeded leaves; return the model's name."""
    stored = await blobs.write(db, organization_id, archive.stream(folder))
    async with db.transaction() as tx:
        await blobs.seal(tx, stored)
    file = await records.make_file(db, organization_id)
    name = f"ft:{base_model}:{organization_id}::{token(8)}"
    job = records.new_job(
        organization_id,
        file.id,
        JobStatus.SUCCEEDED,
        fine_tuned_model=name,
        adapter_blob_id=stored.blob_id,
    )
    job.spec = json.loads(json.dumps(SPEC | {"base_model": base_model, "task": task}))
    async with db.transaction() as tx:
        tx.add(job)
    return name
