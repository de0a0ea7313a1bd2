"""ESGD: a slow, obvious twin of one generation, the guarantee, resume, and what is left alone."""

import copy
import gc
import hashlib
import io
import math
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import evostep
from evostep.noise import derive_seed, draw, make_generator
from evostep.population.breeding import Newborn
from evostep.population.esgd import ESGD
from evostep.population.individual import transplant
from evostep.population.selection import draw_parents, recombine, roulette, survivors
from evostep.population.species import Species
from evostep.scoring.calibration import Calibration

INPUTS = torch.randn(60, 4, generator=torch.Generator().manual_seed(7))
TARGETS = (INPUTS @ torch.tensor([1.0, -1.0, 0.5, 0.0]) > 0).long()
BATCHES = [(INPUTS[:40], TARGETS[:40]), (INPUTS[40:], TARGETS[40:])]
MANY_LR = (0.01, 0.3, 1.0, 30.0)  # the last one makes things worse, so that some back off


def net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))


def optimizer_for(model: nn.Module, i: int) -> torch.optim.Optimizer:
    lr = MANY_LR[i % len(MANY_LR)]
    if i % 2:
        return torch.optim.Adam(model.parameters(), lr=lr / 10)
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def pairs(
    size: int = 4, dtype: torch.dtype = torch.float32
) -> list[tuple[nn.Module, torch.optim.Optimizer]]:
    models = [net(i).to(dtype) for i in range(size)]
    return [(model, optimizer_for(model, i)) for i, model in enumerate(models)]


def inputs_for(model: nn.Module) -> Tensor:
    return INPUTS.to(next(model.parameters()).dtype)


def train_epoch(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    model.train()
    order = torch.randperm(len(INPUTS))
    for part in order.split(20):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs_for(model)[part]), TARGETS[part]).backward()
        optimizer.step()
    return len(INPUTS)


@torch.no_grad()
def neg_loss(model: nn.Module) -> float:
    model.eval()
    return -float(F.cross_entropy(model(inputs_for(model)), TARGETS))


def population(
    size: int = 4, fitness: Any = neg_loss, dtype: torch.dtype = torch.float32, **settings: Any
) -> ESGD:
    chosen: dict[str, Any] = {"offspring": 5, "parents": 2, "elite": 3, "sigma": 0.3, "seed": 3}
    return ESGD(pairs(size, dtype), fitness, **{**chosen, **settings})


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def everything(one: ESGD) -> Any:
    """All that an ESGD is, as a copy."""
    return copy.deepcopy(one.state_dict())


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b or (a != a and b != b))


# The twin: whole modules, deep copies, nothing clever.


class Twin:
    """ESGD as the paper's algorithm reads, with a deep copy wherever one is conceivable."""

    def __init__(self, size: int, rho: int, lam: int, m: int, sigma: float, seed: int) -> None:
        self.people = pairs(size, torch.float64)
        self.rho, self.lam, self.m, self.sigma, self.seed = rho, lam, m, sigma, seed
        self.epoch = self.round = 0

    def fitness(self, model: nn.Module) -> float:
        return neg_loss(copy.deepcopy(model))

    def sgd_step(self, epochs: int) -> None:
        for _ in range(epochs):
            for i, (model, optimizer) in enumerate(self.people):
                backup = copy.deepcopy((model, optimizer))
                before = self.fitness(model)
                torch.manual_seed(derive_seed(self.seed, self.epoch, "train", i) % 2**63)
                train_epoch(model, optimizer)
                after = self.fitness(model)
                if math.isnan(after) or after < before:
                    self.people[i] = backup
            self.epoch += 1

    def evolution_round(self, k: int) -> None:
        scores = [self.fitness(model) for model, _ in self.people]
        ranks = scipy.stats.rankdata(scores)
        children = []
        for i in range(self.lam):
            wheel = torch.from_numpy(ranks / ranks.sum())
            generator = make_generator(derive_seed(self.seed, self.round, "parents", i))
            chosen = torch.multinomial(wheel, self.rho, generator=generator).tolist()
            models = [self.people[j][0] for j in chosen]
            child, optimizer = copy.deepcopy(self.people[chosen[0]])
            with torch.no_grad():
                for name, tensor in child.state_dict().items():
                    if tensor.is_floating_point():
                        stack = torch.stack([model.state_dict()[name] for model in models])
                        tensor.copy_(stack.mean(0))
                for name, parameter in child.named_parameters():
                    parameter += (self.sigma / k) * draw(
                        "normal",
                        parameter,
                        seed=self.seed,
                        generation=self.round,
                        member=i,
                        name=name,
                    )
            children.append((child, optimizer))
        everyone = self.people + children
        scores += [self.fitness(child) for child, _ in children]
        order = sorted(range(len(everyone)), key=lambda j: -scores[j])
        elite, others = order[: self.m], order[self.m :]
        generator = make_generator(derive_seed(self.seed, self.round, "survival"))
        shuffled = [others[j] for j in torch.randperm(len(others), generator=generator)]
        alive = elite + shuffled[: len(self.people) - self.m]
        # who stays, stays in place; the born fill the gaps
        born = iter([j for j in alive if j >= len(self.people)])
        self.people = [
            everyone[j] if j in alive else everyone[next(born)] for j in range(len(self.people))
        ]
        self.round += 1


