"""OpenAI-ES through a torch optimizer: the optimizer itself as the twin, resume, bad ones."""

import functools
import io
from typing import Any

import pytest
import torch
from torch import Tensor

from evostep import Always, Evolution, Improves, OpenAIES
from evostep.genome.point import Genome
from evostep.noise import LowRank, draw
from evostep.strategies.shaping import centered_rank

MAKERS: dict[str, Any] = {
    "SGD": "SGD",
    "Adam": "Adam",
    "momentum": functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    "betas": functools.partial(torch.optim.Adam, betas=(0.9, 0.99)),
    "AdamW": functools.partial(torch.optim.AdamW, weight_decay=0.1),
    "RMSprop": torch.optim.RMSprop,
    "Adagrad": torch.optim.Adagrad,
}


def loss(w: Tensor) -> float:
    return float((w.double() - 1).square().sum())


def evolution(w: Tensor, optimizer: Any, *, accept: Any = None, **settings: Any) -> Evolution:
    settings = {"sigma": 0.1, "lr": 0.05, "population": 8, "scale": "absolute", **settings}
    strategy = OpenAIES(optimizer=optimizer, **settings)
    return Evolution({"w": w}, strategy, accept=accept or Always(), seed=6)


def estimate(w: Tensor, sigma: float, generation: int) -> Tensor:
    """The gradient of the loss by antithetic pairs, one after the other."""
    eps = [draw("normal", w, seed=6, generation=generation, member=k, name="w") for k in range(4)]
    members = [w + sign * sigma * e for e in eps for sign in (1, -1)]
    u = centered_rank([-loss(member) for member in members]).tolist()
    total = torch.zeros_like(w)
    for k, e in enumerate(eps):
        total += (u[2 * k] - u[2 * k + 1]) * e
    return -total / (8 * sigma)


@pytest.mark.parametrize("name", MAKERS)
def test_agrees_with_the_optimizer_itself_step_by_step(name: str) -> None:
    maker = MAKERS[name]
    w = torch.tensor([3.0, -2.0, 0.5], dtype=torch.float64)
    twin = torch.nn.Parameter(w.clone())
    made = getattr(torch.optim, maker) if isinstance(maker, str) else maker
    optimizer = made([twin], lr=0.05)
    search = evolution(w, maker)
    for generation in range(20):
        twin.grad = estimate(twin.detach(), 0.1, generation)
        optimizer.step()
        search.evolve(lambda: -loss(w))
        assert w.tolist() == pytest.approx(twin.tolist(), rel=1e-10)


@pytest.mark.parametrize("scale", ["rms", "absolute"])
@pytest.mark.parametrize("noise", ["normal", LowRank(1)], ids=str)
def test_plain_sgd_is_the_formula(scale: Any, noise: Any) -> None:
    ends = []
    for optimizer in (None, "SGD"):
        w = torch.tensor([[3.0, -2.0], [0.5, 0.0]])
        search = evolution(w, optimizer, scale=scale, noise=noise)
        search.evolve(lambda w=w: -loss(w), generations=10)
        ends.append(w)
    assert torch.allclose(*ends, atol=1e-5)


def test_adam_steps_are_in_units_of_the_scale() -> None:
    """Adam's first step is lr for each weight, in units of the root mean square."""
    w = torch.tensor([3.0, -3.0, 3.0])
    evolution(w, "Adam", scale="rms", lr=0.01).evolve(lambda: -loss(w))
    moved = (w - torch.tensor([3.0, -3.0, 3.0])).abs()
    assert moved.tolist() == pytest.approx([0.03] * 3, rel=1e-3)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("rule", [Always(), Improves()], ids=["always", "improves"])
