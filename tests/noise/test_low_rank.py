"""LowRank noise: a twin, its rank, its variance, what it does to an update, bad ranks."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evostep import Always, Evolution, OpenAIES, RandomMutation
from evostep.genome.point import Genome
from evostep.noise import LowRank, derive_seed, draw, draw_many
from evostep.noise.counter import fill, word

KEY: dict[str, Any] = {"seed": 0, "generation": 0, "member": 0, "name": "w"}
SHAPES = {"linear": (6, 9), "convolution": (8, 5, 3, 3), "embedding": (40, 7)}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("rank", [1, 2, 5])
def test_a_direction_really_has_that_rank(shape: tuple[int, ...], rank: int) -> None:
    noise = draw(LowRank(rank), torch.zeros(shape, dtype=torch.float64), **KEY)
    assert noise.shape == shape
    values = torch.linalg.svdvals(noise.flatten(1))
    assert float(values[rank - 1]) > 1e-3
    assert values[rank:].tolist() == pytest.approx([0.0] * (len(values) - rank), abs=1e-12)


def by_hand(shape: tuple[int, ...], rank: int, seed: int, name: str) -> Tensor:
    """Entry by entry: sum over the rank of A[i, r] B[j, r], over the root of the rank."""
    rows, columns = shape[0], math.prod(shape[1:])
    key = word(derive_seed(seed, 0, name), 0)
    stream = fill(torch.empty(1, (rows + columns) * rank), [key], "normal")
    both = stream.view(-1, rank).tolist()
    A, B = both[:rows], both[rows:]
    entries = [
        sum(a * b for a, b in zip(A[i], B[j], strict=True)) / math.sqrt(rank)
        for i in range(rows)
        for j in range(columns)
    ]
    return torch.tensor(entries).reshape(shape)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("rank", [1, 3])
def test_agrees_with_the_slow_twin(shape: tuple[int, ...], rank: int) -> None:
    noise = draw(LowRank(rank), torch.zeros(shape), seed=4, generation=0, member=0, name="fc")
    assert torch.allclose(noise, by_hand(shape, rank, 4, "fc"), atol=1e-5)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_entries_have_mean_0_variance_1_and_no_correlation(rank: int) -> None:
    draws = 4000
    zero, noise = torch.zeros(4, 5), LowRank(rank)
    members = range(draws)
    table = draw_many(noise, zero, seed=0, generation=0, members=members, name="w").flatten(1)
    # standard errors: of a mean 1 / sqrt(n); of a variance at most sqrt(8 / n), as E x^4 <= 9
    assert float(table.mean(0).abs().max()) < 5 / math.sqrt(draws)
    covariance = table.T @ table / draws
    assert torch.allclose(covariance, torch.eye(20), atol=5 * math.sqrt(8 / draws))
    assert float(covariance.diagonal().mean()) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("shape", [(), (12,)])
def test_what_is_no_matrix_gets_normal_noise(shape: tuple[int, ...]) -> None:
    zero = torch.zeros(shape)
    assert torch.equal(draw(LowRank(1), zero, **KEY), draw("normal", zero, **KEY))
    assert LowRank(1).factors(zero, **KEY) is None


def test_noise_differs_between_layers_members_generations_and_seeds() -> None:
    zero = torch.zeros(4, 4)
    base = draw(LowRank(1), zero, **KEY)
    assert torch.equal(base, draw(LowRank(1), zero, **KEY))
    for change in ({"seed": 1}, {"generation": 1}, {"member": 1}, {"name": "v"}):
        assert not torch.allclose(base, draw(LowRank(1), zero, **{**KEY, **change}))


@pytest.mark.parametrize("antithetic", [True, False])
def test_a_member_is_its_center_plus_its_factors(antithetic: bool) -> None:
    strategy = OpenAIES(0.1, lr=0.1, population=4, antithetic=antithetic, noise=LowRank(2))
    center = {"w": torch.randn(4, 3, 2), "b": torch.randn(4), "still": torch.randn(3, 3)}
    genome = Genome(center, {"w": None, "b": None, "still": 0.0})
    for i in range(4):
        member: Any = strategy.member(genome, {}, 2, i, 0)
        A, B = member.factors("w")
        assert A.shape == (4, 2)
        assert B.shape == (6, 2)
        built = center["w"] + (A @ B.T).reshape(4, 3, 2)
        assert torch.allclose(member.tensor("w"), built, atol=1e-6)
        assert member.factors("b") is None
        assert member.factors("still") is None
    plain: Any = RandomMutation(0.1).member(genome, {}, 0, 0, 0)
    assert plain.factors("w") is None


@pytest.mark.parametrize("noise", ["normal", LowRank(1), LowRank(3)], ids=str)
@pytest.mark.parametrize(("sigma", "shaping"), [(0.02, "centered-rank"), (0.5, "z-score")])
def test_the_expected_step_follows_the_gradient_of_a_quadratic(
    noise: Any, sigma: float, shaping: Any
) -> None:
    target = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)
    genome = Genome({"w": torch.zeros(3, 4, dtype=torch.float64)}, {"w": None})
    strategy = OpenAIES(
        sigma, lr=1.0, population=16, shaping=shaping, noise=noise, scale="absolute"
    )
    total = torch.zeros(3, 4, dtype=torch.float64)
    for generation in range(50):
        members = [strategy.member(genome, {}, generation, i, 0) for i in range(16)]
        scores = [-float((m.tensor("w") - target).square().sum()) for m in members]
        step, _ = strategy.tell(genome, {}, generation, scores, 0.0, seed=0)
        assert step is not None
        total += step.center.tensor("w")
    assert float(torch.cosine_similarity(total.flatten(), target.flatten(), dim=0)) > 0.96


@pytest.mark.parametrize("rank", [1, 2])
def test_the_estimate_is_the_gradient_itself(rank: int) -> None:
    """sum_i f(c + sigma eps_i) eps_i / (n sigma) with raw scores, on f = |w - t|^2 in closed form.

    Third moments of the noise are zero, so it is unbiased at every sigma: 2 (c - t).
    """
    n, sigma, zero = 20000, 0.3, torch.zeros(2, 3, dtype=torch.float64)
    t = torch.tensor([[1.0, -2.0, 0.5], [0.0, 1.0, 3.0]], dtype=torch.float64)
    noise = LowRank(rank)
    eps = draw_many(noise, zero, seed=0, generation=0, members=range(n), name="w")
    f = (sigma * eps - t).square().sum((1, 2)) - float(t.square().sum())
    terms = f[:, None, None] * eps / sigma
    error = terms.mean(0) - 2 * (0 - t)
    assert bool((error.abs() < 4.5 * terms.std(0) / math.sqrt(n)).all())


def test_a_whole_network_evolves_on_it() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))
    x, y = torch.randn(30, 1, 4, 4), torch.randint(3, (30,))

    def fitness() -> float:
        return -float(nn.functional.cross_entropy(model.eval()(x), y))

    strategy = OpenAIES(0.05, lr=0.02, population=16, noise=LowRank(2))
    records = Evolution(model, strategy, accept=Always()).evolve(fitness, generations=25)
    assert records[-1].parent > records[0].parent + 0.05


def test_a_rank_above_the_layers_is_refused_before_anything_moves() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
    before = [p.clone() for p in model.parameters()]
    search = Evolution(model, RandomMutation(0.1, population=2, noise=LowRank(2)))
    calls = []
    with pytest.raises(ValueError, match=r"rank 2 is above that of '1.weight' \(1 x 8\).*normal"):
        search.evolve(lambda: float(len(calls)))
    assert calls == []
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_layer_that_does_not_move_may_have_a_lower_rank() -> None:
    strategy = RandomMutation(0.1, noise=LowRank(2))
    genome = Genome({"w": torch.ones(1, 8), "v": torch.ones(4, 8)}, {"w": 0.0, "v": None})
    assert strategy.init(genome) == {}


@pytest.mark.parametrize("rank", [0, -1, 1.5, True, "1"])
def test_bad_ranks_are_refused(rank: Any) -> None:
    with pytest.raises(ValueError, match=f"rank must be an integer >= 1, got {rank!r}"):
        LowRank(rank)
