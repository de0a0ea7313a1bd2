"""scikit-learn's metrics and scorers: called with (true, predicted), in their own direction.

Nothing of scikit-learn is imported here: its functions are known by their module and by the names
of their parameters.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import Tensor

from evostep.errors import InputError
from evostep.scoring.forms import Form, Reader, as_tensor, read_form

Wants = Literal["predictions", "probabilities", "decisions", "outputs"]
_BY_PARAMETER: dict[str, Wants] = {
    "y_score": "probabilities",
    "y_prob": "probabilities",
    "y_proba": "probabilities",
    "pred_decision": "decisions",
}
_OF_PROBABILITIES = ("log_loss", "d2_log_loss_score")  # which call them y_pred
_LOW = ("_loss", "_error", "_deviance")


@dataclass(frozen=True)
class Recognised:
    """A metric of scikit-learn's.

    Attributes:
        function: takes (true, predicted) as arrays, returns a number.
        name: of it.
        higher_is_better: its direction.
        wants: what it compares with the truth.
        own: whether a user wrote the function, and gave it to `make_scorer`.
    """

    function: Callable[[Any, Any], Any]
    name: str
    higher_is_better: bool
    wants: Wants
    own: bool = False

    @property
    def weighs(self) -> bool:
        """Whether it takes ``sample_weight``."""
        return "sample_weight" in inspect.signature(self.function).parameters


def recognise(metric: Any) -> Recognised | None:
    """Return what is known of a function or scorer of scikit-learn's; None: it is none of these.

    Raises:
        InputError: a function that does not compare predictions with a truth.
    """
    inner, options = _without_partial(metric)
    module = str(getattr(inner, "__module__", ""))
    scorer = type(inner)
    if scorer.__module__.startswith("sklearn.metrics._scorer") and hasattr(inner, "_score_func"):
        function, kwargs = inner._score_func, {**inner._kwargs, **options}
        up = inner._sign > 0
        known = recognise(function)
        wants: Wants = known.wants if known is not None else "predictions"
        response = inner._response_method
        if known is None and response != "predict":
            wants = "decisions" if response == "decision_function" else "probabilities"
        name = getattr(function, "__name__", "a scorer")
        return Recognised(partial(function, **kwargs), name, up, wants, own=known is None)
    if not module.startswith("sklearn.metrics") or not inspect.isfunction(inner):
        return None
    name = inner.__name__
    first, second = [*inspect.signature(inner).parameters, "", ""][:2]
    if first not in ("y_true", "y1", "labels_true"):
        raise InputError(
            f"metric {name} of scikit-learn does not compare predictions with a truth: pass a "
            "function on (outputs, targets)"
        )
    wants = _BY_PARAMETER.get(second, "predictions")
    if name in _OF_PROBABILITIES:
        wants = "probabilities"
    elif "_regression" in module:
        wants = "outputs"
    return Recognised(partial(inner, **options), name, not name.endswith(_LOW), wants)


def _without_partial(metric: Any) -> tuple[Any, dict[str, Any]]:
    if not isinstance(metric, partial) or metric.args:
        return metric, {}
    inner, options = _without_partial(metric.func)
    return inner, {**options, **metric.keywords}


def call(
    found: Recognised, reader: Reader, outputs: Any, targets: Any, weights: Tensor | None = None
) -> float:
    """Return the number that a metric of scikit-learn's gives, higher or lower as it is.

    Args:
        found: the metric.
        reader: what is known of outputs and targets.
        outputs: of all examples.
        targets: of all examples.
        weights: (n,), or one for each target; None: 1. What weighs nothing is left out.
    """
    who = f"metric {found.name}"
    try:
        if found.wants == "outputs":
            raise InputError("a regression has no form")
        form = read_form([(outputs, targets)], reader.known, who)
    except InputError:
        if found.wants != "outputs" and not found.own:
            raise
        guess, true = _plain(outputs, targets, who)
        return _called(found, true, guess, weights, who)
    guess, true, counted = form.predict(outputs, targets)
    if found.wants != "predictions":
        guess = _scores(form, outputs, targets, decisions=found.wants == "decisions")
    if form.kind == "labels":
        return _called(found, true, guess, weights, who)
    each = form.each(weights, true, counted)
    guess = guess.flatten(0, true.ndim - 1)  # (positions,) or (positions, classes)
    true = true.flatten()
    if counted is not None:
        kept = counted.flatten()
        guess, true = guess[kept], true[kept]
        each = None if weights is None or each is None else each.flatten()[kept]
    return _called(found, true, guess, each, who)


def _called(
    found: Recognised, true: Tensor, guess: Tensor, weights: Tensor | None, who: str
) -> float:
    """Call it on (true, predicted), without what weighs nothing."""
    options = {}
    if weights is not None:
        if weights.numel() != len(true):
            raise InputError(
                f"{who} takes one weight for each example, got weights of shape "
                f"{tuple(weights.shape)} for targets of shape {tuple(true.shape)}"
            )
        weights = weights.flatten()
        kept = weights > 0
        true, guess, weights = true[kept], guess[kept], weights[kept]
        options["sample_weight"] = weights.double().cpu().numpy()
    return found.function(true.cpu().numpy(), guess.cpu().numpy(), **options)  # type: ignore[no-any-return]


def _plain(outputs: Any, targets: Any, who: str) -> tuple[Tensor, Tensor]:
    """Return outputs in the shape of the targets, and these, float64."""
    outputs = as_tensor(outputs, who=who)
    targets = as_tensor(targets, outputs, who=who)
    if targets.numel() == outputs.numel():
        outputs = outputs.reshape(targets.shape)
    return outputs.double(), targets.double()


def _scores(form: Form, outputs: Tensor, targets: Any, *, decisions: bool) -> Tensor:
    """Return the probability of 1, or of each class, (..., classes); or logits as decisions."""
    outputs = form.align(outputs, targets)[0].double()
    if form.kind != "classes":
        return outputs if decisions or form.probabilities else outputs.sigmoid()
    outputs = outputs.movedim(1, -1)
    if not decisions and not form.probabilities:
        outputs = outputs.softmax(-1)
    if outputs.shape[-1] > 2:
        return outputs
    return outputs[..., 1] - outputs[..., 0] if decisions else outputs[..., 1]
