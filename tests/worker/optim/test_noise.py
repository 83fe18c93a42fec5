"""Noise on the merged weights: as large as promised, the same wherever it is regenerated."""

import copy
import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from tests.worker.optim.problems import (
    SCALING,
    Net,
    copied,
    data,
    factors,
    loss_of,
    net,
    same,
)
from worker.optim import noise
from worker.optim.noise import (
    NoisyLayer,
    WeightNoise,
    flat_row_std,
    ggpo_row_std,
    gradient_row_squares,
    merged_row_norms,
    noise_seed,
    noisy_chunks,
    noisy_linear,
)

Kind = Literal["random", "ggpo"]
KINDS: list[Kind] = ["random", "ggpo"]
RHO = {"random": 0.5, "ggpo": 0.1}


@pytest.fixture(params=["whole", "in chunks"], autouse=True)
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything holds for weights that fit a chunk and for those that do not."""
    if request.param == "in chunks":
        monkeypatch.setattr(noise, "CHUNK_ELEMENTS", 10)
    yield


def noisy_layers(model: Net) -> list[NoisyLayer]:
    return [
        NoisyLayer(f"layer{i}", m.base_layer, m.lora_A.weight, m.lora_B.weight, SCALING)
        for i, m in enumerate(model.layers)
    ]


def make(model: Net, kind: Kind, **options: Any) -> tuple[WeightNoise, torch.optim.AdamW]:
    optimizer = torch.optim.AdamW(factors(model), lr=1e-2, weight_decay=0.0)
    given = {"rho": RHO[kind], "beta": 0.0 if kind == "random" else 1e-3}
    given |= {"total_steps": 10, "seed": 7}
    return WeightNoise(noisy_layers(model), optimizer, kind=kind, **(given | options)), optimizer


def step(
    model: Net,
    perturbation: WeightNoise | None,
    optimizer: torch.optim.Optimizer,
    *,
    reentrant: bool | None = None,
) -> None:
    """A step with clipped gradients: unbounded ones and GGPO's ‖∇‖² drive each other up."""
    optimizer.zero_grad()
    with perturbation.perturbed() if perturbation else nullcontext():
        loss_of(model, reentrant=reentrant).backward()
    nn.utils.clip_grad_norm_(factors(model), 1.0)
    optimizer.step()


def train(
    model: Net, kind: Kind, steps: int, *, reentrant: bool | None = None, **options: Any
) -> tuple[WeightNoise, torch.optim.AdamW]:
    perturbation, optimizer = make(model, kind, **options)
    for _ in range(steps):
        step(model, perturbation, optimizer, reentrant=reentrant)
    return perturbation, optimizer


