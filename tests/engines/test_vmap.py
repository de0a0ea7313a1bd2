"""Many members in one forward: the scores of one after the other, or a warning and those."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evostep import Always, Evolution, Fitness, OpenAIES, RandomMutation, Record
from evostep.engines import vmap
from evostep.engines.linear import LinearOfMembers
from evostep.engines.stacked import even, positions
from evostep.engines.vmap import Batched, Vmap
from evostep.genome.slots import slots_of_module
from evostep.scoring.evaluator import Evaluator, Round
from evostep.scoring.isolation import ModuleState
from evostep.spaces.weights import AllWeights
from evostep.spaces.workspace import Workspace

X = torch.randn(11, 6, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(7, (11, 4), generator=torch.Generator().manual_seed(1))
Y = torch.arange(11) % 3


class Tied(nn.Module):
    """One module in two places, one weight in two modules, dropout, a buffer that moves nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.again = self.first
        self.tied = nn.Linear(6, 6)
        self.tied.weight = self.first.weight
        self.norm, self.drop = nn.BatchNorm1d(6), nn.Dropout(0.5)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.drop(self.norm(self.tied(self.again(self.first(x))).relu())))
        return out


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.mix = nn.Linear(6, 6)  # of sequences
        self.head = nn.Linear(6, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.mix(self.embedding(tokens)).tanh().mean(1))
        return out


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.classes, self.size = nn.Linear(6, 3), nn.Linear(6, 1)

    def forward(self, x: Tensor, scale: Tensor) -> dict[str, Tensor]:
        return {"logits": self.classes(x * scale), "size": self.size(x).view(-1)}


