"""Errors that a user can correct, told in one line."""

from __future__ import annotations

import difflib
import functools
import inspect
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, TypeVar

T = TypeVar("T")


class InputError(ValueError):
    """Bad input from a user: one line that names the value and the correction.

    The command line prints it and leaves with `exit_code`; in a program it is a `ValueError`.
    """

    exit_code: ClassVar[int] = 2


class DiskError(InputError):
    """A disk that is full, or fails: nothing in what was asked for is wrong."""

    exit_code: ClassVar[int] = 1


def reason(error: BaseException) -> str:
    r"""An exception's type and text in one line, to be quoted inside an `InputError`.

    Example:
        >>> reason(OSError("no route\nto host"))
        'OSError: no route to host'
    """
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out, torch's known by name: it is not imported.

    That of torch's processor memory has no type of its own.

    Example:
        >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("shapes differ"))
        (True, False)
    """
    torchs_own = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
    if torchs_own or isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


_JOINERS = "\u200c\u200d"  # of letters in Persian and Hindi, and of emoji: they show nothing


def printable(text: str) -> str:
    r"""Return a text in which no sign acts on a terminal or a page; line breaks stay.

    Names of classes, files and arms are data: escape codes, signs that turn the direction of
    writing, and halves of signs that no encoding has become "?".

    Example:
        >>> printable("cat\x1b[31m\u202e")
        'cat?[31m?'
    """
    if text.isprintable():
        return text
    return "".join(
        sign if sign.isprintable() or sign in _JOINERS or sign == "\n" else _shown(sign)
        for sign in text
    )


def _shown(sign: str) -> str:
    return " " if sign.isspace() else "?"


def counted(n: int, noun: str) -> str:
    """Return a number with what it counts.

    Example:
        >>> counted(1, "seed"), counted(0, "seed"), counted(1200, "sample-forward")
        ('1 seed', '0 seeds', '1,200 sample-forwards')
    """
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def warn(text: str, category: type[Warning] = UserWarning) -> None:
    """Warn, pointing at the user's line that led here, however deep in the library it is told."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and _is_ours(frame.f_globals.get("__name__", "")):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, category, stacklevel=level)


def warn_renamed(old: str, new: str) -> None:
    """Warn the user's line that a name is an old one, which is still read."""
    warn(f"{old} is now called {new}: the old name will be refused later", FutureWarning)


def renamed_argument(old: str, new: str) -> Callable[[T], T]:
    """Return a decorator: the function, or the class, still reads an argument by its old name.

    Raises:
        ValueError: in a call that gives both names.

    Example:
        >>> @renamed_argument("children", "population")
        ... def double(population):
        ...     return 2 * population
        >>> double(3, children=4)
        Traceback (most recent call last):
        ValueError: population and children, its old name, are both given: leave children out
    """

    def decorate(target: Any) -> Any:
        function = vars(target)["__init__"] if isinstance(target, type) else target
        position = list(inspect.signature(function).parameters).index(new)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if old in kwargs:
                if new in kwargs or len(args) > position:
                    raise ValueError(
                        f"{new} and {old}, its old name, are both given: leave {old} out"
                    )
                warn_renamed(old, new)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        if not isinstance(target, type):
            return call
        target.__init__ = call  # type: ignore[misc]
        return target

    return decorate


def _is_ours(module: str) -> bool:
    # torch's decorators, such as no_grad, stand between two of our functions
    return module in ("evostep", "torch.utils._contextlib") or module.startswith("evostep.")


def unknown_name(
    kind: str, name: str, known: Iterable[str], *, choices: str | None = None
) -> InputError:
    """The error for a name that is none of `known`, with the nearest of them as the correction.

    Args:
        kind: what was named, such as `"data"`.
        name: what the user wrote.
        known: every accepted name; the nearest are suggested.
        choices: what to list as accepted, where `known` is too long to list or not all there is.

    Returns:
        The error, to be raised by the caller.

    Example:
        >>> print(unknown_name("model", "mpl", ["mlp", "small-cnn"]))
        unknown model 'mpl': did you mean mlp? Known: mlp, small-cnn
    """
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3)
    if not near and name:
        near = [other for other in known if name.lower() in other.lower()][:3]
    question = f" did you mean {' or '.join(near)}?" if near else ""
    return InputError(
        f"unknown {kind} {name!r}:{question} Known: {choices or ', '.join(sorted(known))}"
    )


def needs_package(what: str, package: str, install: str, error: ImportError) -> InputError:
    """The error for a package that cannot be imported: it is missing, or broken within.

    Args:
        what: needs it, such as `"CMAES"`.
        package: by the name under which it is imported.
        install: what to install, such as `"evostep[cma]"`.
        error: that its import raised.

    Returns:
        The error, to be raised by the caller.

    Example:
        >>> print(needs_package("CMAES", "cma", "evostep[cma]", ModuleNotFoundError(name="cma")))
        CMAES needs the package cma, which is not installed: pip install 'evostep[cma]'
    """
    absent = isinstance(error, ModuleNotFoundError) and error.name == package
    if absent:
        return InputError(
            f"{what} needs the package {package}, which is not installed: pip install '{install}'"
        )
    return InputError(
        f"{what} needs the package {package}, which is installed but cannot be imported "
        f"({reason(error)}): mend that, or pip install --force-reinstall {package}"
    )