@pytest.mark.parametrize(
    ("rho", "lam", "m"),
    [(2, 5, 3), (1, 8, 1), (4, 3, 4), pytest.param(3, 12, 2, marks=pytest.mark.slow)],
)
def test_generations_agree_with_the_twin_step_by_step(rho: int, lam: int, m: int) -> None:
    # float64, or the rounding of two ways to take a mean would grow with each wild step
    ours = population(dtype=torch.float64, offspring=lam, parents=rho, elite=m)
    twin = Twin(4, rho, lam, m, 0.3, 3)
    born = backed_off = 0
    for k in (1, 2):
        backed_off += sum(not kept for d in ours.descend(train_epoch, 2) for kept in d.kept)
        twin.sgd_step(2)
        for _ in range(2):
            (record,) = ours.evolve(1)
            twin.evolution_round(k)
            born += sum(survivor >= 4 for survivor in record.survivors)
            for one, (model, optimizer) in zip(ours.individuals, twin.people, strict=True):
                assert type(one.optimizer) is type(optimizer)
                theirs = model.state_dict()
                for name, tensor in one.model.state_dict().items():
                    torch.testing.assert_close(tensor, theirs[name], rtol=1e-6, atol=1e-8)
                for a, b in zip(
                    one.optimizer.state.values(), optimizer.state.values(), strict=True
                ):
                    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
                assert one.optimizer.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    assert born > 0
    assert backed_off > 0


# The guarantee.


def landscape(model: nn.Module, salt: int, holes: int) -> float:
    """A fitness without any structure: a hash of the weights; NaN or an error where it is low."""
    parameters = torch.cat([p.detach().flatten() for p in model.parameters()])
    digest = hashlib.blake2b(
        parameters.numpy().tobytes() + struct.pack("<q", salt), digest_size=2
    ).digest()
    value = int.from_bytes(digest, "little") - 40_000
    if value % 10 < holes:
        return math.nan if value % 2 else -math.inf
    return round(value / 10_000)  # coarse: ties are common


@settings(max_examples=40)
@given(data=st.data())
def test_the_best_fitness_never_falls(data: st.DataObject) -> None:
    mu = data.draw(st.integers(1, 5), "mu")
    salt, holes = data.draw(st.integers(0, 10**6), "salt"), data.draw(st.integers(0, 6), "holes")
    models = [nn.Linear(2, 1) for _ in range(mu)]
    for i, model in enumerate(models):
        nn.init.constant_(model.weight, i - salt % 7)
    esgd = ESGD(
        [(model, torch.optim.SGD(model.parameters(), lr=0.1)) for model in models],
        lambda model: landscape(model, salt, holes),
        offspring=data.draw(st.integers(1, 6), "lambda"),
        parents=data.draw(st.integers(1, mu), "rho"),
        elite=data.draw(st.integers(1, mu), "m"),
        sigma=data.draw(st.floats(1e-3, 10), "sigma"),
        seed=salt,
    )

    def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        optimizer.zero_grad()
        model(torch.randn(3, 2)).sum().backward()
        optimizer.step()
        return 3

    def best() -> float:
        # not what ESGD says it is, but what the weights now give
        values = [landscape(one.model, salt, holes) for one in esgd.individuals]
        assert same(esgd.scores, [v if math.isfinite(v) else math.nan for v in values])
        return max((value for value in values if math.isfinite(value)), default=-math.inf)

    reached = -math.inf
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)
        for step in data.draw(st.lists(st.sampled_from("de"), min_size=1, max_size=5), "steps"):
            esgd.descend(train) if step == "d" else esgd.evolve(1)
            now = best()
            assert now >= reached
            reached = now
            if math.isfinite(reached):
                assert landscape(esgd.best().model, salt, holes) == reached


# Selection: laws of the pure functions.


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9))
def test_the_wheel_is_by_rank_ties_share_and_any_monotone_fitness_gives_the_same(
    scores: list[float],
) -> None:
    wheel = roulette(scores)
    ranks = scipy.stats.rankdata(scores)
    np.testing.assert_allclose(wheel.numpy(), ranks / ranks.sum())
    levels = {score: 2.0 * i - 5 for i, score in enumerate(sorted(set(scores)))}
    assert torch.equal(wheel, roulette([levels[score] for score in scores]))


def test_draws_follow_the_wheel_and_parents_are_different() -> None:
    scores = [-1.0, math.nan, -3.0, -2.0, math.inf]
    first = [0] * 5
    for i in range(2000):
        parents = draw_parents(scores, 2, make_generator(derive_seed("wheel", i)))
        assert len(set(parents)) == 2
        first[parents[0]] += 1
    assert first[1] == first[4] == 0
    assert [first[0] / 2000, first[2] / 2000, first[3] / 2000] == pytest.approx(
        [3 / 6, 1 / 6, 2 / 6], abs=0.045
    )
    assert len(draw_parents(scores, 5, torch.Generator())) == 3
    assert draw_parents([math.nan], 1, torch.Generator()) == ()


