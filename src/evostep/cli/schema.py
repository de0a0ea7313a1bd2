"""The schema: what the command line has to know of the tables, in a file, to answer without torch.

    python -m evostep.cli.schema --write     # after a change of a table, or of an option

Values are told in the words of JSON Schema: `type`, `enum`, `default`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import operator
import re
import sys
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from evostep.lab.options import Options, one_of, option_kinds

FILE = Path(__file__).with_name("schema.json")
_TYPES = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    list: "array",
    dict: "object",
    Path: "path",
    types.NoneType: "null",
}


@functools.cache
def read_schema() -> dict[str, Any]:
    """Return the schema as it was written."""
    schema: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return schema


def make_schema() -> dict[str, Any]:
    """Make the schema from the tables; this imports torch."""
    from evostep.lab.arms.methods import METHODS, strategy_settings
    from evostep.lab.arms.precedence import OLD_NAMES
    from evostep.lab.comparison.executors import EXECUTORS
    from evostep.lab.data.sources import SOURCES
    from evostep.lab.models import MODELS, OTHER_MODELS
    from evostep.scoring.confusion import CONFUSION_METRICS
    from evostep.scoring.metrics import METRICS

    names = {
        "data": list(SOURCES),
        "model": list(MODELS),
        "metric": list(METRICS),
        "polish": list(CONFUSION_METRICS),
        "executor": list(EXECUTORS),
    }
    kinds = option_kinds()
    told = typing.get_type_hints(Options, include_extras=True)
    options = {
        field.name: {
            **describe(kinds[field.name]),
            "default": field.default,
            "help": typing.get_args(told[field.name])[1].format_map(
                {name: ", ".join(known) for name, known in names.items()}
            ),
        }
        for field in dataclasses.fields(Options)
        if typing.get_origin(told[field.name]) is typing.Annotated
    }
    methods = {
        name: {
            "summary": method.summary,
            "source": method.source,
            "strategy": type(method.strategy).__name__ if method.strategy else None,
            "space": method.space,
            "accept": method.accept,
            "gradient_noise": method.gradient_noise,
            "settings": {
                setting: {**describe(kind), "default": default}
                for setting, (kind, default) in (
                    strategy_settings(method.strategy).items() if method.strategy else ()
                )
            },
            "renamed": OLD_NAMES.get(type(method.strategy), {}) if method.strategy else {},
        }
        for name, method in METHODS.items()
    }
    return {
        "options": options,
        "methods": methods,
        "data": {name: {"summary": reader.summary} for name, reader in SOURCES.items()},
        "models": {name: {"summary": summary} for name, summary in (MODELS | OTHER_MODELS).items()},
        "metrics": {
            name: {
                "summary": metric.summary,
                "higher_is_better": metric.higher_is_better,
                "span": metric.span,
            }
            for name, metric in METRICS.items()
        },
        "names": names,
    }


def describe(kind: Any) -> dict[str, Any]:
    """Return a type annotation in the words of JSON Schema.

    Example:
        >>> describe(float | None), describe(Literal["sgd", "adam"] | None)
        ({'type': ['number', 'null']}, {'enum': ['sgd', 'adam', None]})
    """
    parts = _parts(kind)
    if any(typing.get_origin(part) is Literal for part in parts):
        values = [typing.get_args(part) or (None,) for part in parts]
        return {"enum": [value for group in values for value in group]}
    return {"type": [_TYPES[typing.get_origin(part) or part] for part in parts]}


def kind_of(described: dict[str, Any]) -> Any:
    """Return the type that `describe` told.

    Example:
        >>> kind_of(describe(float | None)), kind_of({"enum": ["sgd", "adam"]})
        (float | None, typing.Literal['sgd', 'adam'])
    """
    if "enum" in described:
        return one_of(described["enum"])
    by_name = {name: kind for kind, name in _TYPES.items()}
    kinds: list[Any] = [by_name[name] for name in described["type"]]
    return functools.reduce(operator.or_, kinds)


def _parts(kind: Any) -> Iterable[Any]:
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return typing.get_args(kind) if union else (kind,)


def main() -> int:
    """Write the schema, or tell whether the one that is written is that of the tables."""
    text = json.dumps(make_schema(), indent=1)
    for innermost in (r"\[[^\[\]]*\]", r"\{[^{}]*\}"):  # an option, or a setting, on one line
        text = re.sub(innermost, lambda found: " ".join(found[0].split()), text)
    text += "\n"
    if "--write" in sys.argv[1:]:
        FILE.write_text(text, encoding="utf-8")
    current = FILE.read_text(encoding="utf-8") == text
    print(f"{FILE.name} is {'current' if current else 'old: run this with --write'}")
    return 0 if current else 1


if __name__ == "__main__":
    raise SystemExit(main())
