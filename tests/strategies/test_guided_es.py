"""GuidedES: dense linear algebra as its twin, laws on quadratics, guides from the optimizer."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from evostep import Always, Evolution, Evolved, Only, OpenAIES
from evostep.genome.point import Genome
from evostep.noise import draw
from evostep.strategies.guided_es import GuidedES, orthonormal_rows
from evostep.strategies.shaping import centered_rank

UNGUIDED = "GuidedES has no guides"


def genome(*guides: Mapping[str, Tensor], **sigma: float | None) -> Genome:
    center = {
        "w": torch.tensor([[1.0, -2.0, 0.5], [3.0, 0.0, -1.0]], dtype=torch.float64),
        "b": torch.tensor([0.5, -0.5, 0.25], dtype=torch.float64),
    }
    return Genome(center, {"w": None, "b": None, **sigma}, guides=tuple(guides))


def random_guides(k: int, seed: int = 0) -> list[dict[str, Tensor]]:
    stream = torch.Generator().manual_seed(seed)
    kind: dict[str, Any] = {"generator": stream, "dtype": torch.float64}
    return [{"w": torch.randn(2, 3, **kind), "b": torch.randn(3, **kind)} for _ in range(k)]


def flat(coordinates: Any) -> np.ndarray:
    return np.concatenate([coordinates.tensor(name).numpy().ravel() for name in ("w", "b")])


def members(es: GuidedES, g: Genome, generation: int = 0, seed: int = 0) -> np.ndarray:
    return np.stack([flat(es.member(g, {}, generation, i, seed)) for i in range(es.size)])


# The slow, obvious twin: n x k matrices, QR, one formula for each line of the paper


def twin(
    es: GuidedES, g: Genome, f: Callable[[np.ndarray], float], generation: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the members and the stepped center."""
    x = np.concatenate([g.center[name].numpy().ravel() for name in ("w", "b")])
    unit = np.concatenate(
        [
            np.full(g.center[name].numel(), (g.rms[name] if es.scale == "rms" else 1.0) * ratio)
            for name in ("w", "b")
            for ratio in [1.0 if g.sigma[name] is None else g.sigma[name] / es.sigma]  # type: ignore[operator]
        ]
    )
    n = len(x)
    Q = np.zeros((n, 0))
    if g.guides:
        raw = [np.concatenate([guide[k].numpy().ravel() for k in ("w", "b")]) for guide in g.guides]
        Q, R = np.linalg.qr(np.stack(raw, 1) * unit[:, None])
        Q = Q * np.sign(np.diag(R))
    k = Q.shape[1]
    eps = []
    for i in range(es.population // 2):
        z1 = np.concatenate(
            [
                draw(
                    "normal", g.center[name], seed=seed, generation=generation, member=i, name=name
                )
                .numpy()
                .ravel()
                for name in ("w", "b")
            ]
        )
        label = f"{i} of guides"
        like = torch.zeros(k, dtype=torch.float64)
        z2 = draw("normal", like, seed=seed, generation=generation, member=label, name="").numpy()
        paper = np.sqrt(es.alpha / n) * z1 + np.sqrt((1 - es.alpha) / k) * Q @ z2
        eps.append(es.sigma * np.sqrt(n) * paper)
    population = np.stack([x + s * unit * e for e in eps for s in (1, -1)])
    scores = [f(member) for member in population]
    u = centered_rank(scores).numpy() if es.shaping == "centered-rank" else np.array(scores)
    step = np.zeros(n)
    for i, e in enumerate(eps):
        step += es.lr / (2 * es.sigma**2) * (u[2 * i] - u[2 * i + 1]) * e / len(eps)
    return population, x + unit * step


@pytest.mark.parametrize("shaping", ["difference", "centered-rank"])
@pytest.mark.parametrize("scale", ["rms", "absolute"])
@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("own", [None, 0.3])
def test_equals_its_twin(shaping: Any, scale: Any, k: int, own: float | None) -> None:
    es = GuidedES(0.1, lr=0.02, population=6, alpha=0.3, shaping=shaping, scale=scale)
    g = genome(*random_guides(k), b=own)
    target = np.linspace(-1, 1, 9)
    for generation in range(4):
        f = lambda x: -float(((x - target) ** 2).sum())  # noqa: E731
        expected, stepped = twin(es, g, f, generation, seed=5)
        population = members(es, g, generation, seed=5)
        np.testing.assert_allclose(population, expected, rtol=1e-9)
        step, _ = es.tell(g, {}, generation, [f(m) for m in population], 0.0, seed=5)
        assert step is not None
        np.testing.assert_allclose(flat(step.center), stepped, rtol=1e-9)
        g.move(step.center)


def test_without_isotropy_alone_it_is_openai_es() -> None:
    """With alpha = 1 guides or no guides, members and step are those of antithetic OpenAI-ES."""
    for guides in ([], random_guides(2)):
        g = genome(*guides)
        es, plain = GuidedES(0.1, 0.05, 6, alpha=1.0), OpenAIES(0.1, 0.05, 6)
        scores = [0.1, 0.7, 0.3, 0.3, 0.9, 0.2]
        for i in range(6):
            one, other = es.member(g, {}, 2, i, 1), plain.member(g, {}, 2, i, 1)
            np.testing.assert_allclose(flat(one), flat(other), rtol=1e-12)
        a, b = es.tell(g, {}, 2, scores, 0.0, 1)[0], plain.tell(g, {}, 2, scores, 0.0, 1)[0]
        assert a is not None
        assert b is not None
        np.testing.assert_allclose(flat(a.center), flat(b.center), rtol=1e-12)


# Orthonormal bases from inner products


@pytest.mark.parametrize("seed", range(20))
def test_rows_are_an_orthonormal_basis_of_the_same_space(seed: int) -> None:
    stream = np.random.default_rng(seed)
    k, d = int(stream.integers(1, 6)), 12
    v = stream.normal(size=(k, d)) * 10.0 ** stream.integers(-8, 8, size=(k, 1))
    if k > 2:
        v[1] = 3 * v[0]  # dependent
        v[-1] = 0.0
    C = orthonormal_rows(torch.from_numpy(v @ v.T)).numpy()
    q = C @ v
    np.testing.assert_allclose(q @ q.T, np.eye(len(q)), atol=1e-9)
    assert len(q) == np.linalg.matrix_rank(
        v / np.maximum(np.linalg.norm(v, axis=1)[:, None], 1e-300)
    )
    np.testing.assert_allclose(v @ q.T @ q, v, rtol=1e-6, atol=1e-9 * np.abs(v).max())


def test_nearly_dependent_vectors_are_as_good_as_dependent() -> None:
    a = torch.randn(50, dtype=torch.float64)
    v = torch.stack([a, a + 1e-6 * torch.randn(50, dtype=torch.float64)])
    assert len(orthonormal_rows(v @ v.T)) == 1
    v[1] = a + 1e-2 * torch.randn(50, dtype=torch.float64)
    q = orthonormal_rows(v @ v.T) @ v
    torch.testing.assert_close(q @ q.T, torch.eye(2, dtype=torch.float64))


@pytest.mark.parametrize("gram", [[[0.0]], [[math.nan]], [[math.inf]]])
def test_what_has_no_direction_gives_no_row(gram: list[list[float]]) -> None:
    assert orthonormal_rows(torch.tensor(gram, dtype=torch.float64)).shape == (0, 1)


def test_useless_guides_are_left_out() -> None:
    good = random_guides(1)[0]
    zero = {name: torch.zeros_like(tensor) for name, tensor in good.items()}
    broken = {name: tensor * math.nan for name, tensor in good.items()}
    es = GuidedES(0.1, population=4)
    alone = members(es, genome(good))
    for guides in (
        [zero, good],
        [good, broken],
        [good, {"w": -2 * good["w"], "b": -2 * good["b"]}],
    ):
        np.testing.assert_allclose(members(es, genome(*guides)), alone, rtol=1e-12)
    none = members(es, genome())
    assert np.abs(none - alone).max() > 0.01
    for guides in ([zero], [broken], [{}]):
        np.testing.assert_array_equal(members(es, genome(*guides)), none)


# Laws


@pytest.mark.parametrize("alpha", [0.0, 0.5, pytest.param(1.0, marks=pytest.mark.slow)])
def test_the_covariance_is_the_papers(alpha: float) -> None:
    es = GuidedES(0.2, population=1000, alpha=alpha, scale="absolute")
    g = genome(*random_guides(2))
    eps = np.stack([flat(es.member(g, {}, 0, i, 0)) for i in range(0, 1000, 2)]) - flat_center(g)
    raw = np.stack([np.concatenate([v["w"].ravel(), v["b"].ravel()]) for v in g.guides], 1)
    Q, _ = np.linalg.qr(raw)
    expected = 0.2**2 * (alpha * np.eye(9) + 9 * (1 - alpha) / 2 * Q @ Q.T)
    # three standard errors of a variance from 500 draws are 0.19 of it
    np.testing.assert_allclose(eps.T @ eps / len(eps), expected, atol=0.2 * expected.max())
    assert float((eps**2).mean()) == pytest.approx(0.2**2, rel=0.12)


def flat_center(g: Genome) -> np.ndarray:
    return np.concatenate([g.center[name].numpy().ravel() for name in ("w", "b")])


@pytest.mark.parametrize("own", [0.3, pytest.param(None, marks=pytest.mark.slow)])
def test_the_expected_step_is_the_preconditioned_gradient(own: float | None) -> None:
    """On a quadratic E[step] = lr * (alpha I + n (1 - alpha) / k Q Q^T) gradient, exactly so, in
    the coordinates in which the noise is isotropic; it never points against the gradient."""
    sigma, curvature = 0.1, np.linspace(0.5, 2.0, 9)
    es = GuidedES(sigma, 1.0, 600, alpha=0.4, shaping="difference", scale="absolute")
    g = genome(*random_guides(2, seed=3), b=own)
    x = flat_center(g)
    f = lambda m: -0.5 * float((curvature * m**2).sum())  # noqa: E731
    step, _ = es.tell(g, {}, 0, [f(m) for m in members(es, g)], 0.0, seed=0)
    assert step is not None
    unit = np.array([1.0] * 6 + [1.0 if own is None else own / sigma] * 3)
    raw = np.stack([np.concatenate([v["w"].ravel(), v["b"].ravel()]) for v in g.guides], 1)
    Q, _ = np.linalg.qr(raw * unit[:, None])
    gradient = -curvature * x
    P = 0.4 * np.eye(9) + 9 * 0.6 / 2 * Q @ Q.T
    expected = unit * (P @ (unit * gradient))
    moved = flat(step.center) - x
    np.testing.assert_allclose(moved, expected, atol=0.2 * np.linalg.norm(expected))
    assert moved @ gradient > 0


def distance_after(guide: Callable[[Tensor], Tensor] | None) -> float:
    """Minimise a quadratic in 100 dimensions by single pairs, with the better of two rates; give
    the distance left, from 10 at the start."""
    left = []
    for lr in (0.003, 0.01):
        w = torch.ones(100, dtype=torch.float64)
        alpha = 0.5 if guide else 1.0
        es = GuidedES(0.02, lr, 2, alpha=alpha, shaping="difference", scale="absolute")
        search = Evolution({"w": w}, es, accept=Always())
        for _ in range(60):
            search.guide({"w": guide(w) if guide else torch.ones_like(w)})
            search.evolve(lambda w=w: -0.5 * float(w.square().sum()))
        left.append(float(w.norm()))
    return min(left)


def test_good_guides_are_faster_than_none_and_useless_ones_still_descend() -> None:
    wrong = torch.randn(100, dtype=torch.float64)
    plain = distance_after(None)
    biased = distance_after(lambda w: w + wrong / wrong.norm() * w.norm())  # 45 degrees off
    exact = distance_after(lambda w: w)
    useless = distance_after(lambda w: wrong)
    assert exact < 0.1
    assert biased < 0.8 * plain
    assert plain < 9
    assert useless < 9.5


@pytest.mark.parametrize("shaping", ["difference", "centered-rank", "z-score"])
def test_equal_scores_in_each_pair_are_no_step(shaping: Any) -> None:
    es = GuidedES(0.1, population=4, shaping=shaping)
    g = genome(*random_guides(2))
    for scores in ([0.7] * 4, [0.3, 0.3, 0.8, 0.8], [math.nan] * 4):
        assert es.tell(g, {}, 0, scores, 0.0, seed=0)[0] is None


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_failed_member_counts_as_the_worst(broken: float) -> None:
    es = GuidedES(0.1, population=4, shaping="difference")
    g = genome(*random_guides(1))
    a, _ = es.tell(g, {}, 0, [3.0, broken, 1.0, 2.0], 0.0, seed=0)
    b, _ = es.tell(g, {}, 0, [3.0, 1.0, 1.0, 2.0], 0.0, seed=0)
    assert a is not None
    assert b is not None
    np.testing.assert_array_equal(flat(a.center), flat(b.center))


def test_members_mirror_each_other_and_what_has_sigma_zero_stays() -> None:
    g = genome(*random_guides(2), b=0.0)
    es = GuidedES(0.1, population=6)
    population = members(es, g)
    np.testing.assert_allclose(
        population[::2] + population[1::2], 2 * flat_center(g)[None] + 0 * population[::2]
    )
    assert all(torch.equal(es.member(g, {}, 0, i, 0).tensor("b"), g.center["b"]) for i in range(6))
    step, _ = es.tell(g, {}, 0, [1.0, 0.0] * 3, 0.0, 0)
    assert step is not None
    assert torch.equal(step.center.tensor("b"), g.center["b"])
    # the basis is of the moving part alone, so its share of the noise is whole
    alone = GuidedES(0.1, population=1000, alpha=0.0, scale="absolute")
    eps = np.stack([alone.member(g, {}, 0, i, 0).tensor("w").numpy() for i in range(0, 1000, 2)])
    assert float(((eps - g.center["w"].numpy()) ** 2).mean()) == pytest.approx(0.01, rel=0.1)


def test_low_precision_weights_are_moved_in_float32() -> None:
    center = {"w": torch.ones(8, dtype=torch.bfloat16)}
    g = Genome(center, {"w": None}, guides=({"w": torch.ones(8, dtype=torch.bfloat16)},))
    assert GuidedES(0.1).member(g, {}, 0, 0, 0).tensor("w").dtype == torch.float32


# Guides from the optimizer


def trained(kind: str = "momentum", strategy: Any = None, **settings: Any) -> tuple[Any, ...]:
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    bases: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "plain": lambda: torch.optim.SGD(model.parameters(), lr=0.1),
        "momentum": lambda: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        "Adam": lambda: torch.optim.Adam(model.parameters(), lr=0.01),
    }
    inputs, targets = torch.randn(30, 4), torch.randint(3, (30,))
    es = strategy or GuidedES(0.02, lr=0.002, population=4)
    optimizer = Evolved(bases[kind](), es, model=model, **settings)
    fitness = lambda: -float(nn.functional.cross_entropy(model(inputs), targets))  # noqa: E731

    def epoch(batches: int = 3) -> None:
        for rows in torch.arange(30).chunk(batches):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[rows]), targets[rows]).backward()
            optimizer.step()

    return model, optimizer, fitness, epoch


