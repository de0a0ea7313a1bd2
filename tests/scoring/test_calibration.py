"""BatchNorm statistics, estimated again for what is proposed and kept with what is accepted."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import swa_utils

from evostep import Always, Evolution, Fitness, Improves, Only, OpenAIES, RandomMutation
from evostep.population.esgd import ESGD
from evostep.scoring.calibration import Calibration
from evostep.scoring.isolation import ModuleState

N = 48


def data(seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    inputs = 2 * torch.randn(N, 6, generator=generator) + 1
    targets = (inputs[:, :3].sum(1) > inputs[:, 3:].sum(1)).long()
    return list(zip(inputs.split(20), targets.split(20), strict=True))


def network(*, momentum: float | None = 0.1, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Linear(6, 8),
        nn.BatchNorm1d(8, momentum=momentum),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(8, 2),
    )
    with torch.no_grad():
        model[1].running_mean.normal_()
    return model


def buffers(model: nn.Module) -> list[Tensor]:
    return [buffer.clone() for buffer in model.buffers()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def update_bn(batches: list[Tensor], model: nn.Module) -> None:
    """Torch's update_bn, where each batch weighs as many examples as it has."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d)]
    modes, momenta = [m.training for m in model.modules()], [norm.momentum for norm in norms]
    model.train()
    for norm in norms:
        norm.reset_running_stats()
    for k, batch in enumerate(batches):
        for norm in norms:
            norm.momentum = len(batch) / sum(map(len, batches[: k + 1]))
        with torch.no_grad():
            model(batch)
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def test_a_batch_weighs_as_many_examples_as_it_has() -> None:
    model, twin = network(), network()
    Calibration(model, data())(model)  # 20, 20 and 8 examples
    swa_utils.update_bn([x for x, _ in data() for _ in range(len(x) // 4)], twin)
    torch.testing.assert_close(model[1].running_mean, twin[1].running_mean)
    torch.testing.assert_close(model[1].running_var, twin[1].running_var)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_it_is_torchs_update_bn(momentum: float | None) -> None:
    model, twin = network(momentum=momentum), network(momentum=momentum)
    even = data()[:2]  # torch's takes batches of any size for equal
    assert Calibration(model, even)(model) == 40
    swa_utils.update_bn([inputs for inputs, _ in even], twin)
    assert same(buffers(model), buffers(twin))
    assert model[1].momentum == momentum


def test_modes_momenta_and_weights_stay() -> None:
    model = network()
    model[2].eval()
    modes = [module.training for module in model.modules()]
    weights = copy.deepcopy(list(model.parameters()))
    Calibration(model, data())(model)
    assert [module.training for module in model.modules()] == modes
    assert same(list(model.parameters()), weights)
    assert all(p.grad is None for p in model.parameters())


def test_also_after_an_exception() -> None:
    model = network()
    modes = [module.training for module in model.modules()]
    calibrate = Calibration(model, [(torch.zeros(4, 7), torch.zeros(4))])
    with pytest.raises(RuntimeError):
        calibrate(model)
    assert model[1].momentum == 0.1
    assert [module.training for module in model.modules()] == modes


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.norm(left - right)


@pytest.mark.parametrize("form", ["tuple", "dictionary", "forward"])
def test_batches_of_any_form(form: str) -> None:
    batches: list[Any] = [(x, x.roll(1, 0), y) for x, y in data()]
    forward = None
    if form == "dictionary":
        batches = [{"left": a, "right": b, "labels": y} for a, b, y in batches]
    if form == "forward":

        def forward(model: nn.Module, batch: Any) -> Any:
            return model(batch[0], batch[1]), batch[2]

    model, twin = TwoInputs(), TwoInputs()
    assert Calibration(model, batches, forward=forward)(model) == N
    update_bn([x - x.roll(1, 0) for x, _ in data()], twin.norm)
    assert same(buffers(model), buffers(twin))


@pytest.mark.parametrize(
    "model", [nn.Linear(6, 2), nn.Sequential(nn.BatchNorm1d(6, track_running_stats=False))]
)
def test_without_statistics_it_costs_nothing_and_warns(model: nn.Module) -> None:
    with pytest.warns(UserWarning, match="calibration has no effect"):
        fitness = Fitness(model, data(), calibration=data(1))
    assert fitness.calibration is not None
    assert fitness.calibration.cost(model) == 0
    assert fitness.calibration(model) == 0


def test_one_shot_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="read only once"):
        Fitness(network(), data(), calibration=iter(data(1)))


def test_calling_a_fitness_scores_the_statistics_as_they_stand() -> None:
    model = network()
    before = buffers(model)
    assert (
        Fitness(model, data(), "neg-loss", calibration=data(1))()
        == Fitness(model, data(), "neg-loss")()
    )
    assert same(buffers(model), before)


def twin_score(model: nn.Module, weights: dict[str, Tensor]) -> float:
    """Load, estimate with torch's own function, score with torch's own loss."""
    other = copy.deepcopy(model)
    other.load_state_dict(weights, strict=False)
    update_bn([inputs for inputs, _ in data(1)], other)
    other.eval()
    with torch.no_grad():
        inputs, targets = (torch.cat(column) for column in zip(*data(), strict=True))
        return -float(nn.functional.cross_entropy(other(inputs), targets))


def test_members_are_scored_with_their_own_statistics_the_parent_as_it_stands() -> None:
    model = network()
    fitness = Fitness(model, data(), "neg-loss", calibration=data(1))
    before, parent = buffers(model), fitness()
    strategy = RandomMutation(0.3, population=3)
    search = Evolution(model, strategy, seed=4)
    genome = search.space.open(search.slots)
    children = [strategy.member(genome, {}, 0, i, 4) for i in range(3)]
    expected = [
        twin_score(model, {name: child.tensor(name) for name in genome.center})
        for child in children
    ]
    search.accept = Improves() if max(expected) < parent else Never()
    (record,) = search.evolve(fitness)
    assert record.parent == pytest.approx(parent)
    assert record.scores == pytest.approx(expected, rel=1e-5)
    assert not record.accepted
    assert same(buffers(model), before)
    # parent N; three members 2 N each; the candidate's statistics, once more
    assert record.sample_forwards in (N + 6 * N, N + 6 * N + N)


class Never(Improves):
    def __call__(self, *_: Any) -> bool:
        return False


@pytest.mark.parametrize(
    ("accept", "second"), [(Always(), False), (Improves(), False), (Improves(), True)]
)
@pytest.mark.parametrize(
    "strategy", [RandomMutation(0.3, population=6), OpenAIES(0.1, lr=0.01, population=6)]
)
def test_what_is_kept_is_what_was_scored(strategy: Any, accept: Any, second: bool) -> None:
    model = network()
    fitness = Fitness(model, data(), "neg-loss", calibration=data(1))
    accept_on = Fitness(model, data(2), "neg-loss") if second else None
    assert fitness.calibration is not None
    fitness.calibration(model)  # or the parent has statistics that happen to be better
    search = Evolution(model, strategy, accept=accept)
    moved = 0
    for _ in range(12):
        before = buffers(model)
        (record,) = search.evolve(fitness, accept_on=accept_on)
        after = buffers(model)
        if not record.accepted:
            assert same(before, after)
            continue
        moved += 1
        twin = copy.deepcopy(model)
        update_bn([inputs for inputs, _ in data(1)], twin)
        assert same(after, buffers(twin))
        if record.candidate is not None:
            assert (accept_on or fitness)() == record.candidate
    assert moved


@pytest.mark.parametrize(
    ("strategy", "accept", "second", "scorings", "estimates"),
    [
        (OpenAIES(0.1, lr=0.05, population=4), Always(), False, 5, 5),
        (OpenAIES(0.1, lr=0.05, population=4), Improves(), False, 6, 5),
        (OpenAIES(0.1, lr=0.05, population=4), Improves(), True, 7, 5),
        (RandomMutation(0.1, population=4), Improves(), False, 5, 5),
    ],
)
def test_every_forward_is_counted(
    strategy: Any, accept: Any, second: bool, scorings: int, estimates: int
) -> None:
    model = network()
    seen = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal seen
        seen += len(inputs[0])

    model.register_forward_pre_hook(count)
    fitness = Fitness(model, data(), "neg-loss", calibration=data(1))
    accept_on = Fitness(model, data(2), "neg-loss") if second else None
    search = Evolution(model, strategy, accept=accept)
    (record,) = search.evolve(fitness, accept_on=accept_on)
    assert record.sample_forwards == seen == (scorings + estimates) * N
    assert search.sample_forwards == seen


class Failing:
    """Batches of one model's calibration that fail from a given reading on."""

    def __init__(self, error: BaseException, after: int) -> None:
        self.error, self.left = error, after

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        outputs = model(batch[0])
        if model.training:
            self.left -= 1
            if self.left < 0:
                raise self.error
        return outputs, batch[1]


@pytest.mark.parametrize("after", range(12))
def test_an_interrupt_while_estimating_leaves_the_center_whole(after: int) -> None:
    model = network()
    forward = Failing(KeyboardInterrupt(), after)
    fitness = Fitness(model, data(), "neg-loss", forward=forward, calibration=data(1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    search = Evolution(model, RandomMutation(0.1, population=3), accept=Always())
    with pytest.raises(KeyboardInterrupt):
        search.evolve(fitness)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_member_whose_statistics_cannot_be_estimated_is_counted_as_failed() -> None:
    model = network()
    forward = Failing(RuntimeError("no such batch"), 4)
    fitness = Fitness(model, data(), "neg-loss", forward=forward, calibration=data(1))
    search = Evolution(model, RandomMutation(0.1, population=3), accept=Always())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    (record,) = search.evolve(fitness)
    assert record.failed == 3  # two members, and the first, whose estimate is made once more
    assert record.error == "RuntimeError: no such batch"
    assert not record.accepted
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_calibration_on_accept_on_alone_is_a_warning() -> None:
    model = network()
    search = Evolution(model, RandomMutation(0.1, population=2))
    second = Fitness(model, data(2), "neg-loss", calibration=data(1))
    with pytest.warns(UserWarning, match="calibration of accept_on has no effect"):
        search.evolve(Fitness(model, data(), "neg-loss"), accept_on=second)


def test_statistics_that_the_space_moves_cannot_be_estimated_too() -> None:
    model = network()
    space = Only("1.running_*", buffers=True)
    search = Evolution(model, RandomMutation(0.1, population=2), space=space)
    before = buffers(model)
    fitness = Fitness(model, data(), "neg-loss", calibration=data(1))
    with pytest.raises(ValueError, match=r"moves '1.running_mean', which calibration= estimates"):
        search.evolve(fitness)
    assert same(buffers(model), before)
    assert search.evolve(Fitness(model, data(), "neg-loss"))


def test_a_population_uses_the_calibration_of_its_fitness() -> None:
    models = [network() for _ in range(2)]
    make = lambda m: (m, torch.optim.SGD(m.parameters(), 0.01))  # noqa: E731
    fitness = Fitness(models[0], data(), "neg-loss", calibration=data(1))
    esgd = ESGD(
        [make(m) for m in models], fitness, offspring=6, parents=1, elite=2, sigma=0.3, seed=1
    )
    esgd.evolve(2)
    born = 0
    for one, score in zip(esgd.individuals, esgd.scores, strict=True):
        twin = copy.deepcopy(one.model)
        update_bn([inputs for inputs, _ in data(1)], twin)
        born += same(buffers(one.model), buffers(twin))
        assert Fitness(one.model, data(), "neg-loss")() == pytest.approx(score)
    assert born


def test_dropout_while_estimating_is_the_same_for_everyone_and_leaves_no_trace() -> None:
    model = network(dropout=0.5)
    fitness = Fitness(model, data(), "neg-loss", calibration=data(1))
    search = Evolution(model, OpenAIES(1e-9, lr=1e-12, population=4), accept=Always())
    stream = torch.get_rng_state()
    (record,) = search.evolve(fitness)
    assert max(record.scores) - min(record.scores) < 1e-5
    assert torch.equal(torch.get_rng_state(), stream)


@pytest.fixture
def state() -> tuple[nn.Module, ModuleState]:
    model = network()
    return model, ModuleState(model)


def test_module_state_writes_holds_and_restores(state: tuple[nn.Module, ModuleState]) -> None:
    model, kept = state
    old = kept.values()
    new = [buffer + 1 for buffer in old]
    kept.write(new)
    assert same(buffers(model), new)
    kept.restore()
    assert same(buffers(model), old)
    kept.write(new)
    kept.hold()
    kept.restore()
    assert same(buffers(model), new)
