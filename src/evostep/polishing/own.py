"""Metrics that have no name here, as metrics of outputs: torchmetrics, scikit-learn, any callable.

They are called with the adjusted outputs of all examples. What cannot weigh examples is refused
where these have weights. Functions of scikit-learn's that a metric with a name equals are measured
as that one is, of counts: a hundred times as fast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from evostep.errors import InputError, reason
from evostep.scoring import scikit
from evostep.scoring.confusion import CONFUSION_METRICS, ConfusionMetric
from evostep.scoring.forms import Known, Reader
from evostep.scoring.metrics import make_metric
from evostep.scoring.outputs import Kind, OutputMetric
from evostep.scoring.splitting import Weighted

Call = Callable[[Tensor, Tensor, Tensor | None, Kind], Any]


# Functions of scikit-learn's, their options, and what they are here.
_NAMED: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("balanced_accuracy_score", {}, "balanced-accuracy"),
    ("matthews_corrcoef", {}, "mcc"),
    ("cohen_kappa_score", {"weights": "quadratic"}, "quadratic-kappa"),
    ("f1_score", {"average": "macro"}, "macro-f1"),
)


def own_metric(metric: Any, higher_is_better: bool | None = None) -> OutputMetric | ConfusionMetric:
    """Return a metric of outputs, in its own direction; of counts, where it equals one of these.

    Args:
        metric: a torchmetrics metric, which is given probabilities; a function or scorer of
            scikit-learn's, which is given what it takes; or a callable on (outputs, targets), which
            is given logits: (n, C) and (n,), (n,) twice of one binary label, (n, L) twice.
        higher_is_better: the direction, where it does not say itself.

    Raises:
        InputError: what is no metric, or looks like a loss and does not say its direction.

    Example:
        >>> def margin(outputs, targets):
        ...     return outputs.gather(1, targets[:, None]).mean()
        >>> own_metric(margin).higher_is_better
        True
    """
    try:
        make_metric(metric, higher_is_better=higher_is_better)
    except ValueError as error:  # says what it is not, in one line
        raise InputError(str(error).replace("and a fitness climbs: ", "")) from error
    name = name_of(metric)
    found = scikit.recognise(metric)
    if found is not None:
        up = found.higher_is_better if higher_is_better is None else higher_is_better
        options = getattr(found.function, "keywords", {})
        for function, needs, own in _NAMED if up and not found.own else ():
            if found.name == function and options == needs:
                return CONFUSION_METRICS[own]
        call = _of_scikit(metric)
    elif hasattr(metric, "compute") and hasattr(metric, "update"):
        up = metric.higher_is_better if higher_is_better is None else higher_is_better
        call = _of_torchmetrics(metric)
    else:
        up, call = higher_is_better is not False, _of_callable(metric)
    return OutputMetric(name, _in_a_line(name, call), up, span=None)


def _in_a_line(name: str, call: Call) -> Call:
    """Return the call that says in one line what a metric raises, for it is the user's own."""

    def told(outputs: Tensor, targets: Tensor, weights: Tensor | None, kind: Kind) -> Any:
        try:
            return call(outputs, targets, weights, kind)
        except InputError:
            raise
        except Exception as error:  # a metric of the user's own may raise anything
            raise InputError(f"metric {name} fails: {reason(error)}") from error

    return told


def name_of(metric: Any) -> str:
    """Return what a metric that has no name here is called.

    Example:
        >>> name_of(max), name_of(Known())
        ('max', 'Known')
    """
    found = getattr(metric, "_score_func", getattr(metric, "func", metric))
    return str(getattr(found, "__name__", type(found).__name__))


def _of_scikit(metric: Any) -> Call:
    # outputs are logits, whatever their range
    make = make_metric(metric, higher_is_better=True, reader=Reader(Known(probabilities=False)))

    def call(outputs: Tensor, targets: Tensor, weights: Tensor | None, kind: Kind) -> Any:
        accumulator = make()
        truth = targets if weights is None else Weighted(targets, weights)
        accumulator.update(_flat(outputs, kind), truth)
        return float(accumulator.compute()[0])

    return call


def _of_torchmetrics(metric: Any) -> Call:
    make = make_metric(metric, higher_is_better=True)

    def call(outputs: Tensor, targets: Tensor, weights: Tensor | None, kind: Kind) -> Any:
        _refuse(weights, name_of(metric))
        # outputs that happen to lie in [0, 1] would be taken for probabilities
        outputs = _flat(outputs, kind)
        accumulator = make()
        given = outputs.softmax(1) if kind == "classes" else outputs.sigmoid()
        accumulator.update(given, targets)
        return float(accumulator.compute()[0])

    return call


def _of_callable(metric: Callable[[Tensor, Tensor], Any]) -> Call:
    def call(outputs: Tensor, targets: Tensor, weights: Tensor | None, kind: Kind) -> Any:
        _refuse(weights, name_of(metric))
        return metric(_flat(outputs, kind), targets)

    return call


def _flat(outputs: Tensor, kind: Kind) -> Tensor:
    return outputs[:, 0] if kind == "binary" else outputs


def _refuse(weights: Tensor | None, name: str) -> None:
    if weights is not None:
        raise InputError(
            f"metric {name} cannot weigh examples: leave the weights out, or pass a metric of "
            "scikit-learn's or one with a name"
        )
