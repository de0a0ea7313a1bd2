"""GradientNoise: the paper's variance, a pure function of (seed, t, name), on any optimizer."""

import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import evostep
from evostep.gradient_noise import GradientNoise
from evostep.noise import draw

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "evolved": lambda p: evostep.Evolved(
        torch.optim.SGD(p, lr=0.1), evostep.RandomMutation(sigma=0.1, population=2)
    ),
}


def pair(make: Callable[[Any], torch.optim.Optimizer]) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    return model, make(model.parameters())


def gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_is_the_bare_optimizers_on_noisy_gradients(name: str) -> None:
    model, optimizer = pair(OPTIMIZERS[name])
    twin, bare = pair(OPTIMIZERS[name])
    GradientNoise(optimizer, eta=0.3, gamma=0.7, seed=5)
    for t in range(4):
        gradients(model, t)
        gradients(twin, t)
        optimizer.step()
        for i, parameter in enumerate(twin.parameters()):
            assert parameter.grad is not None
            noise = draw(
                "normal", parameter, seed=5, generation=t, member="gradient", name=f"group0.{i}"
            )
            parameter.grad = parameter.grad + math.sqrt(0.3 / (1 + t) ** 0.7) * noise
        bare.step()
        for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("eta", "gamma"), [(0.01, 0.55), (0.3, 0.55), (1.0, 0.0), (1.0, 2.0)])
def test_the_variance_is_eta_over_one_plus_t_to_the_gamma(eta: float, gamma: float) -> None:
    weight = nn.Parameter(torch.zeros(40_000))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    noise = GradientNoise(optimizer, eta=eta, gamma=gamma)
    for t in range(3):
        weight.grad = torch.zeros_like(weight)
        expected = eta / (1 + t) ** gamma
        assert noise.std == pytest.approx(math.sqrt(expected))
        optimizer.step()
        assert float(weight.grad.mean()) == pytest.approx(0, abs=5 * math.sqrt(expected / 40_000))
        assert float(weight.grad.var()) == pytest.approx(expected, rel=0.04)


def test_noise_differs_between_steps_parameters_and_seeds() -> None:
    seen = []
    for seed in (0, 1):
        a, b = nn.Parameter(torch.zeros(5)), nn.Parameter(torch.zeros(5))
        optimizer = torch.optim.SGD([a, b], lr=0.0)
        GradientNoise(optimizer, eta=1.0, gamma=0.0, seed=seed)
        for _ in range(2):
            a.grad, b.grad = torch.zeros(5), torch.zeros(5)
            optimizer.step()
            seen += [a.grad.clone(), b.grad.clone()]
    assert len({tuple(noise.tolist()) for noise in seen}) == 8


def test_noise_depends_neither_on_order_nor_on_the_global_stream() -> None:
    grads = []
    for flipped in (False, True):
        torch.manual_seed(int(flipped))
        named = [("a", nn.Parameter(torch.zeros(4))), ("b", nn.Parameter(torch.zeros(4)))]
        optimizer = torch.optim.SGD(named[::-1] if flipped else named, lr=0.1)
        GradientNoise(optimizer, eta=1.0)
        for _, parameter in named:
            parameter.grad = torch.zeros(4)
        before = torch.get_rng_state()
        optimizer.step()
        assert torch.equal(before, torch.get_rng_state())
        grads.append([parameter.grad for _, parameter in named])
    assert equal(grads[0], grads[1])


@pytest.mark.parametrize("name", ["sgd", "adam", "evolved"])
@pytest.mark.parametrize("stop", [1, 3])
def test_resume_gives_the_same_bits(name: str, stop: int) -> None:
    model, optimizer = pair(OPTIMIZERS[name])
    noise = GradientNoise(optimizer, eta=0.3, seed=3)
    for t in range(5):
        if t == stop:
            saved = [model.state_dict(), optimizer.state_dict(), noise.state_dict()]
            saved = torch.load(_through_disk(saved), weights_only=True)
        gradients(model, t)
        optimizer.step()
    resumed, other = pair(OPTIMIZERS[name])
    again = GradientNoise(other, eta=0.3, seed=99)
    for part, state in zip((resumed, other, again), saved, strict=True):
        part.load_state_dict(state)
    for t in range(stop, 5):
        gradients(resumed, t)
        other.step()
    assert equal(weights(model), weights(resumed))
    assert again.t == 5