def dense(weight: Tensor, std: Tensor, seed: int) -> Tensor:
    return torch.cat([rows for _, rows in noisy_chunks(weight, std, seed)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_row_has_the_std_it_was_given(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(noise, "CHUNK_ELEMENTS", noise.CHUNK_ELEMENTS * 1000)
    weight = torch.zeros(4, 20_000, dtype=dtype)
    std = torch.tensor([0.0, 0.5, 1.0, 3.0])

    drawn = dense(weight, std, 3).float()

    torch.testing.assert_close(drawn.std(dim=1), std, rtol=0.02, atol=0)
    torch.testing.assert_close(drawn.mean(dim=1), torch.zeros(4), rtol=0, atol=0.06)
    assert abs(float(torch.corrcoef(drawn[1:3])[0, 1])) < 0.03


def test_rows_of_different_chunks_differ():
    drawn = dense(torch.zeros(6, 5), torch.ones(6), 3)

    assert len({tuple(row) for row in drawn.tolist()}) == 6


def test_the_ramp_of_random_noise_is_half_a_cosine():
    norm = torch.tensor([2.0])

    stds = [float(flat_row_std(norm, rho=0.05, n_in=25, progress=t / 4)) for t in range(5)]

    ramp = [(1 - math.cos(math.pi * t / 4)) / 2 for t in range(5)]
    assert stds == pytest.approx([0.02 * r for r in ramp])
    assert ramp[0] == 0 and ramp[-1] == 1


def test_the_guided_noise_follows_weight_and_gradient_rows():
    std = ggpo_row_std(
        torch.tensor([2.0, 0.0]), torch.tensor([0.0, 3.0]), sigma=0.03, beta=0.01, n_out=4
    )

    assert std.tolist() == pytest.approx([0.03, 0.015])


def test_row_statistics_are_those_of_the_merged_weight_and_of_its_gradient():
    model = net()
    loss_of(model).backward()

    for layer in noisy_layers(model):
        merged = layer.linear.weight + SCALING * layer.b @ layer.a
        assert layer.a.grad is not None and layer.b.grad is not None
        gradient = SCALING * (layer.b @ layer.a.grad + layer.b.grad @ layer.a)
        torch.testing.assert_close(merged_row_norms(layer), merged.norm(dim=1))
        torch.testing.assert_close(gradient_row_squares(layer), gradient.square().sum(dim=1))


def test_gradients_are_those_of_a_dense_noisy_weight():
    weight, std = net().layers[0].base_layer.weight, torch.rand(4).double()
    x = torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True)

    def forward(x: Tensor) -> Tensor:
        return noisy_linear(x, weight, std, seed=9)

    y = forward(x)
    g = torch.randn_like(y)
    (g_x,) = torch.autograd.grad(y, x, g)

    noisy = dense(weight, std, 9)
    assert not torch.allclose(noisy, weight)
    torch.testing.assert_close(y, x @ noisy.T)
    torch.testing.assert_close(g_x, g @ noisy)
    assert torch.autograd.gradcheck(forward, x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reentrant", [None, False, True])
def test_forward_backward_and_recomputation_see_one_noise(kind: Kind, reentrant: bool | None):
    """The whole step equals one on a network whose dense weights hold the noise."""
    model = net()
    perturbation, _ = train(model, kind, 3)
    plain: Net = copy.deepcopy(model)
    assert perturbation._std is None
    stds = perturbation._renew()
    for index, layer in enumerate(plain.layers):
        seed = noise_seed(7, f"layer{index}", 3)
        layer.base_layer.weight.data = dense(layer.base_layer.weight, stds[index], seed)

    model.zero_grad()
    with perturbation.perturbed():
        loss = loss_of(model, reentrant=reentrant)
        loss.backward()

    plain.zero_grad()
    expected = loss_of(plain)
    expected.backward()
    clean = loss_of(model)
    torch.testing.assert_close(loss, expected, atol=1e-12, rtol=0)
    assert abs(loss.item() - clean.item()) > 1e-6
    for p, q in zip(factors(model), factors(plain), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(kind: Kind, reentrant: bool):
    whole, recomputed = net(), net()

    train(whole, kind, 4)
    train(recomputed, kind, 4, reentrant=reentrant)

    assert same(factors(whole), factors(recomputed))


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_sees_no_noise_and_the_base_never_changes(kind: Kind):
    model = net()
    base = copied([layer.base_layer.weight for layer in model.layers])
    perturbation, _ = train(model, kind, 3)
    x, _ = data()
    clean = net()
    clean.load_state_dict(model.state_dict())

    outside = model(x)
    with perturbation.perturbed():
        noisy = model(x)
        evaluated = model.eval()(x)

    assert torch.equal(outside, clean(x)) and torch.equal(evaluated, outside)
    assert not torch.allclose(noisy, outside)
    assert same([layer.base_layer.weight for layer in model.layers], base)


@pytest.mark.parametrize("kind", KINDS)
def test_the_noise_is_one_in_a_step_and_another_in_the_next(kind: Kind):
    model = net()
    perturbation, optimizer = train(model, kind, 2)

    losses = []
    for _ in range(2):
        with perturbation.perturbed():
            losses += [loss_of(model).item(), loss_of(model).item()]
        for p in factors(model):
            p.grad = None
        optimizer.step()

    assert losses[0] == losses[1] != losses[2] == losses[3]


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_goes_on_bit_for_bit(kind: Kind):
    straight, first, second = net(), net(), net()
    train(straight, kind, 8)
    perturbation, optimizer = train(first, kind, 4)

    second.load_state_dict(first.state_dict())
    resumed, fresh_optimizer = make(second, kind)
    fresh_optimizer.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(perturbation.state_dict())
    for _ in range(4):
        step(second, resumed, fresh_optimizer)

    assert same(factors(straight), factors(second))


@pytest.mark.parametrize("kind", KINDS)
def test_no_tensor_of_a_weights_size_is_kept_for_the_backward(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(noise, "CHUNK_ELEMENTS", 1 << 22)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Tanh(), nn.Linear(64, 64))
    model.requires_grad_(False)
    a, b = nn.Parameter(torch.randn(2, 64)), nn.Parameter(torch.randn(64, 2))
    layers = [NoisyLayer(str(i), model[i], a, b, 1.0) for i in (0, 2)]  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW([a, b])
    perturbation = WeightNoise(
        layers, optimizer, kind=kind, rho=0.1, beta=0.0, total_steps=4, seed=0
    )
    optimizer.step()
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    x = torch.randn(3, 64, requires_grad=True)
    with (
        perturbation.perturbed(),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        model(x).sum()

    weights = {model[i].weight.data_ptr() for i in (0, 2)}
    assert len([t for t in kept if t.data_ptr() in weights]) == 2  # references: no memory of ours
    assert max(t.numel() for t in kept if t.data_ptr() not in weights) <= 3 * 64


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_that_overflows_leaves_the_statistics_as_they_were(kind: Kind):
    model = net()
    perturbation, optimizer = train(model, kind, 2)
    before = perturbation.state_dict()

    loss_of(model).backward()
    factors(model)[1].grad[0, 0] = math.inf  # type: ignore[index]
    optimizer.step()

    after = perturbation.state_dict()
    assert torch.equal(
        after.get("gradient_square.0", torch.zeros(1)),
        before.get("gradient_square.0", torch.zeros(1)),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_without_length_the_noise_is_none_bit_for_bit(kind: Kind):
    plain, silent = net(), net()
    optimizer = torch.optim.AdamW(factors(plain), lr=1e-2, weight_decay=0.0)
    for _ in range(4):
        step(plain, None, optimizer)

    train(silent, kind, 4, rho=0.0, beta=0.0)

    assert same(factors(plain), factors(silent))


def test_no_noise_before_start_step():
    model = net()
    perturbation, optimizer = make(model, "ggpo", start_step=2)

    lengths = []
    for _ in range(3):
        step(model, perturbation, optimizer)
        lengths.append(perturbation.metrics()["perturbation_norm_max"])

    assert lengths[:2] == [0, 0] and lengths[2] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_metrics_tell_the_length_of_the_noise(kind: Kind):
    model = net()
    perturbation, _ = train(model, kind, 5)
    with perturbation.perturbed():
        pass
    stds = perturbation._std
    assert stds is not None

    metrics = perturbation.metrics()

    lengths = [
        float(std.norm()) * math.sqrt(layer.base_layer.in_features)
        for std, layer in zip(stds, model.layers, strict=True)
    ]
    assert metrics["perturbation_norm_max"] == pytest.approx(max(lengths))
    assert 0 < metrics["perturbation_noise_ratio"] < 10


def test_autocast_computes_in_its_own_type():
    model = net(torch.float32)
    perturbation, _ = train(model, "ggpo", 2)

    with perturbation.perturbed(), torch.autocast("cpu", torch.bfloat16):
        y = model.layers[0].base_layer(data(torch.float32)[0])

    assert y.dtype == torch.bfloat16


def test_a_weight_that_trains_gets_no_noise():
    model = net()
    model.layers[1].base_layer.requires_grad_(True)

    with pytest.raises(ValueError, match="layer1 trains its weight"):
        make(model, "random")


def test_a_state_of_another_kind_is_refused():
    with pytest.raises(ValueError, match='not that of "ggpo"'):
        make(net(), "ggpo")[0].load_state_dict(make(net(), "random")[0].state_dict())
