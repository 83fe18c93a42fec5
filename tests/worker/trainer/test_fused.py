"""Fused LoRA layers learn what PEFT's learn, and step aside wherever there is more to a layer."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from worker.optim.noise import WeightNoise
from worker.trainer.fused import adapted_linear, fuse
from worker.trainer.perturbations import noisy_layers

WIDTH, RANK = 24, 4
Learned = dict[str, Tensor]
EXACT = {"rtol": 1e-5, "atol": 1e-6}


class Block(nn.Module):
    """Two layers that share an input, as q and k do, and one that takes what they leave."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(WIDTH, 2 * WIDTH)
        self.two = nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.down = nn.Linear(2 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.down(self.one(x).tanh() * self.two(x))
        return found


def adapted(dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """Return a block with LoRA whose B is not zero: without it A would learn nothing.

    Its factors are fp32, whatever the block is.
    """
    torch.manual_seed(0)
    options |= {"r": RANK, "lora_alpha": 3 * RANK, "target_modules": ["one", "two", "down"]}
    model = get_peft_model(Block().to(dtype), LoraConfig(**options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model.train()


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(1))


def learned(model: Any, x: Tensor, call: Callable[[Tensor], Any] | None = None) -> Learned:
    """What a step gives: the output, the input's gradient and those of all that trains."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    y = (call or model)(x)
    (y.float() ** 2).mean().backward()
    assert x.grad is not None
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {"output": y.detach(), "input": x.grad} | gradients


def assert_same(found: Learned, expected: Learned, **close: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=lambda m, n=name: f"{n}: {m}", **close)


@pytest.mark.parametrize("shape", [(7,), (1, 7), (3, 5)])
def test_the_output_and_every_gradient_are_those_of_peft(shape: tuple[int, ...]) -> None:
    plain, fused = adapted(), adapted()
    assert fuse(fused) == 3
    assert_same(learned(fused, inputs(*shape)), learned(plain, inputs(*shape)), **EXACT)


def test_rslora_scales_as_peft_does() -> None:
    plain, fused = adapted(use_rslora=True), adapted(use_rslora=True)
    fuse(fused)
    assert_same(learned(fused, inputs(6)), learned(plain, inputs(6)), **EXACT)


def test_the_gradient_is_the_derivative() -> None:
    def doubles(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64).requires_grad_()

    torch.manual_seed(2)
    weight, bias = doubles(5, 3).detach(), doubles(5).detach()

    def layer(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return adapted_linear(x, weight, bias, a, b, scaling=1.7)

    assert torch.autograd.gradcheck(layer, (doubles(2, 4, 3), doubles(2, 3), doubles(5, 2)))


def test_under_bf16_autocast_it_is_as_near_to_the_truth_as_peft() -> None:
    def error_of(model: Any) -> float:
        x = inputs(64).bfloat16()
        truth = learned(adapted(torch.bfloat16).double(), x.double())
        with torch.autocast("cpu", torch.bfloat16):
            found = learned(model, x)
        assert all(value.dtype == torch.float32 for name, value in found.items() if "lora" in name)
        off = [
            (found[name].double() - value).norm() / value.norm() for name, value in truth.items()
        ]
        return float(torch.stack(off).mean())

    fused = adapted(torch.bfloat16)
    fuse(fused)
    assert error_of(fused) <= 1.05 * error_of(adapted(torch.bfloat16))


def test_without_autocast_factors_of_another_type_are_cast_to_as_peft_does() -> None:
    """So a policy writes: past what puts autocast around the forward."""
    plain, fused = adapted(torch.bfloat16), adapted(torch.bfloat16)
    fuse(fused)
    results = [learned(model, inputs(6).bfloat16()) for model in (plain, fused)]
    assert_same(results[1], results[0], rtol=0.0, atol=0.0)


def test_an_output_may_be_changed_in_place() -> None:
    model = adapted()
    fuse(model)
    once = learned(model, inputs(2, 5))
    layer = model.base_model.model.down
    layer.register_forward_hook(lambda _module, _inputs, output: output.mul_(1.0))
    assert_same(learned(model, inputs(2, 5)), once, rtol=0.0, atol=0.0)


def test_a_layer_that_no_token_comes_to_learns_nothing() -> None:
    model = adapted()
    fuse(model)
    found = learned(model, inputs(0), lambda x: model(x).sum() + 0.0)
    assert all(float(value.abs().sum()) == 0.0 for value in found.values())


def test_layers_that_share_an_input_keep_it_once() -> None:
    def kept(model: Any) -> int:
        held = {}

        def note(tensor: Tensor) -> Tensor:
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with (
            torch.autocast("cpu", torch.bfloat16),
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        ):
            result = model(inputs(512).bfloat16())
        del result
        return sum(held.values())

    plain, fused = adapted(torch.bfloat16), adapted(torch.bfloat16)
    fuse(fused)
    assert kept(fused) < kept(plain)


def test_a_recomputed_forward_gives_the_same_bits() -> None:
    model = adapted()
    fuse(model)
    once = learned(model, inputs(5))

    def again(x: Tensor) -> Any:
        return checkpoint(model, x, use_reentrant=False)

    assert_same(learned(model, inputs(5), again), once, rtol=0.0, atol=0.0)


def switched_off(model: Any) -> None:
    model.base_model.disable_adapter_layers()


def layers_of(model: Any) -> list[Any]:
    block = model.base_model.model
    return [block.one, block.two, block.down]


def merged(model: Any) -> None:
    model.base_model.merge_adapter()


def biased(model: Any) -> None:
    for layer in layers_of(model):
        for factor in (layer.lora_A["default"], layer.lora_B["default"]):
            factor.bias = nn.Parameter(torch.full((factor.out_features,), 0.1))


def bias_trained(model: Any) -> None:
    for layer in layers_of(model):
        layer.base_layer.bias = nn.Parameter(torch.ones(layer.out_features))


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def of_another_class(model: Any) -> None:
    for layer in layers_of(model):
        layer.base_layer.__class__ = Doubled


def evaluated(model: Any) -> None:
    model.eval()


def weights_trained(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if "base_layer.weight" in name:
            parameter.requires_grad_()


def with_another_adapter(model: Any) -> None:
    torch.manual_seed(4)
    model.add_adapter("other", LoraConfig(r=2, target_modules=["one"]))
    model.base_model.set_adapter(["default", "other"])


def noisy(model: Any) -> None:
    trained = [p for p in model.parameters() if p.requires_grad]
    noise = WeightNoise(
        noisy_layers(model), torch.optim.AdamW(trained), kind="ggpo", rho=0.5, beta=0.0,
        total_steps=10, seed=3,
    )  # fmt: skip
    model.enter = noise.perturbed()
    model.enter.__enter__()


MORE: dict[str, tuple[dict[str, Any], Callable[[Any], None]]] = {
    "evaluation": ({}, evaluated),
    "dropout": ({"lora_dropout": 0.5}, lambda _: None),
    "DoRA": ({"use_dora": True}, lambda _: None),
    "a bias of the factors": ({}, biased),
    "a bias that trains": ({}, bias_trained),
    "a linear layer of another kind": ({}, of_another_class),
    "adapters merged": ({}, merged),
    "adapters switched off": ({}, switched_off),
    "weights that train": ({}, weights_trained),
    "two adapters at once": ({}, with_another_adapter),
    "noise on the weights": ({}, noisy),
}


@pytest.mark.parametrize("what", MORE)
def test_where_a_layer_has_more_to_it_peft_computes_it(what: str) -> None:
    options, change = MORE[what]
    plain, fused = adapted(**options), adapted(**options)
    fuse(fused)
    results = []
    for model in (plain, fused):
        change(model)
        torch.manual_seed(5)  # of the dropout
        results.append(learned(model, inputs(9)))
    assert_same(results[1], results[0], rtol=0.0, atol=0.0)