@given(
    st.lists(st.sampled_from([math.nan, -1.0, 0.0, 0.5, 2.0]), min_size=2, max_size=12),
    st.data(),
)
def test_survival_is_m_elitist(scores: list[float], data: st.DataObject) -> None:
    size = data.draw(st.integers(1, len(scores)))
    elite = data.draw(st.integers(1, size))
    alive = survivors(scores, size, elite, torch.Generator().manual_seed(0))
    assert len(alive) == len(set(alive)) == size
    finite = sorted((s for s in scores if not math.isnan(s)), reverse=True)
    kept = [scores[i] for i in alive]
    assert kept[: min(elite, len(finite))] == finite[:elite]
    first = sorted(range(len(scores)), key=lambda i: (math.isnan(scores[i]), -scores[i], i))
    assert alive[: min(elite, len(finite))] == first[: min(elite, len(finite))]  # of equals
    # nobody who failed survives while somebody sound dies
    assert sum(not math.isnan(s) for s in kept) == min(size, len(finite))


def test_the_rest_of_the_survivors_is_drawn_evenly() -> None:
    counts = [0] * 5
    for i in range(2000):
        for j in survivors([5, 4, 3, 2, 1], 3, 1, make_generator(derive_seed("rest", i))):
            counts[j] += 1
    assert counts[0] == 2000
    assert all(abs(count / 2000 - 0.5) < 0.05 for count in counts[1:])


def test_equal_parents_breed_their_own_bits() -> None:
    tensor = torch.rand(1000)
    assert torch.equal(recombine([tensor.clone() for _ in range(3)]), tensor)
    half = tensor.to(torch.bfloat16)
    assert torch.equal(recombine([half, half, half]).to(torch.bfloat16), half)
    several = [torch.rand(50) for _ in range(3)]
    torch.testing.assert_close(recombine(several), torch.stack(several).mean(0))


# Noise, buffers, optimizers.


def offspring_tensors(esgd: ESGD) -> list[dict[str, Tensor]]:
    """Score one round of offspring and give what each was when it was scored."""
    seen: list[dict[str, Tensor]] = []
    mine = {id(esgd.individuals[0].model)}
    litter = esgd._breed()

    class Watch:
        def propose(self, one: Any, phase: int) -> Any:
            assert id(one.model) in mine
            seen.append(tensors(one.model))
            return esgd._scorer.propose(one, phase)

    litter.score(Watch(), esgd.phase)  # type: ignore[arg-type]
    return seen


@pytest.mark.parametrize("phase", [1, 4])
@pytest.mark.parametrize("scale", ["absolute", "rms"])
def test_noise_has_sigma_over_k_and_reaches_parameters_alone(phase: int, scale: str) -> None:
    models = [nn.Sequential(nn.Linear(60, 60), nn.BatchNorm1d(60)) for _ in range(2)]
    models[0][0].bias.requires_grad_(False)
    models[1][0].bias.requires_grad_(False)
    sgd = [(m, torch.optim.SGD([p for p in m.parameters() if p.requires_grad])) for m in models]
    for i, model in enumerate(models):
        model[1].running_mean.fill_(float(i))
        model[1].num_batches_tracked.fill_(4)
    esgd = ESGD(sgd, lambda m: 0.0, 3, parents=2, elite=1, sigma=0.2, scale=scale)  # type: ignore[arg-type]
    esgd.phase = phase
    esgd._score_everybody()
    states = [tensors(model) for model in models]
    mean = (states[0]["0.weight"] + states[1]["0.weight"]) / 2
    unit = float(mean.square().mean().sqrt()) if scale == "rms" else 1.0
    seen = offspring_tensors(esgd)
    noises = [(one["0.weight"] - mean) / unit for one in seen]
    for one, noise in zip(seen, noises, strict=True):
        assert float(noise.std()) == pytest.approx(0.2 / phase, rel=0.06)
        torch.testing.assert_close(one["0.bias"], (states[0]["0.bias"] + states[1]["0.bias"]) / 2)
        assert torch.equal(one["1.running_mean"], torch.full((60,), 0.5))
        assert torch.equal(one["1.running_var"], torch.ones(60))
        assert int(one["1.num_batches_tracked"]) == 4
    assert abs(float(torch.corrcoef(torch.stack([n.flatten() for n in noises]))[0, 1])) < 0.06
    for model, state in zip(models, states, strict=True):
        assert same(tensors(model), state)


def test_calibrated_statistics_are_those_of_the_offspring_and_stay_with_it() -> None:
    esgd = population(offspring=12, calibration=BATCHES, sigma=0.5)
    esgd.descend(train_epoch)
    records = esgd.evolve(3)
    born = {id(one.model): one for one in esgd.individuals}
    assert any(survivor >= 4 for record in records for survivor in record.survivors)
    checked = 0
    for one in born.values():
        if int(one.model[1].num_batches_tracked) != len(BATCHES):  # an original: 3 a descent
            continue
        twin = copy.deepcopy(one.model)
        Calibration(twin, BATCHES)(twin)
        assert same(tensors(one.model), tensors(twin))
        checked += 1
    assert checked > 0
    assert all(module.momentum == 0.1 for one in born.values() for module in [one.model[1]])
    # what was scored is what was kept
    assert esgd.scores == [neg_loss(one.model) for one in esgd.individuals]
    each = 1 + len(INPUTS)
    assert [record.sample_forwards for record in records] == [4 + 12 * each, 12 * each, 12 * each]


