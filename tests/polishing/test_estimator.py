"""Polishing among scikit-learn's estimators."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits, make_classification
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from evostep.polishing import DecisionClassifier

X, Y = make_classification(
    900, 10, n_informative=5, weights=[0.9], flip_y=0.02, class_sep=0.7, random_state=0
)
NAMES = np.array(["no", "yes"])[Y]
LINEAR = LogisticRegression(max_iter=500)


def test_two_unequal_classes_are_decided_better_on_others() -> None:
    plain = clone(LINEAR).fit(X[:600], NAMES[:600])
    polished = DecisionClassifier(LINEAR, "balanced-accuracy").fit(X[:600], NAMES[:600])
    assert polished.result_.verdict != "no confirmed gain"
    assert polished.bias_.shape == (1,)

    def balanced(model: object) -> float:
        decided, true = model.predict(X[600:]), NAMES[600:]  # type: ignore[attr-defined]
        return float(np.mean([(decided[true == name] == name).mean() for name in ("no", "yes")]))

    assert balanced(polished) > balanced(plain) + 0.05
    own = np.where(polished.decision_function(X[600:]) > 0, "yes", "no")
    assert (own == polished.predict(X[600:])).all()
    assert (polished.predict_proba(X[:5]) == plain.predict_proba(X[:5])).all()


def test_it_is_cloned_searched_and_put_into_pipelines() -> None:
    model = make_pipeline(StandardScaler(), DecisionClassifier(LINEAR, "macro-f1", budget=336))
    search = GridSearchCV(
        model, {"decisionclassifier__estimator__C": [0.1, 1.0]}, cv=3, scoring="f1_macro"
    )
    search.fit(X, NAMES)
    assert set(search.predict(X)) == {"no", "yes"}
    params = clone(model).get_params()
    assert params["decisionclassifier__budget"] == 336


def test_several_classes_by_probabilities_and_without_a_gain_as_the_estimator() -> None:
    digits, labels = load_digits(return_X_y=True)
    forest = RandomForestClassifier(20, random_state=0)
    polished = DecisionClassifier(forest, "accuracy", budget=336).fit(digits[:500], labels[:500])
    assert polished.bias_.shape == (10,)
    if polished.result_.verdict == "no confirmed gain":
        same = polished.estimator_.predict(digits[500:700])
        assert (polished.predict(digits[500:700]) == same).mean() > 0.97  # ties of a forest
    weighted = DecisionClassifier(LINEAR, "accuracy", budget=336)
    weighted.fit(X, NAMES, sample_weight=np.where(NAMES == "yes", 5.0, 1.0))
    assert (weighted.predict(X) == "yes").mean() > (LINEAR.fit(X, NAMES).predict(X) == "yes").mean()


def test_what_is_not_fitted_says_so() -> None:
    with pytest.raises(NotFittedError):
        DecisionClassifier(LINEAR).predict(X)