@pytest.mark.parametrize(
    ("kind", "keys"), [("plain", []), ("momentum", ["momentum_buffer"]), ("Adam", ["exp_avg"])]
)
def test_guides_are_the_last_gradients_and_moments(kind: str, keys: list[str]) -> None:
    model, optimizer, fitness, epoch = trained(kind)
    epoch()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    moments = [
        {name: optimizer.state[p][key].clone() for name, p in model.named_parameters()}
        for key in keys
    ]
    optimizer.evolve(fitness)
    saved = optimizer.state_dict()["evolution"]["guides"]
    assert len(saved) == 1 + len(keys)
    for guide, expected in zip(saved, [gradients, *moments], strict=True):
        assert list(guide) == list(expected)
        assert all(torch.equal(guide[name], expected[name]) for name in guide)


def test_guides_outlive_zero_grad_and_resets_of_momentum_until_the_next_step() -> None:
    _, optimizer, fitness, epoch = trained(momentum="reset", accept=Always())
    epoch()
    optimizer.evolve(fitness)
    first = copy.deepcopy(optimizer.state_dict()["evolution"]["guides"])
    assert all(float(s["momentum_buffer"].abs().max()) == 0 for s in optimizer.state.values())
    optimizer.zero_grad(set_to_none=False)
    optimizer.evolve(fitness)
    kept = optimizer.state_dict()["evolution"]["guides"]
    assert len(first) == len(kept) == 2
    assert all(torch.equal(a[n], b[n]) for a, b in zip(first, kept, strict=True) for n in a)
    epoch()
    assert optimizer.state_dict()["evolution"]["guides"] == []  # no memory held while training
    optimizer.evolve(fitness)
    fresh = optimizer.state_dict()["evolution"]["guides"]
    assert not torch.equal(fresh[0]["0.weight"], first[0]["0.weight"])