class Viewing(nn.Module):
    """Takes for granted that a linear layer gives a contiguous tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.wide(x).view(-1, 2, 4).transpose(0, 1).reshape(-1, 8))
        return out.view(-1).view(out.shape)


def batch_norm() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    with torch.no_grad():
        model.train()(X * 3)  # statistics of its own
    return model


def own_metric(outputs: Tensor, targets: Tensor) -> float:
    return -float(F.cross_entropy(outputs, targets))


def of_both(outputs: dict[str, Tensor], targets: Tensor) -> float:
    return -float(F.cross_entropy(outputs["logits"], targets))


BATCHES = [(X[:7], Y[:7]), (X[7:], Y[7:])]
CASES: dict[str, tuple[Callable[[], nn.Module], Any, Any]] = {
    "weight norm, which vmap does member by member": (
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 3))),
        BATCHES,
        "neg-loss",
    ),
    "mlp": (
        lambda: nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3)),
        BATCHES,
        "neg-loss",
    ),
    "mlp, accuracy": (lambda: nn.Linear(6, 3, bias=False), BATCHES, "accuracy"),
    "mlp, own metric": (lambda: nn.Linear(6, 3), BATCHES, own_metric),
    "mlp, macro-f1": (lambda: nn.Linear(6, 3), BATCHES, "macro-f1"),
    "mlp in float64": (
        lambda: nn.Linear(6, 3).double(),
        [(x.double(), y) for x, y in BATCHES],
        "neg-loss",
    ),
    "batch norm": (batch_norm, BATCHES, "neg-loss"),
    "tied and shared, dropout": (Tied, BATCHES, "neg-loss"),
    "integer inputs": (Words, [(TOKENS[:7], Y[:7]), (TOKENS[7:], Y[7:])], "neg-loss"),
    "several inputs": (
        Several,
        [{"x": X, "scale": torch.tensor(0.5), "labels": Y}],
        "neg-loss",
    ),
    "a view that needs rows in order": (Viewing, BATCHES, "neg-loss"),
    "one example": (lambda: nn.Linear(6, 3), [(X[:1], Y[:1])], "neg-loss"),
}


def evolve(
    name: str, engine: Any, *, population: int = 6, generations: int = 2
) -> tuple[nn.Module, list[Record]]:
    make, batches, metric = CASES[name]
    torch.manual_seed(3)
    model = make()
    search = Evolution(
        model, OpenAIES(0.1, population=population), accept=Always(), seed=5, engine=engine
    )
    return model, search.evolve(Fitness(model, batches, metric), generations)


def assert_alike(one: list[Record], other: list[Record]) -> None:
    assert len(set(other[0].scores)) > 1
    for a, b in zip(one, other, strict=True):
        assert a.scores == pytest.approx(b.scores, rel=1e-5, abs=1e-6)
        assert a.parent == pytest.approx(b.parent, rel=1e-5)
        assert a.sample_forwards == b.sample_forwards


@pytest.mark.parametrize(
    ("name", "chunk"),
    [pair for i, name in enumerate(CASES) for pair in ((name, None), (name, (1, 4, 6)[i % 3]))],
)
def test_scores_are_those_of_one_after_the_other(name: str, chunk: int | None) -> None:
    model, records = evolve(name, Vmap(chunk=chunk))  # a warning would be an error
    twin, expected = evolve(name, "inplace")
    assert_alike(records, expected)
    for (key, a), b in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=key)


def test_several_outputs_are_given_to_a_metric_member_by_member() -> None:
    """`logits` is not picked where the metric takes all outputs: the forward is plain."""

    class Plain(Several):
        def forward(self, x: Tensor, scale: Tensor) -> Any:
            found = super().forward(x, scale)
            return found["logits"], found["size"]

    def metric(outputs: Any, targets: Tensor) -> float:
        logits, size = outputs
        assert size.shape == (len(targets),)
        return -float(F.cross_entropy(logits, targets)) - float(size.square().mean())

    found = []
    for engine in ("vmap", "inplace"):
        torch.manual_seed(3)
        model = Plain()
        search = Evolution(model, RandomMutation(0.1, population=5), engine=engine)
        found.append(search.evolve(Fitness(model, [(X, torch.tensor(0.5), Y)], metric), 2))
    assert_alike(*found)


class Noisy(nn.Module):
    """Draws random numbers in eval mode, in the shape of what a linear layer gave."""

    def __init__(self, draw: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.hidden, self.head, self.draw = nn.Linear(6, 8), nn.Linear(8, 3), draw

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.hidden(x)
        out: Tensor = self.head(hidden + 0.3 * self.draw(hidden))
        return out


@pytest.mark.parametrize("draw", [torch.randn_like, torch.rand_like, nn.Dropout(0.5).train()])
def test_members_meet_the_same_random_numbers_as_in_place(
    draw: Callable[[Tensor], Tensor],
) -> None:
    found = []
    for engine in ("vmap", "inplace"):
        torch.manual_seed(3)
        model = Noisy(draw)
        search = Evolution(model, RandomMutation(0.1, population=5), engine=engine, seed=5)
        found.append(search.evolve(Fitness(model, BATCHES, "neg-loss"), 2))
    assert_alike(*found)


class Hungry(nn.Module):
    """Has memory for the forward of a few members, which it tells."""

    def __init__(self, most: int, tell: Callable[[int], object]) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.most, self.tell = most, tell

    def forward(self, x: Tensor) -> Tensor:
        weight = self.linear.weight
        if torch._C._functorch.is_batchedtensor(weight):
            members = len(torch._C._functorch.get_unwrapped(weight))
            if members > self.most:
                raise torch.OutOfMemoryError("no memory")
            self.tell(members)
        out: Tensor = self.linear(x)
        return out


def test_where_memory_runs_out_half_as_many_are_scored_at_a_time() -> None:
    torch.manual_seed(3)
    seen: list[int] = []
    model = Hungry(most=3, tell=seen.append)
    fitness = Fitness(model, [(X, Y)], "neg-loss")
    strategy = RandomMutation(0.1, population=10)
    (record,) = Evolution(model, strategy, engine=Vmap(chunk=10), seed=5).evolve(fitness)
    assert seen == [2, 2, 2, 2, 2]  # 10, 5, 2: each half, rounded down
    torch.manual_seed(3)
    twin = Hungry(most=0, tell=seen.append)
    search = Evolution(twin, strategy, engine="inplace", seed=5)
    assert_alike([record], search.evolve(Fitness(twin, [(X, Y)], "neg-loss")))


def test_no_memory_for_one_member_is_told_and_they_are_scored_in_place() -> None:
    torch.manual_seed(3)
    model = Hungry(most=0, tell=print)
    search = Evolution(model, RandomMutation(0.1, population=4), engine="vmap", seed=5)
    with pytest.warns(UserWarning, match="there is not enough memory for one member"):
        (record,) = search.evolve(Fitness(model, [(X, Y)], "neg-loss"))
    assert not record.failed
    assert len(set(record.scores)) == 4


def compiled(model: nn.Module) -> Fitness:
    model.compile(backend="eager")
    return Fitness(model, BATCHES, "neg-loss")


CANNOT: dict[str, tuple[Callable[[nn.Module], Any], str]] = {
    "a bare callable": (lambda model: lambda: float(model(X).sum()), "a bare callable"),
    "a forward of its own": (
        lambda model: Fitness(
            model, BATCHES, "neg-loss", forward=lambda m, batch: (m(batch[0]), batch[1])
        ),
        "has a forward= of its own",
    ),
    "calibration": (
        lambda model: Fitness(model, BATCHES, "neg-loss", calibration=BATCHES),
        "calibration= estimates BatchNorm statistics",
    ),
    "training mode": (
        lambda model: Fitness(model, BATCHES, "neg-loss", mode="train"),
        "in mode='train'",
    ),
    "compiled": (compiled, "the model is compiled"),
}


@pytest.mark.parametrize("name", CANNOT)
def test_what_cannot_be_stacked_is_told_once_and_scored_in_place(name: str) -> None:
    make, why = CANNOT[name]
    found = []
    for engine in ("vmap", "inplace"):
        model = batch_norm_seeded()
        search = Evolution(model, RandomMutation(0.1, population=4), engine=engine, seed=5)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            records = search.evolve(make(model), 2)
        told = [str(one.message) for one in caught if "engine" in str(one.message)]
        assert [why in text for text in told] == ([True] if engine == "vmap" else []), told
        found.append([record.scores for record in records])
    assert found[0] == found[1]


def batch_norm_seeded() -> nn.Module:
    torch.manual_seed(3)
    return batch_norm()


class Deciding(nn.Module):
    """Looks at its values: not to be batched."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x)
        return out if float(out.detach().sum()) > 0 else -out


