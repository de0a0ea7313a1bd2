"""YAML as of 1.2: 10:12 is text (a range of seeds), not 612 (seconds); 1e-3 is a number."""

from __future__ import annotations

import re
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """YAML 1.1 but for its numbers."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in resolvers if not tag.endswith((":int", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?[0-9]+$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
    ),
    list("-+.0123456789"),
)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))


def load(text: str) -> Any:
    """Read YAML.

    Raises:
        yaml.YAMLError: it is none.

    Example:
        >>> load("{seeds: 10:12, lr: 1e-3}")
        {'seeds': '10:12', 'lr': 0.001}
    """
    value = yaml.load(text, _Loader)
    _refuse_circles(value, ())
    return value


def _refuse_circles(value: Any, above: tuple[int, ...]) -> None:
    if id(value) in above:
        raise yaml.YAMLError("an alias refers to what it stands in")
    inside = value.values() if isinstance(value, dict) else value
    for item in inside if isinstance(value, dict | list) else ():
        _refuse_circles(item, (*above, id(value)))
