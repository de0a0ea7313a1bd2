"""The head is found by a forward: whatever makes the outputs, wherever it was defined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from evostep import Fitness
from evostep.genome.slots import slots_of_module
from evostep.scoring.head import find_head, head_of_fitness, with_head

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(9, (6, 5), generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Layers by name, and a forward."""

    def __init__(self, call: Callable[[Any, Any], Any], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.body = nn.Linear(4, 4)  # what is defined last is not the head
        self.call = call

    def forward(self, x: Tensor) -> Any:
        return self.call(self, x)


def free(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(1)))


def filled(net: Any, x: Tensor) -> Tensor:
    """Outputs are written into a part of a tensor each."""
    outputs = torch.empty(len(x), 3)
    outputs[:, :2], outputs[:, 2:] = net.one(net.body(x)), net.two(net.body(x))
    return outputs


def residual(net: Any, x: Tensor) -> Tensor:
    hidden = net.body(x)
    outputs: Tensor = net.out(hidden.relu()) + hidden
    return outputs


FORMS: dict[str, tuple[Callable[[], nn.Module], Tensor, set[str]]] = {
    "defined first": (
        lambda: Net(lambda n, x: n.out(n.body(x)), out=nn.Linear(4, 3)),
        X,
        {"out.weight", "out.bias"},
    ),
    "functional": (
        lambda: Net(lambda n, x: F.linear(n.body(x), n.w, n.b), w=free(3, 4), b=free(3)),
        X,
        {"w", "b"},
    ),
    "product and bias": (
        lambda: Net(lambda n, x: n.body(x) @ n.w + n.b, w=free(4, 3), b=free(3), scale=free(1)),
        X,
        {"w", "b"},
    ),
    "sum of products": (
        lambda: Net(lambda n, x: (n.body(x)[..., None] * n.w).sum(1), w=free(4, 3)),
        X,
        {"w"},
    ),
    "einsum": (
        lambda: Net(
            lambda n, x: torch.einsum("btd,dc->btc", n.body(n.wte(x)), n.w),
            w=free(4, 7),
            wte=nn.Embedding(9, 4),
        ),
        TOKENS,
        {"w"},
    ),
    "thin": (
        lambda: Net(lambda n, x: F.linear(n.body(x), n.a @ n.b), a=free(3, 1), b=free(1, 4)),
        X,
        {"a", "b"},
    ),
    "distances": (
        lambda: Net(lambda n, x: -torch.cdist(n.body(x), n.centers), centers=free(3, 4)),
        X,
        {"centers"},
    ),
    "tied": (
        lambda: Net(
            lambda n, x: F.linear(n.body(n.wte(x)), n.wte.weight, n.b),
            wte=nn.Embedding(9, 4),
            b=free(9),
        ),
        TOKENS,
        {"wte.weight", "b"},
    ),
    "table": (
        lambda: Net(lambda n, x: n.rows(x), rows=nn.Embedding(9, 9)),
        TOKENS,
        {"rows.weight"},
    ),
    "two layers, log_softmax and scale": (
        lambda: Net(
            lambda n, x: n.scale * F.log_softmax(n.classify(n.body(x)), 1),
            classify=nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)),
            scale=free(1),
        ),
        X,
        {"classify.2.weight", "classify.2.bias"},
    ),
    "a temperature of each example": (
        lambda: Net(
            lambda n, x: n.out(n.body(x)) * n.heat(n.body(x)),
            out=nn.Linear(4, 3),
            heat=nn.Linear(4, 1),
        ),
        X,
        {"out.weight", "out.bias"},
    ),
    "a hidden layer called fc": (
        lambda: Net(
            lambda n, x: n.out(n.fc(n.body(x)).relu()), out=nn.Linear(8, 3), fc=nn.Linear(4, 8)
        ),
        X,
        {"out.weight", "out.bias"},
    ),
    "residual": (lambda: Net(residual, out=nn.Linear(4, 4)), X, {"out.weight", "out.bias"}),
    "mean of two": (
        lambda: Net(
            lambda n, x: (n.one(n.body(x)) + n.two(n.body(x))) / 2,
            one=nn.Linear(4, 3, bias=False),
            two=nn.Linear(4, 3, bias=False),
        ),
        X,
        {"one.weight", "two.weight"},
    ),
    "written into parts": (
        lambda: Net(filled, one=nn.Linear(4, 2, bias=False), two=nn.Linear(4, 1, bias=False)),
        X,
        {"one.weight", "two.weight"},
    ),
    "convolution, enlarged": (
        lambda: Net(
            lambda n, x: F.interpolate(n.out(n.stem(x)), scale_factor=2),
            out=nn.Conv2d(4, 2, 1),
            stem=nn.Conv2d(3, 4, 3),
            extra=nn.Conv2d(4, 2, 1),
        ),
        IMAGES,
        {"out.weight", "out.bias"},
    ),
    "recurrent body": (
        lambda: Net(
            lambda n, x: n.out(n.rnn(x[..., None])[0][:, -1]),
            out=nn.Linear(4, 3),
            rnn=nn.LSTM(1, 4, batch_first=True),
        ),
        X,
        {"out.weight", "out.bias"},
    ),
    "weight norm": (
        lambda: Net(
            lambda n, x: n.out(n.body(x)),
            out=parametrizations.weight_norm(nn.Linear(4, 3, bias=False)),
        ),
        X,
        {
            "out.parametrizations.weight.original0",
            "out.parametrizations.weight.original1",
        },
    ),
    "pruned": (
        lambda: Net(
            lambda n, x: n.out(n.body(x)),
            out=prune.random_unstructured(nn.Linear(4, 3), "weight", 0.3),
        ),
        X,
        {"out.weight_orig", "out.bias"},
    ),
    "no parameter in the last layer": (
        lambda: Net(lambda n, x: F.linear(n.body(x), torch.eye(4)[:3]), extra=nn.Linear(4, 3)),
        X,
        {"body.weight", "body.bias"},
    ),
}


