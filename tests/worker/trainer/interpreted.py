"""liger-kernel on a CPU: Triton's interpreter computes what a GPU's kernels would.

`python -m tests.worker.trainer.interpreted FAMILY` takes a step with and without the kernels, and
prints both losses, how far the gradients are apart, and which modules compute otherwise.
"""

import json
import os
import sys
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton

import liger_kernel.ops.geglu
import liger_kernel.ops.rms_norm
import numpy as np
import triton.language as tl
import triton.runtime.interpreter as interpreter
from peft import LoraConfig, get_peft_model

from tests.worker.trainer.test_unpadded import rows, tiny, unpadded_gradients
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


def main(family: str) -> None:
    interpret()
    model = tiny(family)
    unpadded.score_answers(model)
    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    adapted = get_peft_model(model, config)
    fuse(adapted.train())
    batch = rows(9, 5)
    before = {name: module.forward for name, module in model.named_modules()}
    expected, slopes = unpadded_gradients(adapted, batch)
    kernels.replace(adapted)
    loss, found = unpadded_gradients(adapted, batch)
    off = max(float((found[name] - slope).abs().max()) for name, slope in slopes.items())
    changed = [name for name, module in model.named_modules() if module.forward != before[name]]
    print(json.dumps({"expected": expected, "loss": loss, "off": off, "changed": changed}))


if __name__ == "__main__":
    main(sys.argv[1])