def test_resuming_gives_the_same_bits_as_never_stopping(name: str, rule: Any) -> None:
    w = torch.tensor([3.0, -2.0, 0.5])
    search = evolution(w, MAKERS[name], accept=rule)
    search.evolve(lambda: -loss(w), generations=4)
    file = io.BytesIO()
    torch.save(search.state_dict(), file)
    v = w.clone()
    resumed = evolution(v, MAKERS[name], accept=rule)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    search.evolve(lambda: -loss(w), generations=5)
    resumed.evolve(lambda: -loss(v), generations=5)
    assert torch.equal(w, v)
    assert [r.scores for r in search.history[4:]] == [r.scores for r in resumed.history]


def test_telling_leaves_the_state_that_it_was_given() -> None:
    strategy = OpenAIES(0.1, lr=0.05, population=4, optimizer="Adam")
    genome = Genome({"w": torch.ones(3)}, {"w": None})
    scores = [1.0, 2.0, 4.0, 3.0]
    _, first = strategy.tell(genome, strategy.init(genome), 0, scores, 0.0, seed=0)
    moments = first["optimizer"]["w"]["state"][0]
    before = {key: value.clone() for key, value in moments.items()}
    step, second = strategy.tell(genome, first, 1, scores, 0.0, seed=0)
    again, _ = strategy.tell(genome, first, 1, scores, 0.0, seed=0)
    assert all(torch.equal(moments[key], value) for key, value in before.items())
    assert not torch.equal(second["optimizer"]["w"]["state"][0]["exp_avg"], before["exp_avg"])
    assert step is not None
    assert again is not None
    assert torch.equal(step.center.tensor("w"), again.center.tensor("w"))
    assert genome.center["w"].tolist() == [1.0] * 3
    assert genome.center["w"].grad is None


def test_equal_scores_are_no_step_even_with_momentum() -> None:
    w = torch.tensor([3.0, -2.0])
    search = evolution(w, MAKERS["momentum"])
    search.evolve(lambda: -loss(w), generations=3)
    before = w.clone()
    state = search.state_dict()["state"]
    search.evolve(lambda: 0.5)
    assert torch.equal(w, before)
    assert search.state_dict()["state"] is state


def test_a_group_with_sigma_zero_has_no_optimizer() -> None:
    strategy = OpenAIES(0.1, lr=0.05, population=4, optimizer=MAKERS["AdamW"])
    genome = Genome({"a": torch.ones(3), "b": torch.ones(2)}, {"a": 0.2, "b": 0.0})
    step, state = strategy.tell(genome, strategy.init(genome), 0, [1.0, 2.0, 4.0, 3.0], 0.0, seed=0)
    assert step is not None
    assert step.center.tensor("b") is genome.center["b"]
    assert set(state["optimizer"]) == {"a"}


def test_narrow_weights_step_in_float32() -> None:
    w = torch.tensor([3.0, -2.0], dtype=torch.bfloat16)
    search = evolution(w, "Adam", lr=0.1)
    search.evolve(lambda: -loss(w), generations=30)
    assert loss(w) < 4
    assert search.state_dict()["state"]["optimizer"]["w"]["state"][0]["exp_avg"].dtype == (
        torch.float32
    )


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ("Adm", r"unknown optimizer 'Adm': did you mean Adam"),
        ("Optimizer", "unknown optimizer 'Optimizer'"),
        (3, "optimizer must be a name or a callable, got 3"),
        (functools.partial(torch.optim.Adam, lr=0.1), "leave it out of the partial"),
        ("LBFGS", "cannot step from dense gradients alone"),
        ("SparseAdam", "cannot step from dense gradients alone"),
        (functools.partial(torch.optim.Adam, beta=1), "beta"),
        (lambda params, lr: None, "must make a torch.optim.Optimizer, got None"),
    ],
)
def test_bad_optimizers_are_refused(optimizer: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OpenAIES(0.1, lr=0.05, population=4, optimizer=optimizer)


def test_one_that_takes_matrices_alone_is_refused_before_anything_moves() -> None:
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no optimizer for matrices alone")
    w = torch.ones(3)
    with pytest.raises(ValueError, match=r"does not take 'w', shape \(3,\)"):
        evolution(w, "Muon").evolve(lambda: 0.0)
    assert w.tolist() == [1.0] * 3