@pytest.mark.parametrize("inherit", ["state", "fresh"])
def test_an_offspring_takes_its_first_parents_optimizer(inherit: str) -> None:
    esgd = population(offspring=20, elite=4, inherit=inherit, sigma=0.05)
    esgd.descend(train_epoch)
    before = list(esgd.individuals)
    states = [copy.deepcopy(one.optimizer.state_dict()) for one in before]
    (record,) = esgd.evolve(1)
    litter = [
        draw_parents(record_scores(esgd), 2, make_generator(derive_seed(3, 0, "parents", i)))
        for i in range(20)
    ]
    born = [survivor - 4 for survivor in record.survivors if survivor >= 4]
    places = [j for j in range(4) if j not in record.survivors]
    assert born
    for place, child in zip(places, born, strict=True):
        first = litter[child][0]
        one = esgd.individuals[place]
        assert one.model is before[place].model
        assert one.optimizer is not before[first].optimizer
        assert type(one.optimizer) is type(before[first].optimizer)
        assert one.founder == before[first].founder
        made = one.optimizer.state_dict()
        assert made["param_groups"] == states[first]["param_groups"]
        assert same(made["state"], states[first]["state"] if inherit == "state" else {})
        own = list(one.model.parameters())
        assert all(
            p is q for p, q in zip(one.optimizer.param_groups[0]["params"], own, strict=True)
        )
        assert all(p.grad is None for p in own)
    for place in set(range(4)) - set(places):
        assert esgd.individuals[place] is before[place]
        assert same(before[place].optimizer.state_dict(), states[place])
    esgd.descend(train_epoch)  # the new optimizers train


def record_scores(esgd: ESGD) -> list[float]:
    """Fitness of the population before its only round, from the descent before it."""
    (descent,) = esgd.descents
    return [
        tried if kept else before
        for tried, kept, before in zip(descent.tried, descent.kept, descent.before, strict=True)
    ]


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=2),
        lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True),
        lambda p: torch.optim.AdamW([{"params": p, "lr": 0.3}], weight_decay=0.1),
        lambda p: torch.optim.Rprop(p),
        lambda p: evostep.Evolved(
            torch.optim.SGD(p, lr=0.1, momentum=0.9), evostep.RandomMutation(0.1, population=2)
        ),
    ],
)
@pytest.mark.parametrize("keep", [False, True])
def test_a_transplanted_optimizer_steps_as_the_original_would(
    make: Callable[[Any], torch.optim.Optimizer], keep: bool
) -> None:
    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.mse_loss(model(INPUTS), INPUTS[:, :2])
            loss.backward()
            return loss

        optimizer.step(closure)  # type: ignore[arg-type]

    donor, target = nn.Linear(4, 2), nn.Linear(4, 2)
    source = make(list(donor.parameters()))
    step(donor, source)
    target.load_state_dict(donor.state_dict())
    made = transplant(source, donor, target, keep_state=keep)
    frozen = tensors(donor)
    step(target, made)
    assert same(tensors(donor), frozen)
    fresh = copy.deepcopy(donor)
    if keep:
        step(donor, source)
        assert same(tensors(target), tensors(donor))
    else:
        step(fresh, make(list(fresh.parameters())))
        assert same(tensors(target), tensors(fresh))


def test_hooks_that_stay_behind_are_told() -> None:
    esgd = population(offspring=20, elite=4, sigma=0.05)
    for one in esgd.individuals:
        one.optimizer.register_step_pre_hook(lambda *_: None)
    with pytest.warns(UserWarning, match="hooks or a learning-rate scheduler"):
        esgd.evolve(3)


# Exact resume.


