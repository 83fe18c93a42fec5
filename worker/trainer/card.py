"""The README.md inside an adapter: what it is, and how to load it."""

import json
from collections.abc import Sequence

from app.jobs.spec import Method, Task, TrainSpec

CARD = """\
---
base_model: {base_json}
library_name: peft
tags:
- lora
- basin{tags}
---

# {base} · {job_id}

A LoRA adapter trained by Basin ({how}). Load it on the original base:

```python
from peft import PeftModel
from transformers import {auto}

base = {auto}.from_pretrained({base_json}{classes})
model = PeftModel.from_pretrained(base, ".")
```

| | |
|---|---|
| base model | {base} |
| training data | {rows} rows, sha256 {data} |
| optimizer steps | {step} of {total} |

## Metrics

`train_loss` is measured where the gradient is taken (at the perturbed weights under MGPO),
`valid_loss` at the clean weights.

```json
{metrics}
```

## Resolved specification

```json
{spec}
```
"""


HOW = {
    "mgpo": "LoRA-MGPO",
    "random": "LoRA with random weight noise",
    "ggpo": "LoRA-GGPO",
    "none": "plain LoRA",
}


BY: dict[Method, str] = {
    "supervised": "",
    "dpo": " by direct preference optimization",
    "reinforcement": " by reinforcement",
}


AUTO: dict[Task, str] = {
    "causal": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "classification": "AutoModelForSequenceClassification",
}


def write_card(
    spec: TrainSpec, metrics: dict[str, float], *, step: int, labels: Sequence[str] = ()
) -> str:
    """Return the card's text; `labels` are a classifier's, in the order of its logits."""
    classes = f", num_labels={len(labels)}, id2label={dict(enumerate(labels))}" if labels else ""
    said = (spec.perturbation.type, "none"), (spec.method, "supervised")
    tags = [tag for tag, usual in said if tag != usual]
    return CARD.format(
        base=spec.base_model,
        auto=AUTO[spec.task],
        classes=classes,
        base_json=json.dumps(spec.base_model),
        tags="".join(f"\n- {tag}" for tag in tags),
        how=HOW[spec.perturbation.type] + BY[spec.method],
        job_id=spec.job_id,
        rows=spec.data.train_rows,
        data=spec.data.train_sha256,
        step=step,
        total=spec.total_steps,
        metrics=json.dumps(metrics, indent=2),
        spec=spec.model_dump_json(indent=2),
    )
