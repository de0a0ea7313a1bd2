"""A metric of one's own: the mean reciprocal rank of the true class.

    python examples/own_metric.py

Any function of (outputs, targets) will do. One that returns a number for each example, shape (n,),
can be tested example by example, too (`PairedTest(kind="t")`). Higher is better; a loss says
`higher_is_better=False`.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import evostep


def reciprocal_rank(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return 1 / (the true class's place in the order of the outputs) for each example, (n,)."""
    of_truth = outputs.gather(1, targets[:, None])
    return 1 / (outputs >= of_truth).sum(1)


def main() -> None:
    """Train a little, then evolve the last layer on the metric, decided by a paired test."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels)
    model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for i in range(40):
        batch = slice(i % 10 * 40, i % 10 * 40 + 40)
        optimizer.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()

    select, decide, test = (
        evostep.Fitness(model, [(x[part], y[part])], reciprocal_rank)
        for part in (slice(400, 800), slice(800, 1300), slice(1300, None))
    )
    before = test()
    search = evostep.Evolution(
        model,
        evostep.OpenAIES(sigma=0.05, lr=0.03, population=16),
        space=evostep.Only("head"),
        accept=evostep.PairedTest(kind="t"),
    )
    records = search.evolve(select, generations=20, accept_on=decide)
    print(f"on other examples than it selected on: {records[-1].verdict}")
    print(f"mean reciprocal rank on the test examples: {before:.3f} -> {test():.3f}")


if __name__ == "__main__":
    main()
