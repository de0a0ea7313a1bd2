"""Polishing as a scikit-learn estimator; imported when it is asked for, with scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from evostep.polishing.budget import Budget
from evostep.polishing.folds import make_folds
from evostep.polishing.out_of_fold import nested_outputs
from evostep.polishing.polish import polish_problems
from evostep.polishing.result import NO_GAIN
from evostep.polishing.settings import Settings

_SMALL = 1e-12  # a probability of zero has no logarithm


def _has(name: str) -> Any:
    return available_if(lambda self: hasattr(self.estimator, name))


class DecisionClassifier(ClassifierMixin, MetaEstimatorMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier whose decisions are polished on the metric that is reported.

    The estimator is fitted without parts of the data, a bias for each class is chosen on its
    outputs for these (see `evostep.out_of_fold`), and added to the outputs of the estimator fitted
    on all of it, where the gain is confirmed. Two classes have one bias, a threshold.

    Args:
        estimator: a classifier with ``decision_function`` or ``predict_proba``.
        metric: see `evostep.polish`; a scorer of scikit-learn's is one.
        cv: how many folds, at least 3; (cv^2 + cv + 2) / 2 fits.
        costs: (C, C) table of the metric ``cost``, rows are true classes in sorted order.
        budget: see `evostep.polish`.
        random_state: seed of folds, noise and draws.
        higher_is_better: the direction of a metric that has no name and does not say it.

    Attributes:
        classes_: the classes, sorted.
        estimator_: fitted on all the data.
        result_: what was found, an `evostep.Polished`.
        bias_: (C,), or (1,) for two classes; zero where no gain is confirmed.
        scale_: what outputs are multiplied by before; 1 unless the metric reads probabilities.

    Example:
        >>> from sklearn.datasets import make_classification
        >>> from sklearn.linear_model import LogisticRegression
        >>> X, y = make_classification(600, weights=[0.9], flip_y=0.1, random_state=0)
        >>> polished = DecisionClassifier(LogisticRegression(), "macro-f1").fit(X, y)
        >>> polished.predict(X[:2]).shape
        (2,)
    """

    def __init__(
        self,
        estimator: Any,
        metric: Any = "worst-class-recall",
        cv: int = 3,
        *,
        costs: Any = None,
        budget: Budget = None,
        random_state: int = 0,
        higher_is_better: bool | None = None,
    ) -> None:
        self.estimator = estimator
        self.metric = metric
        self.cv = cv
        self.costs = costs
        self.budget = budget
        self.random_state = random_state
        self.higher_is_better = higher_is_better

    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        groups: Sequence[Any] | None = None,
    ) -> DecisionClassifier:
        """Fit the estimator and choose the decision.

        Args:
            X: what the estimator takes, indexable by rows.
            y: (n,) classes.
            sample_weight: (n,) what each example counts, in the fits and in the metric.
            groups: (n,) names; examples of a group stay together.
        """
        self.classes_, numbers = np.unique(np.asarray(y), return_inverse=True)
        targets = torch.as_tensor(numbers)
        settings = Settings(
            self.metric,
            self.cv,
            self.budget,
            costs=self.costs,
            weights=sample_weight,
            groups=groups,
            seed=self.random_state,
            higher_is_better=self.higher_is_better,
        )
        width = len(self.classes_) if len(self.classes_) > 2 else 1
        self._of_outputs = settings.objective.of_outputs
        posed = settings.problem(torch.zeros(len(targets), width), targets)
        parts = make_folds(posed.strata, self.cv, self.random_state, posed.groups)

        def outputs_without(gone: tuple[int, ...]) -> Tensor:
            kept = (~torch.isin(parts, torch.tensor(gone, dtype=torch.long))).numpy()
            fitted = self._fitted(X, y, sample_weight, kept)
            return torch.as_tensor(self._outputs(fitted, X))

        nested = nested_outputs(outputs_without, parts)
        problems = {fold: settings.problem(outputs, targets) for fold, outputs in nested.items()}
        self.result_ = polish_problems(problems[None], settings, parts, problems.__getitem__)
        self.estimator_ = self._fitted(X, y, sample_weight, np.ones(len(targets), dtype=bool))
        # where no gain is confirmed these change nothing
        decision = self.result_.decision
        self.bias_, self.scale_ = decision.bias.numpy(), decision.scale
        return self

    def predict(self, X: Any) -> Any:
        """Return the decided classes, (n,)."""
        check_is_fitted(self, "bias_")
        scores = self._adjusted(X)
        decided = scores.argmax(1) if scores.shape[1] > 1 else (scores[:, 0] > 0).astype(int)
        return self.classes_[decided]

    def decision_function(self, X: Any) -> Any:
        """Return the outputs under the decision, (n, C), or (n,) for two classes."""
        check_is_fitted(self, "bias_")
        scores = self._adjusted(X)
        return scores if scores.shape[1] > 1 else scores[:, 0]

    @_has("predict_proba")  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any) -> Any:
        """Return probabilities, (n, C): the estimator's own, unless the metric reads them."""
        check_is_fitted(self, "bias_")
        if not self._of_outputs or self.result_.verdict == NO_GAIN:
            return self.estimator_.predict_proba(X)
        scores = torch.as_tensor(self._adjusted(X))
        scores = scores if scores.shape[1] > 1 else torch.cat([torch.zeros_like(scores), scores], 1)
        return scores.softmax(1).numpy()

    def _adjusted(self, X: Any) -> Any:
        return self._outputs(self.estimator_, X) * self.scale_ + self.bias_

    def _fitted(self, X: Any, y: Any, weight: Any, kept: Any) -> Any:
        rows = np.flatnonzero(kept)
        given = {} if weight is None else {"sample_weight": np.asarray(weight)[rows]}
        return clone(self.estimator).fit(_rows(X, rows), np.asarray(y)[rows], **given)

    def _outputs(self, fitted: Any, X: Any) -> Any:
        """Return logits (n, C), or (n, 1) for two classes."""
        if hasattr(fitted, "decision_function"):
            scores = np.asarray(fitted.decision_function(X), dtype=np.float64)
            return scores if scores.ndim == 2 else scores[:, None]
        logs = np.log(np.clip(fitted.predict_proba(X), _SMALL, None))
        return logs if logs.shape[1] > 2 else logs[:, 1:] - logs[:, :1]


def _rows(X: Any, rows: Any) -> Any:
    from sklearn.utils import _safe_indexing

    return _safe_indexing(X, rows)
