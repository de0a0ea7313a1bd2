"""The registered contrast: what may be written down, and what it needs."""

from typing import Any

import pytest

from evostep.errors import InputError
from evostep.lab.arms.precedence import make_arms
from evostep.lab.arms.registration import registered_contrast
from evostep.lab.options import Options

CONTRAST: dict[str, Any] = {
    "hypothesis": "evolving the head gains on the metric that is reported",
    "arm": "mutation",
    "controls": ["sgd", "sgd-cosine"],
    "metric": "macro-f1",
    "tuning_seeds": "100:103",
    "trials": {"arm": 5, "control": 5},
}


def register(contrast: Any, **options: Any) -> dict[str, Any] | None:
    settings = {"arms": "sgd,sgd-cosine,mutation", "metric": "macro-f1", "seeds": 3, **options}
    chosen = Options(contrast=contrast, **settings)
    return registered_contrast(chosen, make_arms(chosen))


def test_what_is_registered_is_plain_and_whole() -> None:
    assert register(None) is None
    assert register(CONTRAST) == {
        **CONTRAST,
        "tuning_seeds": [100, 101, 102],
        "trials": {"mutation": 5, "sgd": 5, "sgd-cosine": 5},
        "seeds": [0, 1, 2],
    }
    least = {k: v for k, v in CONTRAST.items() if k not in ("tuning_seeds", "trials")}
    found = register(least)
    assert found is not None
    assert (found["tuning_seeds"], set(found["trials"].values())) == ([], {0})
    assert register({**least, "tuning-seeds": 0 * [1], "trials": {"mutation": 1, "control": 2}})


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in CONTRAST.items() if key != name}


REFUSED: list[tuple[Any, str]] = [
    *((without(name), f"contrast lacks {name}") for name in ("hypothesis", "arm", "controls")),
    (without("metric"), "contrast lacks metric"),
    ({**CONTRAST, "hypothesis": " "}, "hypothesis of contrast is empty"),
    ({**CONTRAST, "arm": "mutatio"}, "unknown arm of contrast 'mutatio': did you mean mutation"),
    ({**CONTRAST, "controls": ["sgd", "swa"]}, "unknown arm of contrast 'swa'"),
    ({**CONTRAST, "controls": []}, "name an arm and other arms as its controls"),
    ({**CONTRAST, "controls": ["sgd", "sgd"]}, "contrast compares mutation, sgd, sgd"),
    ({**CONTRAST, "controls": ["mutation"]}, "contrast compares mutation, mutation"),
    ({**CONTRAST, "controls": "sgd"}, "controls of contrast must be a list, got 'sgd'"),
    ({**CONTRAST, "metric": "auroc"}, "unknown metric of contrast 'auroc'"),
    ({**CONTRAST, "metric": "loss"}, "unknown metric of contrast 'loss'"),
    ({**CONTRAST, "n": 3}, "unknown setting of contrast 'n'"),
    ({**CONTRAST, "tuning_seeds": [2, 5]}, "--seeds has 2, which tuning has seen"),
    ({**CONTRAST, "tuning_seeds": 2}, "--seeds has 0, 1, which tuning has seen"),
    ({**CONTRAST, "tuning_seeds": "x"}, "neither a count"),
    (
        {**CONTRAST, "trials": {"arm": 5, "control": 5, "sgd": 4}},
        "contrast gives mutation 5 tuning trials and its control sgd 4: tune the control as often",
    ),
    ({**CONTRAST, "trials": {"arm": 5}}, "its control sgd 0"),
    ({**CONTRAST, "trials": {"arm": 1.5}}, "must be a whole number, got 1.5"),
    ({**CONTRAST, "trials": {"arm": -1}}, "must be at least 0, got -1"),
    ({**CONTRAST, "trials": {"swa": 1}}, "unknown arm in the trials of contrast 'swa'"),
    ("mutation", "--contrast must be a mapping or null, got 'mutation'"),
]


@pytest.mark.parametrize(("contrast", "message"), REFUSED)
def test_what_cannot_be_registered_is_refused_in_one_line(contrast: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        register(contrast)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