def test_members_lie_in_the_span_of_gradient_and_momentum() -> None:
    model, optimizer, _, epoch = trained(
        strategy=GuidedES(0.02, population=6, alpha=0.0, scale="absolute"), accept=Always()
    )
    epoch()
    flat_of = lambda ts: torch.cat([t.detach().double().flatten() for t in ts])  # noqa: E731
    parameters = list(model.parameters())
    guides = torch.stack(
        [
            flat_of([p.grad for p in parameters]),
            flat_of([optimizer.state[p]["momentum_buffer"] for p in parameters]),
        ]
    )
    start, seen = flat_of(parameters), []
    optimizer.evolve(lambda: seen.append(flat_of(parameters)) or float(len(seen)))
    deltas = torch.stack(seen[1:7]) - start  # the first scored is the parent
    Q = torch.linalg.qr(guides.T).Q
    outside = deltas - deltas @ Q @ Q.T
    assert float(outside.norm()) < 1e-4 * float(deltas.norm())
    assert torch.linalg.matrix_rank(deltas, rtol=1e-3) == 2


@pytest.mark.parametrize("kind", ["momentum", "Adam"])
def test_resuming_in_the_middle_of_a_phase_gives_the_same_bits(kind: str) -> None:
    def run(stop: bool) -> list[Tensor]:
        torch.manual_seed(3)
        model, optimizer, fitness, epoch = trained(kind, momentum=0.5, accept=Always())
        epoch()
        if not stop:
            optimizer.evolve(fitness, 4)
        else:
            optimizer.evolve(fitness, 2)
            saved = io.BytesIO()
            torch.save((model.state_dict(), optimizer.state_dict()), saved)
            torch.manual_seed(3)
            model, optimizer, fitness, epoch = trained(kind, momentum=0.5, accept=Always())
            weights, state = torch.load(io.BytesIO(saved.getvalue()), weights_only=True)
            model.load_state_dict(weights)
            optimizer.load_state_dict(state)
            optimizer.evolve(fitness, 2)
        epoch()
        optimizer.evolve(fitness, 2)
        return [p.detach().clone() for p in model.parameters()]

    for a, b in zip(run(stop=False), run(stop=True), strict=True):
        assert torch.equal(a, b)