@pytest.mark.parametrize("inference", [False, True], ids=["no_grad", "inference_mode"])
@pytest.mark.parametrize("name", FORMS)
def test_the_layer_that_makes_the_outputs_is_found(name: str, inference: bool) -> None:
    make, x, expected = FORMS[name]
    model = make().eval()
    with torch.inference_mode(inference):
        head = find_head(model, lambda: model(x))
    assert head is not None
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[i] for i in head.weights} == expected


def test_parameters_that_are_parts_of_one_memory_are_told_apart() -> None:
    flat = torch.randn(4 * 4 + 3 * 4)
    model = Net(
        lambda n, x: F.linear(F.linear(x, n.a), n.b),
        a=nn.Parameter(flat[:16].view(4, 4)),
        b=nn.Parameter(flat[16:].view(3, 4)),
    )
    head = find_head(model, lambda: model(X))
    assert head is not None
    assert head.weights == {id(model.b)}


@pytest.mark.parametrize("scored", ["main", "aux"])
def test_of_several_outputs_those_that_the_metric_reads(scored: str) -> None:
    model = Net(
        lambda n, x: {"main": n.one(n.body(x)), "aux": n.two(n.body(x))},
        one=nn.Linear(4, 3),
        two=nn.Linear(4, 3),
    )
    fitness = Fitness(
        model,
        [(X, torch.arange(6) % 3)],
        lambda outputs, targets: float((outputs[scored].argmax(1) == targets).float().mean()),
        higher_is_better=True,
    )
    slots = with_head(slots_of_module(model), fitness)
    which = {"main": "one", "aux": "two"}[scored]
    assert slots.head == {f"{which}.weight", f"{which}.bias"}


def test_looking_leaves_no_trace_and_happens_once() -> None:
    calls = []

    def call(net: Any, x: Tensor) -> Tensor:
        calls.append(torch.rand(()))
        net.kept = net.norm(x)
        outputs: Tensor = net.out(net.body(net.kept))
        return outputs

    model = Net(call, out=nn.Linear(4, 3), norm=nn.BatchNorm1d(4), kept=None)
    fitness = Fitness(model, [(X, torch.arange(6) % 3)] * 3, mode="train")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stream = torch.get_rng_state()
    heads = [head_of_fitness(fitness) for _ in range(2)]
    assert len(calls) == 1
    assert heads[0] is heads[1]
    assert torch.equal(stream, torch.get_rng_state())
    assert model.kept is None
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    model.out = nn.Linear(4, 3)
    again = head_of_fitness(fitness)
    assert again is not None
    assert again.layer is model.out


def test_a_forward_that_raises_tells_nothing() -> None:
    model = Net(lambda n, x: n.nothing(x), out=nn.Linear(4, 3))
    assert head_of_fitness(Fitness(model, [(X, torch.arange(6) % 3)])) is None


def test_the_last_layer_is_told_from_one_that_something_follows() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.same = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            same: Tensor = self.same(self.same(x))
            return same

    def last(model: nn.Module) -> tuple[nn.Module | None, bool]:
        head = find_head(model, lambda: model(X))
        assert head is not None
        return head.layer, head.is_last

    plain = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    assert last(plain) == (plain[2], True)
    viewed = nn.Sequential(nn.Unflatten(1, (4, 1)), nn.Conv1d(4, 3, 1), nn.Flatten())
    assert last(viewed) == (viewed[1], True)
    scaled = Net(lambda n, x: n.out(x) * 2, out=nn.Linear(4, 3))
    assert last(scaled) == (scaled.out, False)
    written = nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True))
    assert last(written) == (written[0], False)
    part = Net(lambda n, x: n.out(x)[:, :2], out=nn.Linear(4, 3))
    assert last(part) == (part.out, False)
    twice = Twice()
    assert last(twice) == (twice.same, False)
