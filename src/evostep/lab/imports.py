"""Things of the user's own, named by import path."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from evostep.errors import InputError, reason, unknown_name

_OURS = ("torchvision", "folder", "text-lines")  # what stands before a colon, and is no module


def runs_code(name: str) -> bool:
    """Return whether a model or data of this name is an import path; only a user may give one.

    Example:
        >>> [runs_code(name) for name in ("own:net", "torchvision:resnet18", "folder:pets", "mlp")]
        [True, False, False, False]
    """
    return ":" in name and name.partition(":")[0] not in _OURS


def load_attribute(path: str) -> Any:
    """Import what `package.module:attribute` names.

    As with `python -m`, the current directory comes first on the import path, and stays there, so
    that what is loaded can import its neighbours when it is called. The attribute may be dotted.

    Args:
        path: `"package.module:attribute"`.

    Returns:
        The attribute, whatever it is.

    Raises:
        InputError: the path has another form, the module cannot be imported (the reason is
            quoted), or it has no such attribute (near names are suggested).

    Example:
        >>> load_attribute("math:tau")
        6.283185307179586
    """
    module_name, colon, attribute = path.partition(":")
    parts = [*module_name.split("."), *attribute.split(".")]
    if not colon or not all(part.isidentifier() for part in parts):
        raise InputError(f"{path!r} is no import path: write package.module:attribute")
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    # A module just written would otherwise be missed by the finders' directory caches.
    importlib.invalidate_caches()
    try:
        value: Any = importlib.import_module(module_name)
    except Exception as error:  # a user's module may raise anything
        raise InputError(
            f"cannot import {module_name!r} of {path!r} ({reason(error)}): correct the name, or "
            f"run in the directory that holds it"
        ) from error
    owner = module_name
    for part in attribute.split("."):
        if not hasattr(value, part):
            public = [name for name in dir(value) if not name.startswith("_")]
            listed = ", ".join(public[:10]) + (", ..." if len(public) > 10 else "")
            raise unknown_name(f"attribute of {owner}", part, public, choices=listed or "none")
        value, owner = getattr(value, part), f"{owner}.{part}"
    return value


def resolve_metric(name: str) -> Any:
    """Return a metric by name, or what an import path names; a class is called without arguments.

    Raises:
        InputError: it cannot be imported, or made.

    Example:
        >>> resolve_metric("macro-f1"), resolve_metric("torch:dist").__name__
        ('macro-f1', 'dist')
    """
    if ":" not in name:
        return name
    metric = load_attribute(name)
    if not isinstance(metric, type):
        return metric
    try:
        return metric()
    except Exception as error:  # a user's class may raise anything
        raise InputError(
            f"{name} cannot be made without arguments ({reason(error)}): name a metric that is "
            "made already, or a function on (outputs, targets)"
        ) from error