def test_nothing_is_gathered_for_other_strategies() -> None:
    _, optimizer, fitness, epoch = trained(strategy=OpenAIES(0.02, population=4))
    epoch()
    optimizer.evolve(fitness)
    assert not optimizer.evolution.guided
    assert "guides" not in optimizer.state_dict()["evolution"]


def test_guides_of_what_does_not_evolve_are_left_out() -> None:
    model, optimizer, fitness, epoch = trained(
        strategy=GuidedES(0.02, population=4, alpha=0.0), space=Only("head"), accept=Always()
    )
    epoch()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.evolve(fitness, 2)
    same = [torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)]
    assert same == [True, True, False, False]


# No guides


def test_without_guides_it_evolves_as_plain_es_and_says_so_once() -> None:
    w, v = torch.tensor([3.0, -2.0]), torch.tensor([3.0, -2.0])
    search = Evolution({"w": w}, GuidedES(0.1, 0.05, 4, alpha=0.3), accept=Always())
    with pytest.warns(UserWarning, match=UNGUIDED) as caught:
        search.evolve(lambda: -float(w.square().sum()), 3)
    assert len(caught) == 1
    search.evolve(lambda: -float(w.square().sum()), 3)  # a second warning would be an error
    plain = Evolution({"w": v}, OpenAIES(0.1, 0.05, 4), accept=Always())
    plain.evolve(lambda: -float(v.square().sum()), 6)
    torch.testing.assert_close(w, v)