def through_disk(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


FITNESSES: dict[str, Callable[[], Any]] = {
    "callable": lambda: neg_loss,
    "fitness": lambda: evostep.Fitness(net(0), BATCHES, "neg-loss", batches_per_generation=1),
    "maker": lambda: lambda model: evostep.Fitness(model, BATCHES, "accuracy"),
}


def steps(esgd: ESGD) -> Iterator[None]:
    for k in range(3):
        esgd.descend(train_epoch)
        yield
        for _ in range(k + 1):
            esgd.evolve(1)
            yield


@pytest.mark.parametrize(
    ("name", "stop"),
    [
        pytest.param(name, stop + i, marks=pytest.mark.slow if (stop == 4) != i % 2 else ())
        for i, name in enumerate(FITNESSES)
        for stop in (1, 4)
    ],
)
def test_resume_gives_the_same_bits(name: str, stop: int) -> None:
    esgd = population(fitness=FITNESSES[name](), offspring=8)
    for i, _ in enumerate(steps(esgd), start=1):
        if i == stop:
            saved = through_disk(esgd.state_dict())
    torch.manual_seed(12345)
    torch.randn(3)
    resumed = population(fitness=FITNESSES[name](), offspring=8, seed=77)
    resumed.load_state_dict(saved)
    position = 0
    for k in range(3):
        for action in [
            lambda: resumed.descend(train_epoch),
            *[lambda: resumed.evolve(1)] * (k + 1),
        ]:
            position += 1
            if position > stop:
                action()
    assert same(everything(resumed), everything(esgd))
    assert [type(one.optimizer) for one in resumed.individuals] == [
        type(one.optimizer) for one in esgd.individuals
    ]


def test_a_state_taken_between_the_rounds_of_one_call_resumes_the_same() -> None:
    esgd, taken = population(), []
    esgd.descend(train_epoch)
    esgd.evolve(4, on_generation=lambda r: taken.append(through_disk(esgd.state_dict())))
    resumed = population()
    resumed.load_state_dict(taken[1])
    resumed.evolve(2)
    a, b = everything(esgd), everything(resumed)
    # the second call scores its population anew
    assert b.pop("sample_forwards") == a.pop("sample_forwards") + 4
    assert same(a, b)


def test_loading_does_not_tie_the_saved_state_to_the_population() -> None:
    esgd = population()
    esgd.descend(train_epoch)
    saved = everything(esgd)
    kept = copy.deepcopy(saved)
    esgd.load_state_dict(saved)
    esgd.descend(train_epoch)
    assert same(saved, kept)


def test_loading_keeps_the_optimizer_objects_whose_species_is_the_same() -> None:
    esgd = population()
    saved = everything(esgd)
    mine = [one.optimizer for one in esgd.individuals]
    esgd.load_state_dict(saved)
    assert all(one.optimizer is o for one, o in zip(esgd.individuals, mine, strict=True))


# Budget, records, schedule.


class Counting(nn.Module):
    """Counts the examples that go forward; a training one counts three."""

    total = 0

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        Counting.total += len(x) * (3 if torch.is_grad_enabled() else 1)
        return self.layer(x)


@pytest.mark.parametrize("subsample", [None, 1])
def test_sample_forwards_are_counted_exactly(subsample: int | None) -> None:
    models = [Counting() for _ in range(3)]
    fitness = evostep.Fitness(models[0], BATCHES, "accuracy", batches_per_generation=subsample)
    esgd = ESGD(
        [(m, Species(torch.optim.SGD, lr=(0.1, 1.0))) for m in models], fitness, 4, 2, 1, 0.1
    )
    Counting.total = 0
    records: list[Any] = []
    for _ in range(3):
        records += esgd.descend(train_epoch, epochs=2)
        records += esgd.evolve(2)
    assert esgd.sample_forwards == Counting.total > 0
    assert sum(record.sample_forwards for record in records) == Counting.total


def test_alternate_drives_it() -> None:
    schedule = evostep.Alternate(gradient=2, evolution=3, start=1)
    esgd = population()
    for epoch in range(6):
        esgd.descend(train_epoch)
        esgd.evolve(schedule.generations(epoch))
    assert [descent.epoch for descent in esgd.descents] == list(range(6))
    assert [descent.alternation for descent in esgd.descents] == [1, 1, 1, 2, 2, 3]
    assert [(r.generation, r.alternation) for r in esgd.history] == [
        (0, 1), (1, 1), (2, 1), (3, 2), (4, 2), (5, 2)
    ]  # fmt: skip
    for record in esgd.history:
        assert record.candidate == max(record.population) >= record.parent
        assert len(record.scores) == 5
        assert record.accepted == any(survivor >= 4 for survivor in record.survivors)
    assert esgd.scores == [neg_loss(one.model) for one in esgd.individuals]


def test_stopping_early() -> None:
    esgd = population()
    assert esgd.evolve(0) == esgd.descend(train_epoch, 0) == []
    assert esgd.sample_forwards == 0
    assert len(esgd.evolve(9, max_forwards=4 + 2 * 5)) == 2
    assert len(esgd.evolve(9, max_forwards=4 + 2 * 5 + 1)) == 3
    assert len(esgd.evolve(9, max_seconds=0.0)) == 1
    assert len(esgd.evolve(9, on_generation=lambda record: record.generation == 7)) == 2
    others = [tensors(one.model) for one in esgd.individuals[2:]]
    # 4 scorings, then 180 and a scoring for each individual
    (descent,) = esgd.descend(train_epoch, 9, max_forwards=4 + 181 + 1)
    assert len(descent.tried) == len(descent.kept) == 2
    assert same(others, [tensors(one.model) for one in esgd.individuals[2:]])


def test_it_learns() -> None:
    species = [
        Species(torch.optim.SGD, lr=(0.1, 1.0, "log")),
        Species(torch.optim.Adam, lr=(0.01, 0.1)),
    ]
    models = [net(i) for i in range(4)]
    fitness = evostep.Fitness(models[0], BATCHES, "neg-loss")
    esgd = ESGD([(m, species[i % 2]) for i, m in enumerate(models)], fitness, 6, 2, 2)
    for _ in range(6):
        esgd.descend(train_epoch, 2)
        esgd.evolve(1)
    # losses: a sixth of the best at the start, and even the worst has learned
    assert max(esgd.scores) > max(esgd.descents[0].before) / 6
    assert min(esgd.scores) > max(esgd.descents[0].before) / 3


# What is left alone, and failures.


def test_back_off_restores_everything_bit_by_bit() -> None:
    esgd = population()
    esgd.descend(train_epoch)
    before = everything(esgd)["individuals"]

    def ruin(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        train_epoch(model, optimizer)
        optimizer.param_groups[0]["lr"] = 123.0
        with torch.no_grad():
            model[3].weight.mul_(-50)  # type: ignore[index,operator]
        return 60

    (descent,) = esgd.descend(ruin)
    assert descent.kept == [False] * 4
    assert all(tried < was for tried, was in zip(descent.tried, descent.before, strict=True))
    assert same(everything(esgd)["individuals"], before)


def test_scoring_offspring_leaves_streams_modes_and_survivors_alone() -> None:
    esgd = population(elite=4, sigma=1e4)  # no offspring survives
    for one in esgd.individuals:
        one.model.train()
        one.model[1].eval()
    modes = [[m.training for m in one.model.modules()] for one in esgd.individuals]
    before = everything(esgd)["individuals"]
    streams = torch.get_rng_state(), np.random.get_state()[1].copy()
    (record,) = esgd.evolve(1)
    assert not record.accepted
    assert same(everything(esgd)["individuals"], before)
    assert modes == [[m.training for m in one.model.modules()] for one in esgd.individuals]
    assert torch.equal(streams[0], torch.get_rng_state())
    assert (streams[1] == np.random.get_state()[1]).all()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("call", [5, 7])
def test_an_interrupt_leaves_whole_individuals(error: type[BaseException], call: int) -> None:
    calls = 0

    def fitness(model: nn.Module) -> float:
        nonlocal calls
        calls += 1
        if calls == call:
            raise error("stop")
        return neg_loss(model)

    esgd = population(fitness=fitness)
    before = everything(esgd)
    if error is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            esgd.evolve(1)
        assert same(everything(esgd)["individuals"], before["individuals"])
        assert esgd.generation == 0
    else:
        (record,) = esgd.evolve(1)
        assert record.failed == 1
        assert record.error == "RuntimeError: stop"
        assert math.isnan(record.scores[call - 5])
        assert call - 5 + 4 not in record.survivors


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_error_in_training_propagates_and_leaves_the_individual_as_it_was(
    error: type[BaseException],
) -> None:
    esgd = population()
    esgd.descend(train_epoch)
    before = everything(esgd)["individuals"]

    def fail(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        train_epoch(model, optimizer)
        raise error("stop")

    with pytest.raises(error, match="stop"):
        esgd.descend(fail)
    assert same(everything(esgd)["individuals"], before)


def test_an_interrupt_while_the_newborn_move_in_finds_the_round_finished(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quiet, loud = population(offspring=20, sigma=0.05), population(offspring=20, sigma=0.05)
    quiet.evolve(1)
    write, calls = Newborn.write, 0

    def interrupted(self: Newborn) -> None:
        nonlocal calls
        calls += 1
        write(self)
        if calls == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Newborn, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loud.evolve(1)
    assert calls > 2
    assert same(everything(loud), everything(quiet))


def test_the_fitness_of_an_individual_as_it_stands_may_raise() -> None:
    def fitness(model: nn.Module) -> float:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        population(fitness=fitness).evolve(1)


def test_diverged_individuals_do_not_breed_and_are_displaced() -> None:
    esgd = population(offspring=6, elite=1)
    with torch.no_grad():
        for one in esgd.individuals[:2]:
            one.model[0].weight.fill_(math.nan)
    (record,) = esgd.evolve(1)
    assert all(math.isfinite(score) for score in record.scores)
    assert all(math.isfinite(score) for score in esgd.scores)
    assert not {0, 1} & set(record.survivors)


def test_all_failed_is_a_warning_and_nothing_moves() -> None:
    esgd = population(fitness=lambda model: math.nan)
    before = everything(esgd)["individuals"]
    with pytest.warns(UserWarning, match="no individual has a finite fitness"):
        (record,) = esgd.evolve(1)
    assert record.scores == []
    assert same(everything(esgd)["individuals"], before)
    calls = iter([0.0] * 4)
    esgd = population(fitness=lambda model: next(calls, math.nan))
    with pytest.warns(UserWarning, match="failed for all 5 offspring"):
        (record,) = esgd.evolve(1)
    assert record.failed == 5
    assert same(everything(esgd)["individuals"], before)


def test_everybody_sees_the_same_examples_and_random_numbers_within_a_phase() -> None:
    seen: list[float] = []

    def fitness(model: nn.Module) -> float:
        seen.append(float(torch.rand(())))
        return seen[-1]

    esgd = population(fitness=fitness)
    esgd.descend(train_epoch)
    esgd.evolve(2)
    assert len(set(seen)) == 1
    esgd.descend(train_epoch)
    assert len(set(seen)) == 2


def test_a_maker_is_asked_once_and_its_batches_are_shared() -> None:
    asked: list[nn.Module] = []

    def maker(model: nn.Module) -> evostep.Fitness:
        asked.append(model)
        return evostep.Fitness(model, BATCHES, "neg-loss")

    esgd, plain = population(fitness=maker), population()
    for one in (esgd, plain):
        one.descend(train_epoch)
        one.evolve(2)
    assert len(asked) == 1
    assert esgd.scores == pytest.approx(plain.scores, rel=1e-5)


@pytest.fixture
def young_heap() -> Iterator[None]:
    """Let `gc.get_objects` see only what the test makes, not the whole of torch."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("young_heap")
def test_memory_does_not_grow_with_the_offspring() -> None:
    peaks = []
    for lam in (2, 10):
        models = [nn.Linear(50, 50) for _ in range(2)]
        alive: list[int] = []

        def fitness(model: nn.Module, alive: list[int] = alive) -> float:
            # `isinstance` would ask objects of other libraries, which warn
            tensors = [o for o in gc.get_objects() if type(o) in (Tensor, nn.Parameter)]
            alive.append(sum(tensor.numel() == 2500 for tensor in tensors))
            return -float(model.weight.square().sum())

        sgd = [(m, torch.optim.SGD(m.parameters())) for m in models]
        ESGD(sgd, fitness, lam, 2, 1, 10.0).evolve(1)
        del models, sgd
        gc.collect()
        # the two models at first, and one copy while offspring are scored
        assert len(alive) == 2 + lam
        peaks.append(max(alive) - alive[0])
    assert peaks == [1, 1]


# Species.


def test_species_draw_from_their_ranges() -> None:
    species = Species(
        torch.optim.Adam,
        lr=(1e-4, 1e-1, "log"),
        betas=((0.5, 0.9), 0.999),
        weight_decay=(0, 0.5),
        amsgrad=[False, True],
        eps=1e-7,
    )
    drawn = [species.draw(seed=1, individual=i) for i in range(400)]
    logs = [math.log10(one["lr"]) for one in drawn]
    decays = [one["weight_decay"] for one in drawn]
    first = [one["betas"][0] for one in drawn]
    assert scipy.stats.kstest(logs, scipy.stats.uniform(-4, 3).cdf).pvalue > 1e-3
    assert scipy.stats.kstest(decays, scipy.stats.uniform(0, 0.5).cdf).pvalue > 1e-3
    assert scipy.stats.kstest(first, scipy.stats.uniform(0.5, 0.4).cdf).pvalue > 1e-3
    assert {one["betas"][1] for one in drawn} == {0.999}
    assert {one["amsgrad"] for one in drawn} == {False, True}
    assert {one["eps"] for one in drawn} == {1e-7}
    assert abs(np.corrcoef(logs, decays)[0, 1]) < 0.2
    assert drawn[3] == species.draw(seed=1, individual=3) != species.draw(seed=2, individual=3)


def test_species_train_what_needs_a_gradient() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    optimizer = Species(torch.optim.SGD, lr=(0.1, 0.2)).make(model)
    assert optimizer.param_groups[0]["params"] == [model.weight]


SGD = torch.optim.SGD


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Species(SGD), "SGD has no range, got {}: give at least one"),
        (lambda: Species(SGD, lr=0.1, momentum=0.9), "has no range"),
        (lambda: Species(torch.optim.Adam, betas=(0.9, 0.99)), "has no range"),
        (lambda: Species(SGD, lr=(0.1, 0.01)), r"lr .* low < high, got \(0.1, 0.01\)"),
        (lambda: Species(SGD, lr=(0, 1, "log")), "0 < low < high"),
        (lambda: Species(SGD, lr=(0.1, 1, "exp")), r"must be a range .* got \(0.1, 1, 'exp'\)"),
        (lambda: Species(SGD, lr=(0.1, math.inf)), "must be a range"),
        (lambda: Species(SGD, lr=[]), "empty list"),
        (lambda: Species(SGD, learning_rate=(0.1, 1)), "unknown .*'learning_rate'"),
        (lambda: Species(torch.optim.Adam, betas=(0.8, 0.9, 0.99)), "tuple of 2 .* got"),
        (lambda: Species("sgd", lr=(0.1, 1)), "optimizer class .* got 'sgd'"),  # type: ignore[arg-type]
    ],
)
def test_a_species_that_is_none_is_told_in_one_line(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def bad(change: Callable[[list[Any]], Any], **settings: Any) -> Callable[[list[Any]], Any]:
    def make(people: list[Any]) -> Any:
        people = change(people) or people
        chosen: dict[str, Any] = {"offspring": 5, "parents": 2, "elite": 3}
        chosen["fitness"] = neg_loss
        return ESGD(people, **{**chosen, **settings})

    return make


def shared(people: list[Any]) -> list[Any]:
    people[1][0][3].weight = people[0][0][3].weight
    return [(model, SGD(model.parameters())) for model, _ in people]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (bad(lambda p: p, parents=5), "parents is 5, but there are only 4 individuals"),
        (bad(lambda p: p, elite=5), "elite is 5, but there are only 4 individuals"),
        (bad(lambda p: [] or p.clear()), "parents is 2, but there are only 0 individuals"),
        (bad(lambda p: p, elite=0), "elite must be at least 1, got 0"),
        (bad(lambda p: p, offspring=0), "offspring must be at least 1, got 0"),
        (bad(lambda p: p, parents=0), "parents must be at least 1, got 0"),
        (bad(lambda p: p, sigma=0.0), "sigma must be .* > 0, got 0.0"),
        (bad(lambda p: p, scale="relative"), "scale must be one of rms, absolute, got 'relative'"),
        (bad(lambda p: p, inherit="none"), "inherit must be 'state' or 'fresh', got 'none'"),
        (bad(lambda p: p, fitness=0.5), "fitness must be .* got float"),
        (bad(lambda p: p, calibration=iter(BATCHES)), "read only once"),
        (bad(lambda p: [*p, net(9)]), "individual 4 must be a pair .* got Sequential"),
        (bad(lambda p: [*p, (net(9), "sgd")]), "individual 4 must be a pair"),
        (
            bad(lambda p: [*p, (m := nn.Linear(4, 2), SGD(m.parameters()))]),
            "individual 4 has weight .* same architecture",
        ),
        (
            bad(lambda p: [*p, (m := net(9).double(), SGD(m.parameters()))]),
            r"individual 4 has 0.weight \[5, 4\] torch.float64 .* same architecture",
        ),
        (
            bad(lambda p: [*p, (m := net(9).append(nn.ReLU()), SGD(m.parameters()))]),
            "individual 4 has 15 tensors and modules, .* same architecture",
        ),
        (bad(shared), "individuals 0 and 1 share the tensor 3.weight"),
        (bad(lambda p: [*p, (net(9), p[0][1])]), "individual 4 trains a parameter that its model"),
    ],
)
def test_bad_populations_are_told_in_one_line_and_left_alone(
    make: Callable[[list[Any]], Any], message: str
) -> None:
    people = pairs()
    models = [model for model, _ in people]
    before = [tensors(model) for model in models]
    with pytest.raises(ValueError, match=message) as caught:
        make(people)
    assert "\n" not in str(caught.value)
    if make.__closure__ and "share" not in message:
        assert same([tensors(model) for model in models], before)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda e: e.evolve(-1), "generations must be >= 0, got -1"),
        (lambda e: e.descend(train_epoch, -2), "epochs must be >= 0, got -2"),
        (lambda e: e.descend(3), "train_epoch must be a callable .* got int"),
        (lambda e: e.descend(lambda m, o: None), "train_epoch must return the number .* got None"),
        (lambda e: e.best(), "no individual was scored yet"),
        (lambda e: e.load_state_dict({"seed": 1}), "lacks .*generation"),
        (lambda e: e.load_state_dict(population(3).state_dict()), "3 individuals, this .* 4"),
        (
            lambda e: e.load_state_dict(_renamed(population())),
            r"3.bias as None, .* as \(2,\): .*same architecture",
        ),
        (lambda e: e.load_state_dict(_swapped(population())), "trains by Adam, but individual 0"),
        (lambda e: e.load_state_dict(_grouped(population())), "other parameter groups"),
    ],
)
def test_bad_calls_are_told_in_one_line_and_change_nothing(
    act: Callable[[ESGD], Any], message: str
) -> None:
    esgd = population()
    before = everything(esgd)["individuals"]
    with pytest.raises(ValueError, match=message) as caught:
        act(esgd)
    assert "\n" not in str(caught.value)
    assert same(everything(esgd)["individuals"], before)
    assert same(everything(esgd)["seed"], 3)


def _renamed(esgd: ESGD) -> Any:
    state = everything(esgd)
    model = state["individuals"][3]["model"]
    model["4.bias"] = model.pop("3.bias") + 1
    return state


def _swapped(esgd: ESGD) -> Any:
    state = everything(esgd)
    state["seed"] = 9
    state["individuals"][1]["founder"] = 0
    return state


def _grouped(esgd: ESGD) -> Any:
    state = everything(esgd)
    state["individuals"][3]["optimizer"]["param_groups"] *= 2
    return state


def test_calibration_without_batch_norm_is_a_warning() -> None:
    model = nn.Linear(4, 2)
    with pytest.warns(UserWarning, match="calibration has no effect"):
        ESGD([(model, SGD(model.parameters()))], neg_loss, 1, 1, 1, calibration=BATCHES)


def test_an_error_in_calibration_is_a_failure_of_the_offspring_alone() -> None:
    broken = [*BATCHES, (torch.zeros(3, 9), torch.zeros(3))]
    esgd = population(calibration=broken)
    for one in esgd.individuals:
        one.model[3].eval()  # type: ignore[index,operator]
    before = everything(esgd)["individuals"]
    with pytest.warns(UserWarning, match="failed for all 5 offspring.*cannot be multiplied"):
        esgd.evolve(1)
    assert same(everything(esgd)["individuals"], before)
    for one in esgd.individuals:
        assert one.model[1].momentum == 0.1  # type: ignore[index,union-attr]
        assert [m.training for m in one.model.modules()] == [True, True, True, True, False]


def test_the_fitness_may_bring_the_calibration() -> None:
    def fitness(**settings: Any) -> evostep.Fitness:
        return evostep.Fitness(net(0), BATCHES, "neg-loss", **settings)

    a = population(fitness=fitness(), calibration=BATCHES, offspring=12)
    b = population(fitness=fitness(calibration=BATCHES), offspring=12)
    plain = population(fitness=fitness(), offspring=12)
    for esgd in (a, b, plain):
        esgd.descend(train_epoch)
        esgd.evolve(2)
    assert same(everything(a), everything(b))
    assert not same(everything(a), everything(plain))
    # those that trained are scored as they stand, with the statistics that training left
    assert [d.tried for d in b.descents] == [d.tried for d in plain.descents]
    score = evostep.Fitness(net(0), BATCHES, "neg-loss")
    for one, kept in zip(b.individuals, b.scores, strict=True):
        score.model = one.model
        assert score() == kept
