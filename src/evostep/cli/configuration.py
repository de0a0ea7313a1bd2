"""YAML as of 1.2: 10:12 is text (a range of seeds), not 612 (seconds); 1e-3 is a number.

No tag makes anything but text, numbers, lists and mappings, and references are counted before they
are followed: a file of a few hundred bytes may stand for a billion values.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from evostep.errors import reason

MOST = 100_000  # values that a file may stand for, references followed
DEEPEST = 50  # brackets in brackets


class _Loader(yaml.SafeLoader):
    """YAML 1.1 but for its numbers, and without dates."""

    def fetch_flow_collection_start(self, token: Any) -> None:
        """Read `[` or `{`; a thousand of them would take the scanner minutes."""
        if self.flow_level >= DEEPEST:
            raise yaml.YAMLError(f"it is nested more than {DEEPEST} levels deep")
        super().fetch_flow_collection_start(token)


_OWN = (":int", ":float", ":timestamp")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in resolvers if not tag.endswith(_OWN)]
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
for _tag in ("binary", "set", "omap", "pairs", "timestamp"):  # no option is one
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", yaml.SafeLoader.construct_undefined)  # type: ignore[type-var]


def load(text: str) -> Any:
    """Read YAML.

    Raises:
        yaml.YAMLError: it is none, refers to itself, or stands for more than `MOST` values.

    Example:
        >>> load("{seeds: 10:12, lr: 1e-3}")
        {'seeds': '10:12', 'lr': 0.001}
    """
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}) > MOST:
            raise yaml.YAMLError(f"its references stand for more than {MOST:,} values")
        return loader.construct_document(node)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error
    except (ValueError, LookupError, AttributeError) as error:  # a value is not what its tag says
        raise yaml.YAMLError(f"a value is not what it is tagged as ({reason(error)})") from error
    finally:
        if loader is not None:
            loader.dispose()


def _size(node: Any, known: dict[int, int | None]) -> int:
    """Return how many values a node stands for; `known` holds those of nodes, None while inside."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = None
        pairs = isinstance(node, yaml.MappingNode)
        inner = [one for pair in node.value for one in pair] if pairs else node.value
        known[id(node)] = 1 + sum(_size(one, known) for one in inner)
    size = known[id(node)]
    if size is None:
        raise yaml.YAMLError("it refers to itself")
    return size