def test_plain_sgd_with_reset_gradients_has_no_guides() -> None:
    _, optimizer, fitness, epoch = trained("plain")
    epoch()
    optimizer.zero_grad()
    with pytest.warns(UserWarning, match=UNGUIDED):
        optimizer.evolve(fitness)
    optimizer.zero_grad(set_to_none=False)
    epoch()
    optimizer.evolve(fitness)  # guided, so there is no warning


def test_sparse_gradients_guide_too() -> None:
    model = nn.Embedding(5, 2, sparse=True)
    optimizer = Evolved(
        torch.optim.SGD(model.parameters(), lr=0.1), GuidedES(0.1, population=2), model=model
    )
    model(torch.tensor([1, 3])).sum().backward()
    optimizer.step()
    optimizer.evolve(lambda: float(model.weight.sum()))
    (guide,) = optimizer.state_dict()["evolution"]["guides"]
    assert guide["weight"].tolist() == [[0, 0], [1, 1], [0, 0], [1, 1], [0, 0]]


# What is refused

REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: GuidedES(0.0), "sigma must be a finite number > 0, got 0"),
    (lambda: GuidedES(0.1, lr=-1.0), "lr must be a finite number > 0, got -1"),
    (lambda: GuidedES(0.1, lr=math.nan), "lr.*got nan"),
    (lambda: GuidedES(0.1, population=0), "population must be even.*got 0: use 2"),
    (lambda: GuidedES(0.1, population=7), "population must be even.*got 7: use 8"),
    (lambda: GuidedES(0.1, alpha=1.5), r"alpha must lie in \[0, 1\], got 1.5"),
    (lambda: GuidedES(0.1, alpha=math.nan), "alpha.*got nan"),
    (lambda: GuidedES(0.1, shaping="rank"), "shaping must be one of .*difference, got 'rank'"),  # type: ignore[arg-type]
    (lambda: GuidedES(0.1, noise="uniform"), "noise='normal' alone, got 'uniform'"),
    (lambda: GuidedES(0.1, scale="safe"), "scale must be one of rms, absolute, got 'safe'"),  # type: ignore[arg-type]
    (
        lambda: Evolution({"w": torch.ones(2)}, GuidedES(0.1)).guide({"v": torch.ones(2)}),
        "'v', which does not exist",
    ),
    (
        lambda: Evolution({"w": torch.ones(2)}, GuidedES(0.1)).guide({"w": torch.ones(3)}),
        r"shape \(3,\) is for 'w', which has shape \(2,\)",
    ),
]


@pytest.mark.parametrize(("make", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_refused(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)
