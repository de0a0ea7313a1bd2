"""Three contrasts, one verdict; and any outputs can be judged."""

from itertools import product

import pytest
import torch

from evostep.polishing.bootstrap import Interval
from evostep.polishing.crossfit import CrossFit
from evostep.polishing.judging import judge, verdict_of
from evostep.polishing.problem import make_problem
from evostep.polishing.result import BY_START, IMPROVED, NO_GAIN
from evostep.polishing.settings import Settings

YES, OPEN = Interval(2.0, 1.0, 3.0, 0.01), Interval(1.0, -1.0, 3.0, 0.3)
WORSE = Interval(-1.0, -3.0, 1.0, 0.3)
# (gain, start - checkpoint, polished - start) are confirmed -> verdict
EIGHT = {
    (True, True, True): IMPROVED,
    (True, True, False): BY_START,
    (True, False, True): IMPROVED,
    (True, False, False): IMPROVED,  # nothing else is confirmed
    **{(False, *rest): NO_GAIN for rest in product((True, False), repeat=2)},
}


@pytest.mark.parametrize("confirmed", EIGHT)
def test_the_verdict_of_each_of_the_eight_combinations(
    confirmed: tuple[bool, bool, bool],
) -> None:
    assert verdict_of(*(YES if one else OPEN for one in confirmed)) == EIGHT[confirmed]


def test_a_start_that_is_worse_than_the_checkpoint_is_not_applied() -> None:
    assert verdict_of(YES, WORSE, OPEN) == IMPROVED
    assert verdict_of(YES, Interval(0.0, 0.0, 0.0, 1.0), OPEN) == IMPROVED
    assert verdict_of(OPEN, WORSE, YES) == NO_GAIN


def test_outputs_of_other_networks_are_judged_as_they_are() -> None:
    labels = torch.arange(200) % 2
    checkpoint = torch.stack([torch.ones(200), torch.zeros(200)], 1)  # always class 0
    right = torch.nn.functional.one_hot(labels, 2).float() * 3
    found = CrossFit(
        outputs=torch.stack([checkpoint, checkpoint, right]),
        final=torch.stack([checkpoint, right]),
        start="checkpoint",
        chosen="a network of its own",
        chosen_by_fold=("a network of its own",) * 3,
        evaluations=7,
    )
    settings = Settings("balanced-accuracy", folds=3, draws=200)
    result = judge(make_problem(checkpoint, labels), settings.objective, found, settings)
    assert result.verdict == IMPROVED
    assert result.values == {"checkpoint": 0.5, "start": 0.5, "polished": 1.0}
    assert result.agreement == 1.0
    assert not result.decision.bias.any()


def test_what_is_proposed_is_the_procedure_s_also_where_the_start_is_applied() -> None:
    labels = torch.arange(200) % 2
    checkpoint = torch.stack([torch.ones(200), torch.zeros(200)], 1)
    right = torch.nn.functional.one_hot(labels, 2).float() * 3
    biases = torch.tensor([[0.0, 1.0], [0.0, 2.0]], dtype=torch.float64)
    found = CrossFit(
        outputs=torch.stack([checkpoint, right, right]),
        final=torch.stack([right, right]),
        start="logit adjustment",
        chosen="evolution",
        chosen_by_fold=("evolution",) * 3,
        evaluations=7,
        biases=biases,
    )
    settings = Settings("balanced-accuracy", folds=3, draws=200)
    result = judge(make_problem(checkpoint, labels), settings.objective, found, settings)
    assert result.verdict == BY_START
    assert result.decision.bias.tolist() == [0.0, 1.0]
    assert result.proposed.tolist() == [0.0, 2.0]