def _through_disk(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return file


def test_remove_leaves_the_optimizer_as_it_was() -> None:
    model, optimizer = pair(OPTIMIZERS["sgd"])
    noise = GradientNoise(optimizer, eta=1.0)
    noise.remove()
    noise.remove()
    gradients(model, 0)
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    optimizer.step()
    assert equal(before, [p.grad for p in model.parameters() if p.grad is not None])
    assert noise.t == 0


def test_parameters_without_a_gradient_stay_without() -> None:
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([a, b], lr=0.1)
    GradientNoise(optimizer, eta=1.0)
    a.grad = torch.zeros(2)
    optimizer.step()
    assert b.grad is None
    assert torch.equal(b.detach(), torch.ones(2))
    assert not torch.equal(a.detach(), torch.ones(2))


@pytest.mark.filterwarnings("ignore:.*sparse:UserWarning")
def test_a_sparse_gradient_stays_sparse() -> None:
    embedding = nn.Embedding(6, 3, sparse=True)
    before = embedding.weight.detach().clone()
    optimizer = torch.optim.SparseAdam(embedding.parameters(), lr=0.1)
    GradientNoise(optimizer, eta=1e4, gamma=0.0)
    embedding(torch.tensor([1, 4, 1])).sum().backward()
    optimizer.step()
    grad = embedding.weight.grad
    assert grad is not None
    assert grad.is_sparse
    assert grad.coalesce().indices().tolist() == [[1, 4]]
    assert float((grad.coalesce().values() - torch.tensor([[2.0], [1.0]])).abs().max()) > 10
    moved = (embedding.weight.detach() != before).any(1).tolist()
    assert moved == [False, True, False, False, True, False]


@pytest.mark.parametrize("keyword", [False, True])
def test_with_a_closure_each_evaluation_of_one_step_sees_the_same_noise(keyword: bool) -> None:
    weight = nn.Parameter(torch.tensor([3.0, -2.0]))
    optimizer = torch.optim.LBFGS([weight], max_iter=6, lr=0.5)
    offsets = []
    original = optimizer._gather_flat_grad

    def watch() -> Tensor:
        flat = original()
        offsets[-1].append(flat - 2 * weight.detach())
        return flat

    optimizer._gather_flat_grad = watch  # type: ignore[method-assign]
    noise = GradientNoise(optimizer, eta=0.04, gamma=0.0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    for _ in range(2):
        offsets.append([])
        optimizer.step(closure=closure) if keyword else optimizer.step(closure)
    assert noise.t == 2
    assert all(len(step) > 2 for step in offsets)
    for t, step in enumerate(offsets):
        drawn = draw("normal", weight, seed=0, generation=t, member="gradient", name="group0.0")
        for offset in step:
            torch.testing.assert_close(offset, 0.2 * drawn, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(offsets[0][0], offsets[1][0])


@pytest.mark.parametrize("name", ["sgd", "evolved"])
def test_a_first_order_optimizers_closure_gets_noise_too(name: str) -> None:
    model, optimizer = pair(OPTIMIZERS[name])
    GradientNoise(optimizer, eta=1.0)

    def closure() -> float:
        gradients(model, 0)
        return 7.0

    assert optimizer.step(closure) == 7.0  # type: ignore[arg-type]
    noisy = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    gradients(model, 0)
    for with_noise, parameter in zip(noisy, model.parameters(), strict=True):
        assert not torch.allclose(with_noise, parameter.grad)  # type: ignore[arg-type]


@pytest.mark.parametrize("fused", [False, True])
def test_noise_is_in_units_of_the_true_gradient_under_a_grad_scaler(fused: bool) -> None:
    steps = []
    for scale in (1.0, 1024.0):
        weight = nn.Parameter(torch.zeros(8))
        optimizer = torch.optim.SGD([weight], lr=1.0, fused=fused)
        GradientNoise(optimizer, eta=1.0)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale(weight.sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        steps.append(weight.detach().clone())
    torch.testing.assert_close(steps[0], steps[1])


def test_half_and_double_precision_keep_their_type() -> None:
    for dtype in (torch.bfloat16, torch.float64):
        weight = nn.Parameter(torch.zeros(3, dtype=dtype))
        optimizer = torch.optim.SGD([weight], lr=1.0)
        GradientNoise(optimizer, eta=1.0)
        weight.grad = torch.zeros(3, dtype=dtype)
        optimizer.step()
        assert weight.grad.dtype == dtype
        assert bool((weight.grad != 0).all())


def test_both_parts_of_a_complex_gradient_get_noise() -> None:
    weight = nn.Parameter(torch.zeros(20, dtype=torch.complex64))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    GradientNoise(optimizer, eta=1.0)
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    assert bool((weight.grad.real != 0).all() and (weight.grad.imag != 0).all())


def test_a_group_that_was_added_gets_noise() -> None:
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([a], lr=0.1)
    GradientNoise(optimizer, eta=1.0)
    optimizer.add_param_group({"params": [b]})
    a.grad, b.grad = torch.zeros(2), torch.zeros(2)
    optimizer.step()
    assert bool((b.grad != 0).all())


def _sgd() -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GradientNoise(nn.Linear(1, 1), 0.1), "optimizer must be .* got Linear"),  # type: ignore[arg-type]
        (lambda: GradientNoise(_sgd(), 0.0), "eta must be a finite number > 0, got 0.0"),
        (lambda: GradientNoise(_sgd(), math.inf), "eta must be .* got inf"),
        (lambda: GradientNoise(_sgd(), 0.1, -0.5), "gamma must be .* >= 0, got -0.5"),
        (lambda: GradientNoise(_sgd(), 0.1).load_state_dict({"seed": 1}), "lacks t"),
    ],
)
def test_bad_input_is_told_in_one_line(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
