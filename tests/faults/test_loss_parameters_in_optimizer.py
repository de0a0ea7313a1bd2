"""Parameters in the optimizer that the model lacks: a loss's weights, another model's layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evostep import Always, Evolution, Evolved, Fitness, OpenAIES

X = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
ES = OpenAIES(0.02, lr=0.004, population=4)


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def fitness_of(model: nn.Module, **kwargs: Any) -> Fitness:
    return Fitness(model, [(X, Y)], "neg-loss", **kwargs)


@pytest.mark.parametrize("how", ["positions", "model", "names", "groups"])
def test_parameters_of_a_loss_are_left_out_and_told(
    how: str, recwarn: pytest.WarningsRecorder
) -> None:
    model, weights = mlp(), nn.Parameter(torch.zeros(2))
    given: Any = [*model.parameters(), weights]
    if how == "names":
        given = [*model.named_parameters(), ("weights", weights)]
    elif how == "groups":
        given = [{"params": [weights], "lr": 0.1}, {"params": list(model.parameters())}]
    optimizer = Evolved(
        torch.optim.Adam(given), ES, accept=Always(), model=model if how == "model" else None
    )
    before = model[0].weight.clone()
    optimizer.evolve(fitness_of(model))
    assert not torch.equal(before, model[0].weight)
    assert not bool(weights.any())
    assert repr(optimizer).splitlines()[-1].startswith("not evolved, since the model lacks it: ")
    assert "(2,)" in repr(optimizer).splitlines()[-1]
    assert not recwarn.list
    again = Evolved(torch.optim.Adam(given), ES, accept=Always())
    again.load_state_dict(optimizer.state_dict())
    again.evolve(fitness_of(model))
    assert not bool(weights.any())


def test_the_repr_of_an_optimizer_of_the_model_alone_has_no_such_line() -> None:
    model = mlp()
    optimizer = Evolved(torch.optim.SGD(model.parameters(), lr=0.1), ES)
    optimizer.evolve(fitness_of(model))
    assert "not evolved" not in repr(optimizer)


def test_the_head_of_a_metric_loss_is_left_out() -> None:
    class Margin(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.eye(3))

        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return nn.functional.cross_entropy(outputs @ self.weight, targets)

    model, loss = mlp(), Margin()
    optimizer = Evolved(torch.optim.SGD([*loss.parameters(), *model.parameters()], lr=0.1), ES)
    optimizer.evolve(fitness_of(model, loss=loss))
    assert torch.equal(loss.weight, torch.eye(3))


def test_one_model_of_two_is_scored_and_the_other_stands_still() -> None:
    both = nn.ModuleDict({"generator": mlp(), "critic": nn.Linear(3, 1)})
    critic = both["critic"].weight.clone()
    search = Evolution(both, ES, accept=Always())
    search.evolve(fitness_of(both["generator"]))
    assert torch.equal(critic, both["critic"].weight)


def test_what_a_forward_of_ones_own_may_use_is_told() -> None:
    model, head = mlp(), nn.Linear(3, 3)

    def forward(model: nn.Module, batch: Any) -> Any:
        return head(model(batch[0])), batch[1]

    parameters = [*model.parameters(), *head.parameters()]
    before = head.weight.clone()
    optimizer = Evolved(torch.optim.SGD(parameters, lr=0.1), ES, accept=Always())
    with pytest.warns(UserWarning, match="pass model= that holds both"):
        optimizer.evolve(fitness_of(model, forward=forward))
    assert torch.equal(before, head.weight)
    whole = nn.ModuleList([model, head])
    optimizer = Evolved(torch.optim.SGD(parameters, lr=0.1), ES, accept=Always(), model=whole)
    optimizer.evolve(fitness_of(model, forward=forward))
    assert not torch.equal(before, head.weight)


def test_a_fitness_of_a_copy_is_refused_in_one_line() -> None:
    model = mlp()
    optimizer = Evolved(torch.optim.SGD(model.named_parameters(), lr=0.1), ES)
    with pytest.raises(ValueError, match="not with a copy") as caught:
        optimizer.evolve(fitness_of(mlp()))
    assert "\n" not in str(caught.value)
