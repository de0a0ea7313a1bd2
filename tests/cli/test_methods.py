"""``evostep methods``: every method with its source and its defaults."""

from evostep.cli.methods import list_methods
from evostep.lab.arms.methods import METHODS


def test_the_list_names_every_method_with_source_and_defaults() -> None:
    text = list_methods()
    for name, method in METHODS.items():
        assert f"{name}: {method.summary}" in text
        assert method.source in text
        if method.strategy is not None:
            assert f"{type(method.strategy).__name__}(sigma={method.strategy.sigma}, " in text  # type: ignore[attr-defined]