def test_a_forward_that_cannot_be_batched_is_told_and_scored_in_place() -> None:
    found = []
    for engine in ("vmap", "inplace"):
        torch.manual_seed(3)
        model = Deciding()
        search = Evolution(model, RandomMutation(0.5, population=6), engine=engine, seed=5)
        fitness = Fitness(model, [(X, Y)], "neg-loss")
        if engine == "vmap":
            with pytest.warns(UserWarning, match="engine 'vmap' cannot score"):
                found.append(search.evolve(fitness, 2))
        else:
            found.append(search.evolve(fitness, 2))
    assert [r.scores for r in found[0]] == [r.scores for r in found[1]]


class Keeping(nn.Module):
    """Reaches its weight by another way than through the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.kept = [self.linear.weight]

    def forward(self, x: Tensor) -> Tensor:
        assert self.kept[0].shape == (3, 6), "a shape may be asked for"
        out: Tensor = x @ self.kept[0].T + self.linear.bias
        return out


def test_a_weight_that_is_reached_by_another_way_is_told_and_members_are_scored_in_place() -> None:
    """With accuracy and a small sigma the first check would not see it."""
    found = []
    for engine in ("vmap", "inplace"):
        torch.manual_seed(3)
        model = Keeping()
        search = Evolution(model, RandomMutation(0.01, population=6), engine=engine, seed=5)
        fitness = Fitness(model, BATCHES, "accuracy")
        if engine == "vmap":
            with pytest.warns(UserWarning, match="uses 'linear.weight' by another way"):
                found.append(search.evolve(fitness, 2))
        else:
            found.append(search.evolve(fitness, 2))
    assert [r.scores for r in found[0]] == [r.scores for r in found[1]]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_no_member_stays_in_the_model_whatever_is_raised(error: type[BaseException]) -> None:
    model = nn.Sequential(nn.Linear(6, 3))
    own = [id(p) for p in model.parameters()]
    bits = [p.clone() for p in model.parameters()]

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if torch._C._functorch.is_batchedtensor(output):
            raise error

    model[0].register_forward_hook(hook)
    search = Evolution(model.train(), RandomMutation(0.5, population=4), engine="vmap")
    fitness = Fitness(model, [(X, Y)], "neg-loss")
    if error is ValueError:
        with pytest.warns(UserWarning, match="engine 'vmap' cannot score"):
            search.evolve(fitness)
    else:
        with pytest.raises(error):
            search.evolve(fitness)
        assert all(map(torch.equal, bits, model.parameters()))
    assert [id(p) for p in model.parameters()] == own
    assert all(type(p) is nn.Parameter for p in model.parameters())
    assert model.training


def test_a_member_whose_metric_raises_fails_alone() -> None:
    def metric(outputs: Tensor, targets: Tensor) -> float:
        value = float(outputs.sum())
        if value > -14:  # between those of the members
            raise ValueError("no")
        return value

    found = []
    for engine in ("vmap", "inplace"):
        torch.manual_seed(4)
        model = nn.Linear(6, 3)
        with torch.no_grad():
            model.bias.sub_(0.2)
        search = Evolution(model, RandomMutation(0.5, population=12), engine=engine, seed=5)
        (record,) = search.evolve(Fitness(model, [(X, Y)], metric))
        found.append(record)
    assert 0 < found[0].failed < 12
    assert found[0].failed == found[1].failed
    assert found[0].error == found[1].error == "ValueError: no"
    assert found[0].scores == pytest.approx(found[1].scores, rel=1e-5, nan_ok=True)


# Sizes


@pytest.mark.parametrize(("n", "most"), [(256, 200), (7, 3), (5, 9), (1, 1), (6, 0)])
def test_chunks_are_even_and_not_too_large(n: int, most: int) -> None:
    size = even(n, most)
    assert 1 <= size <= max(most, 1)
    chunks = -(-n // size)
    assert chunks == -(-n // max(1, min(most, n))) or (n == 5 and chunks == 1)
    assert n - size * (chunks - 1) > size - chunks, "the last one is nearly as large"


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (torch.zeros(5, 3), 5),
        (torch.zeros(5, 7, 3), 35),  # sequences
        (torch.zeros(5, 3, 8, 8), 5),  # images
        (torch.zeros(5, 7, dtype=torch.long), 35),  # tokens
        ({"x": torch.zeros(5, 3), "mask": None}, 5),
        ((torch.zeros(5, 3), torch.zeros(5, 7, 3)), 35),
    ],
)
def test_positions_are_counted(inputs: Any, expected: int) -> None:
    assert positions(inputs) == expected


def opened(model: nn.Module) -> tuple[Batched, Round]:
    evaluator = Evaluator(Fitness(model, [(X, Y)], "neg-loss"), ModuleState(model))
    slots = slots_of_module(model)
    workspace = Workspace(AllWeights(), AllWeights().open(slots), slots.tensors)
    return Vmap().open(workspace, evaluator), evaluator.round(0, 0)


def pays(model: nn.Module) -> bool:
    session, round = opened(model)
    return session.pays(round)


def test_chunks_shrink_as_members_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    for width in (8, 512, 8192):
        session, round = opened(nn.Linear(6, width))
        given: Any = session.workspace.live, session.evaluator.fitness, round
        sizes.append(vmap.members_at_once(*given))
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 3
    monkeypatch.setattr(vmap, "free_bytes", lambda device: 0)
    assert vmap.members_at_once(*given) == 1


def test_pays_for_small_models_without_convolutions() -> None:
    assert pays(nn.Linear(6, 3))
    assert not pays(nn.Sequential(nn.Linear(6, 4000), nn.Linear(4000, 1000)))
    assert not pays(nn.Sequential(nn.Linear(6, 3), nn.Conv1d(1, 1, 1)))


@pytest.mark.parametrize("chunk", [0, -1])
def test_a_chunk_below_one_is_refused(chunk: int) -> None:
    with pytest.raises(ValueError, match=f"chunk must be at least 1, got {chunk}"):
        Vmap(chunk=chunk)


# Linear layers, features first


DIMS: dict[str, tuple[Any, Any, Any]] = {
    "all": (0, 0, 0),
    "inputs shared": (None, 0, 0),
    "weight shared": (0, None, 0),
    "bias shared": (0, 0, None),
    "bias alone": (None, None, 0),
    "members last": (-1, -1, -1),
}


@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("name", DIMS)
def test_any_of_a_linear_layers_tensors_may_be_shared(name: str, contiguous: bool) -> None:
    dims = DIMS[name]
    tensors = [
        torch.randn(*shape) if dim is None else torch.randn(4, *shape).movedim(0, dim)
        for shape, dim in zip(((7, 3), (5, 3), (5,)), dims, strict=True)
    ]

    def layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        own = [t for t, dim in zip((x, weight, bias), dims, strict=True) if dim is not None]
        with LinearOfMembers(own, contiguous=contiguous):
            return F.linear(x, weight, bias=bias)

    expected = torch.func.vmap(F.linear, in_dims=dims)(*tensors)
    found = torch.func.vmap(layer, in_dims=dims)(*tensors)
    torch.testing.assert_close(found, expected)
    transposed = dims[1] is not None and not contiguous
    assert found.mT.is_contiguous() == transposed


def test_sequences_vectors_and_autocast_are_left_to_torch() -> None:
    weight = torch.randn(4, 5, 3)

    def layer(weight: Tensor, x: Tensor) -> Tensor:
        with LinearOfMembers([weight]):
            return F.linear(x, weight)

    for x in (torch.randn(7, 2, 3), torch.randn(3)):
        expected = torch.func.vmap(F.linear, in_dims=(None, 0))(x, weight)
        found = torch.func.vmap(layer, in_dims=(0, None))(weight, x)
        torch.testing.assert_close(found, expected)
        assert found.stride() == expected.stride()
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.func.vmap(layer, in_dims=(0, None))(weight, torch.randn(7, 3))
    assert found.dtype == torch.bfloat16
