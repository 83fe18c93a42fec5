"""liger-kernel on a CPU: Triton's interpreter computes what a GPU's kernels would.

`python -m tests.worker.trainer.interpreted FAMILY [CONFIG]` takes a step with and without the
kernels. CONFIG is a JSON object, of what the model's configuration has otherwise. It prints both
losses, how far the gradients are apart, the loss of a model that is made before and afterwards, and
which modules compute otherwise, meanwhile and afterwards.
"""

import json
import os
import sys
from contextlib import ExitStack
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton

import liger_kernel.ops.geglu
import liger_kernel.ops.rms_norm
import numpy as np
import triton.language as tl
import triton.runtime.interpreter as interpreter
from peft import LoraConfig, get_peft_model

from tests.worker.trainer.test_unpadded import padded_loss, rows, tiny, unpadded_gradients
from worker.trainer import kernels, unpadded
from worker.trainer.fused import fuse

convert = interpreter._implicit_cvt


def with_floats(value: Any) -> Any:
    """Make a kernel's float a tensor too, as a compiled kernel has it; Triton's own leaves it."""
    if not isinstance(value, float):
        return convert(value)
    return tl.tensor(
        interpreter.TensorHandle(np.array([value], np.float32), tl.float32), tl.float32
    )


def interpret() -> None:
    interpreter._implicit_cvt = with_floats
    # What stands in CUDA's own library cannot be interpreted.
    liger_kernel.ops.rms_norm.rsqrt = lambda x: tl.rsqrt(x)
    liger_kernel.ops.geglu.tanh = lambda x: 2 * tl.sigmoid(2 * x) - 1


def unlike(model: Any, before: dict[str, dict[str, Any]]) -> list[str]:
    """Return the modules that have something of their own that they had not."""
    found = {name: dict(vars(module)) for name, module in model.named_modules()}
    return [name for name, has in found.items() if has != before[name]]


def main(family: str, changes: str = "{}") -> None:
    interpret()
    changed = json.loads(changes)
    model = tiny(family, **changed)
    unpadded.score_answers(model)
    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    adapted = get_peft_model(model, config)
    fuse(adapted.train())
    batch = rows(9, 5)
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    expected, slopes = unpadded_gradients(adapted, batch)
    plain = padded_loss(tiny(family, **changed), batch).item()
    with ExitStack() as computing:
        kernels.replace(model, computing)
        loss, found = unpadded_gradients(adapted, batch)
        replaced = unlike(model, before)
    afterwards = padded_loss(tiny(family, **changed), batch).item()
    off = max(float((found[name] - slope).abs().max()) for name, slope in slopes.items())
    left = unlike(model, before)
    losses = {"expected": expected, "loss": loss, "plain": plain, "afterwards": afterwards}
    print(json.dumps(losses | {"off": off, "replaced": replaced, "left": left}))


if __name__ == "__main__":
    main(*sys.argv[1:])
